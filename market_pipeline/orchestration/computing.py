"""Computations of a run from stored bars, each from one moment of the database.

The same inputs are not computed again. Before any bar is read, these tell whether the inputs
changed: which bars may be used, their issues, the settings, and whether any of those bars is newer
than the dataset version that was computed from.
Not here: the formulas (``domain``), the write (``io_manager``).
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Connection, Engine

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
    CLOSES,
    FinalSpan,
    find_changed,
    plan_market_spans,
    plan_pair_spans,
    read_spans,
)
from market_pipeline.storage.bars.history import read_newest_version
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
        bars = read_spans(connection, _DAY, spans, CLOSES)
        issues = read_flaws(connection, list(wanted), _DAY)
    found = compute_snapshot_statistics(bars, wanted, priced["price"], observed_at=observed)
    dated = found.assign(as_of=found["bars_as_of"], horizon=f"{SNAPSHOT_HORIZON_DAYS}d")
    kept = mask_unreliable(dated, ("market_id",), SNAPSHOT_MEASURES, issues)
    return prices.merge(kept.drop(columns=["as_of", "horizon"]), on="market_id")


def compute_roi(
    engine: Engine, calendars: Mapping[int, str], settings: StatisticsSettings
) -> Computed:
    """Return the statistics of the markets whose inputs changed."""
    named = _name_roi_settings(settings)
    with open_snapshot(engine) as connection:
        spans = plan_market_spans(connection, calendars, _DAY, max(settings.horizons_days))
        issues = read_flaws(connection, list(calendars), _DAY)
        scopes = {
            str(span.market_id): _Inputs([span], f"{calendars[span.market_id]} {named} {told}")
            for span, told in zip(spans, _describe_spans(spans, issues), strict=True)
        }
        changed = _find_changed_scopes(connection, market_roi_statistic.name, scopes)
        chosen = [span for span in spans if str(span.market_id) in changed]
        bars = read_spans(connection, _DAY, chosen, CLOSES)
    rows = compute_roi_statistics(
        bars,
        {span.market_id: calendars[span.market_id] for span in chosen},
        _DAY,
        settings.horizons_days,
        risk_free_annual=settings.risk_free_annual,
        min_returns=settings.min_returns,
    ).rename(columns={"reasons": "reason"})
    rows = mask_unreliable(rows, ("market_id",), (*roi.MEASURES, *roi.DRAWDOWN_TIMES), issues)
    return Computed(rows, changed, len(scopes) - len(changed))


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
        told = [
            compared[["market_id", "quote", "calendar"]].to_dict("list"),
            [comparisons.name_method(min_returns=settings.min_returns), *settings.horizons_days],
            *_describe_spans(spans, issues),
        ]
        inputs = {scope: _Inputs(spans, str(told))} if spans else {}
        changed = _find_changed_scopes(connection, market_comparison.name, inputs)
        if not changed:
            nothing = pd.DataFrame(columns=["base_market_id", "quote_market_id"])
            return Computed(nothing, same=len(pairs) if spans else 0, what="pairs")
        rows = compare_spans(
            connection, compared, pairs, settings.horizons_days, settings, spans, issues
        )
    return Computed(rows, changed, what="pairs")


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The bars that rows may be computed from, and in words what else their values depend on."""

    spans: Sequence[FinalSpan]
    told: str


def _find_changed_scopes(
    connection: Connection, table_name: str, scopes: Mapping[str, _Inputs]
) -> dict[str, str]:
    """Return the new fingerprint of each scope whose inputs are not those of its last computation.

    A fingerprint is the newest dataset version then, and the digest of what is told of the inputs.
    """
    newest = read_newest_version(connection)
    known = read_fingerprints(connection, table_name, scopes)
    digests = {scope: _digest(inputs.told) for scope, inputs in scopes.items()}
    versions = {}
    for scope, fingerprint in known.items():
        version, _, digest = fingerprint.partition(":")
        if digest == digests[scope]:
            versions[scope] = int(version)
    computed = {
        span: version for scope, version in versions.items() for span in scopes[scope].spans
    }
    newer = find_changed(connection, _DAY, computed)
    return {
        scope: f"{newest}:{digests[scope]}"
        for scope, inputs in scopes.items()
        if scope not in versions or any(span.market_id in newer for span in inputs.spans)
    }


def _name_roi_settings(settings: StatisticsSettings) -> list[Any]:
    named = roi.name_method(settings.risk_free_annual, 0.0, settings.min_returns, "")
    return [named, *settings.horizons_days]


def _describe_spans(spans: Sequence[FinalSpan], issues: Iterable[DataIssue]) -> list[str]:
    """Return spans and their issues in words."""
    found: dict[int, list[DataIssue]] = defaultdict(list)
    for issue in issues:
        found[issue.market_id].append(issue)
    return [_describe_span(span, found.get(span.market_id, ())) for span in spans]


def _describe_span(span: FinalSpan, issues: Iterable[DataIssue]) -> str:
    """Return a span and its issues in words; issues are cut to where the bars lie.

    So an open issue, which reaches to now, is the same whatever the clock.
    """
    cut, closed = [], span.closed or span.last
    for issue in issues:
        if issue.window is None:
            cut.append(issue.reason)
        elif issue.window.start < closed and issue.window.end >= span.first:
            window = max(issue.window.start, span.first), min(issue.window.end, closed)
            cut.append(f"{issue.reason} {window[0]} {window[1]}")
    return f"{span.market_id} {span.first} {span.last} {sorted(cut)}"


def _digest(told: object) -> str:
    return hashlib.sha256(f"{_FORMULAS} {told}".encode()).hexdigest()
