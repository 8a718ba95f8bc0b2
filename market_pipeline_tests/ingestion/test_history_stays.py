"""Whatever is done to an installation, in any order: what a reader saw of a version stays so.

Runs with faults, cut-off runs, backfills, replays, runs that cron asks for, deactivated markets,
lost sessions and a killed cache, drawn by chance, while a reader reads all the time, of the tables
and over HTTP. The model is what was read: each version that anybody saw reads back the same for
ever, no bar is lost, and nobody sees an older version than before.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, text

from market_pipeline.api.app import build_app
from market_pipeline.api.child_runs import ChildRuns
from market_pipeline.domain.errors import UnknownMarketError
from market_pipeline.ingestion.quarantine import replay_rows
from market_pipeline.providers.mock import MockProvider
from market_pipeline.readers import fetch_latest, open_serving_cache, read_aggregates
from market_pipeline.storage.markets.admin import deactivate_market
from market_pipeline.storage.markets.registration import activate_market
from market_pipeline_tests.api.conftest import make_services
from market_pipeline_tests.cache.valkey import Valkey
from market_pipeline_tests.commands import SCRIPTS
from market_pipeline_tests.ingestion.installation import MARCH, Installation
from market_pipeline_tests.ingestion.test_convergence import list_faults
from market_pipeline_tests.second_opinion import check_numbers
from market_pipeline_tests.system.processes import wait_for

MARKETS = ("BTC-USD", "SPX")
SPAN = ("2023-10-01", "2024-06-01")
# What is in memory hears of a commit within a second; a busy machine takes longer.
NEWS_SECONDS = 120.0
# Each is several runs; the first two are the smallest that there are.
EXAMPLES = max(4, int(os.environ.get("SEEDS", "4")) // 4)
SECRET = "only-cron-knows-this-one"  # noqa: S105 - the test's own
# The product's own command, by the clock of the sequence.
RUN = (
    "sh",
    "-c",
    'exec "$0" ingest --window-end "$(cat clock)" "$@"',
    str(SCRIPTS / "market-pipeline"),
)
CRON_RUN = """SELECT trigger, outcome FROM market_data.ingestion_run
    WHERE run_id::text = :run_id AND ended_at IS NOT NULL"""
_OTHERS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


class Reader:
    """Somebody who reads, and remembers what each version said."""

    def __init__(self, engine: Engine, client: TestClient) -> None:
        self._engine, self._client = engine, client
        self.latest: dict[str, int] = {}
        self.seen: dict[tuple[str, str, int], pd.DataFrame] = {}
        self.newest: dict[tuple[str, str], int] = {}

    def read(self, symbol: str, interval: str) -> None:
        """Read a series: its version is no older than before, and said the same if it was seen."""
        try:
            bars = read_aggregates(symbol, interval, *SPAN, engine=self._engine)
        except UnknownMarketError:
            assert (symbol, interval) not in self.newest
            return
        version = bars.attrs["dataset_version"] or 0
        assert version >= self.newest.get((symbol, interval), 0)
        before = self.seen.get((symbol, interval, self.newest.get((symbol, interval), 0)))
        assert before is None or before.index.isin(bars.index).all()
        self.newest[symbol, interval] = version
        known = self.seen.setdefault((symbol, interval, version), bars)
        pd.testing.assert_frame_equal(bars, known)

    def read_last(self, symbol: str, interval: str) -> pd.DataFrame:
        """Return what was read of a series the last time."""
        return self.seen[symbol, interval, self.newest[symbol, interval]]

    def read_latest(self, symbol: str) -> object:
        """Ask over HTTP and return the answer: its version is no older than before."""
        answer = self._client.get(f"/api/markets/{symbol}/latest")
        if answer.status_code == 404:
            assert symbol not in self.latest
            return None
        assert answer.status_code == 200, answer.text
        version = answer.json()["dataset_version"] or 0
        assert version >= self.latest.get(symbol, 0)
        self.latest[symbol] = version
        return answer.json()

    def hears_news(self, symbol: str) -> bool:
        """Tell whether HTTP answers what the tables say."""
        answered = self.read_latest(symbol)
        try:
            return answered == fetch_latest(symbol, self._engine)[0].value
        except UnknownMarketError:
            return answered is None

    def read_back(self) -> None:
        """Read every version again that was seen."""
        for (symbol, interval, version), bars in self.seen.items():
            if version:
                again = read_aggregates(
                    symbol, interval, *SPAN, version=version, engine=self._engine
                )
                pd.testing.assert_frame_equal(again, bars)


class AnyUse(RuleBasedStateMachine):
    """What people, schedules and accidents do, in any order."""

    engine: Engine
    valkey: Valkey

    @initialize()
    def begin(self) -> None:
        """Begin with nothing."""
        self.installation = Installation(self.engine, MARKETS)
        self.installation.empty()
        self.valkey.client.flushall()
        self.open = ExitStack()
        environ = {"REDIS_URL": self.valkey.url}
        cache = self.open.enter_context(closing(open_serving_cache(self.engine, environ)))
        options = {"cron_secret": SECRET, "ingest_wait_seconds": NEWS_SECONDS}
        services = make_services(self.engine, **options)
        app = build_app(replace(services, cache=cache, children=ChildRuns(RUN)))
        self.client = self.open.enter_context(TestClient(app, "http://127.0.0.1"))
        self.reader = Reader(self.engine, self.client)
        self.now, self.has_called = MARCH, False
        self.inactive: set[str] = set()

    @rule(
        hours=st.sampled_from([1, 24, 49]),
        faults=st.one_of(st.just(""), list_faults(MARKETS)),
        days=st.sampled_from([5, 20]),
        commits=st.sampled_from([None, None, 1]),
    )
    def ingest(self, hours: int, faults: str, days: int, commits: int | None) -> None:
        """Run, or begin to."""
        self.now += timedelta(hours=hours)
        with self._reading():
            self.installation.ingest(self.now, faults, days, commits=commits)

    @rule(ages=st.sampled_from([(70, 50), (40, 30)]))
    def fill_history(self, ages: tuple[int, int]) -> None:
        """Fill a span of the past."""
        first, last = (str((MARCH - timedelta(days=age)).date()) for age in ages)
        with self._reading():
            self.installation.ingest(self.now, history_from=first, history_to=last)

    @rule()
    def replay(self) -> None:
        """Validate what is in quarantine again."""
        with self._reading():
            replay_rows(self.engine, None, self.now)

    @rule()
    def lose_sessions(self) -> None:
        """Lose every session with the database."""
        with self.engine.connect() as connection:
            connection.execute(text(_OTHERS))

    @rule()
    def lose_the_cache(self) -> None:
        """Kill Redis, and start it again with nothing in it."""
        self.valkey.kill()
        self.valkey.start()

    @precondition(lambda self: not self.inactive)
    @rule(symbol=st.sampled_from(MARKETS))
    def deactivate(self, symbol: str) -> None:
        """Ingest a market no longer."""
        found = self.installation.read(
            "SELECT market_id FROM market_data.market WHERE symbol = :symbol", symbol=symbol
        )
        if found:
            deactivate_market(self.engine, found[0]["market_id"])
            self.inactive.add(symbol)

    @precondition(lambda self: bool(self.inactive))
    @rule()
    def activate(self) -> None:
        """Take it back."""
        market = MockProvider({}).find_market(self.inactive.pop())
        assert market is not None
        activate_market(self.engine, market, claim_primary=True)

    @invariant()
    def nobody_saw_anything_else(self) -> None:
        """Every version reads back as it was seen, and the numbers are those of the bars."""
        self._read_all()
        self.reader.read_back()
        for symbol in MARKETS:
            wait_for(partial(self.reader.hears_news, symbol), NEWS_SECONDS, f"news of {symbol}")

    def teardown(self) -> None:
        """Compare what is published with a second opinion."""
        self.open.close()
        check_numbers(self.engine)

    def _read_all(self) -> None:
        for symbol in MARKETS:
            self.reader.read_latest(symbol)
            for interval in ("1h", "1d", "1w"):
                self.reader.read(symbol, interval)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Read all the time while the block runs; what went wrong there goes wrong here."""
        ended, troubles = Event(), list[Any]()

        def read() -> None:
            try:
                while not ended.is_set():
                    self._read_all()
            except Exception as trouble:  # noqa: BLE001 - told to the test
                troubles.append(trouble)

        worker = Thread(target=read)
        worker.start()
        try:
            yield
        finally:
            ended.set()
            worker.join()
        if troubles:
            raise troubles[0]


