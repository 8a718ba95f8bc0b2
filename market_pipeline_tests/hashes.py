"""Make ``hashes.txt``: what ``make`` installs, with the checksums of the registry's files.

``python -m market_pipeline_tests.hashes`` writes it anew, after a change of ``constraints.txt`` or
of what ``setup.py`` asks for. The versions are those of ``constraints.txt``. What only another
platform or Python needs is there as well, with its marker. Each package stands once, below a line
with the names of those who need it: ``product``, an extra of ``setup.py``, or ``uv``.
"""

import subprocess
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

import install

ROOT = Path(install.__file__).parent
TARGET = ROOT / install.HASHES
EXTRAS = ("otel", "ccxt", "mcp", "celery", "kubernetes", "dev", "system", "bench")
# The product is built by what is installed and checked, so that no step fetches anything else.
BUILD = "setuptools\n"
TITLE = """\
# What `make` installs, with the checksums of the registry's files for all platforms. Made from
# setup.py and constraints.txt by `python -m market_pipeline_tests.hashes`; do not edit.
"""


def resolve(*options: str, needed: str = "") -> set[str]:
    """Return the packages that some requirements come to, each with its marker and checksums."""
    command = [
        str(Path(sysconfig.get_path("scripts")) / "uv"), "pip", "compile", "--quiet", "--universal",
        "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate",
        "--constraints", "constraints.txt", *options, "-",
    ]  # fmt: skip
    environment = install.find_index(Path(sys.executable))
    done = subprocess.run(
        command, cwd=ROOT, env={**install.os.environ, **environment}, input=needed,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return set(done.stdout.replace("\n    ", "\0    ").splitlines())


def group_packages() -> dict[str, set[str]]:
    """Return the packages by the names of those who need them."""
    needed = {"uv": resolve(needed="uv\n"), "product": resolve("setup.py", needed=BUILD)}
    for extra in EXTRAS:
        needed[extra] = resolve("setup.py", "--extra", extra, needed=BUILD) - needed["product"]
    groups = defaultdict(set)
    for package in set().union(*needed.values()):
        groups[" ".join(name for name in needed if package in needed[name])].add(package)
    return groups


def main() -> None:
    """Write the file."""
    parts = [TITLE]
    for names, packages in sorted(group_packages().items()):
        parts += [f"# for: {names}\n", *(f"{one}\n" for one in sorted(packages))]
    TARGET.write_text("".join(parts).replace("\0", "\n"), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
