"""The newest rows of statistics and comparisons that are NULL because their bars cannot be trusted.

One look-up by key for each row, whatever the history: the tables are never scanned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, TextClause, text

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import REASONS
from market_pipeline.storage.statistics.series import NEWEST, find_method_in_use

MAX_EXAMPLES = 20
_COUNT = f"""
    SELECT count(*), count(*) FILTER (WHERE reason = ANY(:reasons)),
        (array_agg(to_jsonb(found)) FILTER (WHERE reason = ANY(:reasons)))[1:{MAX_EXAMPLES}]
    FROM (SELECT names, horizon, reason FROM unnest(CAST(:horizons AS text[])) horizon, {{wanted}},
        LATERAL (SELECT reason FROM market_data.{{table}} WHERE {{key}} AND interval = :interval
            AND {{table}}.horizon = horizon.horizon ORDER BY {NEWEST} LIMIT 1) newest) found
"""
# The newest statistic of each market and horizon.
_STATISTICS = text(
    _COUNT.format(
        table="market_roi_statistic",
        wanted="(SELECT market_id, provider || ':' || symbol AS names FROM market_data.market "
        "WHERE market_id = ANY(:firsts)) market",
        key="market_roi_statistic.market_id = market.market_id",
    )
)
# The newest comparison of each pair and horizon.
_COMPARISONS = text(
    _COUNT.format(
        table="market_comparison",
        wanted="(SELECT first, second, base.symbol || ' and ' || quote.symbol AS names "
        "FROM unnest(CAST(:firsts AS bigint[]), CAST(:seconds AS bigint[])) pair (first, second) "
        "JOIN market_data.market base ON base.market_id = first "
        "JOIN market_data.market quote ON quote.market_id = second) pair",
        key="base_market_id = pair.first AND quote_market_id = pair.second",
    )
)


@dataclass(frozen=True, slots=True)
class MaskedRows:
    """How many newest rows there are, how many of them are masked, and the first of those."""

    rows: int
    masked: int
    examples: Sequence[Mapping[str, Any]]


def count_masked_statistics(
    connection: Connection, market_ids: Sequence[int], horizons: Sequence[str]
) -> MaskedRows:
    """Return what of markets' newest statistics is masked; ``names`` has provider and symbol."""
    return _count(connection, _STATISTICS, horizons, firsts=list(market_ids))


def count_masked_comparisons(
    connection: Connection, pairs: Sequence[tuple[int, int]], horizons: Sequence[str]
) -> MaskedRows:
    """Return what of pairs' newest comparisons is masked; ``names`` has both symbols."""
    firsts, seconds = ([pair[at] for pair in pairs] for at in (0, 1))
    return _count(connection, _COMPARISONS, horizons, firsts=firsts, seconds=seconds)


def _count(
    connection: Connection, query: TextClause, horizons: Sequence[str], **keys: list[int]
) -> MaskedRows:
    limits = {"interval": Interval.DAY.value, "reasons": list(REASONS), "horizons": list(horizons)}
    method = {"method": find_method_in_use()}
    rows, masked, examples = connection.execute(query, {**keys, **limits, **method}).one()
    return MaskedRows(rows, masked, examples or [])
