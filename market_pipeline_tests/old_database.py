"""Databases that earlier versions of the tables left behind, kept as dumps, and how they were made.

``python -m market_pipeline_tests.old_database CHECKOUT`` makes the dump of the code in CHECKOUT
again (``recordings/PROVENANCE.tsv`` names each one's commit; ``--small`` for all but 0008). Its own
commands ingest, with today's packages. For 0008 these are ``mock``, ``file`` and the local replays
of ``coingecko`` and ``yahoo`` (served by this version), the faults being chosen so that each table
has rows: revisions, holes, a quarantined row, an open and an ended alert. The small ones hold two
days of ``mock``, and, written by SQL, what else their tables may hold (``LEFT_BY_OTHERS``).
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

from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine

from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.registry import route_markets
from market_pipeline.storage.server import backup, embedded
from market_pipeline.storage.server.programs import psql_path
from market_pipeline.storage.server.schema import make_alembic_config
from market_pipeline.storage.server.urls import build_psql_address
from market_pipeline_tests.commands import SCRIPTS
from market_pipeline_tests.databases import create_database, read_column
from market_pipeline_tests.replay import RECORDINGS, ReplayServer

DUMPS = RECORDINGS / "database"
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
SMALL = ("--provider", "mock", "--symbols", "BTC-USD,SPX", "--lookback-days", "2")
SMALL_HOLE = "BTC-USD:skipped_page@2024-03-13..2024-03-14, SPX:timeout until=2024-03-15T12:30"
SMALL_RUNS = (
    (SMALL, "2024-03-15T00:20", {"MOCK_FAULTS": SMALL_HOLE}),
    (SMALL, "2024-03-15T13:20", {"MOCK_FAULTS": f"{SMALL_HOLE}, {CORRECTION}"}),
)
# By column: what requests over HTTP, people, and odd rows of providers leave.
LEFT_BY_OTHERS = {
    "ingestion_run_market.rejected": "UPDATE market_data.ingestion_run_market SET rejected = 2",
    "market.preferred_at": """UPDATE market_data.market SET preferred_at = now()
        WHERE symbol = 'SPX'""",
    "idempotency_key.key": """INSERT INTO market_data.idempotency_key
        (key, request_hash, launch_id, answer_status, answer, created_at, expires_at)
        VALUES ('old-key', 'hash', '6d97aea8-e295-4686-988a-dcb9b80783e4', 202, '{}', now(),
            now() + interval '1 day')""",
    "quarantined_row.payload": """INSERT INTO market_data.quarantined_row
        (market_id, interval, open_time, rule, detail, payload, payload_hash, run_id,
            first_seen_at, last_seen_at, times_seen, status)
        SELECT market_id, '1h', '2024-03-14T01:00Z', 'off_grid', 'off the grid', '{"close": 1.0}',
            'hash', gen_random_uuid(), now(), now(), 1, 'open' FROM market_data.market""",
    "action_log.actor": """INSERT INTO market_data.action_log
        (begun_at, actor, address, action, target)
        VALUES (now(), 'somebody', '127.0.0.1', 'acknowledge', 'alert ID')""",
    # Removed: all these years would be nine tenths of a small dump.
    "trading_session.session_date": """DELETE FROM market_data.trading_session
        WHERE session_date NOT BETWEEN '2024-03-01' AND '2024-03-31'""",
}
COLUMNS = """SELECT table_name || '.' || column_name FROM information_schema.columns
    WHERE table_schema = 'market_data'"""


def load_dump(url: str, revision: str = "0008") -> None:
    """Put the dump of a version into an empty database."""
    address, secrets = build_psql_address(url)
    written = gzip.decompress(find_dump(revision).read_bytes())
    script = written.replace(backup._UNKNOWN_TO_OLD_SERVERS, b"")
    subprocess.run(
        [str(psql_path()), address, "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1"],
        input=script, env={**os.environ, **secrets},
        stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip


def find_dump(revision: str) -> Path:
    """Return the path of a version's dump."""
    return DUMPS / f"market_data_{revision}.sql.gz"


def list_revisions() -> list[str]:
    """Return the versions of the tables, the first one first."""
    scripts = ScriptDirectory.from_config(make_alembic_config())
    return [one.revision for one in scripts.walk_revisions()][::-1]


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


def make_dump(checkout: Path, folder: Path, is_small: bool) -> None:
    """Ingest with another version's commands into a database of its own, and dump it."""
    folder.chmod(0o755)
    (folder / "home").mkdir()
    shutil.copy(checkout / "dagster.yaml", folder / "home")
    server = embedded.start(folder / "server")
    with create_database(server) as url, ReplayServer(now=REPLAYED_UNTIL) as replay:
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            **replay.environ, "DATABASE_URL": url, "DAGSTER_HOME": str(folder / "home"),
            "STATE_DIR": str(folder), "PYTHONPATH": str(checkout),
        }  # fmt: skip
        for options, window_end, variables in SMALL_RUNS if is_small else RUNS:
            command = ("ingest", *options, "--window-end", window_end)
            _run(command, environment | variables, folder)
        if is_small:
            _add_what_others_leave(url)
        _write_dump(url)


def _run(command: tuple[str, ...], environment: Mapping[str, str], folder: Path) -> None:
    program = str(SCRIPTS / "market-pipeline")
    ended = subprocess.run([program, *command], env=dict(environment), cwd=folder, check=False)
    if ended.returncode not in (0, 3):  # live prices of 2014 cannot be had
        raise SystemExit(f"{' '.join(command)} exited with {ended.returncode}")


def _add_what_others_leave(url: str) -> None:
    columns = read_column(url, COLUMNS)
    engine = create_engine(url)
    with engine.begin() as connection:
        for column, statement in LEFT_BY_OTHERS.items():
            if column in columns:
                connection.exec_driver_sql(statement)
    engine.dispose()


def _write_dump(url: str) -> None:
    address, secrets = build_psql_address(url)
    program = str(psql_path().with_name("pg_dump"))
    options = ("--schema=market_data", "--no-owner", "--no-privileges", f"--dbname={address}")
    script = subprocess.run(
        [program, *options], env={**os.environ, **secrets}, capture_output=True, check=True
    ).stdout
    (revision,) = read_column(url, "SELECT version_num FROM market_data.alembic_version")
    find_dump(str(revision)).write_bytes(gzip.compress(script, 9, mtime=0))


def main() -> None:
    """Make a dump again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="the code that left it behind")
    parser.add_argument("--small", action="store_true", help="two days of mock: all but 0008")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        make_dump(asked.checkout.resolve(), Path(folder), asked.small)


if __name__ == "__main__":
    main()
