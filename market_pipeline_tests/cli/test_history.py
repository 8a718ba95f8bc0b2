"""plan, backfill, coverage, why and diff, as typed."""

import json

from market_pipeline_tests.cli.conftest import Command


def test_history_is_planned_filled_and_explained(command: Command) -> None:
    """Nothing is asked by a plan; after the backfill nothing is missing, and a number has a why."""
    span = ("--from", "2024-01-01", "--to", "2024-03-01", "--symbols", "SPX", "--json")
    planned = json.loads(command("plan", *span).stdout)
    assert planned["providers"][0]["bars"] > 200
    assert json.loads(command("coverage", "--json").stdout) == {
        "coverage": [],
        "holes": [],
        "older_parsings": [],
    }

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
