"""Options that several commands share, checked as they are read."""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from market_pipeline.domain.errors import PipelineError, SettingError
from market_pipeline.domain.symbols import parse_symbols
from market_pipeline.settings import name_errors, parse_provider_names, shorten, split_list

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Column, Connection

_BEGINNING = re.compile(r"[0-9a-f-]{4,36}")
Check = Callable[[click.Context, click.Parameter, str | None], object]


def check_with(parse: Callable[[str], object]) -> Check:
    """Return a callback for an option whose errors name the option and its value."""

    def check(ctx: click.Context, parameter: click.Parameter, text: str | None) -> object:
        del ctx
        if text is None:
            return None
        with name_errors(f"{parameter.opts[0]} {shorten(text)!r}"):
            return parse(text)

    return check


def parse_time(text: str) -> str:
    """Return a moment up to now in ISO 8601, UTC."""
    from datetime import UTC, datetime

    from market_pipeline.ingestion.request import parse_moment

    return parse_moment(text, datetime.now(UTC)).isoformat()


def _make_symbols_option(told: str) -> Callable[[Callable[..., object]], Callable[..., object]]:
    check = check_with(lambda text: list(parse_symbols(split_list(text))))
    return click.option("--symbols", metavar="LIST", callback=check, help=told)


def keep_given(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the options that were given, whose span of history makes sense."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    check_span(given.get("history_from"), given.get("history_to"))
    return given


def check_span(history_from: str | None, history_to: str | None) -> None:
    """Make sure that --from comes before --to, where they were given."""
    if history_to and not history_from:
        raise SettingError(f"--to {history_to}: say --from as well")
    if history_from and history_to and history_from >= history_to:
        raise SettingError(f"--from {history_from} is not before --to {history_to}")


def _complete_provider(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Return the installed providers that begin so."""
    del ctx, parameter
    from market_pipeline.providers.registry import list_provider_names

    return [name for name in list_provider_names() if name.startswith(begun)]


SYMBOLS = _make_symbols_option("Symbols separated by commas; default INGESTION_MARKETS.")
STORED_SYMBOLS = _make_symbols_option(
    "Stored markets separated by commas, BTC-USD or yahoo:BTC-USD; default all."
)
PROVIDER = click.option(
    "--provider",
    metavar="LIST",
    callback=check_with(lambda text: ",".join(parse_provider_names(text))),
    shell_complete=_complete_provider,
    help="Provider, or several in order of preference; default INGESTION_PROVIDER.",
)
TO = click.option(
    "--to",
    "history_to",
    metavar="TIME",
    callback=check_with(parse_time),
    help="ISO 8601 time at which the history ends; default now.",
)


def parse_beginning(text: str) -> str:
    """Return the beginning of an id, four characters or more, in lower case."""
    if not _BEGINNING.fullmatch(text.lower()):
        raise SettingError("expected an id, or 4 or more characters of its beginning")
    return text.lower()


def make_id_argument(
    metavar: str, is_required: bool = True
) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Return the argument ``beginning``: an id, or what it begins with."""
    return click.argument(
        "beginning", metavar=metavar, required=is_required, callback=check_with(parse_beginning)
    )


def choose_id(
    connection: "Connection", column: "Column[Any]", beginning: str, thing: str, command: str
) -> "UUID":
    """Return the one id in a column that begins so.

    Args:
        connection: Any.
        column: Of ids.
        beginning: As of :func:`parse_beginning`.
        thing: What has the id, in a word.
        command: What lists them.

    Raises:
        PipelineError: None does, or several do: names them.
    """
    from market_pipeline.storage.rows import find_ids

    found = find_ids(connection, column, beginning)
    if len(found) == 1:
        return found[0]
    if not found:
        raise PipelineError(
            f"no {thing} has an id that begins with {beginning}: `{command}` lists them"
        )
    names = ", ".join(map(str, found[:3]))
    raise PipelineError(
        f"{beginning} is the beginning of several ids, such as {names}: give more of it"
    )


def make_from_option(is_required: bool) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Return the option that says where history begins."""
    return click.option(
        "--from",
        "history_from",
        metavar="TIME",
        required=is_required,
        callback=check_with(parse_time),
        help="ISO 8601 time from which history is wanted, such as 2015-01-01.",
    )
