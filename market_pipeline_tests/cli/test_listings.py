"""Listings on a terminal of 80 columns, ids by their beginning, completion, and the dashboard."""

import io
import re
import stat
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from rich.console import Console
from sqlalchemy import Engine, text

from market_pipeline.cli.show import print_rows
from market_pipeline_tests.alerting.test_raising import find, short
from market_pipeline_tests.api.conftest import NOWHERE, serve_api
from market_pipeline_tests.commands import SCRIPTS
from market_pipeline_tests.ingestion.test_next_run import NOON, Pipeline
from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.terminal import run_in_terminal

Command = Callable[..., "subprocess.CompletedProcess[str]"]
COMMAND = SCRIPTS / "market-pipeline"
LISTINGS = (
    "runs", "coverage", "markets list", "providers", "quarantine list", "events list --all",
    "alerts list", "plan --from 2024-01-01", "diff 0..2", "why BTC-USD sharpe --horizon 7d",
    "db status",
)  # fmt: skip


@pytest.fixture
def troubled(stored: Engine) -> Engine:
    """Markets with bars, a hole, impossible rows, a suspected split and an alert."""
    faults = "LTC-USD:duplicate=1.5@2024-03-10,LTC-USD:skipped_page@2024-03-05..2024-03-06"
    Pipeline(stored).run(NOON, faults, "LTC-USD")
    Pipeline(stored).run(NOON, "SPX:split@2024-03-11", "SPX")
    find(stored, short("mock:LTC-USD"))
    return stored


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_listing_is_readable_at_80_columns(
    troubled: Engine, project_environment: Mapping[str, str], tmp_path: Path, listing: str
) -> None:
    """No line is longer, and no name, time or word is broken in two."""
    del troubled
    shown = run_in_terminal([COMMAND, *listing.split()], project_environment, tmp_path, 80)
    assert shown.code == 0, shown.text
    lines = shown.screen.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) > 2
    # A date without its time, or a lone piece of a market's name, would begin a folded cell.
    assert [line for line in lines if re.search(r"2024-\d\d-?(\s|│|$)|C-US(\s|│|$)", line)] == []
    wide = run_in_terminal([COMMAND, *listing.split(), "--wide"], project_environment, tmp_path, 80)
    assert wide.code == 0, wide.text
    assert "Left out" not in wide.text


def show(width: int, *rows: Mapping[str, object]) -> str:
    """Return what is printed of rows on a terminal of a width."""
    output = io.StringIO()
    print_rows("Things", rows, console=Console(file=output, width=width))
    return output.getvalue()


def test_a_table_gets_shorter_step_by_step() -> None:
    """Whole where it fits; then short names, then long texts below and the last columns away."""
    run_id, when = uuid4(), datetime(2024, 3, 5, 12, tzinfo=UTC)
    long = "a text that is much longer than a column should ever be on a narrow terminal"
    row = {
        "run_id": run_id, "symbol": "BTC-USD", "provider": "mock", "at": when, "empty": None,
        "detail": long, "count": 1_234, "is_good": True, "other": "some words",
    }  # fmt: skip
    assert str(run_id) in show(300, row)
    assert "│ BTC-USD │ mock" in show(300, row)
    middle = show(160, row)
    assert "mock:BTC-USD" in middle
    assert str(run_id) not in middle
    assert f" {str(run_id)[:8]} " in middle
    assert "Empty or 0: empty. --wide shows all." in middle
    narrow = show(60, row).splitlines()
    assert narrow[1].split() == ["run", "id", "market", "at", "count", "is", "good"]
    assert "2024-03-05 12:00" in narrow[2]
    assert "1,234" in narrow[2]
    assert narrow[3].startswith("    detail: a text that")
    assert "Left out: other." in " ".join(narrow)
    assert max(map(len, narrow)) <= 60


