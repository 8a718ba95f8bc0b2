"""Reading: all bars of the full table as a frame, beside the ADBC driver that only fetches them."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import make_url

from benchmarks.bar_table import TABLE, write_bars
from benchmarks.bars import MARKETS, Span, build_bars
from benchmarks.bench import Bench, Measurement
from benchmarks.database import Database
from benchmarks.figures import Figure
from benchmarks.rounds import Way, compare
from market_pipeline.readers import read_aggregates

_FIGURE = "read_1m_vs_adbc"
# The columns of ``read_aggregates``.
_QUERY = f"""SELECT symbol, provider, "interval", open_time, close_time, open, high, low, close,
        volume, volume_kind, source_kind, known_at, dataset_version, run_id
    FROM {TABLE} JOIN market_data.market USING (market_id)
    WHERE provider = 'bench' AND "interval" = '1h' AND is_final"""


def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield how fast ``read_aggregates`` is: ADBC's time over ours."""
    del wanted
    with bench.open_database() as database:
        bars = build_bars(Span(0, max(bench.rows // MARKETS, 1)))
        write_bars(database, bars)
        database.execute(f"VACUUM (ANALYZE) {TABLE}")
        start, end = bars["open_time"].min(), bars["close_time"].max()
        symbols = [f"bench:M{number}-USD" for number in range(1, MARKETS + 1)]

        def read() -> None:
            _refuse_other(
                len(read_aggregates(symbols, "1h", start, end, engine=database.engine)), len(bars)
            )

        with _connect(database) as connection:

            def fetch() -> None:
                with connection.cursor() as cursor:
                    cursor.execute(_QUERY)
                    _refuse_other(len(cursor.fetch_arrow_table()), len(bars))

            comparison = compare(
                [Way("adbc", fetch), Way("ours", read)], bench.rounds, bench.report
            )
    note = (
        f"{len(bars):,} hourly bars of {MARKETS} markets. Ours are in order, in a frame, with "
        "their completeness; ADBC's are an Arrow table in no order"
    )
    yield comparison.build_ratio(_FIGURE, "adbc", "ours", note)


def _connect(database: Database) -> Any:
    from adbc_driver_postgresql import dbapi

    url = make_url(database.url).set(drivername="postgresql")
    return dbapi.connect(url.render_as_string(hide_password=False))


def _refuse_other(found: int, expected: int) -> None:
    if found != expected:
        raise RuntimeError(f"{found:,} bars were read, expected {expected:,}")


MEASUREMENT = Measurement(
    "reading a table", (_FIGURE,), measure, {_FIGURE: ("adbc_driver_postgresql", "pyarrow")}
)
