"""Comparisons of requested pairs: stored rows, and the other pairs computed on reading.

Runs store all pairs of up to fifty markets. With more markets they store the pairs with a
benchmark. A run stores only pairs of its own markets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from sqlalchemy import Connection

from market_pipeline.domain.errors import HistoryRequestError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market
from market_pipeline.readers.comparing import PAIR_KEYS, compare_pairs
from market_pipeline.readers.outdated import flag_outdated
from market_pipeline.settings import read_statistics_settings
from market_pipeline.storage.statistics.series import StatisticSpan, read_comparison_rows

MAX_COMPUTED_PAIRS = 1_225
"""All pairs of fifty markets: more are not computed for one answer."""
_MAX_DAYS = 36_525
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PairRows:
    """Comparisons with the table's columns, ``is_stored`` and ``is_outdated``.

    Attributes:
        rows: In no order. left_out: How many pairs are not stored and were too many to compute.
    """

    rows: pd.DataFrame
    left_out: int = 0


def read_pairs(
    connection: Connection,
    markets: Mapping[int, Market],
    asked: StatisticSpan,
    against: Sequence[int] | None = None,
) -> PairRows:
    """Return the comparisons of some markets.

    Args:
        connection: Of one snapshot.
        markets: Every stored market by key.
        asked: Whose pairs, and which rows of them.
        against: The markets that may be the other side; None: any.
    """
    stored = read_comparison_rows(connection, asked, against)
    flags = flag_outdated(connection, stored, PAIR_KEYS, markets, Interval(asked.interval))
    stored = stored.assign(is_stored=True, is_outdated=flags)
    if not asked.is_newest or asked.version is not None or asked.interval != Interval.DAY:
        return PairRows(stored)
    wanted = _list_pairs(asked.market_ids, list(markets) if against is None else against)
    missing = wanted - set(map(_order, stored[list(PAIR_KEYS)].itertuples(index=False)))
    if len(missing) > MAX_COMPUTED_PAIRS or not missing:
        return PairRows(stored, len(missing))
    computed = _compute(connection, markets, asked, missing)
    columns = [name for name in stored.columns if name in computed]
    return PairRows(
        pd.concat([stored, computed[columns]], ignore_index=True)
        if len(stored)
        else computed.reindex(columns=stored.columns)
    )


def _compute(
    connection: Connection,
    markets: Mapping[int, Market],
    asked: StatisticSpan,
    missing: Iterable[Pair],
) -> pd.DataFrame:
    """Compute pairs with the settings of now; the base is the market that was stored first."""
    pairs = np.array(sorted(missing), dtype=np.int64)
    settings = read_statistics_settings()
    horizons = settings.horizons_days if asked.horizon is None else [_parse_days(asked.horizon)]
    chosen = pd.DataFrame(
        [(key, markets[key].quote, markets[key].calendar) for key in np.unique(pairs).tolist()],
        columns=["market_id", "quote", "calendar"],
    )
    rows = compare_pairs(connection, chosen, pairs, horizons, settings, asked.until)
    texts = {
        name: rows[name].astype(object) for name in ("interval", "horizon", "method", "reason")
    }
    return rows.assign(**texts, is_stored=False, is_outdated=False, run_id=None)


def _list_pairs(ones: Sequence[int], others: Sequence[int]) -> set[Pair]:
    """Return every pair of two markets with one on each side, the lower key first."""
    if set(ones) == set(others):
        return set(combinations(sorted(ones), 2))
    return {_order((first, other)) for first in ones for other in others if first != other}


def _order(pair: Sequence[int]) -> Pair:
    return (min(pair), max(pair))


def _parse_days(horizon: str) -> int:
    """Return the days of a horizon.

    Raises:
        HistoryRequestError: It is not such as ``30d``.
    """
    number = horizon.removesuffix("d")
    if horizon.endswith("d") and number.isascii() and number.isdigit():
        days = int(number)
        if 1 <= days <= _MAX_DAYS:
            return days
    raise HistoryRequestError(f"horizon {horizon!r} is unknown: expected days, such as 30d")
