"""``market-pipeline export``: the reader's bars in files, whole or not at all."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from sqlalchemy import Engine

from market_pipeline.readers import read_aggregates
from market_pipeline_tests.commands import ROOT
from market_pipeline_tests.system.project import SCRIPTS

Export = Callable[..., "subprocess.CompletedProcess[str]"]
SPAN = ("2024-01-01", "2024-04-01")


@pytest.fixture
def export(stored: Engine, project_environment: dict[str, str], tmp_path: Path) -> Export:
    """Runs the command; the folder is ``tmp_path / "out"``."""
    del stored

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [SCRIPTS / "market-pipeline", "export", "--out", str(tmp_path / "out"), *arguments],
            env=project_environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


READ = {
    "parquet": pd.read_parquet,
    "csv": lambda path: pd.read_csv(path, parse_dates=["open_time"]),
    "arrow": lambda path: pa.ipc.open_stream(path.read_bytes()).read_all().to_pandas(),
}


@pytest.mark.parametrize("kind", list(READ))
def test_files_hold_the_readers_bars(
    export: Export, stored: Engine, tmp_path: Path, kind: str
) -> None:
    """One file a market and interval, with the frame's rows, and nothing else in the folder."""
    done = export("--format", kind, "--interval", "1d", "--interval", "1w", "--symbols", "BTC-USD")
    assert (done.returncode, done.stderr) == (0, "")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [f"mock_BTC-USD_1d.{kind}", f"mock_BTC-USD_1w.{kind}"]
    expected = read_aggregates("BTC-USD", "1d", *SPAN, engine=stored)
    written = READ[kind](tmp_path / "out" / files[0])
    assert list(written["close"]) == list(expected["close"])
    assert list(pd.to_datetime(written["open_time"], utc=True)) == list(expected.index)
    assert f"{len(expected)}" in done.stdout.replace(",", "") or "bars in 2 files" in done.stdout


def test_what_cannot_be_exported_is_said_and_leaves_nothing(export: Export, tmp_path: Path) -> None:
    """Unknown markets, versions to come, contradictions, no such bars, a file as folder."""
    for arguments, words in (
        (("--symbols", "NO-USD"), "NO-USD"),
        (("--version", "99999"), "99999"),
        (("--version", "1", "--as-of", "2024-01-01"), "exclude"),
        (("--from", "1999-01-01", "--to", "1999-02-01"), "coverage"),
        (("--format", "xml"), "xml"),
        (("--out", str(ROOT / "setup.py" / "x")), "another folder"),
    ):
        done = export(*arguments)
        assert done.returncode in {1, 2}
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_complete_history_or_no_file(export: Export, tmp_path: Path) -> None:
    """One market that is short keeps all files from being written."""
    whole = ("--from", "2024-03-04", "--to", "2024-03-14", "--require", "complete")
    done = export(*whole)
    assert (done.returncode, done.stderr) == (0, "")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"mock_BTC-USD_1d.parquet", "mock_ETH-USD_1d.parquet"}
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    short = export("--from", "2024-02-01", "--to", "2024-03-14", "--require", "explained")
    assert short.returncode == 1
    assert "market-pipeline backfill --from 2024-02-01" in short.stderr
    assert "set --from as well" in export("--require", "complete").stderr
    assert not list((tmp_path / "out").iterdir())
