"""``market-pipeline db``: status, upgrade and psql, on DATABASE_URL and on the embedded server."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from market_pipeline.storage.server.schema import read_newest_revision
from market_pipeline_tests.databases import read_column

Command = Callable[..., "subprocess.CompletedProcess[str]"]
TWO_OLD_SNAPSHOTS = """
    WITH made AS (INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base,
        quote, venue, calendar, intervals, price_basis)
        VALUES ('mock', 'x', 'X-USD', 'X', 'X', 'USD', 'mock', '24/7', '{1d}', 'unadjusted')
        RETURNING market_id)
    INSERT INTO market_data.market_snapshot (market_id, observed_at, price, fetched_at)
    SELECT market_id, observed_at, 1, observed_at FROM made,
        unnest(ARRAY['2020-01-01T01:00Z', '2020-01-01T02:00Z']::timestamptz[]) observed_at"""


@pytest.fixture
def state_dir() -> Iterator[str]:
    """A state folder that the embedded server's account gets into."""
    folder = Path(tempfile.mkdtemp(prefix="mp-cli-", dir="/tmp"))
    folder.chmod(0o755)
    yield str(folder)
    shutil.rmtree(folder, ignore_errors=True)


def test_status_upgrade_status(command: Command) -> None:
    """Before: none; after: the newest; the second upgrade changes nothing."""
    before = json.loads(command("db", "status", "--json").stdout)
    upgraded = [command("db", "upgrade").stdout for _ in range(2)]
    after = json.loads(command("db", "status", "--json").stdout)

    newest = read_newest_revision()
    assert [one["revision"] for one in (*before, *after)] == ["none", newest]
    assert after[0]["newest"] == newest
    assert after[0]["kind"] == "DATABASE_URL"
    assert upgraded == [f"The market tables are at revision {newest}\n"] * 2


def test_shell_is_psql_on_the_embedded_server(command: Command, state_dir: str) -> None:
    """Without DATABASE_URL: the server is started, migrated, and market_data is looked into."""
    variables = {"DATABASE_URL": "", "STATE_DIR": state_dir}
    shown = command("db", "shell", "--", "-At", "-c", "select count(*) from market", **variables)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "0\n", "")
    status = json.loads(command("db", "status", "--json", **variables).stdout)
    assert status[0]["kind"] == "embedded"
    assert state_dir.removeprefix("/") in status[0]["database"].replace("%2F", "/")


def test_shell_passes_arguments_input_and_exit_code_through(command: Command) -> None:
    """Psql's own: 1 for a failed -c, 3 for a script that stopped."""
    failed = command("db", "shell", "--", "-c", "select nothing_here")
    assert failed.returncode == 1
    assert 'column "nothing_here" does not exist' in failed.stderr
    stopped = command(
        "db", "shell", "--", "-v", "ON_ERROR_STOP=1", "-f", "/dev/stdin"
    )  # no input: an empty script is fine
    assert stopped.returncode == 0
    missing = command("db", "shell", "--", "-f", "/no/such/file.sql")
    assert missing.returncode == 1
    path = command("db", "shell", "--", "-At", "-c", "show search_path")
    assert path.stdout == "market_data,public\n"


def test_prune_counts_first_and_removes_when_told(command: Command, engine: Engine) -> None:
    """A dry run says what would go and leaves it; the same then goes."""
    with engine.begin() as connection:
        connection.execute(text(TWO_OLD_SNAPSHOTS))
    said, left = [], []
    for options in (["--dry-run"], [], ["--dry-run"]):
        pruned = command("db", "prune", *options)
        assert (pruned.returncode, pruned.stderr) == (0, "")
        said.append(pruned.stdout)
        left += read_column(engine, "SELECT count(*) FROM market_data.market_snapshot")
    assert said == [
        (
            "0 receipts, 1 snapshots and 0 alerts would be removed\n"
            "0 of Dagster's runs would be removed\n"
        ),
        "0 receipts, 1 snapshots and 0 alerts removed\n0 of Dagster's runs removed\n",
        (
            "0 receipts, 0 snapshots and 0 alerts would be removed\n"
            "0 of Dagster's runs would be removed\n"
        ),
    ]
    assert left == [2, 1, 1]
