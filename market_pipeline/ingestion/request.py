"""The request of a run, checked and complete."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from market_pipeline.domain.errors import NothingIngestedError, SettingError
from market_pipeline.domain.intervals import floor_to_monday
from market_pipeline.domain.records import Market, Window
from market_pipeline.domain.symbols import parse_symbols
from market_pipeline.providers.base import Provider
from market_pipeline.settings import (
    name_errors,
    parse_lookback_days,
    parse_provider_names,
    read_ingestion_defaults,
    read_statistics_settings,
    shorten,
)
from market_pipeline.storage.markets.registration import find_inactive, keep_facts

Route = tuple[Provider, Market]
# A horizon as long as the look-back needs the close before it; exchanges close for days on end.
BASE_MARGIN = timedelta(days=4)


@dataclass(frozen=True, slots=True)
class Request:
    """One run's request.

    Attributes:
        symbols: In the order asked. providers: In the order of preference.
        lookback_days: How far back history is kept complete.
        asked_at: When the run began (UTC, wall clock): how far back a provider reaches counts
            from there.
        now: The run's clock (UTC): the same, or the window end when one was given.
        window: Bars by open_time; it begins on a Monday so that weeks are whole. It ends at the
            run's clock, unless a span of history was asked for.
        is_default_routing: The providers are the configured ones, so theirs are primary markets.
        filled_from: Time that was never asked for is filled from here on (UTC): as far back as the
            look-back or the longest horizon. None: a span of history was asked for, and no more.
    """

    symbols: tuple[str, ...]
    providers: tuple[str, ...]
    lookback_days: int
    asked_at: datetime
    now: datetime
    window: Window
    is_default_routing: bool
    filled_from: datetime | None = None

    @property
    def is_live(self) -> bool:
        """Whether the run's clock is the wall clock: no window end was given."""
        return self.now == self.asked_at


def build_request(
    wall_clock: datetime,
    symbols: Sequence[str] = (),
    provider: str = "",
    lookback_days: int = 0,
    window_end: str = "",
    history_from: str = "",
    history_to: str = "",
    is_default_routing: bool = False,
) -> Request:
    """Fill what was not given from the environment, and check the rest.

    Raises:
        SettingError: A value is malformed or out of range; names the field and the value. Nothing
            was fetched or written.
    """
    defaults = read_ingestion_defaults()
    with name_errors(f"lookback_days={lookback_days}"):
        days = parse_lookback_days(str(lookback_days)) if lookback_days else defaults.lookback_days
    with name_errors(f"window_end={shorten(window_end)!r}"):
        now = parse_moment(window_end, wall_clock) if window_end else wall_clock
    with name_errors(f"provider={shorten(provider)!r}"):
        providers = parse_provider_names(provider) if provider else defaults.providers
    with name_errors("symbols"):
        chosen = parse_symbols(symbols) if symbols else defaults.symbols
    horizon = max(read_statistics_settings().horizons_days)
    return Request(
        symbols=chosen,
        providers=providers,
        lookback_days=days,
        asked_at=wall_clock,
        now=now,
        window=_find_window(now, days, history_from, history_to),
        is_default_routing=is_default_routing or providers == defaults.providers,
        filled_from=None if history_from else _begin_look_back(now, max(days, horizon)),
    )


def _find_window(now: datetime, days: int, history_from: str, history_to: str) -> Window:
    if history_to and not history_from:
        raise SettingError(f"history_to={shorten(history_to)!r}: set history_from as well")
    if not history_from:
        return Window(_begin_look_back(now, days), now)
    with name_errors(f"history_from={shorten(history_from)!r}"):
        start = parse_moment(history_from, now)
    with name_errors(f"history_to={shorten(history_to)!r}"):
        end = min(parse_moment(history_to, None), now) if history_to else now
    if start >= end:
        raise SettingError(
            f"history_from={shorten(history_from)!r} is not before "
            f"history_to={shorten(history_to or 'now')!r}"
        )
    return Window(floor_to_monday(start), end)


def _begin_look_back(now: datetime, days: int) -> datetime:
    return floor_to_monday(now - timedelta(days=days) - BASE_MARGIN)


def parse_moment(text: str, latest: datetime | None) -> datetime:
    """Return the moment in UTC; a time without a zone is UTC.

    Raises:
        SettingError: It is no ISO 8601 time, before 1970, or after ``latest``.
    """
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise SettingError("expected an ISO 8601 time, such as 2018-12-31T00:00Z") from None
    if moment <= datetime(1970, 1, 1, tzinfo=UTC) or (latest is not None and moment > latest):
        raise SettingError("expected a time between 1970 and now")
    return moment


def filter_active(connection: Connection, routes: Sequence[Route]) -> list[Route]:
    """Return the routes whose markets nobody has deactivated, with the stored facts of theirs.

    Raises:
        NothingIngestedError: All of them are.
    """
    inactive = find_inactive(connection, [market for _, market in routes])
    kept = [
        (provider, market)
        for provider, market in routes
        if (market.provider, market.provider_market_id) not in inactive
    ]
    if routes and not kept:
        raise NothingIngestedError(
            f"{', '.join(sorted(name for _, name in inactive))[:200]}: deactivated, and no other "
            "market was asked for: `market-pipeline markets add SYMBOL` activates one again"
        )
    markets = keep_facts(connection, [market for _, market in kept])
    return list(zip((provider for provider, _ in kept), markets, strict=True))
