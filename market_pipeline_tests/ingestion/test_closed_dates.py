"""Bars of no session: kept once, out of every series, and no fault of the market."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text

from market_pipeline.cli.main import main
from market_pipeline.domain import sessions
from market_pipeline.domain.grids import _build_grid
from market_pipeline.domain.sessions import build_schedule
from market_pipeline.ingestion import calendars
from market_pipeline.ingestion.calendars import load_calendars
from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.ingestion.run_alerts import MarketOutcomes
from market_pipeline.providers.file import FileProvider
from market_pipeline.storage.runs.claims import (
    hold_liveness_lock,
    release_claims,
    wait_for_claim,
)

START, NOW = datetime(2023, 8, 1, tzinfo=UTC), datetime(2024, 3, 4, 12, tzinfo=UTC)
SATURDAY = "2024-02-10"
HOLIDAYS = ("2023-09-04", "2023-11-23", "2023-12-25", "2024-01-01", "2024-01-15", "2024-02-19")
STRAYS = """SELECT open_time::date::text AS date, rule, times_seen FROM market_data.quarantined_row
    ORDER BY open_time"""
ALERTS = "SELECT kind, members::text AS details FROM market_data.alert WHERE cleared_at IS NULL"
DAYS = """SELECT open_time::date::text AS date, close, is_final FROM market_data.market_aggregate
    WHERE "interval" = :interval ORDER BY 1"""


class Files:
    """Ingests a file of daily closes of the S&P 500, which the test writes."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder

    def write(self, *strays: str) -> None:
        """Write the sessions of half a year, and rows of other dates that are far too high."""
        days = build_schedule("XNYS")["session_date"]
        days = days[days.between(START, NOW)]
        dates = sorted([*days.dt.strftime("%Y-%m-%d"), *strays])
        rows = [f"{day},{9e5 if day in strays else 4000 + at}\n" for at, day in enumerate(dates)]
        (self.folder / "SPX.csv").write_text("date,close\n" + "".join(rows))

    def run(self, now: datetime = NOW, days: int = 200) -> dict[str, Any]:
        """Ingest as a run does, and return the market's receipt."""
        provider = FileProvider({"FILE_PROVIDER_PATH": str(self.folder)})
        market = provider.find_market("SPX")
        assert market is not None
        request = build_request(datetime.now(UTC), ["SPX"], "file", days, now.isoformat())
        run = Run(uuid4(), "manual", now, request)
        ends = MarketOutcomes()
        for wave in BarStream(self.engine, run, [(provider, market)]):
            for landed in wave:
                ends.note(landed.item, landed.result)
        with self.engine.begin() as connection:
            ends.report(connection, run)
        return self.receipt(run.run_id)

    def receipt(self, run_id: UUID) -> dict[str, Any]:
        """Return a run's receipt of its one market."""
        query = "SELECT * FROM market_data.ingestion_run_market WHERE run_id = :run_id"
        return self.read(query, run_id=run_id)[0]

    def read(self, query: str, **values: object) -> list[dict[str, Any]]:
        """Return a query's rows."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(query), values).mappings()]

    def execute(self, statement: str) -> None:
        """Run a statement in a transaction."""
        with self.engine.begin() as connection:
            connection.execute(text(statement))


@pytest.fixture
def files(engine: Engine, tmp_path: Path) -> Files:
    """An empty database, and a folder without a file yet."""
    return Files(engine, tmp_path)


def test_a_saturday_row_is_kept_once_and_enters_no_series(files: Files) -> None:
    """The market is whole without it: no partial outcome, no alert, and the week is Friday's."""
    files.write(SATURDAY)
    for times in (1, 2):
        receipt = files.run(NOW)
        files.execute("UPDATE market_data.market_coverage SET settled = '{}'")
        assert (receipt["outcome"], receipt["quarantined"], receipt["holes_left"]) == ("ok", 0, 0)
        assert receipt["reason"] == "1 bars outside the sessions of XNYS; they are in quarantine"
        kept = {"date": SATURDAY, "rule": "not_a_session", "times_seen": times}
        assert files.read(STRAYS) == [kept]
    assert files.read(ALERTS) == []
    days = {row["date"]: row["close"] for row in files.read(DAYS, interval="1d")}
    weeks = {row["date"]: row for row in files.read(DAYS, interval="1w")}
    assert SATURDAY not in days
    assert max(days.values()) < 9e5
    assert weeks["2024-02-05"]["close"] == days["2024-02-09"]
    assert weeks["2024-02-05"]["is_final"] is True


def test_rows_on_most_holidays_make_the_calendar_suspect(files: Files) -> None:
    """Receipt and alert say it in plain words, in every run, until somebody has looked."""
    files.write(*HOLIDAYS)
    first = files.run()
    assert (first["outcome"], first["quarantined"]) == ("partial", 6)
    assert first["reason"] == (
        "the calendar XNYS is suspect: bars came on 6 of 6 weekdays on which it is closed, in the "
        "year to 2024-03-01; they are in quarantine, not stored"
    )
    again = files.run(NOW + timedelta(minutes=5))
    assert (again["outcome"], again["reason"]) == ("partial", first["reason"])
    alerts = {row["kind"]: row["details"] for row in files.read(ALERTS)}
    assert "the calendar XNYS is suspect" in alerts["markets_short"]
    assert len(files.read(STRAYS)) == 6
    files.execute("UPDATE market_data.quarantined_row SET status = 'discarded'")
    assert files.run(NOW + timedelta(minutes=9))["outcome"] == "ok"


