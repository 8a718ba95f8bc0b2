"""Many runs in one process, and a provider that knows less than before."""

import gc
import os
import threading

import psutil
import pytest
from sqlalchemy import Engine

from market_pipeline_tests.databases import read_column
from market_pipeline_tests.faults.crash_points import SEEDS
from market_pipeline_tests.faults.installations import Disturbed
from market_pipeline_tests.faults.invariants import assert_invariants
from market_pipeline_tests.ingestion.installation import MARCH
from market_pipeline_tests.system.processes import wait_for

# Autovacuum's processes come and go.
SESSIONS = """SELECT count(*)::int FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend'"""
DIGEST = """SELECT md5(string_agg(bar::text, ',' ORDER BY bar))
    FROM market_data.market_aggregate bar WHERE is_final AND open_time < '2024-03-10'"""
WARM_UP, LEAST_RUNS = 10, 20
MOST_GROWTH_BYTES = 40 << 20


def measure(engine: Engine) -> tuple[int, int, int]:
    """Return how many descriptors, threads and sessions there are."""
    gc.collect()
    descriptors = psutil.Process(os.getpid()).num_fds()
    return descriptors, threading.active_count(), int(str(read_column(engine, SESSIONS)[0]))


@pytest.mark.faults
def test_j4_run_after_run_keeps_no_descriptor_thread_session_or_memory(
    installation: Disturbed, engine: Engine
) -> None:
    """After a warm-up the process is as large as it stays, however many runs it does."""
    process = psutil.Process(os.getpid())
    for number in range(WARM_UP):
        installation.ingest(MARCH.replace(hour=number))
    before, size = measure(engine), process.memory_info().rss
    for number in range(max(LEAST_RUNS, 4 * len(SEEDS))):
        installation.ingest(MARCH.replace(day=16 + number % 14, hour=number // 14))
    grown = process.memory_info().rss - size

    def is_as_before() -> bool:
        """Tell whether nothing is left; a session ends a moment after its connection."""
        return all(now <= then for now, then in zip(measure(engine), before, strict=True))

    wait_for(is_as_before, 60, f"{before} descriptors, threads and sessions again")
    assert grown < MOST_GROWTH_BYTES
    assert_invariants(engine, is_repaired=True)


def test_e7_a_provider_that_forgets_history_deletes_none(installation: Disturbed) -> None:
    """Fewer bars than are stored come: what was stored stays as it was."""
    installation.ingest(MARCH)
    before = read_column(installation.engine, DIGEST)
    installation.ingest(MARCH.replace(day=16), "*:truncated_history=3")
    assert read_column(installation.engine, DIGEST) == before
    installation.recover(MARCH.replace(day=17))
