"""The result of an asset check: numbers that plot over time, and what it objects to.

Here too: the checks that an asset makes of itself, as nobody else knows what came.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from market_pipeline.ingestion.request import Route
from market_pipeline.orchestration.report import MAX_LINES, ReportRow, build_table

SYMBOLS_SERVED = dg.AssetCheckSpec(
    "symbols_served",
    asset="markets",
    description="A provider serves every symbol that the run was asked for.",
)
PRICES_COMPLETE = dg.AssetCheckSpec(
    "prices_complete",
    asset="market_snapshots",
    description="Every market of the run gave a live price; those without one are named.",
)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found."""

    numbers: Mapping[str, int | float]
    violations: Sequence[ReportRow] = ()

    def build(self, spec: dg.AssetCheckSpec, **more: Any) -> dg.AssetCheckResult:
        """Return it as Dagster's, with more metadata; a blocking check's violation is an error."""
        metadata = {**self.numbers, **more}
        if self.violations:
            metadata["objections"] = build_table(self.violations[:MAX_LINES])
        severity = dg.AssetCheckSeverity
        return dg.AssetCheckResult(
            passed=not self.violations,
            asset_key=spec.asset_key,
            check_name=spec.name,
            severity=severity.ERROR if spec.blocking else severity.WARN,
            metadata=metadata,
        )


def check_served(asked: Collection[str], unserved: Mapping[str, str]) -> dg.AssetCheckResult:
    """Return whether each symbol has a provider; the unserved ones have their reason."""
    lines = [{"market": symbol, "reason": reason} for symbol, reason in unserved.items()]
    numbers = {"run_symbols": len(asked), "unserved": len(unserved)}
    return CheckResult(numbers, lines).build(SYMBOLS_SERVED)


def check_prices(routes: Sequence[Route], failures: Mapping[str, str]) -> dg.AssetCheckResult:
    """Return whether each market gave a price; ``failures`` has the reason by symbol."""
    lines = [
        {"market": market.symbol, "provider": market.provider, "reason": failures[market.symbol]}
        for _, market in routes
        if market.symbol in failures
    ]
    return CheckResult({"run_markets": len(routes), "missing": len(lines)}, lines).build(
        PRICES_COMPLETE
    )
