"""``market-pipeline events``: what is open, and what a person decides."""

import json

import pytest

from market_pipeline_tests.cli.conftest import Command

FAULT = {"MOCK_FAULTS": "SPX:rescaled=0.25@2024-03-08", "INGESTION_PROVIDER": "mock"}
INGEST = ("ingest", "--symbols", "SPX", "--lookback-days", "30", "--window-end", "2024-03-15T12:00")


@pytest.mark.faults
def test_a_suspected_split_is_listed_shown_and_confirmed(command: Command) -> None:
    """Without --yes nothing changes; the statistics of the next run have values again."""
    assert "No open events" in command("events", "list").stdout
    assert command(*INGEST, **FAULT).returncode == 0
    (event,) = json.loads(command("events", "list", "--json").stdout)
    assert (event["kind"], event["symbol"], event["resolution"]) == ("suspected_split", "SPX", None)
    number = str(event["event_id"])
    reasons = "select distinct reason from market_roi_statistic where horizon = '30d'"
    assert "suspected_split" in command("db", "shell", "--", "-c", reasons).stdout
    preview = command("events", "confirm", number)
    assert "would be multiplied by 0.25. Nothing was changed" in preview.stdout
    assert "mock:SPX" in command("events", "list").stdout
    done = command("events", "confirm", number, "--yes")
    assert "bars of mock:SPX multiplied by 0.25" in done.stdout
    assert command(*INGEST, **FAULT).returncode == 0
    assert "suspected_split" not in command("db", "shell", "--", "-c", reasons).stdout
    assert "confirmed" in command("events", "list", "--all").stdout
    refused = command("events", "dismiss", number)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: event {number} was confirmed at")
