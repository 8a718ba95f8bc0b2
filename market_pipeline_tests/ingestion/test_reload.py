"""Reading a stored market again: replaced as a whole, or as far as it comes, and never half."""

import gzip
import os
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pandas as pd
import pytest
from sqlalchemy import Engine

from market_pipeline.domain.errors import PipelineError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.parsing import TO_READ_AGAIN
from market_pipeline.domain.records import Market, Window
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.reload import (
    ReloadPlan,
    plan_market_reload,
    reload_market,
    sample_changes,
)
from market_pipeline.ingestion.request import Request, Route, build_request
from market_pipeline.readers.aggregates import read_aggregates
from market_pipeline.storage.coverage.ledger import read_coverage, read_flaws
from market_pipeline.storage.markets.admin import count_rows, purge_market, set_active
from market_pipeline.storage.markets.dump import dump_market
from market_pipeline.storage.server.programs import psql_path
from market_pipeline.storage.server.urls import build_psql_address
from market_pipeline_tests.ingestion.reading import (
    NOON,
    Reader,
    count,
    read,
    read_finals,
    read_older,
    run,
)

LATER = NOON + timedelta(days=1)
MIDDLE = datetime(2024, 3, 9, tzinfo=UTC)


def make_route(provider: Reader, **changes: str) -> Route:
    """Return a provider with its market, as it describes it now."""
    market = provider.find_market("BTC-USD")
    assert market is not None
    return provider, replace(market, **changes)  # type: ignore[arg-type]


def make_request(now: datetime = LATER) -> Request:
    """Return a request of the wall clock for the mock's market."""
    return build_request(datetime.now(UTC), ["BTC-USD"], "mock", 1, now.isoformat())


def plan(engine: Engine, route: Route) -> ReloadPlan:
    """Return what a reload would do."""
    with engine.connect() as connection:
        return plan_market_reload(connection, route, 1, make_request())


def reload(engine: Engine, route: Route) -> UUID:
    """Read the market again."""
    done = Run(uuid4(), "reload", datetime.now(UTC), make_request())
    for _ in reload_market(engine, done, route, 1):
        pass
    return done.run_id


def list_bars(provider: Reader, spans: list[Window]) -> set[tuple[object, ...]]:
    """Return the bars that a provider gives of the hours and days of some spans."""
    market = make_route(provider)[1]
    found: set[tuple[object, ...]] = set()
    for span in spans:
        for interval in market.intervals:
            bars = provider.fetch_bars(market, interval, span, LATER)
            names = ["interval", "open_time", "open", "high", "low", "close"]
            rows = bars.loc[bars["is_final"], names].itertuples(index=False)
            found |= {(row[0], row[1].to_pydatetime(), *row[2:]) for row in rows}
    return found


@pytest.fixture
def upgraded(engine: Engine) -> Engine:
    """A market that version 1 loaded and version 2 went on with."""
    run(engine, Reader(1), NOON)
    run(engine, Reader(2), LATER)
    return engine


def test_a_reload_replaces_what_an_older_parser_has_read(upgraded: Engine) -> None:
    """Every bar is as today's parser reads it, and nothing is mixed any more."""
    before = read_finals(upgraded)
    reload(upgraded, make_route(Reader(2)))
    first = min(row[1] for row in before)
    assert read_finals(upgraded) == list_bars(Reader(2), [Window(first, LATER)])
    assert len(read_finals(upgraded)) == len(before)
    assert set(read_older(upgraded).values()) == {()}
    with upgraded.connect() as connection:
        for interval in (Interval.HOUR, Interval.DAY):
            assert read_flaws(connection, [1], interval) == []


def test_the_old_values_stay_readable(upgraded: Engine) -> None:
    """Each replaced bar leaves a revision, and the version of before gives it back."""
    span = ("mock:BTC-USD", "1d", "2024-03-01", "2024-04-01")
    before = read_aggregates(*span, engine=upgraded)
    reload(upgraded, make_route(Reader(2)))
    version = before.attrs["dataset_version"]
    again = read_aggregates(*span, version=version, engine=upgraded)
    pd.testing.assert_frame_equal(again, before)
    assert count(upgraded, "market_aggregate_revision") >= len(before) - 2


def test_only_what_waits_is_asked_for(upgraded: Engine) -> None:
    """What today's parser has read already need not come again."""
    older = {interval: spans[0] for interval, spans in read_older(upgraded).items()}
    provider = Reader(2)
    receipt = reload(upgraded, make_route(provider))
    assert dict(provider.asked) == older
    (row,) = read(
        upgraded,
        "SELECT trigger, outcome FROM market_data.ingestion_run WHERE run_id = :run_id",
        run_id=receipt,
    )
    assert row == {"trigger": "reload", "outcome": "ok"}
    purposes = "SELECT DISTINCT purpose FROM market_data.ingestion_request WHERE run_id = :run_id"
    assert read(upgraded, purposes, run_id=receipt) == [{"purpose": "reload"}]


def test_planning_and_sampling_change_nothing(upgraded: Engine) -> None:
    """They tell how many bars of a page would change, and by how much."""
    before = (read_finals(upgraded), read_older(upgraded))
    planned = plan(upgraded, make_route(Reader(2)))
    rows = sample_changes(upgraded, planned, LATER)
    assert [row["interval"] for row in rows] == ["1h", "1d"]
    for row in rows:
        assert 0 < row["would change"] == row["compared"]
        assert row["largest change"] == pytest.approx((1 + 2 / 250) / (1 + 1 / 250) - 1)
        assert (row["did not come"], row["error"]) == (0, None)
    assert (read_finals(upgraded), read_older(upgraded)) == before


