"""``market-pipeline db dump`` and ``restore``: all of it comes back, or nothing was touched."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from market_pipeline_tests.databases import create_database, read_column

Command = Callable[..., "subprocess.CompletedProcess[str]"]
SPAN = ("--symbols", "BTC-USD", "--lookback-days", "3", "--window-end", "2024-03-15")
BARS = """
    SELECT md5(string_agg(one::text, '|' ORDER BY market_id, interval, open_time))
    FROM market_data.market_aggregate one"""
RUNS = "SELECT count(*) FROM dagster.runs"
NEXT_ID = "SELECT nextval('market_data.dataset_version_seq')"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the embedded server's account gets into."""
    made = Path(tempfile.mkdtemp(prefix="mp-backup-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.faults
def test_a_backup_of_the_embedded_database_moves_to_a_server_and_back(
    command: Command, database_url: str, server_url: str, folder: Path
) -> None:
    """Bars, receipts, sequences and Dagster's runs: the moved pipeline simply goes on."""
    embedded = {"DATABASE_URL": "", "STATE_DIR": str(folder / "state")}
    assert command("ingest", *SPAN, **embedded).returncode == 0
    file = folder / "backup.dump"

    dumped = command("db", "dump", str(file), **embedded)

    assert (dumped.returncode, dumped.stderr) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(one.name for one in folder.iterdir()) == ["backup.dump", "state"]
    restored = command("db", "restore", str(file))
    assert (restored.returncode, restored.stderr) == (0, "")
    again = command("ingest", *SPAN)
    assert again.returncode == 0, again.stderr
    assert " 0 inserted, 0 updated" in again.stderr
    assert read_column(database_url, RUNS) == [2]

    # The market tables alone are replaced with what the file holds, the second run is gone.
    refused = command("db", "restore", str(file))
    assert refused.returncode == 1
    assert "--replace puts the backup in their place" in refused.stderr
    assert command("db", "restore", "--replace", str(file)).returncode == 0
    assert read_column(database_url, RUNS) == [1]
    with create_database(server_url) as other:
        assert command("db", "restore", str(file), DATABASE_URL=other).returncode == 0
        assert read_column(other, BARS) == read_column(database_url, BARS)
        assert read_column(other, NEXT_ID) == read_column(database_url, NEXT_ID)


@pytest.mark.owner
def test_a_broken_backup_changes_nothing(command: Command, engine: Engine, tmp_path: Path) -> None:
    """A file that breaks off, one that is none, one that is not there: the tables stay."""
    with engine.begin() as connection:
        connection.execute(text("COMMENT ON SCHEMA market_data IS 'as it was'"))
    file = tmp_path / "whole.dump"
    assert command("db", "dump", str(file)).returncode == 0
    short, other = tmp_path / "short.dump", tmp_path / "other.dump"
    short.write_bytes(file.read_bytes()[:-2_000])
    other.write_text("not a dump")
    for broken, words in ((short, "pg_restore failed"), (other, "pg_restore failed"),
                          (tmp_path / "none", "the file does not exist")):  # fmt: skip
        done = command("db", "restore", "--replace", str(broken))
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    kept = "SELECT obj_description('market_data'::regnamespace)"
    assert read_column(engine, kept) == ["as it was"]
