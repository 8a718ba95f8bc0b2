"""Exchange calendars are built once for a database, and again when they are out of date."""

import subprocess
import sys
from collections.abc import Callable

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from sqlalchemy import Engine, text

from market_pipeline.domain import sessions
from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.sessions import build_schedule, describe_source
from market_pipeline.ingestion.calendars import load_calendars
from market_pipeline.storage.markets.trading_sessions import read_schedule

LATER_PROCESS = """
import sys
from datetime import UTC, datetime
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.ingestion.calendars import load_calendars
from market_pipeline.storage.server.engine import find_database, open_engine
load_calendars(open_engine(find_database()), ["24/7", "XNYS"])
days = read_sessions("XNYS", datetime(2024, 7, 1, tzinfo=UTC), datetime(2024, 7, 8, tzinfo=UTC))
print(len(days), "exchange_calendars" in sys.modules)
"""


@pytest.fixture
def load(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pd.DataFrame]:
    """Load a calendar as a new process does, and return what it knows then."""

    def load_anew(calendar: str = "XNYS") -> pd.DataFrame:
        known: dict[str, sessions.SessionTimes] = {}
        monkeypatch.setattr(sessions, "_known", known)
        load_calendars(engine, ["24/7", calendar])
        assert list(known) == [calendar]
        return sessions.read_sessions(calendar, sessions.EPOCH, sessions.LAST_DAY)

    return load_anew


def run(engine: Engine, statement: str) -> None:
    """Run a statement in a transaction of its own."""
    with engine.begin() as connection:
        connection.execute(text(statement))


@pytest.mark.parametrize("calendar", ["XNYS", "XTKS", "XHKG"])
def test_what_is_kept_is_what_the_library_knows(
    engine: Engine, load: Callable[..., pd.DataFrame], calendar: str
) -> None:
    """Built by the first process, read by the second: the same to the microsecond and the dtype."""
    built = load(calendar)
    assert_frame_equal(load(calendar), built)
    assert_frame_equal(built, build_schedule(calendar))
    with engine.connect() as connection:
        assert_frame_equal(read_schedule(connection, calendar, describe_source()), built)


def test_a_later_process_does_not_load_the_library(
    load: Callable[..., pd.DataFrame], project_environment: dict[str, str]
) -> None:
    """That is what it is kept for."""
    load()
    command = [sys.executable, "-c", LATER_PROCESS]
    done = subprocess.run(
        command, capture_output=True, text=True, env=project_environment, check=True
    )
    assert done.stdout.split() == ["4", "False"]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE {} SET source = 'exchange_calendars 4.0', close_time = close_time - interval '1 h'",
        "DELETE FROM {} WHERE session_date > current_date + 170",
        "DELETE FROM {}",
    ],
)
def test_what_is_out_of_date_is_replaced(
    engine: Engine, load: Callable[..., pd.DataFrame], change: str
) -> None:
    """Another version of the library may know other hours; no schedule ends within the horizon."""
    built = load()
    run(engine, change.format("market_data.trading_session"))
    assert_frame_equal(load(), built)
    with engine.connect() as connection:
        assert_frame_equal(read_schedule(connection, "XNYS", describe_source()), built)


def test_a_calendar_that_nobody_knows_is_named(load: Callable[..., pd.DataFrame]) -> None:
    """Nothing is kept of it."""
    with pytest.raises(SettingError, match="calendar 'XNOPE' is unknown"):
        load("XNOPE")
