"""Ten minutes of load with faults in the middle: ``make load`` (LOAD_SECONDS, LOAD_BARS).

200 clients read and 20 post while a million bars are loaded and the schedule runs each minute.
Meanwhile Redis is killed, and PostgreSQL is stopped at once, started, killed, and started again.
Prints figures, and a line for everything that was not right; then it exits with 1.
"""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path

from market_pipeline_tests.databases import read_column
from market_pipeline_tests.faults.load.answers import Notes, build_table
from market_pipeline_tests.faults.load.clients import (
    POST_DEADLINE_SECONDS,
    READ_DEADLINE_SECONDS,
    Client,
    crowd,
    post,
    read,
)
from market_pipeline_tests.faults.load.parts import (
    Parts,
    Sizes,
    compare_thirds,
    load_bars,
    run_parts,
    watch_memory,
)
from market_pipeline_tests.faults.load.tables import judge_tables, judge_ticks, wait_for_the_queue

SECONDS = float(os.environ.get("LOAD_SECONDS") or 600)
BARS = int(os.environ.get("LOAD_BARS") or 1_000_000)
READERS, POSTERS, IDLE_READERS, CROWD = 200, 20, 8, 40
QUIET_SECONDS, WARM_UP_SECONDS = max(SECONDS / 10, 30.0), 15.0
MOST_GROWTH_BYTES = 40 << 20
MOST_MORE = Sizes(descriptors=10, threads=5, sessions=5)
_LATE = 0.1
Step = Callable[[], Awaitable[object]]


def say(words: str) -> None:
    """Print with the time."""
    sys.stdout.write(f"{datetime.now():%H:%M:%S} {words}\n")  # noqa: DTZ005 - of the reader's clock
    sys.stdout.flush()


async def measure_quietly(parts: Parts, run_id: str, seconds: float) -> Notes:
    """Let few clients read, and return what they noted."""
    notes, until = Notes(), time.time() + seconds
    client = (parts.address, notes, run_id, READ_DEADLINE_SECONDS, 0.5)
    await asyncio.gather(*(read(Client(*client), until) for _ in range(IDLE_READERS)))
    return notes


async def load(
    parts: Parts, run_id: str, notes: Notes
) -> tuple[list[str], list[tuple[float, int]]]:
    """Let everything happen at once; return what failed by itself, and the API's memory."""
    until, memory, lags = time.time() + SECONDS, [], []
    reader = (parts.address, notes, run_id, READ_DEADLINE_SECONDS, 8.0)
    poster = (parts.address, notes, run_id, POST_DEADLINE_SECONDS, 20.0)
    async with asyncio.TaskGroup() as group:
        for _ in range(READERS):
            group.create_task(read(Client(*reader), until))
        for number in range(POSTERS):
            group.create_task(post(Client(*poster), number, until))
        group.create_task(crowd(Client(*poster), CROWD, until - 0.9 * SECONDS))
        group.create_task(break_things(parts, notes, until - SECONDS))
        group.create_task(watch_memory(parts, memory, until))
        group.create_task(_watch_lag(lags, until))
        loading = group.create_task(load_bars(parts, notes, until))
    say(f"of the clients' own wake-ups, 99 % were at most {_find_p99(lags) * 1e3:.0f} ms late")
    return loading.result(), memory


async def break_things(parts: Parts, notes: Notes, began: float) -> None:
    """Cause each fault at its share of the time."""
    steps: tuple[tuple[float, str, Step], ...] = (
        (0.25, "Redis is killed", lambda: asyncio.to_thread(parts.valkey.kill)),
        (0.40, "Redis is started again", lambda: asyncio.to_thread(parts.valkey.start)),
        (0.50, "PostgreSQL is stopped", lambda: _restart(parts, notes, signal.SIGQUIT)),
        (0.70, "PostgreSQL is killed", lambda: _restart(parts, notes, signal.SIGKILL)),
    )
    for share, words, act in steps:
        await asyncio.sleep(max(began + share * SECONDS - time.time(), 0))
        say(words)
        await act()


async def _restart(parts: Parts, notes: Notes, how: signal.Signals) -> None:
    with notes.outage():
        await asyncio.to_thread(parts.server.end, how)
        await asyncio.sleep(5)
        await asyncio.to_thread(parts.server.start_again)
    say("PostgreSQL answers again")


async def _watch_lag(lags: list[float], until: float) -> None:
    while time.time() < until:
        began = time.perf_counter()
        await asyncio.sleep(_LATE)
        lags.append(time.perf_counter() - began - _LATE)


def _find_p99(values: list[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]


async def conduct(parts: Parts) -> list[str]:
    """Do it all; return what was wrong."""
    run_id = str(read_column(parts.engine, "SELECT run_id FROM market_data.ingestion_run")[0])
    say(f"idle: {IDLE_READERS} clients for {QUIET_SECONDS:.0f} s")
    await measure_quietly(parts, run_id, WARM_UP_SECONDS)
    idle = await measure_quietly(parts, run_id, QUIET_SECONDS)
    before, notes, began = Sizes.measure(parts), Notes(), time.time()
    say(f"load: {READERS} read, {POSTERS} post, for {SECONDS:.0f} s; {before}")
    wrong, memory = await load(parts, run_id, notes)
    ended = time.time()
    silent = sum(one.status == 503 and not one.needs_outage for one in notes.answers)
    say(f"{silent} refusals because Dagster did not answer; so far wrong: {notes.list_faults()}")
    say("the load is over: waiting for the runs in the queue")
    await wait_for_the_queue(parts)
    say(f"afterwards: {IDLE_READERS} clients for {QUIET_SECONDS:.0f} s")
    after = await measure_quietly(parts, run_id, QUIET_SECONDS)
    left = Sizes.measure(parts)
    for line in build_table(idle, notes, after):
        say(line)
    say(f"{len(notes.answers) / (ended - began):.1f} answers a second; {left}")
    told, wrong_ticks = judge_ticks(parts.engine, notes, began, ended)
    say(f"{told}; {len(parts.loads)} loads; {len(notes.runs)} runs were given to those who posted")
    return [
        *wrong, *wrong_ticks, *notes.list_faults(), *(f"idle: {one}" for one in idle.list_faults()),
        *(f"afterwards: {one}" for one in after.list_faults()), *judge_sizes(memory, before, left),
        *judge_tables(parts, notes), *parts.list_faults(),
    ]  # fmt: skip


def judge_sizes(memory: list[tuple[float, int]], before: Sizes, after: Sizes) -> Iterator[str]:
    """Yield what grew."""
    first, last, most = (size / 2**20 for size in compare_thirds(memory))
    say(f"memory of the API: first third {first:.0f}, last third {last:.0f}, most {most:.0f} MB")
    if (last - first) * 2**20 > MOST_GROWTH_BYTES:
        yield f"the API grew by {last - first:.0f} MB between the first third and the last"
    for name in ("descriptors", "threads", "sessions"):
        grown = getattr(after, name) - getattr(before, name)
        if grown > getattr(MOST_MORE, name):
            yield f"{grown} {name} more than before the load"


def main() -> int:
    """Run it in a folder of its own, which is removed."""
    folder = Path(tempfile.mkdtemp(prefix="mp-load-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with run_parts(folder, BARS) as parts:
            wrong = asyncio.run(conduct(parts))
    except KeyboardInterrupt:
        say("stopped: nothing was judged")
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for line in wrong:
        say(f"WRONG {line}")
    say("nothing was wrong" if not wrong else f"{len(wrong)} things were wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
