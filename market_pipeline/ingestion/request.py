"""What a run was asked to ingest, checked and complete."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.intervals import floor_to_monday
from market_pipeline.domain.records import Window
from market_pipeline.domain.symbols import parse_symbols
from market_pipeline.settings import (
    name_errors,
    parse_lookback_days,
    parse_provider_names,
    read_ingestion_defaults,
    shorten,
)

# A horizon as long as the look-back needs the close before it; exchanges close for days on end.
BASE_MARGIN = timedelta(days=4)


@dataclass(frozen=True, slots=True)
class Request:
    """One run's request.

    Attributes:
        symbols: In the order asked. providers: In the order of preference.
        lookback_days: How far back history is kept complete.
        now: The run's clock (UTC): the wall clock, or the window end when one was given.
        window: Bars by open_time; it begins on a Monday so that weeks are whole.
        is_default_routing: The providers are the configured ones, so theirs are primary markets.
    """

    symbols: tuple[str, ...]
    providers: tuple[str, ...]
    lookback_days: int
    now: datetime
    window: Window
    is_default_routing: bool


def build_request(
    wall_clock: datetime,
    symbols: Sequence[str] = (),
    provider: str = "",
    lookback_days: int = 0,
    window_end: str = "",
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
        now = parse_window_end(window_end, wall_clock) if window_end else wall_clock
    with name_errors(f"provider={shorten(provider)!r}"):
        providers = parse_provider_names(provider) if provider else defaults.providers
    with name_errors("symbols"):
        chosen = parse_symbols(symbols) if symbols else defaults.symbols
    start = floor_to_monday(now - timedelta(days=days) - BASE_MARGIN)
    return Request(
        symbols=chosen,
        providers=providers,
        lookback_days=days,
        now=now,
        window=Window(start, now),
        is_default_routing=providers == defaults.providers,
    )


def parse_window_end(text: str, wall_clock: datetime) -> datetime:
    """Return the moment in UTC; a time without a zone is UTC.

    Raises:
        SettingError: It is no ISO 8601 time, before 1970, or in the future.
    """
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise SettingError("expected an ISO 8601 time, such as 2018-12-31T00:00Z") from None
    if not datetime(1970, 1, 1, tzinfo=UTC) < moment <= wall_clock:
        raise SettingError("expected a time between 1970 and now")
    return moment
