"""Checks of bars: evidence about what was written; rows were validated before the commit.

All checks are one step with a few queries, so that they cost a run next to nothing. Each always
shows its numbers. A check blocks only on what constraints make impossible: a market that is short,
late or odd must not keep the others from their statistics.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import dagster as dg

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import NEVER_ASKED
from market_pipeline.domain.records import Window
from market_pipeline.ingestion.freshness import find_delays, index_coverage
from market_pipeline.ingestion.request import Request, Route
from market_pipeline.ingestion.run_alerts import MAX_QUARANTINE_RATIO
from market_pipeline.orchestration.assets import market_aggregates
from market_pipeline.orchestration.causes import told_plainly
from market_pipeline.orchestration.check_results import CheckResult
from market_pipeline.orchestration.report import ReportRow
from market_pipeline.orchestration.resources import (
    Database,
    IngestionRequest,
    Providers,
    keep_routes,
)
from market_pipeline.readers.agreement import PairAgreement, compare_sources
from market_pipeline.storage.runs.evidence import RunEvidence, read_run_evidence

# How far back sources are compared: a difference that somebody looked into is told no longer.
_COMPARED = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class CheckInput:
    """What a check reads: the evidence, what was asked for, and how its symbols' sources agree."""

    evidence: RunEvidence
    request: Request
    routes: Sequence[Route]
    pairs: Sequence[PairAgreement] = ()


def check_completeness(case: CheckInput) -> CheckResult:
    """Every market of the run gave all its bars; a short one makes the outcome partial."""
    receipt = case.evidence.receipt
    lines = [
        {**_name_market(row), "outcome": row["outcome"], "reason": str(row["reason"])}
        for row in receipt
        if row["outcome"] != "ok"
    ]
    absent = case.evidence.absent
    lines += [
        {
            "market": row["symbol"],
            "provider": "",
            "outcome": row["outcome"],
            "reason": row["reason"],
        }
        for row in absent
    ]
    return CheckResult({"run_markets": len(receipt) + len(absent), "short": len(lines)}, lines)


def check_freshness(case: CheckInput) -> CheckResult:
    """The newest bar that its calendar and provider promise by the run's clock is final and stored.

    A bar that the provider is known not to have is not waited for.
    """
    ids = {(row["provider"], row["symbol"]): row["market_id"] for row in case.evidence.receipt}
    known = index_coverage(case.evidence.coverage)
    request = case.request
    late = [
        {
            "market": delay.market.symbol,
            "provider": delay.market.provider,
            "interval": delay.interval.value,
            "final to": _format_time(delay.final_to),
            "expected to": _format_time(delay.expected_to),
        }
        for delay in find_delays(case.routes, ids, known, request.window.end, request.now)
    ]
    series = sum(
        len(market.intervals)
        for _, market in case.routes
        if (market.provider, market.symbol) in ids
    )
    return CheckResult({"series": series, "late": len(late)}, late)


def check_holes(case: CheckInput) -> CheckResult:
    """No bars of these markets, at any time, are missing that should be there unexplained.

    Time between settled spans that nobody asked for is missing too: `market-pipeline coverage` says
    what fills it.
    """
    holes, never = case.evidence.holes, case.evidence.never_asked
    lines = [_describe_span(row, row["reason"], row["tries"]) for row in holes]
    lines += [_describe_span(row, NEVER_ASKED, 0) for row in never]
    found = holes[0]["found"] if holes else 0
    return CheckResult({"holes": found, "never_asked": len(never)}, lines)


def _describe_span(row: Mapping[Any, Any], reason: str, tries: int) -> ReportRow:
    return {
        **_name_market(row),
        "interval": row["interval"],
        "from": _format_time(row["starts_at"]),
        "to": _format_time(row["ends_at"]),
        "reason": reason,
        "tries": tries,
    }


def check_keys(case: CheckInput) -> CheckResult:
    """Each bar that the run wrote is stored once."""
    written = case.evidence.written
    lines = _locate(case, written.repeated_examples, "copies")
    return CheckResult({"bars": written.bars, "repeated": written.repeated}, lines)


def check_order(case: CheckInput) -> CheckResult:
    """In each bar that the run wrote, low is the lowest price, high the highest, all are real."""
    written = case.evidence.written
    lines = _locate(case, written.disordered_examples)
    return CheckResult({"bars": written.bars, "disordered": written.disordered}, lines)


