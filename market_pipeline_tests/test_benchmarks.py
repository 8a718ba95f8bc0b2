"""The benchmark runs, at a tiny size: what it measures may change, that it measures must not."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine

from benchmarks.bar_table import KEYS, TABLE, BarTable, prepare_markets, write_bars
from benchmarks.bars import Span, build_bars
from benchmarks.database import Database
from benchmarks.figures import Target
from benchmarks.rivals import COLUMNS, stamp_bars
from benchmarks.rounds import Way, compare
from benchmarks.shards import Costs, build_table, forecast
from benchmarks.write_path import count_dead_rows
from market_pipeline_tests.commands import COMMAND_SECONDS

ROOT = Path(__file__).resolve().parent.parent
WRITES = "first_load_vs_copy,identical_reload_vs_copy,delta_vs_copy,reload_dead_tuples"


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark's command."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip


@pytest.fixture
def table(engine: Engine, database_url: str, tmp_path: Path) -> BarTable:
    """A thousand bars, in the table and in files."""
    database = Database(database_url, engine)
    prepare_markets(database)
    return BarTable(database, tmp_path, 1_000)


def test_figures_are_measured_shown_and_written(tmp_path: Path) -> None:
    """The wanted figures, and no other, are listed with value, unit, runs and detail."""
    output = tmp_path / "latest.json"

    measured = run_bench(f"ONLY={WRITES}", "--rows", "1000", "--rounds", "1", f"--output={output}")

    assert measured.returncode == 0, measured.stderr
    figures: list[dict[str, Any]] = json.loads(output.read_text())
    assert sorted(figure["name"] for figure in figures) == sorted(WRITES.split(","))
    for figure in figures:
        assert list(figure) == ["name", "value", "unit", "runs", "detail"]
        assert figure["runs"] == 1
        assert figure["name"] in measured.stdout
        assert figure["unit"] == ("rows" if figure["name"] == "reload_dead_tuples" else "ratio")
    ratios = [figure["value"] for figure in figures if figure["unit"] == "ratio"]
    assert all(ratio > 0 for ratio in ratios)


def test_history_is_planned_filled_read_and_restated(tmp_path: Path) -> None:
    """Each part refuses to time work that did not happen: bars missing, nothing planned, no change.

    The sizes are tiny, so only that the figures are there is asserted.
    """
    output = tmp_path / "latest.json"
    names = {
        "plan_seconds_1e6",
        "backfill_vs_bare_write",
        "as_of_vs_plain_read",
        "restate_1pct_vs_reload",
        *(["read_1m_vs_adbc"] if find_spec("adbc_driver_postgresql") else []),
    }

    measured = run_bench(*sorted(names), "--rows", "5000", "--rounds", "1", f"--output={output}")

    assert measured.returncode == 0, measured.stderr
    figures = json.loads(output.read_text())
    assert {figure["name"] for figure in figures} == names
    assert all(figure["value"] > 0 for figure in figures)


def test_the_page_on_scaling_shows_what_the_model_says() -> None:
    """`python -m benchmarks.shards` prints the table that stands there."""
    assert "\n".join(build_table()) in (ROOT / "docs/scaling.md").read_text()


def test_the_model_of_shards_keeps_to_its_bounds() -> None:
    """One shard waits for nobody, many are as fast as what they share, no provider is overtaken."""
    costs = Costs(worker_ms=3.0, server_ms=0.4, lock_ms=0.5, run_seconds=0, calls=2)
    alone = forecast(costs, 1_000, 1, server_cores=2)
    assert alone.seconds == pytest.approx(3.5)  # its own work, and the lock without a queue
    assert alone.limit == "the workers"
    crowd = forecast(costs, 1_000, 200, server_cores=2)
    assert crowd.seconds == pytest.approx(0.5, rel=0.01)
    assert (crowd.limit, round(crowd.lock_share, 2)) == ("the merge lock", 1.0)
    assert 1.7 < alone.seconds / forecast(costs, 1_000, 2).seconds < 2
    asked = forecast(costs, 1_000, 8, calls_per_second=10)
    assert (asked.seconds, asked.limit) == (200.0, "the provider")


def test_unknown_figure_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    """A name that is not in the list ends the command, and names what is."""
    output = tmp_path / "latest.json"

    refused = run_bench("ONLY=first_load_vs_cpoy", f"--output={output}")

    assert refused.returncode != 0
    assert "first_load_vs_cpoy" in refused.stderr
    assert "first_load_vs_copy" in refused.stderr
    assert not output.exists()


def test_states_are_what_the_ways_start_from(table: BarTable) -> None:
    """The same bars change nothing and kill no row; the newer ones change and add 1 % each."""
    table.fill()
    again = write_bars(table.database, table.bars)
    assert (again.inserted, again.updated, again.unchanged) == (0, 0, 1_000)
    assert count_dead_rows(table.database) == 0

    newer = write_bars(table.database, table.newer_bars)

    assert (newer.inserted, newer.updated) == (100, 9)
    assert count_dead_rows(table.database) == 9


def test_copy_loads_what_the_product_wrote(table: BarTable) -> None:
    """Both limits write every bar, so that ratios compare the same work."""
    for copy in (table.copy_text, table.copy_binary):
        table.empty()
        copy()
        again = write_bars(table.database, table.bars)
        assert (again.written, again.unchanged) == (0, 1_000)


def test_other_tools_are_handed_what_is_stored(table: BarTable) -> None:
    """All columns agree, stamps too: a tool that skips equal rows has nothing to write either."""
    table.fill()
    query = f"SELECT {', '.join(COLUMNS)} FROM {TABLE} ORDER BY {', '.join(KEYS)}"
    with table.database.engine.connect() as connection:
        stored = pd.DataFrame(connection.exec_driver_sql(query).all(), columns=COLUMNS)
    handed = stamp_bars(table.bars)
    stored = stored.astype({**handed.dtypes, "run_id": "str"})
    pd.testing.assert_frame_equal(stored, handed.astype({"run_id": "str"}))


def test_a_bar_is_the_same_in_every_span() -> None:
    """A later span continues the earlier one, so a reload differs only where it is made to."""
    whole, later = build_bars(Span(0, 30), markets=5), build_bars(Span(10, 30), markets=5)
    kept = whole[whole["open_time"] >= later["open_time"].min()].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, later)


def test_ways_take_turns_from_their_prepared_state() -> None:
    """Every round prepares, runs and concludes each way once, in the same order."""
    said: list[str] = []

    def build_way(name: str) -> Way:
        steps = [f"{step} {name}" for step in ("prepare", "run", "conclude")]
        prepare, run, conclude = (lambda step=step: said.append(step) for step in steps)
        return Way(name, run, prepare, conclude, units=2)

    comparison = compare([build_way("a"), build_way("b")], 2, lambda _: None)

    one_round = [f"{step} {name}" for name in "ab" for step in ("prepare", "run", "conclude")]
    assert said == one_round * 2
    assert comparison.rounds == 2


@pytest.mark.parametrize(
    ("target", "met", "missed"),
    [(Target("<", 1), 0.9, 1.0), (Target("<=", 1), 1.0, 1.1), (Target(">=", 5), 5.0, 4.9)],
)
def test_targets_are_met_up_to_their_bound(target: Target, met: float, missed: float) -> None:
    """The mark beside a figure follows the bound's sign."""
    assert target.is_met(met)
    assert not target.is_met(missed)
