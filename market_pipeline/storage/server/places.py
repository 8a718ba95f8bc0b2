"""The place of an embedded server: its folders, and the account that it runs as.

**Where.** ``<state>/postgres`` holds data, log, locks and socket, mode 0700. A path that is too
long for a socket (about 100 bytes) or needs quoting in a URL has its socket in a 0700 folder in
``/tmp``, named by a hash of the path: always ``/tmp``, or processes with different TMPDIR would
not meet.

**As whom.** The owner of the folder. PostgreSQL refuses to be root; for root the server runs as the
owner of the state folder or of the folder around it, and where that is root too, as ``postgres`` or
``nobody``. Where that account cannot get in (a clone in a private /root), no parent's permission is
touched: the data, and a copy of the programs if need be, go to ``/var/lib/market-pipeline``.
"""

import contextlib
import hashlib
import os
import pwd
import re
import secrets
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from market_pipeline.domain.errors import EmbeddedServerError
from market_pipeline.storage.server.embedded_keeper import PORT, ROLE, is_listening, is_locked

SYSTEM_DIR = Path("/var/lib/market-pipeline")
SOCKET_PARENT = Path("/tmp")  # noqa: S108 - fixed on purpose; the folder in it is verified
SOCKET_PATH_MAX_BYTES = 100
UNPRIVILEGED_ACCOUNTS = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """Where a project's server lives and as whom it runs."""

    home: Path
    socket_dir: Path
    account: pwd.struct_passwd

    @property
    def url(self) -> str:
        """The address of the database."""
        # The port is spelled out because PGPORT would otherwise replace it.
        return f"postgresql+psycopg2://{ROLE}@/{ROLE}?host={self.socket_dir}&port={PORT}"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.home / "server.log"

    def is_serving(self) -> bool:
        """Say, in well under a millisecond, whether a kept server listens."""
        return is_locked(self.home / "keeper.lock") and is_listening(self.socket_dir)


def find_place(state: Path) -> ServerPlace:
    """Choose home, socket folder and account, and make the folders; they must be nobody else's."""
    home = _find_root_home(state) if os.geteuid() == 0 else _find_user_home(state)
    account = _find_account(home.stat().st_uid)
    home.chmod(0o700)
    return ServerPlace(home, _find_socket_dir(home, account), account)