def _locate(
    case: CheckInput, examples: Sequence[Mapping[str, Any]], *columns: str
) -> list[ReportRow]:
    names = {row["market_id"]: _name_market(row) for row in case.evidence.receipt}
    return [
        {
            **names[example["market_id"]],
            "interval": example["interval"],
            "open time": example["open_time"],
            **{column: example[column] for column in columns},
        }
        for example in examples
    ]


def check_spikes(case: CheckInput) -> CheckResult:
    """No bar jumps beyond ten robust standard deviations and 15 %; those that do are stored."""
    lines = [
        {**_name_market(row), "spikes": row["spikes"]}
        for row in case.evidence.receipt
        if row["spikes"]
    ]
    return CheckResult({"spikes": sum(line["spikes"] for line in lines)}, lines)


def check_quarantine(case: CheckInput) -> CheckResult:
    """Of no market's bars more than 1 % are impossible; they are in the quarantine, not stored."""
    rows = case.evidence.receipt
    lines = [
        {**_name_market(row), "received": row["received"], "quarantined": row["quarantined"]}
        for row in rows
        if row["quarantined"] > MAX_QUARANTINE_RATIO * row["received"]
    ]
    received, refused = (sum(row[name] for row in rows) for name in ("received", "quarantined"))
    rate = refused / received if received else 0.0
    return CheckResult(
        {"received": received, "quarantined": refused, "quarantine_ratio": rate}, lines
    )


def check_agreement(case: CheckInput) -> CheckResult:
    """Two sources of a symbol have the same closes in the last 90 days, within its threshold.

    The bar that differs most is named with both closes; `market-pipeline agreement` says more.
    """
    lines = [
        {
            "market": pair.symbol, "first": pair.provider, "second": pair.other_provider,
            "median bp": round(pair.agreement.median_bp or 0.0, 2),
            "largest bp": round(worst.difference_bp, 2), "open time": _format_time(worst.open_time),
            "first close": worst.close, "second close": worst.other_close,
            "may be": str(pair.agreement.hint),
        }
        for pair in case.pairs if pair.agreement.verdict == "differ"
        for worst in pair.agreement.worst[:1]
    ]  # fmt: skip
    return CheckResult({"pairs": len(case.pairs), "differ": len(lines)}, lines)


CHECKS: Mapping[str, Callable[[CheckInput], CheckResult]] = {
    "ingestion_complete": check_completeness,
    "bars_fresh": check_freshness,
    "no_unexplained_holes": check_holes,
    "keys_unique": check_keys,
    "ohlc_in_order": check_order,
    "no_spikes": check_spikes,
    "quarantine_rate": check_quarantine,
    "sources_agree": check_agreement,
}
BLOCKING = frozenset({"keys_unique", "ohlc_in_order"})


SPECS = {
    name: dg.AssetCheckSpec(
        name,
        asset=market_aggregates,
        description=(check.__doc__ or "").strip(),
        blocking=name in BLOCKING,
    )
    for name, check in CHECKS.items()
}


@dg.multi_asset_check(name="market_aggregates_checks", specs=list(SPECS.values()), can_subset=True)
def check_market_aggregates(
    context: dg.AssetCheckExecutionContext,
    database: Database,
    request: IngestionRequest,
    providers: Providers,
) -> Iterator[dg.AssetCheckResult]:
    """Check this run's receipt; in a run of checks alone, the last receipt by today's clock."""
    names = sorted(key.name for key in context.selected_asset_check_keys)
    with told_plainly():
        yield from evaluate_checks(context, database, request, providers, names)


def evaluate_checks(
    context: dg.AssetCheckExecutionContext | dg.OpExecutionContext,
    database: Database,
    request: IngestionRequest,
    providers: Providers,
    names: Iterable[str] = CHECKS,
) -> Iterator[dg.AssetCheckResult]:
    """Return what the checks of market_aggregates with these names say about a run."""
    asked = request.describe_run(context.instance, context.run.run_id).request
    compared = Window(asked.now - _COMPARED, asked.now)
    with database.engine.connect() as connection:
        evidence = read_run_evidence(connection, UUID(context.run.run_id))
        symbols = {row["symbol"] for row in evidence.receipt}
        pairs = compare_sources(connection, Interval.DAY, compared, symbols)
    routes = keep_routes(database, providers.route(asked).routes)
    case = CheckInput(evidence, asked, routes, pairs)
    for name in names:
        result = CHECKS[name](case)
        yield result.build(SPECS[name], receipt_of_run=str(evidence.run_id))


def _name_market(row: Mapping[Any, Any]) -> ReportRow:
    return {"market": row["symbol"], "provider": row["provider"]}


def _format_time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "never"
