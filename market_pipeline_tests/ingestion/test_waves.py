"""Waves: many markets in one transaction, none of which spoils another."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid4

import pandas as pd
import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError

from market_pipeline.domain.columns import BarColumns
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import HistoryTerms, Market, Window
from market_pipeline.ingestion import drive, fetch
from market_pipeline.ingestion.batches import MarketStopped
from market_pipeline.ingestion.claims import CLAIM_TIME, HeldClaims, MarketQueue
from market_pipeline.ingestion.drive import BarStream, WaveLimits
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import Route, build_request
from market_pipeline.providers.mock import MockProvider
from market_pipeline.storage.bulk.upsert import MERGE_LOCK
from market_pipeline.storage.markets.registration import ensure_markets
from market_pipeline.storage.runs.claims import (
    hold_claims,
    hold_liveness_lock,
    release_claims,
    take_claims,
)

NOON = datetime(2024, 3, 15, 12, tzinfo=UTC)
LATER = datetime(2024, 3, 15, 15, 20, tzinfo=UTC)
PATIENT = WaveLimits(seconds=300)
"""One wave for all markets, however slow the machine is."""


class Poisoned(MockProvider):
    """The mock, whose bars of one market the database refuses though they look right."""

    symbol = "M003-USD"

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> pd.DataFrame:
        """Leave out the kind of volume, which may not be NULL."""
        bars = super().fetch_bars(market, interval, window, now).to_frame()
        return bars.assign(volume_kind=None) if market.symbol == self.symbol else bars


class Robbed(MockProvider):
    """The mock; while it answers, another run takes the second market."""

    def __init__(self, engine: Engine) -> None:
        super().__init__({})
        self._engine = engine

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> BarColumns:
        """Answer, and let the claim be lost."""
        if market.symbol == "M001-USD":
            with self._engine.begin() as connection:
                connection.execute(
                    text("UPDATE market_data.fetch_claim SET token = token + 1 WHERE market_id = 2")
                )
        return super().fetch_bars(market, interval, window, now)


class Overtaken(MockProvider):
    """The mock; while it answers for the second market, another run does that market's work."""

    def __init__(self, engine: Engine, faults: str = "") -> None:
        super().__init__({})
        self._engine, self._others = engine, MockProvider({"MOCK_FAULTS": faults})
        self._is_taken = False

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> BarColumns:
        """Answer once the other run has ended."""
        if market.symbol == "M001-USD" and not self._is_taken:
            self._is_taken = True
            with self._engine.begin() as connection:
                connection.execute(
                    text("UPDATE market_data.fetch_claim SET expires_at = '-infinity'")
                )
            ingest(self._engine, [(self._others, market)])
        return super().fetch_bars(market, interval, window, now)


def register(engine: Engine, count: int) -> list[Route]:
    """Return markets that are known, so that only their bars wait for a merge."""
    routes = list_routes(count)
    ensure_markets(engine, [market for _, market in routes], claim_primary=True)
    return routes


@contextmanager
def hold_merges(engine: Engine) -> Iterator[None]:
    """Let every merge wait until the block ends."""
    with engine.connect() as session:
        session.execute(text(f"SELECT pg_advisory_lock({MERGE_LOCK})"))
        yield
        session.execute(text(f"SELECT pg_advisory_unlock({MERGE_LOCK})"))


def strike_writer(engine: Engine, function: str) -> None:
    """Call a function of PostgreSQL for the session that waits for a merge, once it does."""
    query = f"""SELECT {function}(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event = 'advisory'"""
    end = time.monotonic() + 300
    while not read(engine, query):
        assert time.monotonic() < end, "nobody waits for a merge"


def list_routes(count: int, provider: MockProvider | None = None) -> list[Route]:
    """Return so many markets of the mock."""
    chosen = provider or MockProvider({})
    found = [chosen.find_market(f"M{number:03}-USD") for number in range(count)]
    return [(chosen, market) for market in found if market is not None]


def open_stream(
    engine: Engine,
    routes: Sequence[Route],
    now: datetime = NOON,
    limits: WaveLimits = PATIENT,
    days: int = 5,
) -> BarStream:
    """Return a run that is about to begin."""
    symbols = [market.symbol for _, market in routes]
    request = build_request(datetime.now(UTC), symbols, "mock", days, now.isoformat())
    return BarStream(engine, Run(uuid4(), "manual", now, request), routes, limits)


def ingest(engine: Engine, routes: Sequence[Route], **options: Any) -> UUID:
    """Ingest as a run of its own."""
    stream = open_stream(engine, routes, **options)
    for _ in stream:
        pass
    return stream.run.run_id


def read(engine: Engine, query: str, **values: object) -> list[dict[str, Any]]:
    """Return a query's rows."""
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(query), values).mappings()]


