"""File provider: bars from your own CSV or Parquet files.

Here: which file holds which market, and reading files. Not here: the meaning of a table's columns
and times (``price_tables.py``).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import pandas as pd

from market_pipeline.domain.columns import to_micros_array
from market_pipeline.domain.errors import PermanentProviderError, ProviderError, SettingError
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.records import (
    HistoryTerms,
    Market,
    PriceSnapshot,
    Window,
    build_empty_bar_frame,
)
from market_pipeline.domain.sessions import read_times_around
from market_pipeline.domain.symbols import parse_symbol
from market_pipeline.domain.validation import find_strays
from market_pipeline.providers.file_markets import (
    ADJUSTED,
    PRICE_BASES,
    TABLE,
    MarketFacts,
    read_market_facts,
    read_symbol,
    settle_facts,
)
from market_pipeline.providers.price_tables import SPELLINGS, build_bars, name_columns
from market_pipeline.providers.snapshots import ask_each
from market_pipeline.settings import read_variable, split_list

PAGE = timedelta(days=36_525)
SUFFIXES = (".csv", ".parquet")
_INTERVAL_SUFFIX = re.compile(r"[_-](1h|1d)$", re.IGNORECASE)
_MISSING = [".", "-"]
_LENGTHS = (Interval.HOUR, Interval.DAY)


@dataclass(frozen=True, slots=True)
class _Source:
    """A file that holds one market, or one market's rows among others'."""

    path: Path
    interval: Interval | None
    symbol: str


@dataclass(frozen=True, slots=True)
class _Part:
    """The facts in a source's rows; ``adjusted`` names a column of adjusted closes."""

    interval: Interval
    opens: "pd.Series[pd.Timestamp]"
    adjusted: str = ""


