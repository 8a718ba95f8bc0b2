"""plan, backfill, coverage, why and diff, as typed."""

import json

import pytest

from market_pipeline.domain.planning import OVERLAP_BARS
from market_pipeline_tests.cli.conftest import Command


@pytest.mark.faults
def test_history_is_planned_filled_and_explained(command: Command) -> None:
    """Nothing is asked by a plan; after the backfill nothing is missing, and a number has a why."""
    span = ("--from", "2024-01-01", "--to", "2024-03-01", "--symbols", "SPX", "--json")
    planned = json.loads(command("plan", *span).stdout)
    assert planned["providers"][0]["bars"] > 200
    names = ("coverage", "holes", "never_asked", "backfills", "older_parsings")
    assert json.loads(command("coverage", "--json").stdout) == {name: [] for name in names}

    filled = command("backfill", *span)
    assert filled.returncode == 0, filled.stderr
    assert json.loads(filled.stdout)["outcome"] == "ok"
    assert json.loads(command("plan", *span).stdout)["markets"] == []
    verified = command("coverage", "--verify", "--json")
    assert (verified.returncode, json.loads(verified.stdout)["wrong"]) == (0, [])

    assert command("ingest", "--symbols", "SPX", "--window-end", "2024-03-01").returncode == 0
    why = command("why", "SPX", "roi", "--horizon", "30d", "--json")
    assert why.returncode == 0, why.stderr
    assert json.loads(why.stdout)
    assert command("diff", "0..1", "--symbols", "SPX", "--json").returncode == 0


def test_a_span_that_ends_before_it_begins_is_refused(command: Command) -> None:
    """Both values are named, and nothing is written."""
    refused = command("backfill", "--from", "2024-03-01", "--to", "2024-01-01")
    assert refused.returncode == 1
    assert "2024-03-01" in refused.stderr
    assert "2024-01-01" in refused.stderr


@pytest.mark.faults
def test_time_that_was_never_asked_for_is_listed_with_what_fills_it(command: Command) -> None:
    """Beside the holes: the command, and its price; typed, it fills the gap."""
    history = ("backfill", "--symbols", "BTC-USD", "--provider", "mock")
    for start, end in (("2015-03-02", "2015-03-09"), ("2015-06-01", "2015-06-08")):
        assert command(*history, "--from", start, "--to", end).returncode == 0
    verified = command("coverage", "--verify")
    assert "2 spans were never asked for." in verified.stdout
    told = json.loads(command("coverage", "--json").stdout)
    assert {gap["interval"]: gap["bars"] for gap in told["never_asked"]} == {
        "1d": 84, "1h": 84 * 24,
    }  # fmt: skip
    assert {row["n_never_asked"] for row in told["coverage"]} == {1}
    (fill,) = told["backfills"]
    assert fill["calls"] == 3
    assert fill["bars"] == 84 * 25 + 2 * OVERLAP_BARS
    program, *typed = fill["command"].split()
    assert program == "market-pipeline"
    assert command(*typed).returncode == 0
    after = json.loads(command("coverage", "--verify", "--json").stdout)
    assert (after["never_asked"], after["backfills"], after["wrong"]) == ([], [], [])
