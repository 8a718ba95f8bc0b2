"""Comparisons computed for runs and readers alike, from bars and issues of one moment.

Not here: which pairs are stored (``orchestration``), which are asked for (``statistics``).
"""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd
from sqlalchemy import Connection

from market_pipeline.domain import comparisons
from market_pipeline.domain.comparisons import compute_comparisons
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import DataIssue, mask_unreliable
from market_pipeline.settings import StatisticsSettings
from market_pipeline.storage.bars.final_bars import CLOSES, FinalSpan, plan_pair_spans, read_spans
from market_pipeline.storage.coverage.ledger import read_flaws

PAIR_KEYS = ("base_market_id", "quote_market_id")
Pairs = npt.NDArray[np.int64]


def compare_pairs(
    connection: Connection,
    markets: pd.DataFrame,
    pairs: Pairs,
    horizons_days: Sequence[int],
    settings: StatisticsSettings,
    closed_by: datetime | None = None,
) -> pd.DataFrame:
    """Compute comparisons of pairs from stored final daily bars.

    Args:
        connection: Of one snapshot, so that bars and issues belong together.
        markets: ``market_id``, ``quote``, ``calendar`` of every market in the pairs, each once.
        pairs: Shape (n, 2), base and quote market_id.
        horizons_days: How far to look back.
        settings: With which the rows are computed.
        closed_by: Bars that close later do not count (UTC).

    Returns:
        As of ``compute_comparisons`` with versions, without pairs that have no date in common;
        withheld where something is known to be wrong.
    """
    calendars = dict(zip(markets["market_id"], markets["calendar"], strict=True))
    spans = plan_pair_spans(
        connection, calendars, Interval.DAY, max(horizons_days), map(tuple, pairs), closed_by
    )
    issues = read_flaws(connection, list(calendars), Interval.DAY)
    return compare_spans(
        connection, markets, pairs, horizons_days, settings, spans, issues, closed_by
    )


def compare_spans(
    connection: Connection,
    markets: pd.DataFrame,
    pairs: Pairs,
    horizons_days: Sequence[int],
    settings: StatisticsSettings,
    spans: Sequence[FinalSpan],
    issues: Sequence[DataIssue],
    closed_by: datetime | None = None,
) -> pd.DataFrame:
    """Compute comparisons from spans that were planned for them, as :func:`compare_pairs` does."""
    bars = read_spans(connection, Interval.DAY, spans, (*CLOSES, "volume"))
    if closed_by is not None:
        bars = bars[bars["close_time"] <= closed_by]
    rows = compute_comparisons(
        bars, markets, Interval.DAY, horizons_days, pairs, min_returns=settings.min_returns
    )
    return mask_unreliable(rows.dropna(subset=["as_of"]), PAIR_KEYS, comparisons.MEASURES, issues)
