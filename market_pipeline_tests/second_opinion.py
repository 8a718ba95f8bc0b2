"""A second opinion: statistics, comparisons, snapshots and weeks computed anew from raw rows.

It shares no code with ``market_pipeline.domain``: NumPy, the rows of the tables, and the sessions
of ``exchange_calendars``. A scenario calls :func:`check_numbers` after it has stored something:
every published number must equal its formula over the bars of the row's own dataset version.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

import exchange_calendars
import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Engine, text

Floats = npt.NDArray[np.float64]
Row = Mapping[str, Any]
DAY = timedelta(days=1)
SNAPSHOT_DAYS = 30
_FACTORS = {True: 365.0, False: 252.0}
_BARS = """
    SELECT market_id, open_time, close_time, close, volume, dataset_version AS since,
        NULL::bigint AS until
    FROM market_data.market_aggregate WHERE interval = '1d' AND is_final
    UNION ALL
    SELECT market_id, open_time, close_time, close, volume, dataset_version, replaced_by_version
    FROM market_data.market_aggregate_revision WHERE interval = '1d'
    ORDER BY 1, 2"""


@dataclass(frozen=True)
class Series:
    """One market's daily bars at a version, placed on the dates its calendar expects.

    Attributes:
        dates: The expected dates, from the first bar to the last.
        closes, volumes: By date; NaN where there is no final bar.
        closed_at: By date, as seconds since 1970; NaN where there is none.
    """

    dates: list[date]
    closes: Floats
    volumes: Floats
    closed_at: Floats


@lru_cache(maxsize=16)
def list_dates(calendar: str) -> tuple[date, ...]:
    """Return every date on which a calendar has a session, from 1990 on."""
    if calendar == "24/7":
        first = date(1990, 1, 1)
        return tuple(first + n * DAY for n in range(20_000))
    schedule = exchange_calendars.get_calendar(calendar, start="1998-01-01").schedule
    return tuple(moment.date() for moment in schedule.index)


def check_numbers(engine: Engine) -> int:
    """Compare every published number with its formula.

    Returns:
        How many numbers were compared.

    Raises:
        AssertionError: Lists what differs: row, column, published, recomputed.
    """
    with engine.connect() as connection:
        opinion = _Opinion(connection)
        found = [
            *opinion.check_statistics(),
            *opinion.check_comparisons(),
            *opinion.check_snapshots(),
            *opinion.check_weeks(),
        ]
    wrong = [line for line, is_right in found if not is_right]
    assert not wrong, f"{len(wrong)} of {len(found)} numbers differ:\n" + "\n".join(wrong[:20])
    return len(found)


Verdict = tuple[str, bool]


class _Opinion:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._markets = {row["market_id"]: row for row in self._read("SELECT * FROM market")}
        self._bars: dict[int, list[Row]] = {}
        for row in self._read(_BARS):
            self._bars.setdefault(row["market_id"], []).append(row)

    def _read(self, query: str) -> list[Row]:
        self._connection.execute(text("SET LOCAL search_path TO market_data"))
        return [dict(row) for row in self._connection.execute(text(query)).mappings()]

    def _series(self, market_id: int, version: int | None, closed_by: datetime) -> Series:
        """Return a market's final days as a version had them, closed by a moment."""
        known = {
            row["open_time"].date(): row
            for row in self._bars.get(market_id, [])
            if (version is None or row["since"] <= version)
            and (row["until"] is None or (version is not None and row["until"] > version))
            and row["close_time"] <= closed_by
        }
        dates = _span_dates(self._calendar(market_id), known)
        return Series(
            dates,
            _take(known, dates, "close"),
            _take(known, dates, "volume"),
            np.array([known[d]["close_time"].timestamp() if d in known else np.nan for d in dates]),
        )

    def _calendar(self, market_id: int) -> str:
        return str(self._markets[market_id]["calendar"])

    def check_statistics(self) -> Iterator[Verdict]:
        """Yield a verdict for each ROI statistic that is not NULL."""
        for row in self._read("SELECT * FROM market_roi_statistic WHERE interval = '1d'"):
            series = self._series(row["market_id"], row["dataset_version"], row["as_of"])
            days = int(row["horizon"].removesuffix("d"))
            factor = _FACTORS[self._calendar(row["market_id"]) == "24/7"]
            start = find_start(series, days)
            window = series.closes[start:]
            mine = compute_statistics(window, factor, *_read_rates(row["method"]))
            name = f"statistic {self._name(row['market_id'])} {row['horizon']} {row['as_of']:%F}"
            yield from _compare(name, row, mine)
            if row["reason"] is None:
                moment = datetime.fromtimestamp(series.closed_at[-1], UTC)
                yield f"{name}: as_of is {row['as_of']}, not {moment}", moment == row["as_of"]

    def check_comparisons(self) -> Iterator[Verdict]:
        """Yield a verdict for each number of a comparison that is not NULL."""
        for row in self._read("SELECT * FROM market_comparison WHERE interval = '1d'"):
            ids = (row["base_market_id"], row["quote_market_id"])
            base, quote = (self._series(one, row["dataset_version"], row["as_of"]) for one in ids)
            mine = compare_series(base, quote, int(row["horizon"].removesuffix("d")))
            name = f"comparison {self._name(ids[0])}/{self._name(ids[1])} {row['horizon']}"
            yield from _compare(f"{name} {row['as_of']:%F}", row, mine)

    def check_snapshots(self) -> Iterator[Verdict]:
        """Yield a verdict for each statistic of a snapshot that is not NULL."""
        for row in self._read("SELECT * FROM market_snapshot"):
            series = self._series(row["market_id"], row["dataset_version"], row["observed_at"])
            if not series.dates:
                continue
            window = series.closes[find_start(series, SNAPSHOT_DAYS) :]
            factor = _FACTORS[self._calendar(row["market_id"]) == "24/7"]
            logs = np.log(window[1:] / window[:-1])
            mine = {
                "realised_volatility": _deviate(logs) * np.sqrt(factor),
                "roi": row["price"] / window[0] - 1,
            }
            name = f"snapshot {self._name(row['market_id'])} {row['observed_at']:%F %T}"
            yield from _compare(name, row, mine)

    def check_weeks(self) -> Iterator[Verdict]:
        """Yield a verdict for each number of a stored week: it is made of its stored days."""
        days: dict[tuple[int, date], list[Row]] = {}
        query = "SELECT * FROM market_aggregate WHERE interval = '{}' ORDER BY open_time"
        for row in self._read(query.format("1d")):
            day = row["open_time"].date()
            if day in set_of_dates(self._calendar(row["market_id"])):
                monday = day - day.weekday() * DAY
                days.setdefault((row["market_id"], monday), []).append(row)
        for row in self._read(query.format("1w")):
            members = days.get((row["market_id"], row["open_time"].date()), [])
            name = f"week {self._name(row['market_id'])} {row['open_time']:%F}"
            yield f"{name} has no day", bool(members)
            if members:
                yield from _compare(name, row, _merge(members))
                is_right = not row["is_final"] or all(day["is_final"] for day in members)
                yield f"{name} is final, but one of its days is not", is_right

    def _name(self, market_id: int) -> str:
        market = self._markets[market_id]
        return f"{market['provider']}:{market['symbol']}"


