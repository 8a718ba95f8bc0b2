"""A database that version 0008 of the tables left behind, kept as a dump, and how it was made.

``python -m market_pipeline_tests.old_database CHECKOUT`` makes the dump again: CHECKOUT holds the
code at commit d66a1b0 with a ``.venv`` of its own. Its commands ingest ``mock``, ``file`` and the
local replays of ``coingecko`` and ``yahoo`` (served by this version), the faults being chosen so
that each table has rows: revisions, holes, a quarantined row, an open and an ended alert.
"""

import argparse
import gzip
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy import Engine

from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.registry import route_markets
from market_pipeline.storage.server import embedded
from market_pipeline.storage.server.programs import psql_path
from market_pipeline.storage.server.urls import build_psql_address
from market_pipeline_tests.databases import create_database
from market_pipeline_tests.replay import RECORDINGS, ReplayServer

DUMP = RECORDINGS / "database" / "market_data_0008.sql.gz"
REPLAYED_UNTIL = datetime(2014, 12, 30, 20, tzinfo=UTC)
MOCK_UNTIL = "2024-03-15T13:20"
FILE_UNTIL = "2019-01-01"
LATER = timedelta(hours=3)
MOCK = ("--provider", "mock", "--symbols", "BTC-USD,ETH-USD,SPX", "--lookback-days", "12")
FILE = ("--provider", "file", "--symbols", "SPX", "--lookback-days", "90")
LIVE = ("--provider", "coingecko,yahoo", "--symbols", "BTC-USD,SPX", "--lookback-days", "30")
YAHOO = ("--provider", "yahoo", "--symbols", "BTC-USD", "--lookback-days", "30")
HOLE = "ETH-USD:skipped_page@2024-03-10..2024-03-11"
IMPOSSIBLE = "ETH-USD:duplicate=1.5@2024-03-13T05:00 1h"
LATE = "SPX:timeout until=2024-03-15T12:30"
CORRECTION = "BTC-USD:restated_bar=1.01@2024-03-14T20:00..2024-03-14T23:00 1h"
RUNS = (
    (MOCK, "2024-03-15T00:20", {"MOCK_FAULTS": f"{HOLE}, {IMPOSSIBLE}, {LATE}"}),
    (MOCK, MOCK_UNTIL, {"MOCK_FAULTS": f"{HOLE}, {IMPOSSIBLE}, {LATE}, {CORRECTION}"}),
    (FILE, FILE_UNTIL, {"FILE_PROVIDER_PATH": str(RECORDINGS / "series")}),
    (LIVE, f"{REPLAYED_UNTIL:%Y-%m-%dT%H:%M}", {}),
    (YAHOO, f"{REPLAYED_UNTIL:%Y-%m-%dT%H:%M}", {}),
)


def load_dump(url: str) -> None:
    """Put the dump into an empty database."""
    address, secrets = build_psql_address(url)
    subprocess.run(
        [str(psql_path()), address, "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1"],
        input=gzip.decompress(DUMP.read_bytes()), env={**os.environ, **secrets},
        stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip


def ingest_again(engine: Engine, replay: ReplayServer) -> list[UUID]:
    """Do the runs of the dump again, three hours later by each one's clock."""
    clocks = {MOCK_UNTIL, FILE_UNTIL, f"{REPLAYED_UNTIL:%Y-%m-%dT%H:%M}"}
    done = []
    for options, window_end, variables in RUNS:
        if window_end in clocks:
            now = datetime.fromisoformat(window_end).replace(tzinfo=UTC) + LATER
            done.append(_ingest(engine, options, now, {**replay.environ, **variables}))
    return done


def _ingest(
    engine: Engine, options: tuple[str, ...], now: datetime, environ: dict[str, str]
) -> UUID:
    given = dict(zip(options[::2], options[1::2], strict=True))
    symbols, providers = given["--symbols"].split(","), given["--provider"]
    days = int(given["--lookback-days"])
    request = build_request(datetime.now(UTC), symbols, providers, days, now.isoformat())
    run = Run(uuid4(), "manual", datetime.now(UTC), request)
    routes = route_markets(symbols, providers.split(","), environ)
    for _ in BarStream(engine, run, routes):
        pass
    return run.run_id


def make_dump(checkout: Path, folder: Path) -> None:
    """Ingest with another version's commands into a database of its own, and dump it."""
    folder.chmod(0o755)
    (folder / "home").mkdir()
    shutil.copy(checkout / "dagster.yaml", folder / "home")
    server = embedded.start(folder / "server")
    with create_database(server) as url, ReplayServer(now=REPLAYED_UNTIL) as replay:
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            **replay.environ, "DATABASE_URL": url, "DAGSTER_HOME": str(folder / "home"),
        }  # fmt: skip
        for options, window_end, variables in RUNS:
            command = ("ingest", *options, "--window-end", window_end)
            _run(checkout, command, environment | variables, folder)
        _write_dump(url)


def _run(
    checkout: Path, command: tuple[str, ...], environment: Mapping[str, str], folder: Path
) -> None:
    program = str(checkout / ".venv/bin/market-pipeline")
    ended = subprocess.run([program, *command], env=dict(environment), cwd=folder, check=False)
    if ended.returncode not in (0, 3):  # live prices of 2014 cannot be had
        raise SystemExit(f"{' '.join(command)} exited with {ended.returncode}")


def _write_dump(url: str) -> None:
    address, secrets = build_psql_address(url)
    program = str(psql_path().with_name("pg_dump"))
    options = ("--schema=market_data", "--no-owner", "--no-privileges", f"--dbname={address}")
    script = subprocess.run(
        [program, *options], env={**os.environ, **secrets}, capture_output=True, check=True
    ).stdout
    DUMP.parent.mkdir(exist_ok=True)
    DUMP.write_bytes(gzip.compress(script, 9, mtime=0))


def main() -> None:
    """Make the dump again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="the code at d66a1b0, with its .venv")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        make_dump(parser.parse_args().checkout.resolve(), Path(folder))


if __name__ == "__main__":
    main()
