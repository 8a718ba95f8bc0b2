"""What a terminal sees of a run, and what a pipe gets: words once, or JSON lines alone."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from market_pipeline.cli.runs import print_summary
from market_pipeline.cli.show import print_rows
from market_pipeline_tests.commands import SCRIPTS
from market_pipeline_tests.terminal import run_in_terminal

Command = Callable[..., "subprocess.CompletedProcess[str]"]
QUICK = {"INGESTION_MARKETS": "BTC-USD,ETH-USD", "INGESTION_LOOKBACK_DAYS": "2"}
WARNING = "import warnings; warnings.warn('of a library', UserWarning)"
RUN_ID = "5e61db24-ac63-46c3-bd30-cd0e7f5b726e"
MARKET: dict[str, Any] = {
    "provider": "mock", "inserted": 1_234_567, "derived_inserted": 5, "updated": 7,
    "derived_updated": 0, "revised": 1, "holes_left": 0, "watermark_after": None,
    "outcome": "ok", "reason": None, "assumed": None,
}  # fmt: skip
LONG = "X" * 32
FAILED = {"outcome": "failed", "reason": "mock: /history answered with HTTP-404. " * 3}


def show(width: int, markets: list[dict[str, Any]], error: str | None = None) -> list[str]:
    """Return the lines of a summary on a terminal of a width."""
    output = io.StringIO()
    tables = [
        {"table_name": "market_aggregate", "inserted": 1_926, "updated": 0, "unchanged": 4},
        {"table_name": "market_comparison", "inserted": 0, "updated": 0, "unchanged": 12},
    ]
    receipt = {"run_id": RUN_ID, "outcome": "partial", "error": error, "markets": markets}
    print_summary({**receipt, "tables": tables}, Console(file=output, width=width))
    return output.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("count", [3, 200])
@pytest.mark.parametrize("symbol", ["BTC-USD", LONG])
def test_a_summary_fits_its_terminal_and_one_screen(width: int, count: int, symbol: str) -> None:
    """Long symbols are folded, numbers and words are not; the worst comes first."""
    markets = [{**MARKET, "symbol": f"{symbol[:-3]}{number:03}"} for number in range(count)]
    markets[-1] |= FAILED
    lines = show(width, markets)
    assert max(map(len, lines)) <= width
    assert len(lines) <= 40 or symbol == LONG
    said = "\n".join(lines)
    assert said.count("1,234,572") == min(count, 15)
    assert lines[1].rstrip().endswith("failed")
    assert said.count("HTTP-404") == 3
    assert f"Run {RUN_ID}: partial" in said
    assert ("and 185 ok: market-pipeline runs show" in " ".join(lines)) is (count == 200)


def test_a_summary_counts_rows_and_names_providers_where_there_are_several() -> None:
    """Derived rows are new ones too; a symbol that nobody serves has no counts."""
    nothing = dict.fromkeys(MARKET, None)
    unserved = {**nothing, "symbol": "X:FOO", "outcome": "failed", "reason": "nobody serves it"}
    one, other = {**MARKET, "symbol": "SPX"}, {**MARKET, "symbol": "SPX", "provider": "yahoo"}
    alone, several = show(80, [one, unserved]), show(80, [one, other])
    assert alone[1].split() == ["X:FOO", "0", "0", "failed"]
    assert alone[2].split() == ["SPX", "1,234,572", "8", "0", "ok"]
    assert alone[3] == "X:FOO: nobody serves it"
    assert alone[4] == "Rows written: market_aggregate 1,926"
    assert [line.split()[0] for line in several[1:3]] == ["mock:SPX", "yahoo:SPX"]


def test_a_summary_says_nothing_twice() -> None:
    """An error that lists the markets' reasons stands for them."""
    reason = "1h: answered HTTP 404"
    failed = {**MARKET, "symbol": "SPX", "outcome": "failed", "reason": reason}
    said = " ".join(show(80, [failed], error=f"no market gave a usable bar. SPX: {reason}"))
    assert said.count(reason) == 1


def test_a_table_too_wide_for_its_terminal_leaves_out_what_holds_nothing() -> None:
    """It says which columns those are; a table that fits has them all."""
    counts = dict.fromkeys(("received", "updated", "unchanged", "quarantined", "holes_left"), 0)
    rows = [{"symbol": "BTC-USD", **counts, "inserted": 861, "outcome": "ok", "reason": None}]
    narrow, wide = io.StringIO(), io.StringIO()
    print_rows("Bars", rows, console=Console(file=narrow, width=60))
    print_rows("Bars", rows, console=Console(file=wide, width=160))
    assert "│ BTC-USD │      861 │ ok      │" in narrow.getvalue()
    said = " ".join(narrow.getvalue().split())
    assert "Empty or 0: received, updated, unchanged, quarantined" in said
    assert "quarantined ┃" in wide.getvalue()
    assert "Empty or 0" not in wide.getvalue()


