"""The whole database into one file, and back: PostgreSQL's own dump, by its own programs.

A file holds the market tables and Dagster's storage, as one snapshot, without owners and rights, so
that it can be restored on another server, as another role, and on a newer or an older version.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sqlalchemy import Engine, text

from market_pipeline.domain.errors import StorageError
from market_pipeline.storage.server.programs import psql_path
from market_pipeline.storage.server.urls import build_psql_address, redact_password
from market_pipeline.storage.tables import SCHEMAS

_MAX_WORDS = 600
# What newer programs write into every script, and servers before 17 do not know.
_UNKNOWN_TO_OLD_SERVERS = b"SET transaction_timeout = 0;\n"


def dump_database(url: str, file: Path) -> int:
    """Write a dump, readable by its owner alone, and return its size in bytes.

    The file appears when it is whole; one of that name is replaced. Where pg_dump refuses, a
    ``StorageError`` has its words.
    """
    address, secrets = build_psql_address(url)
    schemas = [f"--schema={schema}" for schema in SCHEMAS]
    options = ["--format=custom", "--no-owner", "--no-privileges", *schemas]
    with replace_file(file) as draft:
        command = [_find("pg_dump"), *options, f"--file={draft}", f"--dbname={address}"]
        with _start(command, secrets) as program:
            program.finish(url)
    return file.stat().st_size


@contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Give a draft that its owner alone can read, and put it in a file's place when it is whole."""
    draft = file.with_name(f".{file.name}.partial")
    # Made by us first, so that nobody else could open it in between.
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    try:
        yield draft
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def has_tables(engine: Engine) -> bool:
    """Say whether the database holds market tables or Dagster's storage already."""
    query = text("SELECT count(*) FROM pg_tables WHERE schemaname = ANY(:schemas)")
    with engine.connect() as connection:
        return bool(connection.execute(query, {"schemas": list(SCHEMAS)}).scalar())


def restore_database(url: str, file: Path) -> None:
    """Put a dump in the place of what the database holds, in one transaction: all or nothing.

    Raises:
        StorageError: The file is no whole dump, or the server refused something; their words.
    """
    if not file.is_file():
        raise StorageError(f"restoring {file}: the file does not exist")
    address, secrets = build_psql_address(url)
    drop = "; ".join(f"DROP SCHEMA IF EXISTS {schema} CASCADE" for schema in SCHEMAS)
    load = [
        str(psql_path()), address, "--quiet", "--no-psqlrc", "--single-transaction",
        "--set=ON_ERROR_STOP=1", "--output=/dev/null", f"--command={drop}", "--file=-",
    ]  # fmt: skip
    read = [_find("pg_restore"), "--no-owner", "--no-privileges", "--file=-", str(file)]
    with (
        _start(read, {}, stdout=subprocess.PIPE) as reader,
        _start(load, secrets, stdin=subprocess.PIPE) as loader,
    ):
        _pass_on(reader, loader, url)


def _pass_on(reader: "_Program", loader: "_Program", url: str) -> None:
    """Hand the script over; its end, at which psql commits, only after pg_restore said it is whole.

    Where one of them fails, the database stays as it was.
    """
    script, target = reader.process.stdout, loader.process.stdin
    if script is None or target is None:
        raise TypeError("both programs need their pipe")
    try:
        # psql may stop at an error; it says which.
        with suppress(BrokenPipeError):
            target.writelines(line for line in script if line != _UNKNOWN_TO_OLD_SERVERS)
        script.close()
        if loader.process.poll() is None:
            reader.finish(url)
        with suppress(BrokenPipeError):
            target.close()
        loader.finish(url)
    except BaseException:
        loader.process.kill()
        raise


@dataclass(frozen=True, slots=True)
class _Program:
    """One of PostgreSQL's programs at work, and what it complains about."""

    process: "subprocess.Popen[bytes]"
    complaints: IO[bytes]

    def finish(self, url: str) -> None:
        """Wait for its end; of a failure raise its first words, without the password."""
        if self.process.wait() == 0:
            return
        self.complaints.seek(0)
        said = redact_password(self.complaints.read(_MAX_WORDS).decode(errors="replace"), url)
        name = Path(str(self.process.args[0])).name  # type: ignore[index]
        raise StorageError(f"{name} failed: {' '.join(said.split()) or 'it was ended'}")


@contextmanager
def _start(
    command: list[str], secrets: dict[str, str], stdin: int | None = None, stdout: int | None = None
) -> Iterator[_Program]:
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs
            command, env={**os.environ, **secrets}, stdin=stdin, stdout=stdout, stderr=complaints
        )
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
