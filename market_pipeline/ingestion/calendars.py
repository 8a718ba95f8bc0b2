"""Exchange calendars from the database: to build one takes most of a second, in every run."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pandas as pd
from sqlalchemy import Engine

from market_pipeline.domain.intervals import ALWAYS_OPEN
from market_pipeline.domain.sessions import (
    build_schedule,
    describe_source,
    is_schedule_known,
    remember_schedule,
)
from market_pipeline.storage.trading_sessions import read_schedule, replace_schedule

_AHEAD = timedelta(days=180)
"""The library knows a year ahead; kept sessions that end sooner than this are built again."""


def load_calendars(engine: Engine, calendars: Iterable[str]) -> None:
    """Make this process know calendars, from the table where it has them; fills it otherwise.

    Raises:
        SettingError: A calendar is unknown.
    """
    for calendar in sorted(set(calendars) - {ALWAYS_OPEN}):
        if not is_schedule_known(calendar):
            remember_schedule(calendar, _load_schedule(engine, calendar))


def _load_schedule(engine: Engine, calendar: str) -> pd.DataFrame:
    source = describe_source()
    with engine.connect() as connection:
        kept = read_schedule(connection, calendar, source)
    if not kept.empty and kept["close_time"].iloc[-1] > datetime.now(UTC) + _AHEAD:
        return kept
    built = build_schedule(calendar)
    with engine.begin() as connection:
        replace_schedule(connection, calendar, source, built)
    return built
