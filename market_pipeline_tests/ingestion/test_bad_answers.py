"""Every way in which a provider fails, from the wire to the tables: nothing is half written."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.base import Provider
from market_pipeline.providers.coinbase import CoinbaseProvider
from market_pipeline.providers.yahoo import YahooProvider
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.providers.clocks import QUICK, FakeTime
from market_pipeline_tests.replay import (
    Fault,
    ReplayServer,
    answer_with,
    cut_gzip,
    edit_json,
    read_recording,
    reset_connection,
    throttle,
)

NOW = datetime(2014, 12, 31, tzinfo=UTC)
YESTERDAY = datetime(2014, 12, 30, tzinfo=UTC)
BARS = """
    SELECT format('%s %s %s %s %s %s', interval, open_time, open, high, low, close)
    FROM market_data.market_aggregate ORDER BY interval, open_time"""
VERSIONS = "SELECT xmin::text FROM market_data.market_aggregate ORDER BY interval, open_time"


@pytest.fixture
def server() -> Iterator[ReplayServer]:
    """Yahoo as recorded, on the last day of 2014."""
    with ReplayServer(now=NOW) as running:
        yield running


class Ingestion:
    """Ingests from the local server into a real database; only daily bars reach back so far."""

    def __init__(self, engine: Engine, server: ReplayServer) -> None:
        self.engine = engine
        self.provider: Provider = YahooProvider(
            server.environ, clocks=FakeTime().clocks, limits=QUICK
        )

    def ingest(self, now: datetime = NOW, symbols: tuple[str, ...] = ("SPX",)) -> dict[str, Any]:
        """Fetch, validate and commit, and return the receipt of the last symbol's market."""
        request = build_request(datetime.now(UTC), symbols, "yahoo", 14, now.isoformat())
        run = Run(uuid4(), "manual", now, request)
        markets = [self.provider.find_market(symbol) for symbol in symbols]
        routes = [(self.provider, market) for market in markets if market is not None]
        for _ in BarStream(self.engine, run, routes):
            pass
        return self.read_receipt(run.run_id, symbols[-1])

    def read_receipt(self, run_id: UUID, symbol: str) -> dict[str, Any]:
        """Return what the run says about a market."""
        query = text("""
            SELECT receipt.* FROM market_data.ingestion_run_market receipt
            JOIN market_data.market USING (market_id) WHERE run_id = :run_id AND symbol = :symbol
        """)
        parameters = {"run_id": run_id, "symbol": symbol}
        with self.engine.connect() as connection:
            return dict(connection.execute(query, parameters).mappings().one())


@pytest.fixture
def ingestion(engine: Engine, server: ReplayServer) -> Ingestion:
    """An ingestion into an empty database."""
    return Ingestion(engine, server)


