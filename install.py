"""Fill ``.venv`` for the Makefile: with uv where it works, else with pip.

Runs before anything is installed, so it needs Python alone. Each step says what it does, and on a
terminal also how long it takes and what its program said last. Every file of a registry must have a
checksum that ``hashes.txt`` names: nothing else is installed.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread

VENV = Path(".venv")
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"
HASHES = "hashes.txt"
WANTED = VENV / "wanted.txt"
CHECKED = ("--require-hashes", "--no-deps", "-r", str(WANTED))
# A source archive would run code and fetch what builds it. Two tools of developers are only that.
WHEELS = ("--only-binary", ":all:")
# What was checked builds it: an isolated build would fetch what no checksum is known of.
PRODUCT = ("--no-deps", "--no-build-isolation", "-e", ".")
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
NEEDED_GB = 1.0
KEPT_LINES = 40
NO_SPACE = "No space left on device"
# In uv's words and in pip's.
MISMATCH = ("Hash mismatch for", "DO NOT MATCH THE HASHES")


class InstallError(Exception):
    """The environment cannot be made; the text says why and what to do."""


def main(extras: Sequence[str]) -> None:
    """Make the environment where it is missing, and install the product with these extras."""
    check_machine()
    make_environment()
    what = f"the packages of {' and '.join(extras)}" if extras else "the packages"
    if not install_with_uv(what, extras):
        want("product", *extras)
        pip = [str(PYTHON), "-m", "pip", "install"]
        check(run(f"Installing {what} with pip", [*pip, *CHECKED, *(() if extras else WHEELS)]))
        check(run("Installing the product with pip", [*pip, *PRODUCT]))


def select(*names: str) -> str:
    """Return the lines of ``hashes.txt`` that the product, extras or uv need."""
    parts = re.split(
        r"^# for: (.*)\n", Path(HASHES).read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    groups = list(zip(parts[1::2], parts[2::2], strict=True))
    if unknown := set(names) - {""} - {one for needed_by, _ in groups for one in needed_by.split()}:
        raise InstallError(f"{HASHES} knows nothing that {' and '.join(sorted(unknown))} needs")
    return "".join(lines for needed_by, lines in groups if set(names) & set(needed_by.split()))


def want(*names: str) -> None:
    """Note what to install for pip and uv, which read files."""
    WANTED.write_text(select(*names), encoding="utf-8")


def check_machine() -> None:
    """Make sure of what an installation needs.

    Raises:
        InstallError: Python's venv module or space on the disk is missing.
    """
    try:
        import ensurepip  # noqa: F401 - Debian ships it apart, and venv cannot do without
        import venv  # noqa: F401
    except ImportError:
        raise InstallError(
            f"Python {VERSION} comes without its venv module. Install it and run make again; "
            f"on Debian and Ubuntu: sudo apt-get install python{VERSION}-venv"
        ) from None
    free = shutil.disk_usage(".").free / 1e9
    if free < NEEDED_GB and not PYTHON.exists():
        raise InstallError(
            f"{free:.1f} GB are free on the disk of {Path.cwd()}, and the packages take "
            f"{NEEDED_GB:.0f} GB: make room and run make again"
        )


def make_environment() -> None:
    """Make the environment, anew when the one that is there belongs to another Python."""
    settings = VENV / "pyvenv.cfg"
    made_by = settings.read_text(encoding="utf-8") if settings.exists() else ""
    if PYTHON.exists() and re.search(rf"^version = {re.escape(VERSION)}\.", made_by, re.MULTILINE):
        return
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    check(run(f"Creating the environment {VENV} with Python {VERSION}", command))


def install_with_uv(what: str, extras: Sequence[str]) -> bool:
    """Install with uv, which takes a fraction of pip's time; tell whether that worked."""
    failed = "" if UV.exists() else install_uv()
    uv, index = [str(UV), "pip", "install", "--python", str(PYTHON)], find_index(PYTHON)
    # Tests start hundreds of processes; one run does not pay for the compilation.
    how = ["--compile-bytecode"] if extras else WHEELS
    if not failed:
        want("product", *extras)
        failed = run(f"Installing {what} with uv", [*uv, *CHECKED, *how], index)
    if not failed:
        failed = run("Installing the product with uv", [*uv, *PRODUCT], index)
    if failed:
        refuse_mismatch(failed)
        reason = failed.strip().splitlines()[-1].strip()
        say(f"uv does not work here ({reason}): pip goes on, which takes longer.\n")
    return not failed


def install_uv() -> str:
    """Install uv, and return why that failed, else ""."""
    want("uv")
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check"]
    return run("Installing uv", [*pip, *CHECKED, *WHEELS])


def find_index(python: Path) -> dict[str, str]:
    """Return the registry of pip's configuration, which uv does not read, as a variable of uv."""
    if any(name in os.environ for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")):
        return {}
    command = [str(python), "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    found = re.findall(r"^[^=]+\.index-url='(.+)'$", listed.stdout, re.MULTILINE)
    return {"UV_DEFAULT_INDEX": os.environ.get("PIP_INDEX_URL", found[-1])} if found else {}


def refuse_mismatch(failed: str) -> None:
    """Stop where a file is not what it should be: another program would get the same file.

    Raises:
        InstallError: Says so, with the program's words on which file that is.
    """
    if any(words in failed for words in MISMATCH):
        raise InstallError(
            f"{failed.rstrip()}\nThis file has another checksum than {HASHES} names: it is not the "
            "one that this project was tested with, and it was not installed. Find out where it "
            "came from (`pip config list` names the registry), and run make again"
        )


def check(failed: str) -> None:
    """Raise what a program that failed said."""
    if failed:
        refuse_mismatch(failed)
        cure = ": make room on the disk and run make again" if NO_SPACE in failed else ""
        raise InstallError(f"{failed.rstrip()}\nThe environment is not complete{cure}")


def run(title: str, command: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    """Run a program with its progress in one line; return its last words if it fails, else ""."""
    started, is_watched = time.monotonic(), sys.stdout.isatty()
    if not is_watched:
        say(f"{title}\n")
    process = subprocess.Popen(  # noqa: S603 - our own commands
        command, env={**os.environ, **(variables or {})}, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    words: deque[str] = deque(maxlen=KEPT_LINES)
    reader = Thread(target=words.extend, args=(process.stdout,), daemon=True)
    reader.start()
    while is_watched and reader.is_alive():
        show(f"{title}: {time.monotonic() - started:.0f} s  {words[-1].strip() if words else ''}")
        reader.join(0.5)
    reader.join()
    if is_watched:
        show(f"{title}: {time.monotonic() - started:.0f} s\n")
    return ("".join(words) or "it said nothing") if process.wait() else ""


def show(line: str) -> None:
    """Write a line of a terminal over the one before, cut to its width."""
    end = "\n" if line.endswith("\n") else ""
    say(f"\r\x1b[K{line.rstrip()[: shutil.get_terminal_size().columns - 1]}{end}")


def say(text: str) -> None:
    """Write at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InstallError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: the same command goes on from here")
