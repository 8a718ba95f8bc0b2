"""Precedence: ``.env`` in the current folder wins over the real environment, through every door."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from market_pipeline_tests.commands import ROOT, run_command
from market_pipeline_tests.databases import create_database, read_column

DEFINITIONS = ("-m", "market_pipeline.definitions")
SYMBOLS = "SELECT symbol FROM market_data.market"
# One door for each market, so that they can share a database.
DOORS = {
    "AAA-USD": ("market-pipeline", "ingest"),
    "BBB-USD": ("dagster", "job", "execute", *DEFINITIONS, "-j", "ingest"),
    "CCC-USD": ("dagster", "asset", "materialize", *DEFINITIONS, "--select", "markets"),
}


@pytest.fixture(scope="module")
def database(server_url: str) -> Iterator[str]:
    """A database that the doors share."""
    with create_database(server_url) as address:
        yield address


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Dagster's home, which only ``.env`` names."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(ROOT / "dagster.yaml", folder)
    return folder


@pytest.mark.parametrize(("symbol", "door"), DOORS.items(), ids=DOORS)
def test_dotenv_wins_and_an_empty_variable_means_unset(
    database: str, home: Path, tmp_path: Path, symbol: str, door: tuple[str, ...]
) -> None:
    """A value, a secret, Dagster's home, and an empty line over a value that would fail."""
    lines = {
        "DATABASE_URL": database,
        "DAGSTER_HOME": home,
        "INGESTION_MARKETS": symbol,
        "INGESTION_LOOKBACK_DAYS": "3",
        "INGESTION_PROVIDER": "",
        "ROI_HORIZONS_DAYS": "",
    }
    (tmp_path / ".env").write_text("".join(f"{name}={text}\n" for name, text in lines.items()))
    environment = {
        "DATABASE_URL": "postgresql://me@127.0.0.1:1/nowhere",
        "DAGSTER_HOME": "/nowhere/at/all",
        "INGESTION_MARKETS": "WRONG-USD",
        "INGESTION_PROVIDER": "nobody",
        "ROI_HORIZONS_DAYS": "never",
        "LOG_LEVEL": "",
        "INGESTION_CRON_EXPRESSION": " ",
        "STATE_DIR": str(tmp_path / "state"),
    }

    done = run_command(*door, environment=environment, folder=tmp_path)

    assert done.returncode == 0, done.stderr
    stored = read_column(database, SYMBOLS)
    assert symbol in stored
    assert "WRONG-USD" not in stored


def test_definitions_validate_with_nothing_but_a_dotenv(tmp_path: Path) -> None:
    """No server, no password, an empty environment; the same precedence once more."""
    validate = ("dagster", "definitions", "validate", *DEFINITIONS)
    (tmp_path / ".env").write_text("INGESTION_CRON_EXPRESSION=\n")
    variables = {"INGESTION_CRON_EXPRESSION": "every day"}

    valid = run_command(*validate, environment=variables, folder=tmp_path)

    assert valid.returncode == 0, valid.stderr
    (tmp_path / ".env").write_text("INGESTION_CRON_EXPRESSION='every day'\n")
    variables = {"INGESTION_CRON_EXPRESSION": "0 * * * *"}
    invalid = run_command(*validate, environment=variables, folder=tmp_path)
    assert invalid.returncode != 0
    assert "INGESTION_CRON_EXPRESSION='every day'" in invalid.stdout + invalid.stderr