def test_what_is_out_of_reach_stays_and_stays_marked(upgraded: Engine) -> None:
    """It keeps its old values; the issue moves to where it ends."""
    before = {row for row in read_finals(upgraded) if row[1] < MIDDLE}
    provider = Reader(2, reaches_back=datetime.now(UTC) - MIDDLE)
    planned = plan(upgraded, make_route(provider))
    assert [len(part.lost) for part in planned.parts] == [1, 1]
    reload(upgraded, make_route(provider))
    after = read_finals(upgraded)
    assert before <= after
    # The clock of the request is a little later than that of the reach.
    assert {row for row in after if row[1] > MIDDLE} <= list_bars(
        Reader(2), [Window(MIDDLE, LATER)]
    )
    for spans in read_older(upgraded).values():
        assert len(spans) == 1
        assert MIDDLE <= spans[0].end < MIDDLE + timedelta(days=1, minutes=1)
    with upgraded.connect() as connection:
        (issue,) = read_flaws(connection, [1], Interval.HOUR)
    assert issue.window is not None
    assert MIDDLE < issue.window.start < MIDDLE + timedelta(hours=2)


def test_bars_that_do_not_come_stay_as_they_were(upgraded: Engine) -> None:
    """The answer leaves a day out: its bars keep their values and their mark."""
    old_day = {row for row in read_finals(upgraded) if MIDDLE.date() == row[1].date()}
    reload(upgraded, make_route(Reader(2, "BTC-USD:skipped_page@2024-03-09..2024-03-10")))
    assert old_day <= read_finals(upgraded)
    day = Window(MIDDLE, MIDDLE + timedelta(days=1))
    assert set(read_older(upgraded).values()) == {(day,)}
    assert count(upgraded, "coverage_hole") == 0


class Killed(Reader):
    """A provider during whose third answer the process dies."""

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> pd.DataFrame:
        """Return two answers, then none."""
        if len(self.asked) == 2:
            raise KeyboardInterrupt
        return super().fetch_bars(market, interval, window, now)


def test_a_killed_reload_goes_on_where_it_stopped(
    upgraded: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed is not asked for again, and the end is the same."""
    monkeypatch.setattr("market_pipeline.ingestion.fetch.BATCH_BARS", 1)
    first = min(row[1] for row in read_finals(upgraded))
    page = timedelta(days=3)
    with pytest.raises(KeyboardInterrupt):
        reload(upgraded, make_route(Killed(2, page=page)))
    left = {interval: spans[0] for interval, spans in read_older(upgraded).items()}
    assert left[Interval.HOUR].start == first + 2 * page
    provider = Reader(2, page=page)
    reload(upgraded, make_route(provider))
    assert min(window.start for _, window in provider.asked) == left[Interval.DAY].start
    assert (
        min(window.start for interval, window in provider.asked if interval is Interval.HOUR)
        == left[Interval.HOUR].start
    )
    assert read_finals(upgraded) == list_bars(Reader(2), [Window(first, LATER)])
    assert set(read_older(upgraded).values()) == {()}


def test_without_an_older_parser_all_is_read_again(engine: Engine) -> None:
    """Equal answers change nothing."""
    run(engine, Reader(2), NOON)
    before = read_finals(engine)
    provider = Reader(2)
    reload(engine, make_route(provider))
    assert min(window.start for _, window in provider.asked) == min(row[1] for row in before)
    assert read_finals(engine) == before
    assert count(engine, "market_aggregate_revision") == 0
    assert set(read_older(engine).values()) == {()}


def test_changed_facts_mark_all_that_is_stored(engine: Engine) -> None:
    """The facts are replaced, and what cannot come again is marked as of before."""
    run(engine, Reader(2), NOON)
    provider = Reader(2, reaches_back=datetime.now(UTC) - MIDDLE)
    route = make_route(provider, price_basis="adjusted")
    assert plan(engine, route).facts == {"price_basis": ("unadjusted", "adjusted")}
    reload(engine, route)
    assert read(engine, "SELECT price_basis FROM market_data.market") == [
        {"price_basis": "adjusted"}
    ]
    with engine.connect() as connection:
        for known in read_coverage(connection, [1]).values():
            assert list(known.older_parsings) == [TO_READ_AGAIN]
            (span,) = known.older_parsings[TO_READ_AGAIN]
            assert MIDDLE <= span.end < MIDDLE + timedelta(days=1, minutes=1)


def test_a_deactivated_market_is_not_read_again(upgraded: Engine) -> None:
    """The error names the command that takes it back."""
    set_active(upgraded, [1], is_active=False)
    with pytest.raises(PipelineError, match="markets add"):
        plan(upgraded, make_route(Reader(2)))


@pytest.mark.owner
def test_a_dump_brings_a_market_back_as_it_was(
    upgraded: Engine, database_url: str, tmp_path: Path
) -> None:
    """Purged and read back by psql, each table has the rows it had."""
    file = tmp_path / "reloads" / "market.sql.gz"
    size = dump_market(upgraded, 1, file)
    with upgraded.connect() as connection:
        before = count_rows(connection, 1)
    bars = read_finals(upgraded)
    for _ in purge_market(upgraded, 1):
        pass
    assert read_finals(upgraded) == set()
    address, secrets = build_psql_address(database_url)
    subprocess.run(
        [str(psql_path()), address, "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1"],
        input=gzip.decompress(file.read_bytes()), env={**os.environ, **secrets}, check=True,
    )  # fmt: skip
    with upgraded.connect() as connection:
        assert count_rows(connection, 1) == before
    assert read_finals(upgraded) == bars
    assert (file.stat().st_size, file.stat().st_mode & 0o777) == (size, 0o600)
    assert list(file.parent.iterdir()) == [file]
