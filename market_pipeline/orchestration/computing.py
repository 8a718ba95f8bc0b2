"""Computations of a run from stored bars, each from one moment of the database.

The same inputs are not computed again. Before any bar is read, these tell whether the inputs
changed: how many bars a statistic uses, their newest version, their issues, and the settings.
Not here: the formulas (``domain``), the write (``io_manager``).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Engine

from market_pipeline.domain import comparisons, roi
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import DataIssue, mask_unreliable
from market_pipeline.domain.records import UTC_DTYPE
from market_pipeline.domain.roi import compute_roi_statistics
from market_pipeline.domain.volatility import (
    SNAPSHOT_HORIZON_DAYS,
    SNAPSHOT_MEASURES,
    compute_snapshot_statistics,
)
from market_pipeline.readers.comparing import Pairs, compare_spans
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.settings import StatisticsSettings
from market_pipeline.storage.bars.final_bars import (
    FinalSpan,
    Summary,
    plan_market_spans,
    plan_pair_spans,
    read_spans,
    summarise_spans,
)
from market_pipeline.storage.coverage.ledger import read_flaws
from market_pipeline.storage.statistics.computed_inputs import read_fingerprints
from market_pipeline.storage.tables import market_comparison, market_roi_statistic

_FORMULAS = 1
"""Grows when the same inputs give other rows: then everything is computed once more."""
_DAY = Interval.DAY


@dataclass(frozen=True)
class Computed:
    """Rows to be written.

    Attributes:
        rows: What was computed.
        fingerprints: What it was computed from, by scope, to be noted with the rows.
        same: How many scopes have the inputs they had, so that nothing was computed for them.
        what: What a scope is, as people say it.
    """

    rows: pd.DataFrame
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    same: int = 0
    what: str = "markets"

    @property
    def note(self) -> str:
        """What was skipped, in words; empty when nothing was."""
        if not self.same:
            return ""
        total = self.same + len(self.fingerprints)
        return (
            f"{self.same} of {total} {self.what}: bars, holes, events and settings did not "
            "change, so nothing was computed"
        )


def compute_prices(
    engine: Engine, calendars: Mapping[int, str], prices: pd.DataFrame
) -> pd.DataFrame:
    """Return priced markets with the statistics of the final bars that had closed by then.

    Args:
        engine: Of the database.
        calendars: Of every priced market.
        prices: ``market_id``, ``observed_at`` (UTC), ``price``, and what else a row has.
    """
    prices = prices.astype({"market_id": "int64", "observed_at": UTC_DTYPE})  # none at all, too
    priced = prices.set_index("market_id")
    observed = priced["observed_at"]
    wanted = {market_id: calendars[market_id] for market_id in priced.index}
    moments = pd.DatetimeIndex(observed).to_pydatetime()
    closed_by = dict(zip(wanted, moments, strict=True))
    with open_snapshot(engine) as connection:
        spans = plan_market_spans(connection, wanted, _DAY, SNAPSHOT_HORIZON_DAYS, closed_by)
        bars = read_spans(connection, _DAY, spans)
        issues = read_flaws(connection, list(wanted), _DAY)
    found = compute_snapshot_statistics(bars, wanted, priced["price"], observed_at=observed)
    dated = found.assign(as_of=found["bars_as_of"], horizon=f"{SNAPSHOT_HORIZON_DAYS}d")
    kept = mask_unreliable(dated, ("market_id",), SNAPSHOT_MEASURES, issues)
    return prices.merge(kept.drop(columns=["as_of", "horizon"]), on="market_id")


def compute_roi(
    engine: Engine, calendars: Mapping[int, str], settings: StatisticsSettings
) -> Computed:
    """Return the statistics of the markets whose inputs changed."""
    with open_snapshot(engine) as connection:
        spans = plan_market_spans(connection, calendars, _DAY, max(settings.horizons_days))
        summaries = summarise_spans(connection, _DAY, spans)
        issues = read_flaws(connection, list(calendars), _DAY)
        prints = {
            str(span.market_id): _digest(
                calendars[span.market_id],
                _name_roi_settings(settings),
                _describe_state(summaries, [span], issues),
            )
            for span in spans
        }
        known = read_fingerprints(connection, market_roi_statistic.name, prints)
        changed = {scope: text for scope, text in prints.items() if known.get(scope) != text}
        chosen = [span for span in spans if str(span.market_id) in changed]
        bars = read_spans(connection, _DAY, chosen)
    rows = compute_roi_statistics(
        bars,
        {span.market_id: calendars[span.market_id] for span in chosen},
        _DAY,
        settings.horizons_days,
        risk_free_annual=settings.risk_free_annual,
        min_returns=settings.min_returns,
    ).rename(columns={"reasons": "reason"})
    rows = mask_unreliable(rows, ("market_id",), (*roi.MEASURES, *roi.DRAWDOWN_TIMES), issues)
    return Computed(rows, changed, len(prints) - len(changed))


def compute_pairs(
    engine: Engine, markets: pd.DataFrame, pairs: Pairs, settings: StatisticsSettings
) -> Computed:
    """Return the comparisons of a set of pairs, if the inputs of any of them changed.

    Args:
        engine: Of the database.
        markets: ``market_id``, ``quote``, ``calendar``.
        pairs: Shape (n, 2), base and quote market_id.
        settings: Horizons and fewest returns.
    """
    compared = markets[markets["market_id"].isin(np.unique(pairs))]
    calendars = dict(zip(compared["market_id"], compared["calendar"], strict=True))
    longest, scope = max(settings.horizons_days), _digest(pairs.tolist())
    with open_snapshot(engine) as connection:
        spans = plan_pair_spans(connection, calendars, _DAY, longest, map(tuple, pairs))
        issues = read_flaws(connection, list(calendars), _DAY)
        found = _digest(
            compared[["market_id", "quote", "calendar"]].to_dict("list"),
            [comparisons.name_method(min_returns=settings.min_returns), *settings.horizons_days],
            _describe_state(summarise_spans(connection, _DAY, spans), spans, issues),
        )
        known = read_fingerprints(connection, market_comparison.name, [scope])
        if not spans or known.get(scope) == found:
            nothing = pd.DataFrame(columns=["base_market_id", "quote_market_id"])
            return Computed(nothing, same=len(pairs) if spans else 0, what="pairs")
        rows = compare_spans(
            connection, compared, pairs, settings.horizons_days, settings, spans, issues
        )
    return Computed(rows, {scope: found}, what="pairs")


def _name_roi_settings(settings: StatisticsSettings) -> list[Any]:
    named = roi.name_method(settings.risk_free_annual, 0.0, settings.min_returns, "")
    return [named, *settings.horizons_days]


def _describe_state(
    summaries: Mapping[int, Summary], spans: Sequence[FinalSpan], issues: Iterable[DataIssue]
) -> list[Any]:
    """Return what bars and issues within spans are told by; issues are cut to where the bars lie.

    So an open issue, which reaches to now, is the same whatever the clock.
    """
    firsts = {span.market_id: span.first for span in reversed(spans)}
    lasts = {
        market_id: summaries[market_id].closed for market_id in firsts if market_id in summaries
    }
    told: list[Any] = [[span.market_id, span.first, span.last] for span in spans]
    told += [
        [one, found.bars, found.version]
        for one, found in sorted(summaries.items())
        if one in firsts
    ]
    cut = []
    for issue in issues:
        if issue.market_id not in lasts:
            continue
        first, last = firsts[issue.market_id], lasts[issue.market_id]
        if issue.window is None:
            cut.append([issue.market_id, issue.reason, "", ""])
        elif issue.window.start < last and issue.window.end >= first:
            window = max(issue.window.start, first), min(issue.window.end, last)
            cut.append([issue.market_id, issue.reason, *map(str, window)])
    return [*told, sorted(cut)]


def _digest(*parts: object) -> str:
    text = json.dumps([_FORMULAS, *parts], default=str)
    return hashlib.sha256(text.encode()).hexdigest()
