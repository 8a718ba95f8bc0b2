"""A few rows into a full table, as every run of the pipeline writes them.

A third of a batch's rows are new, a third have another close, a third are as stored. Each run has a
batch of its own, of rows that no batch touched before, so that the table need not be made anew.
"""

from collections.abc import Callable, Iterator
from itertools import count
from statistics import median

import pandas as pd

from benchmarks.bar_table import KEYS, BarTable, write_bars
from benchmarks.bars import MARKETS, Span, build_bars, change_some
from benchmarks.bench import Bench, Measurement
from benchmarks.database import Database
from benchmarks.figures import Figure
from benchmarks.rivals import UPSERTS, Writer, stamp_bars
from benchmarks.rounds import Comparison, Way, compare

SIZES = (3, 30, 300)
OURS = "ours"
ROUNDS_FACTOR = 3
"""More rounds than elsewhere: a few milliseconds vary more than seconds."""


def measure_small_batches(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield the product's milliseconds, and their worst ratio to the fastest way."""
    rounds = bench.rounds * ROUNDS_FACTOR
    with bench.open_database() as database:
        table = BarTable(database, bench.folder, bench.rows)
        table.fill()
        batches = _Batches(table, rounds * len(SIZES) * (len(UPSERTS) + 1))
        compared = {
            size: compare(_build_ways(database, batches, size), rounds, bench.report)
            for size in SIZES
        }
    figures = (_build_milliseconds(compared, rounds), _build_worst_ratio(compared, rounds))
    yield from (figure for figure in figures if figure.name in wanted)


def _build_ways(database: Database, batches: "_Batches", size: int) -> Iterator[Way]:
    yield _build_way(OURS, batches, size, lambda bars: write_bars(database, bars))
    for name, write in UPSERTS.items():
        yield _build_way(name, batches, size, _bind(database, write))


def _bind(database: Database, write: Writer) -> Callable[[pd.DataFrame], object]:
    return lambda bars: write(database.engine, stamp_bars(bars))


def _build_way(
    name: str, batches: "_Batches", size: int, write: Callable[[pd.DataFrame], object]
) -> Way:
    prepared: list[pd.DataFrame] = []
    return Way(
        f"{name}, {size} rows",
        lambda: write(prepared.pop()),
        lambda: prepared.append(batches.take(size)),
    )


class _Batches:
    """Small batches of rows that no other batch touches."""

    def __init__(self, table: BarTable, limit: int) -> None:
        self._stored = table.bars
        self._hours = table.hours
        self._later = build_bars(Span(table.hours, table.hours + limit))
        self._limit = limit
        self._numbers = count()

    def take(self, size: int) -> pd.DataFrame:
        """Return the next batch, sorted by key."""
        number, markets = next(self._numbers), range(size // 3)
        new = self._later.iloc[[at * self._limit + number for at in markets]]
        changed, same = (
            self._stored.iloc[
                [at * self._hours + (-1 - 2 * number - back) % self._hours for at in markets]
            ]
            for back in (0, 1)
        )
        return pd.concat([same, change_some(changed, 1.0), new]).sort_values(KEYS)


def _list_milliseconds(comparison: Comparison) -> dict[str, float]:
    return {way: round(median(taken) * 1e3, 2) for way, taken in comparison.seconds.items()}


def _build_milliseconds(compared: dict[int, Comparison], rounds: int) -> Figure:
    detail = {f"{size} rows": _list_milliseconds(one) for size, one in compared.items()}
    ours = {size: detail[f"{size} rows"][f"{OURS}, {size} rows"] for size in compared}
    note = "the value is the largest of the sizes'"
    return Figure("small_batch_ms", max(ours.values()), "ms", rounds, {**detail, "note": note})


def _build_worst_ratio(compared: dict[int, Comparison], rounds: int) -> Figure:
    ratios = {}
    for size, comparison in compared.items():
        ours = f"{OURS}, {size} rows"
        best = comparison.find_fastest(way for way in comparison.seconds if way != ours)
        ratios[best] = round(median(comparison.divide(ours, best)), 4)
    detail = {"over the fastest": ratios, "note": "the value is the largest of the sizes'"}
    return Figure("small_batch_vs_best", max(ratios.values()), "ratio", rounds, detail)


MEASUREMENT = Measurement(
    f"{', '.join(map(str, SIZES))} rows into a full table",
    ("small_batch_ms", "small_batch_vs_best"),
    measure_small_batches,
    needs=dict.fromkeys(("small_batch_ms", "small_batch_vs_best"), ("pangres",)),
)
assert max(SIZES) // 3 <= MARKETS  # noqa: S101 - a batch has a market for every three rows
