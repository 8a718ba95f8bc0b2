"""The end of a run as findings for alerts, about its markets and providers."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import Connection

from market_pipeline.alerting.kinds import (
    CREDENTIALS_REFUSED,
    MARKETS_SHORT,
    PRICES_MISSING,
    PROVIDER_DOWN,
    QUARANTINE_RATE,
    AlertKind,
)
from market_pipeline.alerting.raising import Finding, report
from market_pipeline.domain.errors import ProviderError
from market_pipeline.ingestion.batches import BarBatch, Item
from market_pipeline.ingestion.outcomes import BatchResult
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import Route
from market_pipeline.storage.runs.receipts import read_run

MAX_QUARANTINE_RATIO = 0.01
_REFUSALS = frozenset({401, 403})
_TOO_MANY, _SERVER_ERROR = 429, 500


@dataclass(slots=True)
class MarketEnding:
    """How one market's part of a run ended.

    Attributes:
        route: Provider and market. outcome, reason: As its receipt has them.
        received, quarantined: Bars. statuses: Of the provider's failures; None: no answer came.
        is_due: There was something to ask the provider.
        is_other_runs: Another run did its work, so nothing is known of it.
    """

    route: Route
    outcome: str = "ok"
    reason: str = ""
    received: int = 0
    quarantined: int = 0
    statuses: list[int | None] = field(default_factory=list)
    is_due: bool = True
    is_other_runs: bool = False

    @property
    def name(self) -> str:
        """Return ``provider:symbol``."""
        return name_market(self.route)


class MarketOutcomes:
    """The ends of a run's markets, gathered while it goes on."""

    def __init__(self) -> None:
        """Begin with none."""
        self._ends: dict[Route, MarketEnding] = {}

    def note(self, item: Item, result: BatchResult) -> None:
        """Take in what came of an item; the last one of a market has the last word."""
        end = self._ends.setdefault(item.route, MarketEnding(item.route))
        end.outcome, end.reason = result.outcome, result.reason or ""
        if isinstance(item, BarBatch):
            end.received = item.progress.received
            end.is_due = item.progress.asked > 0
            end.quarantined = result.quarantined
            end.statuses += [page.status for page in item.pages if page.error is not None]
        elif isinstance(item.error, ProviderError):
            end.statuses.append(item.error.status)
        else:
            end.is_other_runs = item.is_superseded and result.outcome == "ok"

    def report(self, connection: Connection, run: Run) -> Mapping[str, str]:
        """Raise and clear what the run's bars say, in the caller's transaction.

        Returns:
            The symbols that no provider serves, each with the reason, as the receipt has them.
        """
        receipt = read_run(connection, run.run_id)
        unserved: Mapping[str, str] = receipt["request"].get("unserved", {}) if receipt else {}
        known = [end for end in self._ends.values() if not end.is_other_runs]
        findings = [
            *_evaluate_providers(known, run.run_id),
            *_evaluate_markets(known, unserved, run),
        ]
        report(connection, findings, datetime.now(UTC))
        return unserved


def report_prices(
    connection: Connection, run_id: UUID, routes: Sequence[Route], failures: Mapping[str, str]
) -> None:
    """Raise and clear what the run's live prices say.

    Args:
        connection: In the transaction that stores them.
        run_id: The run.
        routes: Who was asked.
        failures: Why there is no price, by symbol.
    """
    names = {market.symbol: name_market((provider, market)) for provider, market in routes}
    missing = {names[symbol]: reason for symbol, reason in failures.items()}
    finding = Finding(PRICES_MISSING, missing, evaluated=set(names.values()), run_id=run_id)
    report(connection, [finding], datetime.now(UTC))


def name_market(route: Route) -> str:
    """Return ``provider:symbol``."""
    return f"{route[1].provider}:{route[1].symbol}"


def _evaluate_providers(ends: Sequence[MarketEnding], run_id: UUID) -> Iterable[Finding]:
    """Yield findings of providers: one in trouble is told, not each of its markets."""
    by_provider = _group(ends)
    for kind in (PROVIDER_DOWN, CREDENTIALS_REFUSED):
        members = {
            name: its[0].reason for name, its in by_provider.items() if _find_trouble(its) is kind
        }
        yield Finding(kind, members, evaluated=by_provider, run_id=run_id)


def _evaluate_markets(
    ends: Sequence[MarketEnding], unserved: Mapping[str, str], run: Run
) -> Iterable[Finding]:
    """Yield findings of the markets of providers that are in no trouble.

    When each market failed that there was something to ask of, that is an error.
    """
    in_trouble = {name for name, its in _group(ends).items() if _find_trouble(its) is not None}
    rest = [end for end in ends if end.route[0].name not in in_trouble]
    short = {end.name: end.reason for end in rest if end.outcome != "ok"}
    due = [end for end in rest if end.is_due]
    all_failed = bool(due) and all(end.outcome == "failed" for end in due)
    yield Finding(
        MARKETS_SHORT,
        {**short, **unserved},
        evaluated={end.name for end in rest}.union(run.request.symbols),
        severity="error" if all_failed else "",
        run_id=run.run_id,
    )
    yield _evaluate_quarantine([end for end in rest if end.received], run.run_id)


def _group(ends: Sequence[MarketEnding]) -> dict[str, list[MarketEnding]]:
    """Return the ends that had something to ask, by provider."""
    by_provider: dict[str, list[MarketEnding]] = defaultdict(list)
    for end in ends:
        if end.is_due:
            by_provider[end.route[0].name].append(end)
    return by_provider


def _find_trouble(ends: Sequence[MarketEnding]) -> AlertKind | None:
    """Return what is wrong with a provider as a whole, when no market that was due got anything."""
    statuses = [status for end in ends for status in end.statuses]
    if not statuses or any(end.outcome != "failed" or end.received for end in ends):
        return None
    if any(status in _REFUSALS for status in statuses):
        return CREDENTIALS_REFUSED
    is_down = all(
        status is None or status == _TOO_MANY or status >= _SERVER_ERROR for status in statuses
    )
    return PROVIDER_DOWN if is_down else None


def _evaluate_quarantine(ends: Sequence[MarketEnding], run_id: UUID) -> Finding:
    bad = {
        end.name: f"{end.quarantined:,} of {end.received:,} bars"
        for end in ends
        if end.quarantined > MAX_QUARANTINE_RATIO * end.received
    }
    return Finding(QUARANTINE_RATE, bad, evaluated={end.name for end in ends}, run_id=run_id)