class FileProvider:
    """Serves what FILE_PROVIDER_PATH holds: a file, or a folder of files named after symbols.

    ``BTC-USD.csv`` or ``BTC-USD_1h.parquet`` name their symbol; a single file may instead have a
    ``symbol`` column. Files are read once and again when they change. ``markets.csv`` beside them
    says what their markets are.
    """

    name: ClassVar[str] = "file"
    summary: ClassVar[str] = "Your own CSV or Parquet files; needs FILE_PROVIDER_PATH"
    homepage: ClassVar[str] = "https://en.wikipedia.org/wiki/Comma-separated_values"
    calls_per_minute: ClassVar[float | None] = None
    calls_per_month: ClassVar[int | None] = None

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._path = read_variable("FILE_PROVIDER_PATH", environ)
        self._columns = parse_column_mapping(read_variable("FILE_PROVIDER_COLUMNS", environ))
        self._facts_path = read_variable("FILE_PROVIDER_MARKETS", environ)
        self._facts: dict[str, MarketFacts] | None = None
        self._catalogue: dict[str, list[_Source]] | None = None
        self._tables: dict[Path, tuple[tuple[int, int], pd.DataFrame]] = {}
        self._lock = Lock()

    def explain_missing_settings(self) -> str | None:
        """Return that the path is missing."""
        return None if self._path else "set FILE_PROVIDER_PATH to a CSV or Parquet file or a folder"

    def list_symbols(self) -> tuple[str, ...]:
        """Return the symbols that files were found for; none while no path is set."""
        return tuple(self._list_sources()) if self._path else ()

    def find_market(self, symbol: str) -> Market | None:
        """Return the market of a file; the rows determine the bar length.

        What ``markets.csv`` does not tell of it is assumed, and said so.

        Raises:
            SettingError: The path does not exist or holds no CSV or Parquet file, or
                ``markets.csv`` has something that cannot be meant.
        """
        sources = self._list_sources().get(symbol, []) if self._path else []
        if not sources:
            return None
        told, place = self._read_facts().get(symbol), self._find_facts_path().name
        read, known = read_symbol(symbol), told or MarketFacts()
        parts = [self._look_at(source, known.timezone) for source in sources]
        dates = pd.DatetimeIndex(pd.concat([part.opens for part in parts]).dt.floor("D").unique())
        calendar, quote, assumed = settle_facts(symbol, told, dates, place)
        unused = [f"its column {part.adjusted!r} is not used" for part in parts if part.adjusted]
        if unused and not known.price_basis:
            unused[-1] += f": price_basis={ADJUSTED} in {place} would"
            assumed = "; ".join(filter(None, (assumed, *unused)))
        return Market(
            provider=self.name,
            symbol=symbol,
            provider_market_id=symbol,
            name=known.name or read.name,
            base=read.base,
            quote=quote,
            venue=known.venue or "file",
            calendar=calendar,
            intervals=tuple(length for length in _LENGTHS if length in {p.interval for p in parts}),
            price_basis=known.price_basis or PRICE_BASES[0],
            assumed=assumed,
        )

    def describe_history(self, market: Market, interval: Interval) -> HistoryTerms:
        """Return one page for all: a file is read whole anyway."""
        del market, interval  # all are served alike
        return HistoryTerms(page=PAGE)

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> pd.DataFrame:
        """Return a file's bars; those that have closed by ``now`` are final.

        Raises:
            PermanentProviderError: The file cannot be read or understood, or two files claim it.
        """
        sources = self._list_sources().get(market.symbol, [])
        frames = [(source, self._read_bars(source, market)) for source in sources]
        claims = [
            (source, bars)
            for source, bars in frames
            if (bars["interval"] == interval.value).any() or source.interval is interval
        ]
        if len(claims) > 1:
            names = ", ".join(source.path.name for source, _ in claims)
            raise PermanentProviderError(
                self.name, f"{market.symbol} has bars of {interval} in {names}: keep one of them"
            )
        bars = claims[0][1] if claims else build_empty_bar_frame()
        is_wanted = bars["open_time"].between(window.start, window.end, inclusive="left")
        bars = bars[is_wanted & (bars["open_time"] < now)].reset_index(drop=True)
        return bars.assign(is_final=bars["close_time"] <= now)

    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return the close of each market's last bar that has closed, at that moment.

        Raises:
            ProviderError: Every market's file failed; the last failure, with the reason of each.
        """
        return ask_each(markets, lambda market: self._read_snapshot(market, now))

    def _read_snapshot(self, market: Market, now: datetime) -> list[PriceSnapshot]:
        sources = self._list_sources().get(market.symbol, [])
        frames = [self._read_bars(source, market) for source in sources]
        bars = pd.concat([build_empty_bar_frame(), *frames])
        opens, intervals = to_micros_array(bars["open_time"]), bars["interval"].to_numpy(object)
        sessions = read_times_around(opens, market.calendar)
        bars = bars[~find_strays(intervals, opens, sessions)]
        closed = bars[(bars["close_time"] <= now) & (bars["close"] > 0)]
        if closed.empty:
            return []
        last = closed.sort_values("close_time", kind="stable").iloc[-1]
        return [PriceSnapshot(market, last["close_time"].to_pydatetime(), float(last["close"]))]

    def _look_at(self, source: _Source, zone: str) -> _Part:
        """Return the facts in a market's rows; a broken file fails when it is fetched."""
        length = source.interval or Interval.DAY
        try:
            bars = self._build_bars(source, ALWAYS_OPEN, zone)
            named = name_columns(self._read_table(source.path), self._columns, source.path.name)
        except ProviderError:
            return _Part(length, build_empty_bar_frame()["open_time"])
        found = Interval(bars["interval"].iloc[0]) if len(bars) else length
        adjusted = str(named["adj_close"].name) if "adj_close" in named else ""
        return _Part(found, bars["open_time"], adjusted)

    def _find_facts_path(self) -> Path:
        """Return where the table of markets is, or would be."""
        path = Path(self._path).expanduser()
        beside = (path.parent if path.is_file() else path) / TABLE
        return Path(self._facts_path).expanduser() if self._facts_path else beside

    def _read_facts(self) -> dict[str, MarketFacts]:
        with self._lock:
            if self._facts is None:
                path = self._find_facts_path()
                try:
                    is_data = path == Path(self._path).expanduser()
                    is_there = bool(self._facts_path) or (path.is_file() and not is_data)
                    self._facts = read_market_facts(path) if is_there else {}
                except OSError as error:
                    name = "FILE_PROVIDER_MARKETS" if self._facts_path else "FILE_PROVIDER_PATH"
                    raise SettingError(
                        f"{name}={str(path)!r} cannot be read: {error.strerror}"
                    ) from None
            return self._facts

    def _list_sources(self) -> dict[str, list[_Source]]:
        with self._lock:
            if self._catalogue is None:
                self._catalogue = self._build_catalogue()
            return self._catalogue

    def _build_catalogue(self) -> dict[str, list[_Source]]:
        path = Path(self._path).expanduser()
        catalogue: dict[str, list[_Source]] = {}
        for source in self._find_sources(path):
            catalogue.setdefault(source.symbol, []).append(source)
        if not catalogue:
            raise SettingError(
                f"FILE_PROVIDER_PATH={self._path!r} holds no market: expected files such as "
                "BTC-USD.csv or SPX.parquet"
            )
        return catalogue

    def _find_sources(self, path: Path) -> Iterable[_Source]:
        try:
            files = [path] if path.is_file() else sorted(path.iterdir())
        except OSError as error:
            raise SettingError(
                f"FILE_PROVIDER_PATH={self._path!r} cannot be read: {error.strerror}"
            ) from None
        symbols = self._read_symbols(path) if path.is_file() else ()
        if symbols:
            return [_Source(path, None, symbol) for symbol in symbols]
        facts = self._find_facts_path()
        series = (file for file in files if file.name != TABLE and file != facts)
        named = (_name_source(file) for file in series if file.suffix.lower() in SUFFIXES)
        return [source for source in named if source is not None]

    def _read_symbols(self, path: Path) -> tuple[str, ...]:
        """Return the symbols in a file's symbol column; none when it has no such column."""
        try:
            column = self._find_symbol_column(self._read_table(path), path)
        except ProviderError:
            return ()  # its name may still tell the symbol; the fault shows when it is fetched
        return () if column is None else tuple(dict.fromkeys(map(_read_symbol, column)))

    def _find_symbol_column(self, table: pd.DataFrame, path: Path) -> "pd.Series[Any] | None":
        return name_columns(table, self._columns, path.name).get("symbol")

    def _read_bars(self, source: _Source, market: Market) -> pd.DataFrame:
        """Return all bars of a market's source, none of them marked final."""
        told = self._read_facts().get(market.symbol, MarketFacts())
        is_adjusted = market.price_basis == ADJUSTED
        return self._build_bars(source, market.calendar, told.timezone, is_adjusted)

    def _build_bars(
        self, source: _Source, calendar: str, zone: str, is_adjusted: bool = False
    ) -> pd.DataFrame:
        table = self._read_table(source.path)
        column = self._find_symbol_column(table, source.path)
        if column is not None:
            table = table[column.map(_read_symbol) == source.symbol]
            if table.empty:
                raise PermanentProviderError(
                    self.name, f"{source.path.name} has a symbol column without {source.symbol}"
                )
        place = source.path.name
        return build_bars(table, self._columns, calendar, source.interval, place, zone, is_adjusted)

    def _read_table(self, path: Path) -> pd.DataFrame:
        """Return a file's table, from memory when the file has not changed."""
        try:
            status = path.stat()
        except OSError as error:
            raise PermanentProviderError(self.name, f"{path.name}: {error.strerror}") from None
        version = (status.st_mtime_ns, status.st_size)
        cached = self._tables.get(path)
        if cached is None or cached[0] != version:
            cached = (version, read_table(path, self._columns))
            self._tables[path] = cached
        return cached[1]


