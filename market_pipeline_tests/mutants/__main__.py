"""Break the product on purpose, promise by promise, and see that its tests notice.

``make mutants`` runs all of ``kept.toml`` on a copy of the project, one after the other. Words name
a part: ``python -m market_pipeline_tests.mutants I4 S8``. It exits with 1 if a mutant survives.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
KEPT = Path(__file__).with_name("kept.toml")
_RED = 1
"""pytest's exit code for tests that failed; others mean that it could not run them."""


class Mutant(NamedTuple):
    """One change that breaks one promise."""

    id: str
    promise: str
    file: str
    find: str
    put: str
    tests: str

    def change(self, root: Path) -> str:
        """Return the changed text of its file.

        Raises:
            ValueError: The text to replace is not there once.
        """
        source = (root / "market_pipeline" / self.file).read_text(encoding="utf-8")
        if (found := source.count(self.find)) != 1:
            raise ValueError(f"{self.id}: {self.file} has {found} times, not once: {self.find}")
        return source.replace(self.find, self.put)


def read_mutants() -> list[Mutant]:
    """Return the mutants that are kept."""
    return [Mutant(**one) for one in tomllib.loads(KEPT.read_text(encoding="utf-8"))["mutant"]]


def build_python(copy: Path, folder: Path) -> Path:
    """Return a Python that has this one's packages and imports the product from a copy.

    Its commands do so as well: tests start them, in an environment of their own.
    """
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    packages = sysconfig.get_path("purelib")
    (site / "mutants.pth").write_text(f"{copy}\n{packages}\n", encoding="utf-8")
    python = folder / "bin" / "python"
    for script in Path(sys.executable).parent.iterdir():
        first, _, body = script.read_bytes().partition(b"\n") if script.is_file() else (b"",) * 3
        if first.startswith(b"#!") and b"python" in first:
            target = folder / "bin" / script.name
            target.write_bytes(f"#!{python}\n".encode() + body)
            target.chmod(0o755)
    return python


def is_killed(mutant: Mutant, copy: Path, python: Path) -> bool:
    """Tell whether a mutant's tests turn red.

    Raises:
        RuntimeError: They could not be run.
    """
    file = copy / "market_pipeline" / mutant.file
    sound, changed = file.read_text(encoding="utf-8"), mutant.change(copy)
    tests = [f"market_pipeline_tests/{path}" for path in mutant.tests.split()]
    command = [str(python), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    file.write_text(changed, encoding="utf-8")
    try:
        added = {"PYTHONDONTWRITEBYTECODE": "1", "MUTANT": mutant.id}
        done = subprocess.run(
            command, cwd=copy, env=os.environ | added, capture_output=True, text=True, check=False
        )
    finally:
        file.write_text(sound, encoding="utf-8")
    if done.returncode not in (0, _RED):
        raise RuntimeError(f"{mutant.id}: pytest ended with {done.returncode}\n{done.stdout}")
    return done.returncode == _RED


def main(words: Sequence[str]) -> int:
    """Run the mutants whose id begins with one of some words, or all, and return the exit code."""
    chosen = [one for one in read_mutants() if not words or one.id.startswith(tuple(words))]
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "project"
        hidden = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "results")
        shutil.copytree(ROOT, copy, ignore=hidden)
        python = build_python(copy, Path(folder) / "venv")
        for at, mutant in enumerate(chosen, start=1):
            killed = is_killed(mutant, copy, python)
            said = "killed" if killed else "SURVIVED"
            print(f"[{at}/{len(chosen)}] {said}: {mutant.id}, {mutant.promise}", flush=True)  # noqa: T201
            survivors += [] if killed else [mutant.id]
    if survivors:
        print(f"No test saw: {', '.join(survivors)}", file=sys.stderr)  # noqa: T201
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