@pytest.mark.parametrize("width", [80, 60])
def test_a_terminal_sees_a_bar_by_markets_and_then_a_summary(
    width: int, project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """What is being done, all along; in the end nothing of it is left but the summary."""
    command = [SCRIPTS / "market-pipeline", "ingest"]
    shown = run_in_terminal(command, {**project_environment, **QUICK}, tmp_path, width)
    assert shown.code == 0, shown.text
    steps = ("Checking the settings", "Loading the pipeline", "Opening the database",
             "Fetching bars", "Computing statistics")  # fmt: skip
    assert [step for step in steps if step not in shown.text] == []
    assert " 2/2 " in shown.text
    assert "{" not in shown.text
    left = shown.screen.splitlines()
    assert left[0].split() == ["market", "new", "changed", "holes", "final", "to", "result"]
    assert [line.split()[0] for line in left[1:3]] == ["BTC-USD", "ETH-USD"]
    assert re.fullmatch(r"Run [0-9a-f-]{36}: ok", left[-1])
    assert max(map(len, left)) <= width


def test_markets_are_counted_only_while_bars_are_fetched(
    project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """A later step that says something, as that nothing changed, is not shown as complete."""
    environment = {**project_environment, **QUICK, "INGESTION_MARKETS": "BTC-USD"}
    command = [SCRIPTS / "market-pipeline", "ingest", "--window-end", "2024-03-04"]
    run_in_terminal(command, environment, tmp_path)
    again = run_in_terminal(command, environment, tmp_path)
    assert again.code == 0, again.text
    counted = re.findall(
        r"([A-Z][a-z ]+) [^\r\nA-Z]*\d+/\d+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", again.text)
    )
    assert set(counted) == {"Fetching bars"}
    assert "market_roi_statistic:" in again.text


def test_a_failure_on_a_terminal_is_said_once(
    project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """The cause, after the summary."""
    command = [SCRIPTS / "market-pipeline", "ingest", "--symbols", "BTC-USD"]
    environment = {**project_environment, **QUICK, "MOCK_FAULTS": "BTC-USD:timeout"}
    shown = run_in_terminal(command, environment, tmp_path)
    assert shown.code == 1
    said = " ".join(shown.screen.split())
    assert said.count("no market gave a usable bar") == 1
    assert "Error: market_aggregates: no market gave a usable bar. BTC-USD: " in said


def test_a_backfill_shows_the_same_on_a_terminal_and_lines_on_a_pipe(
    project_environment: Mapping[str, str], command: Command, tmp_path: Path
) -> None:
    """How much it will ask for stays; a market that failed is in the summary alone."""
    span = ["backfill", "--from", "2024-03-01", "--to", "2024-03-10"]
    environment = {**project_environment, **QUICK, "MOCK_FAULTS": "ETH-USD:timeout"}
    shown = run_in_terminal([SCRIPTS / "market-pipeline", *span], environment, tmp_path)
    assert shown.code == 3, shown.text
    left = shown.screen.splitlines()
    assert re.fullmatch(r"[0-9]+ requests, about [0-9,]+ bars", left[0])
    assert [line.split()[0] for line in left[1:4]] == ["market", "ETH-USD", "BTC-USD"]
    piped = command(*span, **QUICK)
    assert piped.returncode == 0, piped.stderr
    events = [json.loads(line)["event"] for line in piped.stderr.splitlines()]
    assert re.fullmatch(r"[0-9]+ requests, about [0-9,]+ bars", events[0])


def test_dagsters_command_on_a_terminal_adds_no_lines_of_json(
    project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """What steps say is in Dagster's own lines; a second copy of each was there before."""
    command = [SCRIPTS / "dagster", "job", "execute", "-m", "market_pipeline.definitions"]
    environment = {**project_environment, **QUICK}
    shown = run_in_terminal([*command, "-j", "ingest"], environment, tmp_path, 200)
    assert shown.code == 0, shown.text
    assert '"event"' not in shown.text
    assert shown.text.count("BTC-USD from mock: ") == 1


@pytest.mark.parametrize("fault", ["", "ETH-USD:timeout", "*:timeout"])
def test_a_pipe_gets_json_lines_and_one_json_object(fault: str, command: Command) -> None:
    """Whatever the run's end: no bar, no colour, no sentence between the lines."""
    ran = command("ingest", "--json", MOCK_FAULTS=fault, **QUICK)
    assert ran.returncode == {"": 0, "ETH-USD:timeout": 3, "*:timeout": 1}[fault]
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert len(set(ran.stderr.splitlines())) == len(lines)
    assert {"timestamp", "level", "logger", "event"} <= lines[-1].keys()
    assert json.loads(ran.stdout)["outcome"] in {"ok", "partial", "failed"}
    assert "\x1b" not in ran.stdout + ran.stderr


def test_pythons_warnings_are_lines_for_a_pipe_and_nothing_for_a_terminal(tmp_path: Path) -> None:
    """Of whatever library: only a developer can do something about them."""
    code = f"from market_pipeline.observability.logs import configure_logs as c; c(''); {WARNING}"
    command = [sys.executable, "-c", code]
    piped = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "of a library" in json.loads(piped.stderr)["event"]
    assert run_in_terminal(command, {}, tmp_path).text == ""


def test_the_command_is_quick_without_a_terminal() -> None:
    """The bar's library is not loaded for a pipe."""
    code = "import sys, market_pipeline.cli.ingest; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
