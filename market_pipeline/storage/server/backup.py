"""The whole database into one file, and back: PostgreSQL's own dump, by its own programs.

A file holds the market tables and Dagster's storage, as one snapshot, without owners and rights, so
that it can be restored on another server, as another role, and on a newer or an older version.
"""

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from sqlalchemy import Connection, Engine, text

from market_pipeline.domain.errors import StorageError
from market_pipeline.storage.server.engine import SERVER_OPTIONS
from market_pipeline.storage.server.programs import psql_path
from market_pipeline.storage.server.urls import build_psql_address, redact_password
from market_pipeline.storage.tables import SCHEMAS

_MAX_WORDS = 600
_LOOK_SECONDS = 30.0
"""How often the server is asked whether it still answers, which the programs never ask."""
_LOCK_TIMEOUT = "60s"
_CLOCK = text("SELECT clock_timestamp()")
# What newer programs write into every script, and servers before 17 do not know.
_UNKNOWN_TO_OLD_SERVERS = b"SET transaction_timeout = 0;\n"


def dump_database(engine: Engine, file: Path) -> int:
    """Write a dump, readable by its owner alone, and return its size in bytes.

    The file appears when it is whole; one of that name is replaced.

    Raises:
        StorageError: pg_dump refused, or waited too long for a lock; its words.
        DatabaseFailedError: The server does not answer any more.
    """
    address, secrets = build_psql_address(engine.url.render_as_string(hide_password=False))
    schemas = [f"--schema={schema}" for schema in SCHEMAS]
    options = ["--format=custom", "--no-owner", "--no-privileges", *schemas]
    wait = f"--lock-wait-timeout={_LOCK_TIMEOUT}"
    with replace_file(file) as draft, engine.connect() as connection:
        command = [_find("pg_dump"), *options, wait, f"--file={draft}", f"--dbname={address}"]
        with _start(command, secrets) as program:
            program.finish(connection)
    return file.stat().st_size


@contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Give a draft that its owner alone can read, and put it in a file's place when it is whole.

    It outlives a power cut, as it may be the only copy of rows that are removed afterwards.
    """
    draft = file.with_name(f".{file.name}.partial")
    # Made by us first, so that nobody else could open it in between.
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    try:
        yield draft
        _sync(draft)
        draft.replace(file)
        _sync(file.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def has_tables(engine: Engine) -> bool:
    """Say whether the database holds market tables or Dagster's storage already."""
    query = text("SELECT count(*) FROM pg_tables WHERE schemaname = ANY(:schemas)")
    with engine.connect() as connection:
        return bool(connection.execute(query, {"schemas": list(SCHEMAS)}).scalar())


def restore_database(engine: Engine, file: Path) -> None:
    """Put a dump in the place of what the database holds, in one transaction: all or nothing.

    Raises:
        StorageError: The file is no whole dump, or the server refused something; their words.
        DatabaseFailedError: The server does not answer any more.
    """
    if not file.is_file():
        raise StorageError(f"restoring {file}: the file does not exist")
    address, secrets = build_psql_address(engine.url.render_as_string(hide_password=False))
    drop = "; ".join(f"DROP SCHEMA IF EXISTS {schema} CASCADE" for schema in SCHEMAS)
    load = [
        str(psql_path()), address, "--quiet", "--no-psqlrc", "--single-transaction",
        "--set=ON_ERROR_STOP=1", "--output=/dev/null", f"--command={drop}", "--file=-",
    ]  # fmt: skip
    read = [_find("pg_restore"), "--no-owner", "--no-privileges", "--file=-", str(file)]
    with (
        engine.connect() as connection,
        _start(read, {}, stdout=subprocess.PIPE) as reader,
        _start(load, secrets, stdin=subprocess.PIPE) as loader,
    ):
        # In a thread of its own: it waits as long as psql does not read.
        pipe = reader.process, loader.process
        threading.Thread(target=_pass_on, args=pipe, daemon=True).start()
        if loader.wait(connection) == -signal.SIGKILL:
            reader.finish(connection)
        loader.finish(connection)


def _pass_on(reader: "subprocess.Popen[bytes]", loader: "subprocess.Popen[bytes]") -> None:
    """Hand the script over; its end, at which psql commits, only after pg_restore said it is whole.

    Where pg_restore fails, psql is killed, and the database stays as it was.
    """
    script, target = cast(IO[bytes], reader.stdout), cast(IO[bytes], loader.stdin)
    may_end = False
    try:
        with script:  # Closed, it ends pg_restore too where psql was killed.
            target.writelines(line for line in script if line != _UNKNOWN_TO_OLD_SERVERS)
        if may_end := reader.wait() == 0:
            target.close()
    except BrokenPipeError:
        may_end = True  # psql stopped at an error; it says which.
    finally:
        if not may_end:
            loader.kill()


@dataclass(frozen=True, slots=True)
class _Program:
    """One of PostgreSQL's programs at work, and what it complains about."""

    process: "subprocess.Popen[bytes]"
    complaints: IO[bytes]

    def wait(self, connection: Connection) -> int:
        """Wait for its end as long as the server answers, and return its exit code."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(_LOOK_SECONDS)
            connection.execute(_CLOCK)
            connection.rollback()  # No transaction stays open beside the program's.

    def finish(self, connection: Connection) -> None:
        """Wait for its end; of a failure raise its first words, without the password."""
        if self.wait(connection) == 0:
            return
        self.complaints.seek(0)
        said = self.complaints.read(_MAX_WORDS).decode(errors="replace")
        url = connection.engine.url.render_as_string(hide_password=False)
        words = " ".join(redact_password(said, url).split())
        name = Path(str(self.process.args[0])).name  # type: ignore[index]
        raise StorageError(f"{name} failed: {words or 'it was ended'}")


@contextmanager
def _start(
    command: list[str], secrets: dict[str, str], stdin: int | None = None, stdout: int | None = None
) -> Iterator[_Program]:
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs
            command, env={**os.environ, "PGOPTIONS": SERVER_OPTIONS, **secrets},
            stdin=stdin, stdout=stdout, stderr=complaints,
        )  # fmt: skip
        try:
            yield _Program(process, complaints)
        finally:
            process.kill()
            process.wait()


def _find(program: str) -> str:
    """Return the path of a program beside psql, which must be there too."""
    path = psql_path().with_name(program)
    if not path.exists():
        raise StorageError(f"looking for {program} in {path.parent}: it is missing; set PG_BIN")
    return str(path)
