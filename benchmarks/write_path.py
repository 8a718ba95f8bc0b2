"""Writing a million bars: the product's path beside COPY, dlt and what one would code by hand."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median

from benchmarks.bar_table import TABLE, BarTable, write_bars
from benchmarks.bench import Bench, Measurement
from benchmarks.database import Database
from benchmarks.dlt_merge import DLT_NEEDS, STRATEGIES, DltTable
from benchmarks.figures import Figure
from benchmarks.rivals import UPSERTS, Writer, stamp_bars, write_by_to_sql
from benchmarks.rounds import Comparison, Way, compare

SAMPLE_ROWS = 20_000
COPY = "copy"
FIRST, RELOAD, DELTA = "ours_first_load", "ours_reload", "ours_delta"
PER_ROW_RELOAD = "per_row_reload"
CSV_SAMPLE_ROWS = 200_000

_DLT = tuple(STRATEGIES)
_DLT_VS_OURS = {f"{way}_vs_ours": (way, RELOAD) for way in STRATEGIES}
_DLT_CSV = ("dlt_upsert_csv", "dlt_delete_insert_csv")
_RIVALS: Mapping[str, Writer] = {**UPSERTS, "to_sql": write_by_to_sql}
_RATIOS: Mapping[str, tuple[str, str]] = {
    "first_load_vs_copy": (FIRST, COPY),
    "identical_reload_vs_copy": (RELOAD, COPY),
    "delta_vs_copy": (DELTA, COPY),
    "per_row_vs_ours": (PER_ROW_RELOAD, RELOAD),
    "per_row_first_load_vs_ours": ("per_row", FIRST),
    "binary_copy_vs_copy": ("binary_copy", COPY),
    **_DLT_VS_OURS,
    **{f"{way}_vs_copy": (way, COPY) for way in (*_RIVALS, *_DLT, *_DLT_CSV)},
}
_SAMPLED = (
    f"time for each row, for the slower way wrote {SAMPLE_ROWS:,} rows into a table of its own"
)
_NOTES: Mapping[str, str] = {
    "first_load_vs_copy": "frame in, committed and counted, into the empty table",
    "identical_reload_vs_copy": "the stored bars again; \\copy is into the empty table",
    "delta_vs_copy": "1 % changed, 1 % new, the others as stored; \\copy is into the empty table",
    "binary_copy_vs_copy": "prepared bytes into the empty table: the tighter limit",
    "per_row_vs_ours": f"reload; {_SAMPLED}",
    "per_row_first_load_vs_ours": f"first load; {_SAMPLED}",
    **{f"{way}_vs_copy": f"first load; {_SAMPLED}" for way in _RIVALS},
    **{
        name: "reload; Arrow in, Parquet loader files, ADBC"
        for way in _DLT
        for name in (f"{way}_vs_copy", f"{way}_vs_ours")
    },
    **{
        f"{way}_vs_copy": f"reload of {CSV_SAMPLE_ROWS:,} rows; Arrow in, CSV loader files"
        for way in _DLT_CSV
    },
}


def measure_writes(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield the wanted figures, from one set of rounds."""
    needed = _find_ways(wanted)
    with bench.open_database() as database:
        builders = _Builders(bench, database)
        ways = [builders.build(name) for name in builders.order if name in needed]
        comparison = compare(ways, bench.rounds, bench.report)
        yield from builders.trace.build_figures(wanted)
    yield from _build_ratios(comparison, wanted)


def _find_ways(wanted: frozenset[str]) -> set[str]:
    ways = {way for name in wanted & _RATIOS.keys() for way in _RATIOS[name]}
    if "dlt_merge_vs_ours" in wanted:
        ways |= {RELOAD, *_DLT}
    return ways | ({RELOAD} if wanted & _Trace.figures else set())


def _build_ratios(comparison: Comparison, wanted: frozenset[str]) -> Iterator[Figure]:
    for name in [name for name in _RATIOS if name in wanted]:
        yield comparison.build_ratio(name, *_RATIOS[name], _NOTES[name])
    if "dlt_merge_vs_ours" in wanted:
        fastest = comparison.find_fastest(_DLT)
        note = f"reload; the fastest of {', '.join(_DLT)}, each by Parquet and ADBC: {fastest}"
        yield comparison.build_ratio("dlt_merge_vs_ours", fastest, RELOAD, note)


