"""Statistics and comparisons as they are stored: the newest of each series, or a span of them.

A series is what one number is followed over: a market (or pair), interval and horizon. Rows come in
the order of their series and ``as_of``. Not here: bars (``bars.history``), how a number came to
be (``traces``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pandas as pd
from sqlalchemy import ColumnElement, Connection, Select, Table, and_, or_, select
from sqlalchemy.dialects.postgresql import distinct_on

from market_pipeline.storage.statistics.newest import rank_newest
from market_pipeline.storage.tables import market_comparison, market_roi_statistic


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
    row = market_roi_statistic.c
    of_markets = row.market_id.in_(span.market_ids)
    return _read(connection, market_roi_statistic, span, of_markets, [row.market_id])


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
    return _read(connection, market_comparison, span, of_pairs, [base, quote])


def _read(
    connection: Connection,
    table: Table,
    span: StatisticSpan,
    of_markets: ColumnElement[bool],
    keys: Sequence[ColumnElement[int]],
) -> pd.DataFrame:
    row = table.c
    series = [*keys, row.interval, row.horizon]
    query: Select[tuple[object, ...]] = select(table).where(of_markets, *_bound(table, span))
    if span.is_newest:
        query = query.ext(distinct_on(*series)).order_by(*series, rank_newest())
    else:
        query = query.order_by(*series, row.as_of)
    answer = connection.execute(query)
    return pd.DataFrame.from_records(answer.all(), columns=list(answer.keys()))


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
