"""The origin of a statistic: its method, bars, revisions, runs and requests, and what changed it.

The bars are those of the statistic's own dataset version. So an older statistic is explained by the
bars that it was made of, and not by later corrections.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import isnan
from typing import Any
from uuid import UUID

import pandas as pd
from sqlalchemy import Connection, Engine

from market_pipeline.domain.errors import HistoryRequestError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.movement import describe_movement
from market_pipeline.domain.records import Market, Window
from market_pipeline.domain.returns import find_reach
from market_pipeline.domain.roi import MEASURES, compute_roi_statistics
from market_pipeline.domain.sufficiency import parse_min_returns
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.resolve import check_version, find_markets, shorten_list
from market_pipeline.storage.bars.history import (
    BarSpan,
    read_bars_at_version,
    read_newest_version,
)
from market_pipeline.storage.bars.revisions import read_revisions
from market_pipeline.storage.bars.stored import count_provisional_bars
from market_pipeline.storage.rows import Row
from market_pipeline.storage.runs.receipts import read_receipts, read_requests
from market_pipeline.storage.statistics.series import read_newest_roi, read_roi_horizons

_REVISION = ("open_time", "old_close", "close", "replaced_at", "version", "run_id")
_RATES = re.compile(r"rf=(?P<rf>[^;]+);mar=(?P<mar>[^;]+)")


@dataclass(frozen=True, slots=True)
class Computation:
    """A statistic computed from the bars of a dataset version.

    Attributes:
        version: The dataset version of the bars.
        value: A fraction or ratio; None with a reason.
        reason: Why it is None.
        bars: The final bars used, in order of open_time, columns as ``read_bars`` gives them.
        known: The same, with those that lie before the horizon.
    """

    version: int
    value: float | None
    reason: str | None
    bars: pd.DataFrame
    known: pd.DataFrame


@dataclass(frozen=True, slots=True)
class VersionComparison:
    """The same statistic from the bars of another dataset version, and what makes the difference.

    Attributes:
        version: The other version. value, reason: What the statistic is there.
        moved: ``1.42 -> 1.39: 3 bars restated by run ..., 1 bar new``, from the older to the newer.
    """

    version: int
    value: float | None
    reason: str | None
    moved: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The origin of a stored statistic; times are UTC.

    Attributes:
        value: As stored, a fraction or ratio; None with a reason.
        recomputed: From the bars of ``dataset_version`` with the settings that ``method`` names; it
            differs from ``value`` only where that is withheld.
        as_of: Close of the last final bar used.
        dataset_version: The version of the bars used.
        bars: How many bars were used, ``first_open_time`` and ``last_open_time`` of them, and how
            many later ones were left out because they are ``provisional``.
        revisions: Final values replaced among these bars, also after the statistic was computed.
        runs: Who wrote the bars: ``run_id``, ``bars``, and from the receipt, as long as that is
            kept, ``trigger``, ``started_at`` and ``outcome``.
        requests: What these runs asked the provider in the bars' span.
        comparison: With another version, where one was named.
    """

    symbol: str
    provider: str
    statistic: str
    interval: str
    horizon: str
    value: float | None
    reason: str | None
    recomputed: float | None
    as_of: datetime
    method: str
    annualisation_factor: float
    n_returns: int
    n_missing: int
    dataset_version: int
    run_id: UUID | None
    bars: Row
    revisions: tuple[Row, ...]
    runs: tuple[Row, ...]
    requests: tuple[Row, ...]
    comparison: VersionComparison | None = None


def explain_statistic(
    symbol: str,
    statistic: str,
    horizon: str = "30d",
    at_version: int | None = None,
    engine: Engine | Connection | None = None,
) -> Explanation:
    """Trace the newest statistic of a market and horizon to what it was made of.

    Of several methods at the same ``as_of`` it is the row of the settings of now.

    Args:
        symbol: ``BTC-USD`` is the symbol's primary market, ``yahoo:BTC-USD`` that of a provider.
        statistic: A column of ``market_roi_statistic``, such as ``sharpe``.
        horizon: Such as ``30d``.
        at_version: Compare with the statistic from the bars of this dataset version.
        engine: Of ``open_database``; None opens the database for this question.

    Raises:
        UnknownMarketError: The symbol is not stored.
        HistoryRequestError: The statistic, horizon or version does not exist; says which do.
        StorageError: The database cannot be opened; one handed in raises SQLAlchemy's own errors.
    """
    if statistic not in MEASURES:
        raise HistoryRequestError(
            f"statistic {statistic!r} is unknown: expected one of {', '.join(MEASURES)}"
        )
    with open_snapshot(engine) as connection:
        ((market_id, market),) = find_markets(connection, symbol).items()
        row = _read_row(connection, market_id, market, horizon)
        newest = read_newest_version(connection)
        version = newest if row["dataset_version"] is None else row["dataset_version"]
        used = _compute(connection, market, row, statistic, version)
        explanation = _explain(connection, market, row, statistic, used)
        if at_version is None:
            return explanation
        check_version(at_version, newest)
        other = _compute(connection, market, row, statistic, at_version)
        stored = replace(used, value=explanation.value, reason=explanation.reason)
        return replace(explanation, comparison=_compare(stored, other))