def read_outcomes(engine: Engine, run_id: UUID) -> dict[str, str]:
    """Return each market's outcome in a run."""
    rows = read(
        engine,
        "SELECT symbol, outcome FROM market_data.ingestion_run_market "
        "JOIN market_data.market USING (market_id) WHERE run_id = :run_id",
        run_id=run_id,
    )
    return {row["symbol"]: row["outcome"] for row in rows}


@contextmanager
def count_statements(engine: Engine) -> Iterator[list[str]]:
    """Gather the statements that are sent."""
    sent: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_the_markets_of_a_wave_share_a_version(engine: Engine) -> None:
    """One transaction, one version, and each market's changes are told apart in it."""
    ingest(engine, list_routes(6))
    versions = read(engine, "SELECT * FROM market_data.dataset_version")
    assert len({row["version"] for row in versions}) == 1
    assert {row["interval"] for row in versions} == {"1h", "1d", "1w"}
    assert len(versions) == 6 * 3
    stamps = read(engine, "SELECT scope, version FROM market_data.market_stamp WHERE scope <> '*'")
    assert {row["version"] for row in stamps} == {versions[0]["version"]}
    assert len(stamps) == 6


def test_statements_do_not_grow_with_the_markets(engine: Engine) -> None:
    """Of four times the markets there are as many statements in a run with a few new bars."""
    counts = []
    for number in (5, 20):
        routes = list_routes(number)
        ingest(engine, routes)
        with count_statements(engine) as sent:
            ingest(engine, routes, now=LATER)
        counts.append(len(sent))
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE market_data.market CASCADE"))
    assert counts[0] == counts[1]


def test_every_market_has_the_receipt_it_would_have_alone(engine: Engine) -> None:
    """Counts, watermarks and requests are told apart in a wave."""
    columns = """symbol, requested, received, inserted, updated, unchanged, derived_inserted,
        holes_left, calls, watermark_before, watermark_after, outcome, reason"""
    query = f"""SELECT {columns} FROM market_data.ingestion_run_market
        JOIN market_data.market USING (market_id) WHERE run_id = :run_id ORDER BY symbol"""
    routes = list_routes(4)
    together = read(engine, query, run_id=ingest(engine, routes))
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE market_data.market CASCADE"))
    alone = [read(engine, query, run_id=ingest(engine, [route]))[0] for route in routes]
    assert together == alone


def test_bars_that_the_database_refuses_cost_their_market_alone(engine: Engine) -> None:
    """The wave is halved until it stands alone: it fails by name, the others land whole."""
    run_id = ingest(engine, list_routes(7, Poisoned({})))
    outcomes = read_outcomes(engine, run_id)
    assert outcomes.pop(Poisoned.symbol) == "failed"
    assert set(outcomes.values()) == {"ok"}
    (row,) = read(
        engine,
        "SELECT reason FROM market_data.ingestion_run_market "
        "WHERE run_id = :run_id AND outcome = 'failed'",
        run_id=run_id,
    )
    assert row["reason"].startswith("the database refused the bars: ")
    assert "volume_kind" in row["reason"]
    bars = read(
        engine,
        "SELECT symbol, count(*) AS bars FROM market_data.market_aggregate "
        "JOIN market_data.market USING (market_id) GROUP BY symbol",
    )
    assert len({row["bars"] for row in bars}) == 1
    assert len(bars) == 6
    assert ingest(engine, list_routes(7))
    assert read(engine, "SELECT * FROM market_data.fetch_claim") == []


def test_a_market_that_another_run_took_drops_out_of_the_wave(engine: Engine) -> None:
    """Its bars are not written, those of the others are, and the other run keeps its claim."""
    (wave,) = open_stream(engine, list_routes(4, Robbed(engine)))
    assert [isinstance(one.item, MarketStopped) for one in wave].count(True) == 1
    written = read(engine, "SELECT DISTINCT market_id FROM market_data.market_aggregate")
    assert sorted(row["market_id"] for row in written) == [1, 3, 4]
    known = read(engine, "SELECT DISTINCT market_id FROM market_data.market_coverage")
    assert sorted(row["market_id"] for row in known) == [1, 3, 4]


def test_a_market_that_was_taken_and_left_is_short(engine: Engine) -> None:
    """No receipt says that its work is done, so the run that lost it says that it is not."""
    run_id = ingest(engine, list_routes(3, Robbed(engine)))
    outcomes = {"M000-USD": "ok", "M001-USD": "partial", "M002-USD": "ok"}
    assert read_outcomes(engine, run_id) == outcomes
    (row,) = read(engine, "SELECT reason FROM market_data.ingestion_run_market WHERE market_id = 2")
    assert row["reason"].endswith("no receipt says that its work is done: run again")


