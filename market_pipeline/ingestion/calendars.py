"""Exchange calendars from the database, because building one takes most of a second in each run."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine

from market_pipeline.domain.intervals import ALWAYS_OPEN
from market_pipeline.domain.sessions import (
    build_schedule,
    describe_source,
    is_schedule_known,
    remember_schedule,
)
from market_pipeline.ingestion.quarantine import replay_sessions
from market_pipeline.storage.markets.trading_sessions import read_schedule, replace_schedule

_AHEAD = timedelta(days=180)
"""The library knows a year ahead; kept sessions that end sooner than this are built again."""


def load_calendars(engine: Engine, calendars: Iterable[str]) -> None:
    """Make this process know calendars, from the table where it has them; fills it otherwise.

    Bars that a calendar had no session for are validated again when it is filled: the library may
    have learned of one. While a market of it is busy, the table is left for a later process to
    fill.

    Raises:
        SettingError: A calendar is unknown.
    """
    for calendar in sorted(set(calendars) - {ALWAYS_OPEN}):
        if not is_schedule_known(calendar):
            _load_calendar(engine, calendar)


def _load_calendar(engine: Engine, calendar: str) -> None:
    source, now = describe_source(), datetime.now(UTC)
    with engine.connect() as connection:
        kept = read_schedule(connection, calendar, source)
    if not kept.empty and kept["close_time"].iloc[-1] > now + _AHEAD:
        remember_schedule(calendar, kept)
        return
    built = build_schedule(calendar)
    remember_schedule(calendar, built)
    if replay_sessions(engine, calendar, now):
        with engine.begin() as connection:
            replace_schedule(connection, calendar, source, built)
