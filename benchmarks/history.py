"""History: filling it by the whole mechanism, reading what was known, restating a part of it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
from sqlalchemy import Engine

from benchmarks.bar_table import TABLE, BarTable, write_bars
from benchmarks.bars import CHANGED_SHARE, MARKETS, Span, build_bars, change_some
from benchmarks.bench import Bench, Measurement
from benchmarks.database import Database, open_database
from benchmarks.figures import Figure
from benchmarks.rounds import Way, compare
from market_pipeline.domain.records import Market
from market_pipeline.ingestion.commit import write_markets
from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.file import FileProvider
from market_pipeline.readers import read_aggregates

FILLED_MARKETS = 10
"""Few markets with eleven years each: what is called a backfill."""
YEAR_HOURS = 8_760
_READS = 5
_LONG_AGO = pd.Timedelta(weeks=624)


def measure_backfill(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield how fast history from files becomes known, over writing the same bars bare."""
    del wanted
    files = bench.folder / "files"
    bars = build_bars(Span(0, max(bench.rows // FILLED_MARKETS, 1)), FILLED_MARKETS)
    for column in ("open_time", "close_time"):  # Nobody fills what has not happened yet.
        bars[column] -= _LONG_AGO
    _write_files(files, bars)
    with bench.open_database() as database, open_database(bench.server_url) as filled:
        empty = partial(database.execute, f"TRUNCATE {TABLE} CASCADE", "CHECKPOINT")
        ways = [
            Way("bare_write", lambda: write_bars(database, bars), empty),
            Way(
                "backfill",
                lambda: backfill(filled.engine, files, bars),
                lambda: _forget_history(filled),
                lambda: _refuse_missing(filled, len(bars)),
            ),
        ]
        comparison = compare(ways, bench.rounds, bench.report)
    note = f"{FILLED_MARKETS} Parquet files, committed with days, weeks, coverage and receipts"
    yield comparison.build_ratio("backfill_vs_bare_write", "bare_write", "backfill", note)


def _write_files(folder: Path, bars: pd.DataFrame) -> None:
    folder.mkdir()
    columns = ["open_time", "open", "high", "low", "close", "volume"]
    for market_id, rows in bars.groupby("market_id"):
        rows[columns].to_parquet(folder / f"M{market_id}-USD_1h.parquet", index=False)


def backfill(engine: Engine, files: Path, bars: pd.DataFrame) -> None:
    """Ingest the files as the job does, without Dagster around it."""
    provider = FileProvider({"FILE_PROVIDER_PATH": str(files)})
    symbols = provider.list_symbols()
    markets = [market for symbol in symbols if (market := provider.find_market(symbol))]
    first, last = bars["open_time"].min(), bars["close_time"].max()
    now = datetime.now(UTC)
    request = build_request(now, symbols, "file", 0, "", first.isoformat(), last.isoformat())
    run = Run(uuid4(), "backfill", now, request)
    write_markets(engine, run, markets)
    routes: list[tuple[FileProvider, Market]] = [(provider, market) for market in markets]
    for _ in BarStream(engine, run, routes):
        pass


def _forget_history(database: Database) -> None:
    database.execute(
        "TRUNCATE market_data.market, market_data.ingestion_run, market_data.dataset_version "
        "RESTART IDENTITY CASCADE",
        "CHECKPOINT",
    )


def _refuse_missing(database: Database, expected: int) -> None:
    stored = database.ask(f"SELECT count(*) FROM {TABLE} WHERE interval = '1h'")
    if stored != expected:
        raise RuntimeError(f"{stored:g} hourly bars were stored, expected {expected}")


def measure_as_of(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield what reading a market-year as it was known costs, over reading it as it is."""
    del wanted
    hours = min(YEAR_HOURS, max(bench.rows // MARKETS, 1))
    with bench.open_database() as database:
        bars = build_bars(Span(0, hours))
        write_bars(database, bars)
        known = datetime.now(UTC)
        write_bars(database, change_some(bars))
        database.execute("VACUUM (ANALYZE) market_data.market_aggregate")
        start, end = bars["open_time"].min(), bars["close_time"].max()

        def read(as_of: datetime | None) -> pd.DataFrame:
            return read_aggregates(
                "bench:M1-USD", "1h", start, end, as_of=as_of, engine=database.engine
            )

        def read_often(as_of: datetime | None) -> None:
            for _ in range(_READS):
                read(as_of)

        _refuse_sameness(read(known), read(None))
        ways = [
            Way(name, partial(read_often, moment), units=_READS)
            for name, moment in (("as_of", known), ("plain", None))
        ]
        comparison = compare(ways, bench.rounds, bench.report)
    note = f"read_aggregates of one market, {hours:,} hourly bars, 1 % of them restated since"
    yield comparison.build_ratio("as_of_vs_plain_read", "as_of", "plain", note)


def _refuse_sameness(then: pd.DataFrame, now: pd.DataFrame) -> None:
    changed = int(np.sum(then["close"].to_numpy() != now["close"].to_numpy()))
    if len(then) != len(now) or not changed:
        raise RuntimeError(f"{len(then)} bars then and {len(now)} now, {changed} of them restated")


def measure_restatement(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield what correcting 1 % of the bars costs, over handing in the same bars again."""
    del wanted
    with bench.open_database() as database:
        table = BarTable(database, bench.folder, bench.rows)
        restated = change_some(table.bars)
        ways = [
            Way("restate", lambda: write_bars(database, restated), table.fill),
            Way("reload", lambda: write_bars(database, table.bars), table.fill),
        ]
        comparison = compare(ways, bench.rounds, bench.report)
    note = f"{CHANGED_SHARE:.0%} of the bars with another close, each leaving a revision"
    yield comparison.build_ratio("restate_1pct_vs_reload", "restate", "reload", note)


BACKFILL = Measurement("filling history", ("backfill_vs_bare_write",), measure_backfill)
AS_OF = Measurement("reading what was known", ("as_of_vs_plain_read",), measure_as_of)
RESTATEMENT = Measurement("restating", ("restate_1pct_vs_reload",), measure_restatement)
