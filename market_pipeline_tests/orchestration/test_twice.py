"""A run over bars that did not change computes nothing and writes nothing, whatever its clock."""

from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from market_pipeline.storage.tables import metadata
from market_pipeline_tests.commands import ROOT
from market_pipeline_tests.orchestration.conftest import Materialise

pytestmark = pytest.mark.usefixtures("without_pictures")

SERIES = ROOT / "market_pipeline_tests" / "recordings" / "series"
NEW_YEAR, LATER, MUCH_LATER = "2019-01-01T00:00Z", "2019-01-15T00:00Z", "2019-06-01T00:00Z"
# What tells that a run was there, and nothing of markets.
OF_RUNS = {
    "ingestion_run", "ingestion_run_market", "ingestion_run_table", "ingestion_request",
    "metric_total", "fetch_claim", "provider_budget",
}  # fmt: skip
# Of these the columns that say when the provider was asked change, and at a later clock how far
# time is known to have no bars.
COVERAGE = "market_coverage"
STATISTICS = ("market_roi_statistic", "market_comparison")


@pytest.fixture
def files(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An empty database, and a year of two recorded series as the only source."""
    monkeypatch.setenv("INGESTION_PROVIDER", "file")
    monkeypatch.setenv("INGESTION_MARKETS", "BTC-USD,SPX")
    monkeypatch.setenv("INGESTION_LOOKBACK_DAYS", "366")
    monkeypatch.setenv("FILE_PROVIDER_PATH", str(SERIES))
    return engine


def read_tables(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Return every table that is about markets, with the transaction that wrote each row."""
    found = {}
    with engine.connect() as connection:
        for table in metadata.sorted_tables:
            if table.name in OF_RUNS:
                continue
            names = [column.name for column in table.columns]
            kept = [name for name in names if not name.startswith("refreshed_")]
            columns = ", ".join(f'"{name}"' for name in kept)
            wrote = "" if table.name == COVERAGE else "xmin::text, "
            query = f"SELECT {wrote}{columns} FROM {table.fullname}"
            found[table.name] = sorted(map(tuple, connection.execute(text(query))), key=str)
    return found


def read_notes(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """Return what assets say that they did not compute."""
    return {
        event.asset_key.path[-1]: str(entry.value)
        for event in result.get_asset_materialization_events()
        for name, entry in event.materialization.metadata.items()
        if name == "not_computed"
    }


def test_a_second_run_changes_no_row_of_any_table(files: Engine, materialise: Materialise) -> None:
    """But receipts, when the provider answered, and totals; the assets say why, in words."""
    assert read_notes(materialise(window_end=NEW_YEAR)) == {}
    before = read_tables(files)
    assert len(before["market_roi_statistic"]) == 8
    again = materialise(window_end=NEW_YEAR)
    after = read_tables(files)
    assert {name for name in before if before[name] != after[name]} == set()
    unchanged = "bars, holes, events and settings did not change, so nothing was computed"
    assert read_notes(again) == {
        "market_roi_statistics": f"2 of 2 markets: {unchanged}",
        "market_comparisons": f"1 of 1 pairs: {unchanged}",
    }


def test_a_market_without_new_bars_keeps_its_year_at_any_later_clock(
    files: Engine, materialise: Materialise
) -> None:
    """The S&P 500 ends in 2018: its statistics of that year stand ever after, to the last bit."""
    materialise(symbols=["SPX"], window_end=NEW_YEAR)
    before = read_tables(files)
    year = """SELECT roi, sharpe, n_returns FROM market_data.market_roi_statistic
        WHERE horizon = '365d'"""
    for clock in (LATER, MUCH_LATER):
        materialise(symbols=["SPX"], window_end=clock)
        after = read_tables(files)
        assert {name for name in STATISTICS if before[name] != after[name]} == set()
        assert before["computed_input"] == after["computed_input"]
    with files.connect() as connection:
        ((roi, sharpe, returns),) = connection.execute(text(year))
    assert (round(roi, 4), round(sharpe, 3), returns) == (-0.0624, -0.294, 251)


def test_statistics_alone_at_any_clock_are_those_of_the_stored_bars(
    files: Engine, materialise: Materialise
) -> None:
    """A clock long before or after the bars changes nothing, also when all is computed again."""
    materialise(window_end=NEW_YEAR)
    before = read_tables(files)
    for clock in ("2018-06-30T00:00Z", "2026-01-01T00:00Z"):
        with files.begin() as connection:
            connection.execute(text("DELETE FROM market_data.computed_input"))
        assets = ("market_roi_statistics", "market_comparisons")
        assert materialise(*assets, window_end=clock).success
        after = read_tables(files)
        assert {name for name in STATISTICS if before[name] != after[name]} == set()