def hash_path(path: Path | str) -> str:
    """Return a short name that stands for a path."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def _make_folder(folder: Path, mode: int, uid: int, gid: int) -> None:
    """Make a folder and its owner in one step: another process never sees it half made."""
    if folder.exists():
        return
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    draft.mkdir(mode)
    try:
        if os.geteuid() == 0:
            os.chown(draft, uid, gid)
        draft.rename(folder)
    except OSError:
        draft.rmdir()
        if not folder.exists():
            raise


def _find_user_home(state: Path) -> Path:
    """Return an ordinary user's home of the server, made if missing."""
    elsewhere = SYSTEM_DIR / hash_path(state)
    home = elsewhere if elsewhere.exists() else state / "postgres"
    refuse_foreign(home if home.exists() else state)
    state.mkdir(parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    return home


def refuse_foreign(folder: Path) -> None:
    """Raise if a folder exists and belongs to another user."""
    if not folder.exists() or folder.stat().st_uid == os.geteuid():
        return
    owner, me = _name_of(folder.stat().st_uid), _name_of(os.geteuid())
    raise EmbeddedServerError(
        f"using {folder} for the embedded PostgreSQL: it belongs to {owner}, and this is {me}; "
        f"work as {owner} (or root), give it over with `chown -R {me} {folder}`, or set STATE_DIR"
    )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _find_account(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        message = f"PostgreSQL cannot run as user {uid}, who has no entry in /etc/passwd"
        raise EmbeddedServerError(f"{message}; add one, or set DATABASE_URL") from None


def _find_root_home(state: Path) -> Path:
    """Return the home of the server as root sees it, made if missing and given to its account."""
    elsewhere, home = SYSTEM_DIR / hash_path(state), state / "postgres"
    if elsewhere.exists():
        return elsewhere
    if home.exists() and home.stat().st_uid != 0:
        return home
    _make_folders(state)
    account = _choose_account(state)
    if _make_usable(home, account):
        return home
    if (home / "data").exists():
        raise EmbeddedServerError(f"user {account.pw_name} cannot get into {home}; let it through")
    make_system_dir()
    if _make_usable(elsewhere, account):
        return elsewhere
    message = f"user {account.pw_name}, as whom PostgreSQL would run, gets into neither {home} nor"
    raise EmbeddedServerError(f"{message} {elsewhere}; set STATE_DIR or DATABASE_URL")


def _make_folders(state: Path) -> None:
    """Make the state folder and what is missing above it, owned as the folder they are made in."""
    missing = [folder for folder in (state, *state.parents) if not folder.exists()]
    for folder in reversed(missing):
        owner = folder.parent.stat()
        _make_folder(folder, 0o777, owner.st_uid, owner.st_gid)


def make_system_dir() -> None:
    """Make the folder for what must not lie within root's own."""
    SYSTEM_DIR.mkdir(parents=True, exist_ok=True)
    SYSTEM_DIR.chmod(0o755)  # ours alone; the umask may have closed it


def _choose_account(state: Path) -> pwd.struct_passwd:
    """Choose whom root lets the server run as."""
    for folder in (state, state.parent):
        if folder.stat().st_uid != 0:
            return _find_account(folder.stat().st_uid)
    for name in UNPRIVILEGED_ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    tried = " nor ".join(UNPRIVILEGED_ACCOUNTS)
    raise EmbeddedServerError(f"PostgreSQL refuses to run as root, and there is no user {tried}")


def _make_usable(home: Path, account: pwd.struct_passwd) -> bool:
    """Make a home for an account; False (and nothing left behind) if it cannot get in."""
    _make_folder(home, 0o700, account.pw_uid, account.pw_gid)
    for path in (home, *home.rglob("*")):  # a copy that root made belongs to root
        with contextlib.suppress(FileNotFoundError):  # another process' draft of a lock file
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    command = ["/bin/sh", "-c", 'cd -- "$1" && test -w .', "sh", str(home)]
    if run_as(account, command).returncode == 0:
        return True
    with contextlib.suppress(OSError):
        home.rmdir()
    return False


def run_as(account: pwd.struct_passwd, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program as an account (root), or simply run it (anyone else)."""
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        groups = os.getgrouplist(account.pw_name, account.pw_gid)
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
    return subprocess.run(  # noqa: S603 - our own commands
        command, capture_output=True, text=True, check=False, cwd="/", **identity
    )


def _find_socket_dir(home: Path, account: pwd.struct_passwd) -> Path:
    """Return the home itself if its path fits a socket and a URL, else a folder in /tmp."""
    length = len(os.fsencode(home / f".s.PGSQL.{PORT}"))
    if length <= SOCKET_PATH_MAX_BYTES and re.fullmatch(r"[A-Za-z0-9_./~-]+", str(home)):
        return home
    folder = SOCKET_PARENT / f"market-pipeline-{hash_path(home)}"
    if not folder.is_symlink():
        _make_folder(folder, 0o700, account.pw_uid, account.pw_gid)
    _refuse_squatted(folder, account)
    return folder


def _refuse_squatted(folder: Path, account: pwd.struct_passwd) -> None:
    """Raise unless a folder in /tmp is a real one, private to the account."""
    found = folder.lstat()
    is_private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
    if is_private and found.st_uid == account.pw_uid:
        return
    raise EmbeddedServerError(
        f"putting the embedded PostgreSQL's socket into {folder}: it is not a private folder of "
        f"{account.pw_name} (owner {_name_of(found.st_uid)}, {stat.filemode(found.st_mode)}); "
        "remove it, or set STATE_DIR to a shorter path"
    )