@lru_cache(maxsize=16)
def set_of_dates(calendar: str) -> frozenset[date]:
    """Return the dates of a calendar's sessions."""
    return frozenset(list_dates(calendar))


def _merge(days: list[Row]) -> dict[str, float]:
    return {
        "open": days[0]["open"],
        "high": max(day["high"] for day in days),
        "low": min(day["low"] for day in days),
        "close": days[-1]["close"],
    }


def _span_dates(calendar: str, known: Mapping[date, Row]) -> list[date]:
    """Return the expected dates from the first to the last that has a bar."""
    found = sorted(known.keys() & set_of_dates(calendar))
    if not found:
        return []
    dates = list_dates(calendar)
    return list(dates[bisect_left(dates, found[0]) : bisect_right(dates, found[-1])])


def _take(known: Mapping[date, Row], dates: list[date], name: str) -> Floats:
    cells = [known[day][name] if day in known else None for day in dates]
    return np.array([np.nan if cell is None else cell for cell in cells], dtype=np.float64)


def find_start(series: Series, days: int) -> int:
    """Return where a window starts: the last known close a horizon or more before the last bar."""
    if not series.dates:
        return 0
    base = series.dates[-1] - days * DAY
    known = [
        at for at, day in enumerate(series.dates) if day <= base and not np.isnan(series.closes[at])
    ]
    return known[-1] if known else 0