def change_rows(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Fault:
    """Answer with changed rows: each a mapping of stamp, open, high, low, close and volume."""

    def edit(body: Any) -> Any:
        result = body["chart"]["result"][0]
        columns = {"stamp": result["timestamp"], **result["indicators"]["quote"][0]}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        changed = change(rows)
        result["timestamp"] = [row["stamp"] for row in changed]
        names = [name for name in columns if name != "stamp"]
        quotes = {name: [row[name] for row in changed] for name in names}
        result["indicators"] = {"quote": [quotes]}
        return body

    return edit_json(edit)


def with_third(**cells: object) -> Fault:
    """Answer with the third row changed."""
    return change_rows(lambda rows: [*rows[:2], {**rows[2], **cells}, *rows[3:]])


FAILURES = {
    "401": (answer_with(b'{"error": "no"}', 401), "HTTP 401"),
    "404": (answer_with(b'{"error": "no"}', 404), "HTTP 404"),
    "429": (throttle("1"), "HTTP 429"),
    "500": (answer_with(b"oops", 500, "text/plain"), "HTTP 500"),
    "503": (answer_with(b"<h1>busy</h1>", 503, "text/html"), "HTTP 503"),
    "html": (answer_with(b"<html>hello</html>", 200, "text/html"), "yahoo: "),
    "truncated gzip": (cut_gzip(20), "yahoo: "),
    "gzip without its end": (cut_gzip(8), "yahoo: "),
    "reset": (reset_connection(200), "yahoo: "),
    "empty": (answer_with(b""), "yahoo: "),
    "NaN": (with_third(close=float("nan")), "yahoo: "),
    "no bars": (change_rows(lambda _: []), "no bars in this window"),
}


@pytest.mark.parametrize(("fault", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_failed_answer_is_a_receipt_and_no_row_changes(
    ingestion: Ingestion, server: ReplayServer, fault: Fault, reason: str
) -> None:
    """The market's outcome is failed with its reason; bars from before stay as they were."""
    ingestion.ingest(YESTERDAY)
    before = [read_column(ingestion.engine, query) for query in (BARS, VERSIONS)]
    assert before[0]
    server.misbehave(fault, times=QUICK.attempts)

    receipt = ingestion.ingest()

    assert receipt["outcome"] == "failed"
    assert reason in receipt["reason"]
    assert receipt["inserted"] + receipt["updated"] + receipt["unchanged"] == 0
    assert [read_column(ingestion.engine, query) for query in (BARS, VERSIONS)] == before


HARMLESS = {
    "duplicate": change_rows(lambda rows: [*rows, *rows]),
    "unsorted": change_rows(lambda rows: rows[::-1]),
    "one failure before": answer_with(b"oops", 502, "text/plain"),
}


def test_another_sources_answer_is_not_half_written(
    ingestion: Ingestion, server: ReplayServer
) -> None:
    """One of two pages of hours has another exchange's shape: no bar is made of it."""
    exchange = CoinbaseProvider(server.environ, clocks=FakeTime().clocks, limits=QUICK)
    ingestion.provider = exchange
    body = read_recording("kraken/ohlc_xbtusd_1m_2017.json")
    server.misbehave(answer_with(body), path="/coinbase/products/BTC-USD/candles")
    receipt = ingestion.ingest(symbols=("BTC-USD",))
    assert receipt["outcome"] == "partial"
    assert "rows of 6 cells" in receipt["reason"]
    stored = read_column(ingestion.engine, BARS)
    assert 0 < len(stored) < 14 * 25
    whole = ingestion.ingest(symbols=("BTC-USD",))
    assert (whole["outcome"], whole["quarantined"]) == ("ok", 0)
    assert set(stored) < set(read_column(ingestion.engine, BARS))


def test_d14_a_key_that_expires_in_the_middle_of_a_run_is_refused_once_and_told(
    ingestion: Ingestion, server: ReplayServer
) -> None:
    """What came before it stays; each page left is asked for once, and the next run has it."""
    ingestion.provider = CoinbaseProvider(server.environ, clocks=FakeTime().clocks, limits=QUICK)
    valid = {1}  # By the number of the request.

    def expire(handler: Any, reply: Any) -> None:
        if len(server.requests) in valid:
            handler.send(reply)
        else:
            answer_with(b'{"message": "key expired"}', 401)(handler, reply)

    server.misbehave(expire, times=100, path="/coinbase/products/BTC-USD/candles")
    receipt = ingestion.ingest(symbols=("BTC-USD",))
    asked = [(one.path, *sorted(one.query.items())) for one in server.requests]
    assert receipt["outcome"] == "partial"
    assert "HTTP 401" in receipt["reason"]
    assert len(asked) > 1
    assert len(set(asked)) == len(asked)
    stored = read_column(ingestion.engine, BARS)
    valid.update(range(100))
    assert ingestion.ingest(symbols=("BTC-USD",))["outcome"] == "ok"
    assert set(stored) < set(read_column(ingestion.engine, BARS))


@pytest.mark.owner
@pytest.mark.parametrize("fault", HARMLESS.values(), ids=HARMLESS)
def test_a_harmless_answer_gives_the_same_bars(
    ingestion: Ingestion, server: ReplayServer, fault: Fault
) -> None:
    """Order and repetition make no difference; a failure that passes is tried again."""
    ingestion.ingest()
    before = read_column(ingestion.engine, BARS)
    with ingestion.engine.begin() as connection:
        connection.execute(text("TRUNCATE market_data.market CASCADE"))
    server.misbehave(fault)

    receipt = ingestion.ingest()

    assert receipt["outcome"] == "ok"
    assert receipt["inserted"] + receipt["derived_inserted"] == len(before)
    assert read_column(ingestion.engine, BARS) == before


REJECTED = {
    "negative price": (with_third(low=-1.0), "price_not_positive"),
    "high below close": (with_third(high=1.0), "high_below_body"),
    "negative volume": (with_third(volume=-5), "volume_negative"),
}


@pytest.mark.parametrize(("fault", "rule"), REJECTED.values(), ids=REJECTED)
def test_an_impossible_bar_is_counted_and_the_others_land(
    ingestion: Ingestion, server: ReplayServer, fault: Fault, rule: str
) -> None:
    """The row is left out by name; its neighbours are stored, and the outcome is partial."""
    server.misbehave(fault)

    receipt = ingestion.ingest()

    assert receipt["outcome"] == "partial"
    assert receipt["quarantined"] == receipt["holes_left"] == 1
    assert receipt["reason"].startswith(f"1 bars rejected: {rule}")
    days = "SELECT count(*) FROM market_data.market_aggregate WHERE interval = '1d'"
    assert read_column(ingestion.engine, days) == [receipt["received"] - 1]
    kept = "SELECT rule FROM market_data.quarantined_row"
    assert read_column(ingestion.engine, kept) == [rule]
    assert read_column(ingestion.engine, "SELECT reason FROM market_data.coverage_hole") == [
        "quarantined"
    ]


def test_a_null_row_is_a_hole_that_the_next_run_fills(
    ingestion: Ingestion, server: ReplayServer
) -> None:
    """Yahoo marks a day without trading so; the others land, and the day is asked for again."""
    nothing = dict.fromkeys(("open", "high", "low", "close", "volume"))
    server.misbehave(with_third(**nothing))
    first = ingestion.ingest()
    assert (first["outcome"], first["holes_left"]) == ("partial", 1)
    second = ingestion.ingest()
    assert (second["outcome"], second["holes_left"]) == ("ok", 0)
    assert (second["requested"], second["calls"]) == (1, 1)


def test_one_market_that_fails_leaves_the_others_bars(
    ingestion: Ingestion, server: ReplayServer
) -> None:
    """A stream goes on after a failure, and each batch is a transaction of its own."""
    server.misbehave(answer_with(b"{}", 404), path="/yahoo/v8/finance/chart/AAPL")
    assert ingestion.ingest(NOW, ("AAPL", "SPX"))["outcome"] == "ok"
    assert read_column(ingestion.engine, BARS)
    receipts = "SELECT outcome FROM market_data.ingestion_run_market ORDER BY outcome"
    assert read_column(ingestion.engine, receipts) == ["failed", "ok"]
    assert read_column(ingestion.engine, "SELECT outcome FROM market_data.ingestion_run") == [
        "partial"
    ]


@pytest.mark.owner
def test_a_batch_that_breaks_at_its_end_leaves_nothing(
    engine: Engine, server: ReplayServer
) -> None:
    """The receipt is written last; when the database refuses it, the bars go with it."""
    with engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE market_data.ingestion_run_market ADD CHECK (received < 0)")
        )
    with pytest.raises(IntegrityError):
        Ingestion(engine, server).ingest()
    for table in ("market_aggregate", "market_coverage", "ingestion_run", "fetch_claim"):
        query = f"SELECT count(*) FROM market_data.{table}"
        assert read_column(engine, query) == [0]