def test_a_handful_of_holiday_rows_in_a_year_is_no_rule(files: Files) -> None:
    """Four of six are most; three are not a handful."""
    files.write(*HOLIDAYS[:3])
    receipt = files.run()
    assert (receipt["outcome"], receipt["quarantined"]) == ("ok", 0)
    assert receipt["reason"] == "3 bars outside the sessions of XNYS; they are in quarantine"


def test_an_impossible_row_beside_a_stray_one_is_still_told(files: Files) -> None:
    """Only the stray one is nobody's fault."""
    files.write(SATURDAY)
    path = files.folder / "SPX.csv"
    path.write_text(path.read_text().replace("2024-01-03,", "2024-01-03,-"))
    receipt = files.run()
    assert (receipt["outcome"], receipt["quarantined"]) == ("partial", 1)
    assert receipt["reason"].startswith("1 bars rejected: price_not_positive; 1 holes left")
    assert receipt["reason"].endswith("1 bars outside the sessions of XNYS; they are in quarantine")


CLOSED_BY_MISTAKE = ("2024-02-13", "2024-02-14")
RUNS = "SELECT trigger FROM market_data.ingestion_run ORDER BY started_at, trigger"
STATUSES = "SELECT status FROM market_data.quarantined_row ORDER BY open_time"


@pytest.fixture
def load(files: Files, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Load New York's calendar as a new process does, by a library that lacks some dates."""

    def load_anew(*lacking: str, source: str) -> None:
        lacks = build_schedule("XNYS")
        lacks = lacks[~lacks["session_date"].dt.strftime("%Y-%m-%d").isin(lacking)]
        monkeypatch.setattr(sessions, "_known", {})
        monkeypatch.setattr(calendars, "build_schedule", lambda _: lacks.reset_index(drop=True))
        monkeypatch.setattr(calendars, "describe_source", lambda: source)
        _build_grid.cache_clear()
        load_calendars(files.engine, ["XNYS"])

    yield load_anew
    _build_grid.cache_clear()


def test_a_calendar_that_learns_of_a_session_takes_its_bars_in(
    files: Files, load: Callable[..., None]
) -> None:
    """By the replay's own path, once, in the process that noticed; what is still closed stays."""
    load(*CLOSED_BY_MISTAKE, source="exchange_calendars 1")
    files.write(SATURDAY)
    files.run()
    assert [row["date"] for row in files.read(STRAYS)] == [SATURDAY, *CLOSED_BY_MISTAKE]
    load(source="exchange_calendars 2")
    assert files.read(STATUSES) == [{"status": one} for one in ("open", "replayed", "replayed")]
    assert [row["trigger"] for row in files.read(RUNS)] == ["manual", "replay"]
    days = {row["date"]: row["is_final"] for row in files.read(DAYS, interval="1d")}
    weeks = {row["date"]: row["is_final"] for row in files.read(DAYS, interval="1w")}
    assert [days.get(day) for day in CLOSED_BY_MISTAKE] == [True, True]
    assert weeks["2024-02-12"] is True
    assert files.read("SELECT 1 FROM market_data.fetch_claim") == []
    load(source="exchange_calendars 2")
    assert len(files.read(RUNS)) == 2
    assert files.run(NOW + timedelta(minutes=5))["outcome"] == "ok"


def test_the_replay_command_validates_by_the_calendar_of_today(
    files: Files, load: Callable[..., None], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of no session are among those that `quarantine replay --all` validates again."""
    load(*CLOSED_BY_MISTAKE, source="exchange_calendars 1")
    files.write(SATURDAY)
    files.run()
    monkeypatch.setattr(sessions, "_known", {})
    _build_grid.cache_clear()
    monkeypatch.setenv("DATABASE_URL", database_url)
    replayed = CliRunner().invoke(main, ["quarantine", "replay", "--all"])
    assert replayed.exit_code == 3
    assert "2 rows replayed, 1 still bad" in replayed.stdout
    assert "is still bad: not_a_session" in replayed.stderr


def test_a_market_that_is_busy_is_validated_again_by_a_later_process(
    files: Files, load: Callable[..., None]
) -> None:
    """A run goes on without; the calendar's source is not noted before the rows are in."""
    load(*CLOSED_BY_MISTAKE, source="exchange_calendars 1")
    files.write()
    files.run()
    other = uuid4()
    with hold_liveness_lock(files.engine, other):
        token = wait_for_claim(files.engine, 1, other, timedelta(minutes=2), timedelta(0))
        load(source="exchange_calendars 2")
        with files.engine.begin() as connection:
            release_claims(connection, {1: token})
    assert files.read(STATUSES) == [{"status": "open"}] * 2
    load(source="exchange_calendars 2")
    assert files.read(STATUSES) == [{"status": "replayed"}] * 2