def compute_statistics(
    closes: Floats, factor: float, risk_free: float, mar: float
) -> dict[str, float]:
    """Return the measures of closes on consecutive expected dates, NaN where one is missing."""
    with np.errstate(all="ignore"):
        returns = closes[1:] / closes[:-1] - 1
        returns = returns[~np.isnan(returns)]
        known = closes[~np.isnan(closes)]
        roi = known[-1] / known[0] - 1
        rate, least = ((1 + annual) ** (1 / factor) - 1 for annual in (risk_free, mar))
        below = np.minimum(returns - least, 0)
        drawdown = min(known[at] / known[: at + 1].max() - 1 for at in range(len(known)))
        annualised = (1 + roi) ** (factor / (len(closes) - 1)) - 1
        logs = np.log1p(returns)
        return {
            "roi": roi,
            "annualised_return": annualised,
            "annualised_volatility": _deviate(returns) * np.sqrt(factor),
            "realised_volatility": _deviate(logs) * np.sqrt(factor),
            "sharpe": np.mean(returns - rate) / _deviate(returns) * np.sqrt(factor),
            "sortino": np.mean(returns - least) / np.sqrt(np.mean(below**2)) * np.sqrt(factor),
            "max_drawdown": drawdown,
            "calmar": annualised / -drawdown if drawdown else np.nan,
            "n_returns": len(returns),
        }


def _deviate(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(np.sqrt(((known - known.mean()) ** 2).sum() / (len(known) - 1)))


def compare_series(base: Series, quote: Series, days: int) -> dict[str, float]:
    """Return the measures of a pair over the dates that both calendars expect."""
    shared = sorted(set(base.dates) & set(quote.dates))
    if not shared:
        return {}
    sides = [
        {name: _pick(side, shared, name) for name in ("closes", "volumes", "closed_at")}
        for side in (base, quote)
    ]
    both = ~np.isnan(sides[0]["closes"]) & ~np.isnan(sides[1]["closes"])
    if not both.any():
        return {}
    last = int(np.flatnonzero(both)[-1])
    target = shared[last] - days * DAY
    earlier = [at for at in np.flatnonzero(both) if shared[at] <= target]
    first = int(earlier[-1]) if earlier else 0
    window = slice(first, last + 1)
    a, b = (np.where(both, side["closes"], np.nan)[window] for side in sides)
    return {
        "price_ratio": a[-1] / b[-1],
        "roi_spread": a[-1] / a[0] - b[-1] / b[0],
        "close_skew_seconds": sides[0]["closed_at"][last] - sides[1]["closed_at"][last],
        "correlation": _correlate(a[1:] / a[:-1] - 1, b[1:] / b[:-1] - 1),
    }


def _pick(side: Series, dates: list[date], name: str) -> Floats:
    at = {day: n for n, day in enumerate(side.dates)}
    values: Floats = getattr(side, name)
    return values[[at[day] for day in dates]]


def _correlate(one: Floats, other: Floats) -> float:
    known = ~np.isnan(one) & ~np.isnan(other)
    return float(np.corrcoef(one[known], other[known])[0, 1])


def _read_rates(method: str) -> tuple[float, float]:
    found = re.search(r"rf=([^;]+);mar=([^;]+)", method)
    assert found is not None, method
    return float(found[1]), float(found[2])


def _compare(name: str, row: Row, mine: Mapping[str, float]) -> Iterator[Verdict]:
    for column, value in mine.items():
        published = row[column]
        if published is not None:
            is_same = bool(np.isclose(published, value, rtol=1e-9, atol=1e-12))
            yield f"{name}: {column} is {published!r}, recomputed {value!r}", is_same
