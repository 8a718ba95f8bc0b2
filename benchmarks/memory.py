"""How much memory the writer takes: its peak in a process of its own, over the frame's."""

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.bar_table import write_bars
from benchmarks.bars import MARKETS, Span, build_bars
from benchmarks.bench import Bench, Measurement
from benchmarks.database import Database
from benchmarks.figures import Figure
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"


def measure_memory(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield the extra memory of a first load, in MB of resident pages."""
    del wanted
    if not (_PROCESS / "clear_refs").exists():
        bench.report("client_rss_mb is left out: it needs Linux's /proc")
        return
    runs = []
    for number in range(1, bench.rounds + 1):
        with bench.open_database() as database:
            runs.append(_ask_child(database.url, bench.rows))
        bench.report(f"round {number} of {bench.rounds}: {runs[-1]:.1f} MB")
    detail = {
        "runs": runs,
        "note": "first load; peak resident memory less that before the write, frame in memory",
    }
    yield Figure("client_rss_mb", median(runs), "MB", len(runs), detail)


def _ask_child(url: str, rows: int) -> float:
    # By standard input, for an address may hold a password.
    child = subprocess.run(  # noqa: S603 - this module
        [sys.executable, "-m", __name__, str(rows)],
        input=url,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(child.stdout)


def measure_this_process(url: str, rows: int) -> float:
    """Return by how many MB this process grows, at most, while it writes bars."""
    bars = build_bars(Span(0, rows // MARKETS))
    engine = open_engine(DatabaseAddress(url, is_embedded=True))
    database = Database(url, engine)
    database.ask("SELECT 1")
    # Pages that were freed but kept would hide what the writer takes.
    ctypes.CDLL(None).malloc_trim(0)
    (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    before = _read_kilobytes("VmRSS")
    write_bars(database, bars)
    return round((_read_kilobytes("VmHWM") - before) / 1024, 1)


def _read_kilobytes(field: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


MEASUREMENT = Measurement("memory of the writer", ("client_rss_mb",), measure_memory)

if __name__ == "__main__":
    sys.stdout.write(f"{measure_this_process(sys.stdin.read(), int(sys.argv[1]))}\n")