@pytest.mark.parametrize(
    ("faults", "expected"),
    [("", "ok"), ("M001-USD:timeout x99", "partial")],
    ids=["done", "not done"],
)
def test_a_market_that_was_taken_is_as_good_as_the_other_receipt(
    engine: Engine, faults: str, expected: str
) -> None:
    """It is ok where the run that took it says that it came to all of it, and only there."""
    run_id = ingest(engine, list_routes(3, Overtaken(engine, faults)))
    assert read_outcomes(engine, run_id)["M001-USD"] == expected


def test_a_stream_that_ends_leaves_the_claims_of_others_alone(engine: Engine) -> None:
    """Two streams of one run share its id, and not its claims: no market is lost between them."""
    routes = list_routes(6)
    first = open_stream(engine, routes[:4], limits=WaveLimits(markets=1))
    waves = iter(first)
    landed = next(waves)
    for _ in replace(first, routes=routes[4:], limits=PATIENT):
        pass
    landed += [one for wave in waves for one in wave]
    assert [one.item for one in landed if isinstance(one.item, MarketStopped)] == []
    assert set(read_outcomes(engine, first.run.run_id).values()) == {"ok"}
    bars = read(engine, "SELECT DISTINCT market_id FROM market_data.market_aggregate")
    assert len(bars) == 6


def test_a_busy_market_comes_last_and_holds_up_no_other(engine: Engine) -> None:
    """The others land while another run holds it; it is fetched as soon as it is free."""
    routes = list_routes(3)
    ids = ensure_markets(engine, [market for _, market in routes], claim_primary=True)
    other, landed, released = uuid4(), list[str](), Event()

    def drain() -> None:
        stream = open_stream(engine, routes, limits=WaveLimits(seconds=0))
        for wave in stream:
            landed.extend(one.item.route[1].symbol for one in wave)
            if len(landed) == 2:
                released.set()

    with hold_liveness_lock(engine, other):
        tokens = take_claims(engine, ids[:1], other, timedelta(minutes=5))
        worker = Thread(target=drain)
        worker.start()
        assert released.wait(300)
        with engine.begin() as connection:
            release_claims(connection, tokens)
        worker.join(300)
    assert sorted(landed[:2]) == ["M001-USD", "M002-USD"]
    assert landed[2:] == ["M000-USD"]


