"""Statistics and comparisons as they are stored: the newest of each series, or a span of them.

A series is what one number is followed over: a market (or pair), interval and horizon. Rows come in
the order of their series and ``as_of``. Not here: bars (``bars.history``), how a number came to
be (``readers.why``).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    TextClause,
    and_,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import distinct_on

from market_pipeline.domain import comparisons, roi
from market_pipeline.domain.intervals import Interval
from market_pipeline.settings import read_statistics_settings
from market_pipeline.storage.rows import Row, fetch, read_frame
from market_pipeline.storage.tables import market_comparison, market_roi_statistic

NEWEST = "as_of DESC, method ~ :method DESC, dataset_version DESC NULLS LAST"
"""ORDER BY of rows of one series: the later ``as_of``, and of several methods the one in use.

The parameter ``method`` is :func:`find_method_in_use`.
"""


@dataclass(frozen=True, slots=True)
class StatisticSpan:
    """Which rows are read; None is no limit.

    Attributes:
        market_ids: Whose; of a pair either side.
        interval: Of the bars used. horizon: Such as ``30d``.
        start, end: Of ``as_of``, half open (UTC). until: The last ``as_of`` there may be.
        version: Newest dataset version of the bars used.
        is_newest: Only the newest row of each series.
    """

    market_ids: Sequence[int]
    interval: str
    horizon: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    until: datetime | None = None
    version: int | None = None
    is_newest: bool = True


def read_roi_rows(connection: Connection, span: StatisticSpan) -> pd.DataFrame:
    """Return ROI statistics; the columns are the table's."""
    return read_frame(connection, _select_roi(span))


def read_newest_roi(
    connection: Connection, market_id: int, horizon: str | None = None
) -> list[Row]:
    """Return a market's newest daily statistics, one row a horizon, the shortest first.

    Args:
        connection: Any.
        market_id: The market.
        horizon: This one alone; None: all.
    """
    rows = fetch(connection, _select_roi(StatisticSpan([market_id], Interval.DAY.value, horizon)))
    return sorted(rows, key=lambda row: _count_days(row["horizon"]))


def read_roi_horizons(connection: Connection, market_id: int) -> list[str]:
    """Return the horizons that a market has statistics of, the shortest first."""
    row = market_roi_statistic.c
    return _list_horizons(connection, select(row.horizon).where(row.market_id == market_id))


def read_compared_horizons(connection: Connection) -> list[str]:
    """Return the horizons that comparisons are stored of, the shortest first."""
    return _list_horizons(connection, select(market_comparison.c.horizon))


def _list_horizons(connection: Connection, query: "Select[Any]") -> list[str]:
    return sorted(connection.execute(query.distinct()).scalars(), key=_count_days)


def _count_days(horizon: str) -> int:
    return int(horizon.removesuffix("d"))


def _select_roi(span: StatisticSpan) -> "Select[tuple[object, ...]]":
    row = market_roi_statistic.c
    of_markets = row.market_id.in_(span.market_ids)
    return _select(market_roi_statistic, span, of_markets, [row.market_id])


def read_comparison_rows(
    connection: Connection, span: StatisticSpan, against: Sequence[int] | None = None
) -> pd.DataFrame:
    """Return comparisons; the columns are the table's.

    Args:
        connection: Any.
        span: Which; its markets are either side of a pair.
        against: The markets that may be the other side; None: any.
    """
    row = market_comparison.c
    base, quote = row.base_market_id, row.quote_market_id
    if against is None:
        of_pairs: ColumnElement[bool] = or_(base.in_(span.market_ids), quote.in_(span.market_ids))
    else:
        of_pairs = or_(
            and_(base.in_(span.market_ids), quote.in_(against)),
            and_(quote.in_(span.market_ids), base.in_(against)),
        )
    return read_frame(connection, _select(market_comparison, span, of_pairs, [base, quote]))


def _select(
    table: Table,
    span: StatisticSpan,
    of_markets: ColumnElement[bool],
    keys: Sequence[ColumnElement[int]],
) -> "Select[tuple[object, ...]]":
    row = table.c
    series = [*keys, row.interval, row.horizon]
    query: Select[tuple[object, ...]] = select(table).where(of_markets, *_bound(table, span))
    if span.is_newest:
        return query.ext(distinct_on(*series)).order_by(*series, _rank_newest())
    return query.order_by(*series, row.as_of)


def _bound(table: Table, span: StatisticSpan) -> list[ColumnElement[bool]]:
    row = table.c
    limits = [
        (span.horizon, row.horizon.__eq__),
        (span.start, row.as_of.__ge__),
        (span.end, row.as_of.__lt__),
        (span.until, row.as_of.__le__),
        (span.version, row.dataset_version.__le__),
    ]
    chosen = [bound(value) for value, bound in limits if value is not None]
    return [row.interval == span.interval, *chosen]


def _rank_newest() -> TextClause:
    return text(NEWEST).bindparams(method=find_method_in_use())


def find_method_in_use() -> str:
    """Return a regular expression: what rows say that are computed with the settings of now.

    Raises:
        SettingError: A setting of statistics is wrong.
    """
    settings = read_statistics_settings()
    # The factor A is the market's, not a setting.
    risk = roi.name_method(settings.risk_free_annual, 0.0, settings.min_returns, "FACTOR")
    pairs = comparisons.name_method(min_returns=settings.min_returns)
    return f"^({re.escape(risk).replace('FACTOR', '[^;]+')}|{re.escape(pairs)})$"