class _Trace:
    """What an identical reload leaves behind in the server."""

    figures = frozenset({"reload_wal_mb", "reload_dead_tuples"})

    def __init__(self, table: BarTable) -> None:
        self._table = table
        self._begin = 0.0
        self.wal_mb: list[float] = []
        self.dead: list[float] = []

    def begin(self) -> None:
        """Prepare the full table and note where the log stands."""
        self._table.fill()
        self._begin = _read_wal_bytes(self._table.database)

    def end(self) -> None:
        """Note what was logged, and the rows that died."""
        written = _read_wal_bytes(self._table.database) - self._begin
        self.wal_mb.append(round(written / 1e6, 4))
        self.dead.append(count_dead_rows(self._table.database))

    def build_figures(self, wanted: frozenset[str]) -> Iterator[Figure]:
        """Yield the medians; what another client of the server logs meanwhile is counted too."""
        for name, unit, runs in (
            ("reload_wal_mb", "MB", self.wal_mb),
            ("reload_dead_tuples", "rows", self.dead),
        ):
            if name in wanted:
                yield Figure(name, median(runs), unit, len(runs), {"runs": runs})


def _read_wal_bytes(database: Database) -> float:
    return database.ask("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")


def count_dead_rows(database: Database) -> float:
    """Return how many rows of the table are dead, by the server's own count."""
    # The pool has one connection, so this is the writer's: it has not told its counts yet.
    with database.engine.begin() as connection:
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    return database.ask(
        f"SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = '{TABLE}'::regclass"
    )


class _Builders:
    """Builds the ways that are needed, each with the states it shares with others."""

    def __init__(self, bench: Bench, database: Database) -> None:
        self._bench = bench
        self._database = database
        self._table = BarTable(database, bench.folder, bench.rows)
        self.trace = _Trace(self._table)
        self._samples: dict[int, BarTable] = {}
        self._builders: Mapping[str, Callable[[], Way]] = {
            COPY: lambda: self._from_empty(COPY, self._table.copy_text),
            "binary_copy": lambda: self._from_empty("binary_copy", self._table.copy_binary),
            FIRST: lambda: self._from_empty(FIRST, self._write_bars),
            RELOAD: self._build_reload,
            DELTA: self._build_delta,
            **{name: partial(self._build_dlt, name) for name in _DLT},
            **{name: partial(self._build_dlt_csv, name) for name in _DLT_CSV},
            **{name: partial(self._build_rival, name) for name in _RIVALS},
            PER_ROW_RELOAD: self._build_per_row_reload,
        }

    @property
    def order(self) -> list[str]:
        """All ways, in the order in which they take turns."""
        return list(self._builders)

    def build(self, name: str) -> Way:
        """Return a way by its name."""
        return self._builders[name]()

    @property
    def _units(self) -> int:
        return len(self._table.bars)

    def _from_empty(self, name: str, run: Callable[[], object]) -> Way:
        return Way(name, run, self._table.empty, units=self._units)

    def _write_bars(self) -> object:
        return write_bars(self._database, self._table.bars)

    def _build_reload(self) -> Way:
        return Way(RELOAD, self._write_bars, self.trace.begin, self.trace.end, self._units)

    def _build_delta(self) -> Way:
        newer = self._table.newer_bars
        return Way(
            DELTA, lambda: write_bars(self._database, newer), self._table.fill, units=len(newer)
        )

    def _build_dlt(self, name: str) -> Way:
        return DltTable(self._table, self._bench.folder).build_way(name, "parquet")

    def _build_dlt_csv(self, name: str) -> Way:
        sample = self._find_sample(CSV_SAMPLE_ROWS)
        strategy = name.removesuffix("_csv")
        return DltTable(sample, self._bench.folder).build_way(strategy, "csv", "_csv")

    def _build_rival(self, name: str) -> Way:
        sample = self._find_sample(SAMPLE_ROWS)
        rows, write = stamp_bars(sample.bars), _RIVALS[name]
        return Way(name, lambda: write(self._database.engine, rows), sample.empty, units=len(rows))

    def _build_per_row_reload(self) -> Way:
        sample = self._find_sample(SAMPLE_ROWS)
        rows, write = stamp_bars(sample.bars), UPSERTS["per_row"]
        return Way(
            PER_ROW_RELOAD,
            lambda: write(self._database.engine, rows),
            sample.fill,
            units=len(rows),
        )

    def _find_sample(self, rows: int) -> BarTable:
        size = min(rows, self._bench.rows)
        if size not in self._samples:
            self._samples[size] = BarTable(self._database, self._bench.folder, size)
        return self._samples[size]


MEASUREMENT = Measurement(
    "writing bars",
    (*_RATIOS, "dlt_merge_vs_ours", *sorted(_Trace.figures, reverse=True)),
    measure_writes,
    needs={
        "pangres_vs_copy": ("pangres",),
        "dlt_merge_vs_ours": DLT_NEEDS,
        **dict.fromkeys(_DLT_VS_OURS, DLT_NEEDS),
        **{f"{way}_vs_copy": DLT_NEEDS for way in (*_DLT, *_DLT_CSV)},
    },
)
