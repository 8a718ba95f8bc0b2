"""A process short of descriptors, of memory or of a disk: it ends in words, the data are right."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine

from market_pipeline_tests.cli.conftest import Command
from market_pipeline_tests.commands import COMMAND_SECONDS, SCRIPTS
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.faults.invariants import assert_invariants
from market_pipeline_tests.faults.kills.theatre import WORK, Theatre, compare

INGEST = ("ingest", "--symbols", "BTC-USD,SPX", "--window-end", "2024-03-15", "--lookback-days")
CYCLES = 40
"""Some twenty seconds: how far the run comes in them depends on the machine."""
STORED = "SELECT count(*)::int FROM market_data.market_aggregate"
OUTCOMES = "SELECT coalesce(outcome, 'none') FROM market_data.ingestion_run ORDER BY started_at"


def run_limited(
    limit: str, environment: Mapping[str, str], folder: Path
) -> "subprocess.CompletedProcess[str]":
    """Ingest under a limit of the kernel."""
    command = ["prlimit", limit, str(SCRIPTS / "market-pipeline"), *INGEST, "20"]
    return subprocess.run(
        command, env=dict(environment), cwd=folder, capture_output=True, text=True,
        timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip


def repair(command: Command, engine: Engine) -> None:
    """Run once without limits; everything is as it must be, before and after."""
    assert_invariants(engine)
    done = command(*INGEST, "20")
    assert done.returncode == 0, done.stderr
    assert_invariants(engine, is_repaired=True, is_closed=True)


@pytest.mark.faults
@pytest.mark.parametrize("descriptors", [24, 64])
def test_j1_too_few_descriptors_end_in_words_or_suffice(
    descriptors: int, command: Command, engine: Engine,
    project_environment: Mapping[str, str], tmp_path: Path,
) -> None:  # fmt: skip
    """With 64 a run works; with fewer it says so, and leaves nothing half done."""
    done = run_limited(f"--nofile={descriptors}:{descriptors}", project_environment, tmp_path)
    if descriptors < 64:
        assert done.returncode == 1, done.stderr
        assert "too many open files" in done.stderr.lower()
        assert "(ulimit -n), then run again" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
    repair(command, engine)


@pytest.mark.faults
def test_j3_a_run_that_hardly_gets_a_processor_ends_well_beside_another(theatre: Theatre) -> None:
    """Slow is not dead: it is stopped half a second after each twentieth of one, and both end."""
    step = WORK["waves"].killed
    with theatre.copy() as place, place.begin(step) as starved, place.begin(step) as other:
        for _ in range(CYCLES):
            starved.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            starved.send_signal(signal.SIGCONT)
            if starved.pipe.poll(0.05):
                break
        codes = [starved.hear()[0], other.hear()[0]]
        assert codes == [0, 0], starved.read_log() + other.read_log()
        assert_invariants(place.engine, is_repaired=True, is_closed=True)
        assert compare(place, place.read_served()).is_good
        place.do(step)
        assert_invariants(place.engine, is_repaired=True, is_closed=True)


@pytest.mark.faults
def test_a11_a_run_without_memory_ends_and_the_next_one_is_whole(
    command: Command, engine: Engine, project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """The kernel refuses memory in the middle: an exit code that is no success, no torn table."""
    assert command(*INGEST, "2").returncode == 0
    before = read_column(engine, STORED)
    limits = [f"--as={megabytes << 20}" for megabytes in (500, 900)]
    codes = [run_limited(limit, project_environment, tmp_path).returncode for limit in limits]
    assert codes[0] != 0
    assert read_column(engine, STORED) >= before
    repair(command, engine)


@pytest.mark.faults
def test_j2_a_home_that_cannot_be_written_ends_the_run_before_it_writes(
    command: Command, engine: Engine, tmp_path: Path
) -> None:
    """The message names the folder; the tables are as before."""
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, where a folder is needed")
    done = command(*INGEST, "20", DAGSTER_HOME=str(blocked))
    assert done.returncode != 0
    assert "DAGSTER_HOME" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_column(engine, STORED) == [0]
    repair(command, engine)


def fill(disk: Path) -> None:
    """Write a file until nothing more fits."""
    with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(b"0" * 4096):
            pass


@pytest.mark.system
def test_j2_a_full_disk_for_logs_and_temporary_files_loses_no_bar(
    command: Command, engine: Engine, project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """DAGSTER_HOME and /tmp are on a full tmpfs: the run ends well, and says what it did."""
    if os.geteuid() != 0:
        pytest.fail("mounting a tmpfs takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=True)
    try:
        home = disk / "home"
        home.mkdir()
        (home / "dagster.yaml").write_bytes(
            (Path(project_environment["DAGSTER_HOME"]) / "dagster.yaml").read_bytes()
        )
        fill(disk)
        done = command(*INGEST, "20", DAGSTER_HOME=str(home), TMPDIR=str(disk), STATE_DIR=str(disk))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
    assert read_column(engine, OUTCOMES) == ["ok"]
    assert done.returncode == 0, done.stderr
    assert "SPX from mock: 144 bars" in done.stderr
    assert f"log in {disk}/dagster/logs: [Errno 28] No space left" in done.stderr
    repair(command, engine)