def test_a_market_that_stays_busy_is_given_up_by_name(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever, and the receipt says who held it."""
    monkeypatch.setattr("market_pipeline.ingestion.claims.CLAIM_PATIENCE", timedelta(0))
    routes = list_routes(2)
    ids = ensure_markets(engine, [market for _, market in routes], claim_primary=True)
    other = uuid4()
    with hold_liveness_lock(engine, other):
        take_claims(engine, ids[:1], other, timedelta(minutes=5))
        run_id = ingest(engine, routes)
    assert read_outcomes(engine, run_id) == {"M000-USD": "failed", "M001-USD": "ok"}
    query = "SELECT reason FROM market_data.ingestion_run_market WHERE outcome = 'failed'"
    assert str(other) in read(engine, query)[0]["reason"]


def test_what_refused_a_wave_for_a_moment_refuses_it_once(engine: Engine) -> None:
    """A cancelled statement rolls all of it back, and all of it is written the second time."""
    routes = register(engine, 3)
    with ThreadPoolExecutor(1) as pool:
        with hold_merges(engine):
            running = pool.submit(ingest, engine, routes)
            strike_writer(engine, "pg_cancel_backend")
        run_id = running.result(300)
    assert set(read_outcomes(engine, run_id).values()) == {"ok"}
    versions = read(engine, "SELECT DISTINCT version FROM market_data.dataset_version")
    assert len(versions) == 1


def test_a_server_that_is_gone_ends_the_run(engine: Engine) -> None:
    """It is not asked again: nobody would know whether the wave had been committed."""
    routes = register(engine, 3)
    with ThreadPoolExecutor(1) as pool, hold_merges(engine):
        running = pool.submit(ingest, engine, routes)
        strike_writer(engine, "pg_terminate_backend")
        with pytest.raises(OperationalError):
            running.result(300)
    assert read(engine, "SELECT * FROM market_data.market_aggregate") == []


def test_a_long_history_lands_batch_by_batch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches of one market are never in one wave, and each continues the one before."""
    monkeypatch.setattr(fetch, "BATCH_BARS", 1)
    provider = MockProvider({})
    monkeypatch.setattr(
        MockProvider, "describe_history", lambda *_: HistoryTerms(page=timedelta(days=2))
    )
    waves = list(open_stream(engine, list_routes(2, provider)))
    for wave in waves:
        assert len({one.item.route for one in wave}) == len(wave)
    assert len(waves) > 3
    outcomes = read(engine, "SELECT DISTINCT outcome FROM market_data.ingestion_run_market")
    assert outcomes == [{"outcome": "ok"}]
    assert read(engine, "SELECT * FROM market_data.coverage_hole") == []
    bars = "SELECT count(*) AS n FROM market_data.market_aggregate WHERE interval = '1h'"
    whole = read(engine, bars)
    monkeypatch.undo()
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE market_data.market CASCADE"))
    ingest(engine, list_routes(2))
    assert read(engine, bars) == whole


def test_a_second_run_writes_nothing(engine: Engine) -> None:
    """Whatever the number of markets."""
    routes = list_routes(5)
    ingest(engine, routes)
    before = read(engine, "SELECT * FROM market_data.market_aggregate ORDER BY 1, 2, 3")
    versions = read(engine, "SELECT * FROM market_data.dataset_version")
    run_id = ingest(engine, routes)
    assert read(engine, "SELECT * FROM market_data.market_aggregate ORDER BY 1, 2, 3") == before
    assert read(engine, "SELECT * FROM market_data.dataset_version") == versions
    assert set(read_outcomes(engine, run_id).values()) == {"ok"}


def test_claims_are_renewed_together(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one statement for all; a market that is lost stops, the others go on."""
    monkeypatch.setattr("market_pipeline.ingestion.claims._RENEW_SECONDS", 0.0)
    routes = list_routes(3)
    ids = ensure_markets(engine, [market for _, market in routes], claim_primary=True)
    claims, run_id = HeldClaims(engine), uuid4()
    with hold_liveness_lock(engine, run_id):
        claims.add(take_claims(engine, ids, run_id, CLAIM_TIME))
        with count_statements(engine) as sent:
            claims.keep(ids[0])
        assert len(sent) == 1
        take_claims(engine, ids[1:2], run_id, CLAIM_TIME)  # a new token: the older is worthless
        claims.keep(ids[0])
        with pytest.raises(Exception, match="was claimed by run"):
            claims.keep(ids[1])
        claims.keep(ids[2])


def test_a_wave_that_is_being_committed_holds_nobody_up(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claims are locked until it ends, and renewing the others does not wait for them."""
    monkeypatch.setattr("market_pipeline.ingestion.claims._RENEW_SECONDS", 0.0)
    routes = list_routes(2)
    ids = ensure_markets(engine, [market for _, market in routes], claim_primary=True)
    claims, run_id = HeldClaims(engine), uuid4()
    with hold_liveness_lock(engine, run_id):
        tokens = take_claims(engine, ids, run_id, CLAIM_TIME)
        claims.add(tokens)
        with engine.begin() as connection:
            assert hold_claims(connection, {ids[0]: tokens[ids[0]]}) == {}
            claims.keep(ids[1])
            claims.keep(ids[0])


def test_markets_are_claimed_as_they_are_needed(engine: Engine) -> None:
    """A run of many markets does not keep all of them from others at once."""
    routes = list_routes(5)
    ids = ensure_markets(engine, [market for _, market in routes], claim_primary=True)
    run = open_stream(engine, routes).run
    with hold_liveness_lock(engine, run.run_id):
        keyed = dict(zip(ids, routes, strict=True))
        queue = MarketQueue(engine, run, keyed, HeldClaims(engine), Event(), at_once=2)
        assert queue.take() is not None
        assert len(read(engine, "SELECT * FROM market_data.fetch_claim")) == 2


def test_bars_in_flight_are_bounded() -> None:
    """Who fetches faster than the database writes waits."""
    stop = Event()
    ready = drive._ReadyItems(WaveLimits(rows=10, seconds=0), stop)
    ready.expect(1)
    market = MockProvider({}).find_market("BTC-USD")
    assert market is not None
    item = replace(_make_item(market), rows=10)
    ready.put(item)
    waiting = Thread(target=ready.put, args=(item,))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert ready.take() == [item]
    waiting.join(300)
    assert not waiting.is_alive()


def _make_item(market: Market) -> Any:
    from dataclasses import make_dataclass

    return make_dataclass("Fake", ["route", "rows", "is_last"])((None, market), 0, True)


def test_new_markets_are_registered_in_as_many_statements_as_one(engine: Engine) -> None:
    """Whatever their number."""
    counts = []
    for number in (3, 30):
        markets = [market for _, market in list_routes(number)]
        with count_statements(engine) as sent:
            assert len(set(ensure_markets(engine, markets, claim_primary=True))) == number
        counts.append(len(sent))
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE market_data.market CASCADE"))
    assert counts[0] == counts[1]


def test_ten_thousand_markets_are_registered(engine: Engine) -> None:
    """Their names reach the server as two arrays; as parameters they would be too deep for it."""
    markets = [market for _, market in list_routes(10_000)]
    ids = ensure_markets(engine, markets, claim_primary=True)
    assert ensure_markets(engine, markets, claim_primary=True) == ids
