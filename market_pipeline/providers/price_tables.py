"""A table of prices as a bar frame: finds the columns, parses the times, guesses nothing.

Here: pure functions over a table already in memory. Not here: files (``file.py``).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from market_pipeline.domain.errors import PermanentProviderError
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.records import build_bar_frame, build_empty_bar_frame
from market_pipeline.providers.session_closes import find_session_closes

NAME = "file"
# Spellings of each column, lower case and letters and digits only; earlier ones are preferred.
SPELLINGS: Mapping[str, Sequence[str]] = {
    "open_time": (
        "opentime", "starttime", "start", "startepochs", "startepochms", "timestamp", "ts", "tss",
        "unix", "unixtime", "unixtimestamp", "epoch", "datetime", "time", "observationdate", "date",
    ),
    "open": ("open", "o", "openprice"),
    "high": ("high", "h", "highprice", "max"),
    "low": ("low", "l", "lowprice", "min"),
    "close": ("close", "c", "closeprice", "last", "price", "closelast"),
    "adj_close": ("adjclose", "adjustedclose", "adjcloseprice", "closeadj", "closeadjusted"),
    "volume": ("volume", "v", "vol", "basevolume"),
    "trades": ("trades", "count", "numberoftrades", "n"),
    "symbol": ("symbol", "ticker", "pair", "market", "instrument"),
}  # fmt: skip
_PRICES = ("open", "high", "low", "close")
_EPOCH_UNITS = ((1e11, "s"), (1e14, "ms"), (1e17, "us"), (float("inf"), "ns"))
_SLASHED = re.compile(r"^\s*(\d{1,2})([/.-])(\d{1,2})\2(\d{4})(.*)$")
_ZONE = re.compile(r"(?<=\d)\s*(?:Z|UTC|[+-]\d{2}:?\d{2})$")
_EARLIEST, _LATEST = pd.Timestamp("1850-01-01", tz="UTC"), pd.Timestamp("2100-01-01", tz="UTC")


def name_columns(
    table: pd.DataFrame, mapping: Mapping[str, str], place: str
) -> dict[str, "pd.Series[Any]"]:
    """Return the known columns of a table by this project's names.

    ``mapping`` is this project's name to the table's, for columns the spellings miss; ``place`` is
    the file, for messages.

    Raises:
        PermanentProviderError: No time or no close column, some but not all of open, high and low,
            or a mapped column that is not there.
    """
    table = table.set_axis([str(name) for name in table.columns], axis=1)
    known = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(table.columns)}
    table = table.loc[:, ~table.columns.duplicated()]
    found: dict[str, pd.Series[Any]] = {}
    for name, spellings in SPELLINGS.items():
        actual = mapping.get(name) or next((known[s] for s in spellings if s in known), None)
        if actual is not None and actual not in table.columns:
            raise _complain(place, f"has no column {actual!r} (wanted as {name})", table)
        if actual is not None:
            found[name] = table[actual]
    _require_columns(found, place, table)
    return found


def _require_columns(found: Mapping[str, object], place: str, table: pd.DataFrame) -> None:
    missing = [name for name in ("open_time", "close") if name not in found]
    partial = [name for name in _PRICES[:3] if name not in found]
    if len(partial) < 3:
        missing += partial
    if missing:
        raise _complain(place, f"has no column for {', '.join(missing)}", table)


def _complain(place: str, problem: str, table: pd.DataFrame) -> PermanentProviderError:
    columns = ", ".join(repr(str(name))[:40] for name in table.columns[:20])
    return PermanentProviderError(
        NAME,
        f"{place} {problem}; it has {columns or 'none'}. Name the columns with "
        "FILE_PROVIDER_COLUMNS=open_time=<name>,close=<name>; by position (0, 1, ...) where the "
        "file has no header line",
    )


def parse_times(column: "pd.Series[Any]", place: str) -> "pd.Series[pd.Timestamp]":
    """Return times in UTC, to the microsecond; a time without a zone is read as UTC.

    Epochs are understood by their size, ``yyyymmdd`` too. Whether ``1/4/1999`` begins with the
    month is decided from the whole column, and refused when no value tells. So are texts that are
    no times, and years outside 1850 to 2100.
    """
    try:
        times = _parse_times(column, place)
    except (ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise PermanentProviderError(NAME, f"{place}: times cannot be read: {reason}") from None
    if times.isna().any() or not times.between(_EARLIEST, _LATEST).all():
        raise PermanentProviderError(
            NAME, f"{place}: column {column.name!r} has times that are missing or implausible"
        )
    return times.dt.as_unit("us")


def _parse_times(column: "pd.Series[Any]", place: str) -> "pd.Series[pd.Timestamp]":
    if pd.api.types.is_bool_dtype(column.dtype):
        raise ValueError("true and false are no times")
    if pd.api.types.is_numeric_dtype(column.dtype):
        return _parse_epochs(column.astype("float64"))
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return pd.to_datetime(column, utc=True)
    texts = column.astype("str").str.strip()
    parts = texts.str.extract(_SLASHED)
    if parts[0].notna().all():
        texts = _reorder_dates(parts, place)
    return pd.to_datetime(texts, format="ISO8601", utc=True)


def _parse_epochs(numbers: "pd.Series[Any]") -> "pd.Series[pd.Timestamp]":
    if _is_yyyymmdd(numbers):
        return pd.to_datetime(numbers.astype("int64").astype("str"), format="%Y%m%d", utc=True)
    size = float(numbers.abs().median())
    unit = next(unit for limit, unit in _EPOCH_UNITS if not size >= limit)
    times: pd.Series[Any] = pd.to_datetime(numbers, unit=unit, utc=True)  # type: ignore[call-overload]
    return times


def _reorder_dates(parts: pd.DataFrame, place: str) -> "pd.Series[str]":
    """Return ISO texts for dates like 12/31/2018 or 31.12.2018."""
    first, second = parts[0].astype("int64"), parts[2].astype("int64")
    is_day_first, is_month_first = bool((first > 12).any()), bool((second > 12).any())
    if is_day_first == is_month_first:
        raise PermanentProviderError(
            NAME,
            f"{place}: dates such as {parts[0].iloc[0]}{parts[1].iloc[0]}{parts[2].iloc[0]} do not "
            "tell day from month: write them as yyyy-mm-dd",
        )
    day, month = (parts[0], parts[2]) if is_day_first else (parts[2], parts[0])
    return parts[3] + "-" + month.str.zfill(2) + "-" + day.str.zfill(2) + parts[4].fillna("")


def parse_column(column: "pd.Series[Any]", place: str) -> "pd.Series[float]":
    """Return numbers; an empty cell is NaN, and anything else a ``PermanentProviderError``."""
    if pd.api.types.is_bool_dtype(column.dtype):
        raise PermanentProviderError(NAME, f"{place}: column {column.name!r} holds no numbers")
    numbers = pd.to_numeric(column, errors="coerce")
    is_bad = numbers.isna() & column.notna()
    if is_bad.any():
        row, value = int(is_bad.to_numpy().argmax()), str(column[is_bad].iloc[0])[:40]
        raise PermanentProviderError(
            NAME, f"{place}: column {column.name!r} has {value!r} in row {row + 1}, not a number"
        )
    return numbers.astype("float64")


def detect_interval(times: "pd.Series[pd.Timestamp]", place: str) -> Interval:
    """Return the bar length that the usual distance between times shows: an hour or a day."""
    gaps = times.drop_duplicates().sort_values().diff().dropna()
    usual = gaps.median() if len(gaps) else pd.Timedelta(days=1)
    if usual == pd.Timedelta(hours=1):
        return Interval.HOUR
    if pd.Timedelta(hours=20) <= usual <= pd.Timedelta(days=4):
        return Interval.DAY
    raise PermanentProviderError(
        NAME, f"{place}: rows are {usual} apart; bars of 1h or 1d can be read"
    )


def build_bars(
    table: pd.DataFrame,
    mapping: Mapping[str, str],
    calendar: str,
    interval: Interval | None,
    place: str,
    zone: str = "",
    is_adjusted: bool = False,
) -> pd.DataFrame:
    """Return the bar frame of one symbol's rows, ordered by open_time, all marked provisional.

    Rows without a close are left out, equal times are kept. The calendar gives a session's close.
    ``interval`` None is read off the distance between rows. ``zone`` is that of stamps that name
    none, and of the dates of those that do; empty: UTC, and their own. ``is_adjusted`` scales
    prices to the adjusted close, where there is one. A table that cannot be understood is a
    ``PermanentProviderError``, which says where.
    """
    columns = name_columns(table, mapping, place)
    numbers = {
        name: parse_column(columns[name], place)
        for name in (*_PRICES, "adj_close", "volume", "trades")
        if name in columns
    }
    has_close = numbers["close"].notna()
    if not has_close.any():
        return build_empty_bar_frame()
    numbers = {name: column[has_close] for name, column in numbers.items()}
    if is_adjusted and "adj_close" in numbers:
        numbers = _adjust(numbers)
    texts = columns["open_time"][has_close]
    times = parse_times(texts, place)
    interval = interval or detect_interval(times, place)
    dates = _find_dates(texts, times, zone, place)
    if interval is Interval.HOUR and zone:
        times = _read_in_zone(texts, times, zone, place)
    opens = dates if interval is Interval.DAY else times
    closes = _find_closes(opens, dates, calendar, interval)
    return _assemble(numbers, opens, closes, interval, calendar)


def _adjust(numbers: Mapping[str, "pd.Series[float]"]) -> dict[str, "pd.Series[float]"]:
    """Return prices multiplied by the one factor of their row: their order stays."""
    factor = numbers["adj_close"] / numbers["close"]
    return {
        name: column * factor if name in _PRICES else column for name, column in numbers.items()
    }


def _find_dates(
    texts: "pd.Series[Any]", times: "pd.Series[pd.Timestamp]", zone: str, place: str
) -> "pd.Series[pd.Timestamp]":
    """Return the date of each stamp, at 00:00 UTC: its own clock's, or a moment's in a zone."""
    clocks, is_naive = _read_clocks(texts)
    dates = parse_times(clocks, place).dt.floor("D")
    if not zone:
        return dates
    there = times.dt.tz_convert(zone).dt.tz_localize(None).dt.floor("D").dt.tz_localize("UTC")
    return dates.where(is_naive, there)


def _read_in_zone(
    texts: "pd.Series[Any]", times: "pd.Series[pd.Timestamp]", zone: str, place: str
) -> "pd.Series[pd.Timestamp]":
    """Return times of which those without a zone were meant in one.

    One that does not exist there, or twice while the others do not tell, is refused.
    """
    _, is_naive = _read_clocks(texts)
    try:
        local = times[is_naive].dt.tz_localize(None).dt.tz_localize(zone, ambiguous="infer")
    except ValueError as error:
        reason = " ".join(str(error).split())[:120]
        raise PermanentProviderError(
            NAME,
            f"{place}: a time cannot be read in {zone}, where clocks change: {reason}. Write such "
            "times with their offset, as 2024-10-27T02:00+01:00",
        ) from None
    return pd.concat([local.dt.tz_convert("UTC"), times[~is_naive]]).reindex(times.index)


def _read_clocks(texts: "pd.Series[Any]") -> "tuple[pd.Series[Any], pd.Series[bool]]":
    """Return times as their own clock shows them, and which of them name no zone.

    A daily row belongs to its clock's date. Epochs are moments, and name one.
    """
    if isinstance(texts.dtype, pd.DatetimeTZDtype):
        return pd.Series(texts.dt.tz_localize(None)), pd.Series(False, index=texts.index)
    if texts.dtype.kind == "M":
        return texts, pd.Series(True, index=texts.index)
    if pd.api.types.is_numeric_dtype(texts.dtype):
        return texts, pd.Series(_is_yyyymmdd(texts.astype("float64")), index=texts.index)
    stripped = texts.astype("str").str.strip()
    return stripped.str.replace(_ZONE, "", regex=True), ~stripped.str.contains(_ZONE)


def _is_yyyymmdd(numbers: "pd.Series[Any]") -> bool:
    return bool(numbers.between(18_500_101, 21_001_231).all() and (numbers % 1 == 0).all())


def _find_closes(
    opens: "pd.Series[pd.Timestamp]",
    dates: "pd.Series[pd.Timestamp]",
    calendar: str,
    interval: Interval,
) -> "pd.Series[pd.Timestamp]":
    """Return each bar's end, at most its session's close; a date without one is kept whole."""
    plain = opens + pd.Timedelta(interval.duration)
    if calendar == ALWAYS_OPEN:
        return plain
    closes = find_session_closes(dates, calendar)
    if interval is Interval.DAY:
        return closes
    return closes.where((closes < plain) & (closes > opens), plain)


def _assemble(
    numbers: Mapping[str, "pd.Series[float]"],
    opens: "pd.Series[pd.Timestamp]",
    closes: "pd.Series[pd.Timestamp]",
    interval: Interval,
    calendar: str,
) -> pd.DataFrame:
    kind = "base" if calendar in (ALWAYS_OPEN, "24/5") else "shares"  # a pair, or a share
    columns: dict[str, object] = {
        "interval": interval.value,
        "open_time": pd.DatetimeIndex(opens),
        "close_time": pd.DatetimeIndex(closes),
        "volume_kind": kind if "volume" in numbers else "none",
        "source_kind": "traded" if "open" in numbers else "points",
        "is_final": False,
    }
    prices = {name: numbers.get(name, numbers["close"]).to_numpy() for name in _PRICES}
    extras = {name: numbers[name].to_numpy() for name in ("volume", "trades") if name in numbers}
    frame = build_bar_frame({**columns, **prices, **extras})
    return frame.sort_values("open_time", kind="stable", ignore_index=True)