def test_a_reason_is_shown_though_the_first_row_has_none() -> None:
    """Of the last column no row is left without what it says."""
    rows = [
        {"market": f"mock:A{at}-USD", **{f"count {n}": 7 for n in range(9)}, "reason": reason}
        for at, reason in enumerate([None, "the provider did not answer in time"])
    ]
    output = io.StringIO()
    print_rows("Rows", rows, console=Console(file=output, width=80))
    assert "did not answer in time" in " ".join(output.getvalue().split())


def test_the_beginning_of_an_id_is_enough(troubled: Engine, command: Command) -> None:
    """Of one run, or one alert; of several they are named, of none the listing is."""
    with troubled.connect() as connection:
        found = connection.execute(text("SELECT run_id FROM market_data.ingestion_run LIMIT 1"))
        run_id = str(found.scalar_one())
        alert_id = str(connection.execute(text("SELECT alert_id FROM market_data.alert")).scalar())
    assert f"Run {run_id}: " in command("runs", "show", run_id[:8]).stdout
    assert f"Run {run_id}: " in command("runs", "show", run_id.upper()).stdout
    assert command("alerts", "ack", alert_id[:8]).stdout == f"Alert {alert_id} is acknowledged\n"
    with troubled.begin() as connection:
        connection.execute(
            text("""INSERT INTO market_data.ingestion_run (run_id, trigger, provider, request,
                started_at) SELECT ('abcdef00-0000-4000-8000-00000000000' || n)::uuid, 'manual',
                'mock', '{}', now() FROM generate_series(1, 2) n""")
        )
    several = command("runs", "show", "abcdef")
    assert (several.returncode, "00000001, abcdef00" in several.stderr) == (1, True)
    none = command("runs", "show", "0000ffff")
    assert (none.returncode, "`market-pipeline runs` lists them" in none.stderr) == (1, True)
    wrong = command("runs", "show", "no%")
    assert (wrong.returncode, "4 or more characters" in wrong.stderr) == (2, True)


def test_an_error_names_the_next_command(engine: Engine, command: Command) -> None:
    """Where it has none of its own, it is the command's help."""
    del engine
    empty = command("why", "BTC-USD", "sharpe")
    assert "there is nothing yet: `market-pipeline ingest` stores some" in empty.stderr
    malformed = command("diff", "1-2")
    assert malformed.stderr.endswith(", such as 12..15 (`market-pipeline diff --help`)\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes(command: Command, shell: str) -> None:
    """By the script that is printed; commands, options, and the names of providers."""
    script = command("completion", shell)
    assert f"_MARKET_PIPELINE_COMPLETE={shell}_complete" in script.stdout
    for words, found in (
        ("market-pipeline cov", "coverage"),
        ("market-pipeline ingest --provider coinb", "coinbase"),
    ):
        told = command(
            _MARKET_PIPELINE_COMPLETE=f"{shell}_complete",
            COMP_WORDS=words,
            COMP_CWORD=str(len(words.split()) - 1) if shell != "fish" else words.split()[-1],
        )
        assert found in told.stdout


def test_the_dashboard_is_opened_where_it_is_served(
    troubled: Engine, project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """In the browser of the machine; nobody there is an error that says how to start it."""
    del troubled
    browser, noted = tmp_path / "browser", tmp_path / "noted"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {noted}\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    environment = {**project_environment, "BROWSER": f"{browser} %s", "DAGSTER_UI_URL": NOWHERE}

    def run(port: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [COMMAND, "open", *arguments], env={**environment, "API_PORT": str(port)},
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    missing = run(choose_port())
    assert (missing.returncode, "`market-pipeline serve`" in missing.stderr) == (1, True)
    with serve_api(environment, tmp_path) as (client, _):
        port = client.base_url.port
        assert port is not None
        opened = run(port, "BTC-USD")
    assert opened.stdout == f"http://127.0.0.1:{port}/markets/BTC-USD\n"
    assert noted.read_text() == opened.stdout.strip()