def parse_column_mapping(text: str) -> dict[str, str]:
    """Return the mapping in ``open_time=ts,close=last``: this project's column to the file's.

    Raises:
        SettingError: An unknown column, or an entry of another shape.
    """
    mapping = {}
    for entry in split_list(text):
        name, _, actual = (part.strip() for part in entry.partition("="))
        if name not in SPELLINGS or not actual:
            raise SettingError(
                f"FILE_PROVIDER_COLUMNS has {entry[:60]!r}: expected <column>=<name in the file>, "
                f"column one of {', '.join(SPELLINGS)}"
            )
        mapping[name] = actual
    return mapping


def _name_source(path: Path) -> _Source | None:
    """Return the source that a file's name names, or None if it is not a symbol."""
    suffix = _INTERVAL_SUFFIX.search(path.stem)
    stem = path.stem[: suffix.start()] if suffix else path.stem
    try:
        symbol = parse_symbol(stem)
    except SettingError:
        return None
    return _Source(path, Interval(suffix[1].lower()) if suffix else None, symbol)


def _read_symbol(cell: object) -> str:
    """Return a cell's symbol in its one spelling; empty when it is none."""
    try:
        return parse_symbol(str(cell))
    except SettingError:
        return ""


def read_table(path: Path, mapping: Mapping[str, str]) -> pd.DataFrame:
    """Return a file's table as it is.

    Raises:
        PermanentProviderError: It cannot be read, is empty, or has no header line and no mapping.
    """
    is_parquet = path.suffix.lower() == ".parquet"
    try:
        table = _read_parquet(path) if is_parquet else _read_csv(path, mapping)
    except (OSError, ValueError, OverflowError) as error:  # pandas' parser errors are ValueErrors
        reason = " ".join(str(error).split())[:120]
        raise PermanentProviderError("file", f"{path.name} cannot be read: {reason}") from None
    if table.empty:
        raise PermanentProviderError("file", f"{path.name} has no rows")
    return table