def _read_row(connection: Connection, market_id: int, market: Market, horizon: str) -> Row:
    row = next(iter(read_newest_roi(connection, market_id, horizon)), None)
    if row is None:
        known = read_roi_horizons(connection, market_id)
        raise HistoryRequestError(
            f"{market.symbol} of {market.provider} has no statistics over {horizon!r}: "
            f"there is {shorten_list(known)}"
        )
    return row


def _compute(
    connection: Connection, market: Market, row: Row, statistic: str, version: int
) -> Computation:
    """Compute a statistic from the bars of a version that close by the row's ``as_of``."""
    days, interval = int(row["horizon"].removesuffix("d")), Interval(row["interval"])
    # A close lies after its bar's open_time, and at the next one's at the latest.
    last = row["as_of"] - timedelta(microseconds=1)
    start = find_reach(frozenset([market.calendar]), interval, last, days)
    span = BarSpan((row["market_id"],), interval, Window(start, row["as_of"]))
    found = read_bars_at_version(connection, span, version)
    bars = pd.DataFrame(found, copy=False).sort_values("open_time")
    known = bars[bars["close_time"] <= row["as_of"]].reset_index(drop=True)
    computed = _compute_row(known, market, row, days)
    if computed is None:
        return Computation(version, None, "no_bars", known.iloc[:0], known)
    inside = known["close_time"].between(computed["first_bar_at"], computed["as_of"])
    value, reason = computed[statistic], computed["reasons"]
    return Computation(version, *pick_value(statistic, value, reason), known[inside], known)


def _compute_row(
    bars: pd.DataFrame, market: Market, row: Row, days: int
) -> Mapping[Any, Any] | None:
    rates = _RATES.search(row["method"])
    if rates is None:
        raise HistoryRequestError(
            f"method {row['method']!r} is not one that this version can compute again"
        )
    rows = compute_roi_statistics(
        bars,
        {row["market_id"]: market.calendar},
        Interval(row["interval"]),
        [days],
        risk_free_annual=float(rates["rf"]),
        mar_annual=float(rates["mar"]),
        min_returns=parse_min_returns(row["method"]).number,
    )
    return None if rows.empty else rows.to_dict("records")[0]


def pick_value(
    statistic: str, value: float | None, reasons: str | float | None
) -> tuple[float | None, str | None]:
    """Return a statistic's value and reason, of which one is None.

    Args:
        statistic: Its column.
        value: Null where it could not be computed.
        reasons: A bare reason speaks of the whole row, ``sortino: no_downside; ...`` of that one.
    """
    if value is not None and not isnan(value):
        return value, None
    parts = dict(part.rpartition(": ")[::2] for part in str(reasons or "").split("; "))
    return None, parts.get(statistic) or parts.get("") or None


def _explain(
    connection: Connection, market: Market, row: Row, statistic: str, used: Computation
) -> Explanation:
    value, reason = pick_value(statistic, row[statistic], row["reason"])
    return Explanation(
        symbol=market.symbol,
        provider=market.provider,
        statistic=statistic,
        **{name: row[name] for name in ("interval", "horizon", "as_of", "method", "run_id")},
        **{name: row[name] for name in ("annualisation_factor", "n_returns", "n_missing")},
        value=value,
        reason=reason,
        recomputed=used.value,
        dataset_version=used.version,
        **_trace(connection, row, used.bars),
    )


def _trace(connection: Connection, row: Row, bars: pd.DataFrame) -> dict[str, Any]:
    """Return ``bars``, ``revisions``, ``runs`` and ``requests`` of an explanation."""
    if bars.empty:
        return {"bars": {"count": 0}, "revisions": (), "runs": (), "requests": ()}
    first, last = (bars["open_time"].iloc[at].to_pydatetime() for at in (0, -1))
    series = (row["market_id"], row["interval"])
    counts = {UUID(str(run_id)): int(n) for run_id, n in bars["run_id"].value_counts().items()}
    runs, span = list(counts), (first, last)
    receipts = {receipt["run_id"]: receipt for receipt in read_receipts(connection, runs)}
    ordered = [*receipts, *(run_id for run_id in runs if run_id not in receipts)]
    absent = {"trigger": None, "started_at": None, "outcome": None}
    return {
        "bars": {
            "count": len(bars),
            "first_open_time": first,
            "last_open_time": last,
            "provisional": count_provisional_bars(connection, *series, first),
        },
        "revisions": tuple(
            {name: row[name] for name in _REVISION}
            for row in read_revisions(connection, *series, *span)
        ),
        "runs": tuple(
            {"run_id": run_id, "bars": counts[run_id], **absent, **receipts.get(run_id, {})}
            for run_id in ordered
        ),
        "requests": tuple(read_requests(connection, runs, *series, *span)),
    }


def _compare(stored: Computation, other: Computation) -> VersionComparison:
    older, newer = sorted((stored, other), key=lambda computed: computed.version)
    moved = (
        f"{format_value(older.value, older.reason)} -> {format_value(newer.value, newer.reason)}: "
        f"{describe_movement(older.bars, newer.bars, older.known)}"
    )
    return VersionComparison(other.version, other.value, other.reason, moved)


def format_value(value: float | None, reason: str | None) -> str:
    """Return a value to six digits, or ``NULL`` with its reason."""
    return f"NULL ({reason})" if value is None else f"{value:.6g}"
