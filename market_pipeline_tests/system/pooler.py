"""Debian's pgbouncer before Debian's PostgreSQL."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.system.debian import (
    PASSWORD,
    ROLE,
    START_SECONDS,
    Server,
    become,
    choose_account,
    stop,
)
from market_pipeline_tests.system.processes import wait_for

PGBOUNCER = "/usr/sbin/pgbouncer"
# As pools are set up for drivers that send options, which pgbouncer refuses by default.
CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = {mode}
ignore_startup_parameters = options,extra_float_digits
"""


@contextlib.contextmanager
def run_pooler(server: Server, mode: str) -> Iterator[Server]:
    """Run pgbouncer before a server; what is given is the server as it is seen through it."""
    home = Path(tempfile.mkdtemp(prefix="mp-pooler-", dir="/tmp"))
    home.chmod(0o755)
    seen = replace(server, port=choose_port())
    users, settings, log = (home / name for name in ("users", "pgbouncer.ini", "log"))
    users.write_text(f'"{ROLE}" "{PASSWORD}"\n', encoding="utf-8")
    told = {"port": server.port, "own_port": seen.port, "users": users, "mode": mode}
    settings.write_text(CONFIGURATION.format(**told), encoding="utf-8")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*become(choose_account()), PGBOUNCER, str(settings)],
            cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_for(lambda: seen.answers() or process.poll() is not None, START_SECONDS, "pgbouncer")
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield seen
    finally:
        stop(process)
        shutil.rmtree(home)