def _read_csv(path: Path, mapping: Mapping[str, str]) -> pd.DataFrame:
    by_position = bool(mapping) and all(name.isdecimal() for name in mapping.values())
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline()
    if not first.strip():
        raise PermanentProviderError("file", f"{path.name} is empty, or begins with an empty line")
    if not by_position:
        _require_header(first, path)
    table = pd.read_csv(
        path,
        sep=max(",;\t|", key=first.count),
        header=None if by_position else 0,
        encoding="utf-8-sig",
        na_values=_MISSING,
        low_memory=False,
    )
    if not isinstance(table.index, pd.RangeIndex):  # an unquoted "1,5" would shift all columns
        raise ValueError("its rows have more cells than its first line")  # noqa: TRY004 - data
    return table


def _require_header(first: str, path: Path) -> None:
    """Refuse a first line of numbers.

    Raises:
        PermanentProviderError: It names nothing; the message says how to map by position.
    """
    cells = [cell.strip().strip('"') for cell in re.split(r"[,;\t|]", first)]
    if cells and not any(re.match(r"[^\W\d]", cell) for cell in cells):
        raise PermanentProviderError(
            "file",
            f"{path.name} has no header line, it begins with {first.strip()[:60]!r}: set "
            "FILE_PROVIDER_COLUMNS by position, such as open_time=0,open=1,high=2,low=3,close=4",
        )


def _read_parquet(path: Path) -> pd.DataFrame:
    # Imported when first needed: it costs 0.2 s.
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    try:
        table: pd.DataFrame = parquet.read_table(path).to_pandas()
    except arrow.ArrowException as error:
        raise ValueError(str(error)) from None
    return table if isinstance(table.index, pd.RangeIndex) else table.reset_index()