class AnyUseWithCron(AnyUse):
    """The same, and cron: its request begins a run as a process of its own."""

    # Once in a sequence: the process takes longer than all other rules together.
    @precondition(lambda self: not self.has_called)
    @rule()
    def call_cron(self) -> None:
        """Ask as cron does, and wait for the run: its bars are there, unless it came short."""
        self.has_called = True
        self.now += timedelta(hours=1)
        Path("clock").write_text(self.now.isoformat())
        with self._reading():
            bearer = {"Authorization": f"Bearer {SECRET}"}
            answer = self.client.get("/api/cron", headers=bearer)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        (run,) = self.installation.read(CRON_RUN, run_id=told["runId"])
        assert (run["trigger"], run["outcome"]) == ("cron", told["status"].replace("success", "ok"))
        if run["outcome"] == "ok" and "BTC-USD" not in self.inactive:
            self.reader.read("BTC-USD", "1h")
            last = self.reader.read_last("BTC-USD", "1h").index[-1]
            assert last >= self.now - timedelta(hours=1)


@pytest.fixture
def uses(
    engine: Engine, project_environment: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:  # fmt: skip
    """What sequences use: a database, a cache, and the environment of runs."""
    monkeypatch.chdir(tmp_path)
    AnyUse.engine = engine
    with closing(Valkey().start()) as AnyUse.valkey:
        variables = {
            **project_environment, "REDIS_URL": AnyUse.valkey.url, "STATE_DIR": str(tmp_path),
            "INGESTION_MARKETS": ",".join(MARKETS), "INGESTION_LOOKBACK_DAYS": "5",
        }  # fmt: skip
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.owner
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("uses")
def test_e19_what_was_seen_of_a_version_stays() -> None:
    """In any order of what may happen."""
    _run_sequences(AnyUse, EXAMPLES)


@pytest.mark.owner
@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("uses")
def test_e19_what_was_seen_stays_while_cron_asks_for_runs() -> None:
    """Before, between and after all else."""
    once = AnyUseWithCron()  # What chance draws may be without a call.
    once.begin()
    once.ingest(24, "", 5, None)
    once.call_cron()
    once.nobody_saw_anything_else()
    once.teardown()
    _run_sequences(AnyUseWithCron, EXAMPLES)


def _run_sequences(machine: type[AnyUse], examples: int) -> None:
    chosen = settings(
        max_examples=examples,
        stateful_step_count=8,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    run_state_machine_as_test(machine, settings=chosen)
