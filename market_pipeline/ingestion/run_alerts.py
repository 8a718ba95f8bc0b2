"""What the end of a run says about its markets and providers, as findings for the alerts."""

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
    Kind,
)
from market_pipeline.alerting.raising import Finding, report
from market_pipeline.domain.errors import ProviderError
from market_pipeline.ingestion.batches import BarBatch
from market_pipeline.ingestion.request import Route
from market_pipeline.ingestion.stream import Item
from market_pipeline.ingestion.write import BatchResult

MAX_QUARANTINE_RATIO = 0.01
_REFUSALS = frozenset({401, 403})
_TOO_MANY, _SERVER_ERROR = 429, 500


@dataclass(slots=True)
class MarketEnd:
    """How one market's part of a run ended.

    Attributes:
        route: Provider and market. outcome, reason: As its receipt has them.
        received, quarantined: Bars. statuses: Of the provider's failures; None: no answer came.
        is_other_runs: Another run does its work, so nothing is known of it.
    """

    route: Route
    outcome: str = "ok"
    reason: str = ""
    received: int = 0
    quarantined: int = 0
    statuses: list[int | None] = field(default_factory=list)
    is_other_runs: bool = False

    @property
    def name(self) -> str:
        """Return ``provider:symbol``."""
        return name_market(self.route)


class MarketEnds:
    """The ends of a run's markets, gathered while it goes on."""

    def __init__(self) -> None:
        """Begin with none."""
        self._ends: dict[Route, MarketEnd] = {}

    def note(self, item: Item, result: BatchResult) -> None:
        """Take in what came of an item; the last one of a market has the last word."""
        end = self._ends.setdefault(item.route, MarketEnd(item.route))
        end.outcome, end.reason = result.outcome, result.reason or ""
        if isinstance(item, BarBatch):
            end.received = item.progress.received
            end.quarantined = result.quarantined
            end.statuses += [page.status for page in item.pages if page.error is not None]
        elif isinstance(item.error, ProviderError):
            end.statuses.append(item.error.status)
        else:
            end.is_other_runs = item.is_superseded

    def report(self, connection: Connection, run_id: UUID) -> None:
        """Raise and clear what the run's bars say, in the caller's transaction."""
        known = [end for end in self._ends.values() if not end.is_other_runs]
        report(connection, list(_judge(known, run_id)), datetime.now(UTC))


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
    finding = Finding(PRICES_MISSING, missing, judged=set(names.values()), run_id=run_id)
    report(connection, [finding], datetime.now(UTC))


def name_market(route: Route) -> str:
    """Return ``provider:symbol``."""
    return f"{route[1].provider}:{route[1].symbol}"


def _judge(ends: Sequence[MarketEnd], run_id: UUID) -> Iterable[Finding]:
    """Yield findings: a provider's trouble is told of the provider, not of each of its markets."""
    by_provider: dict[str, list[MarketEnd]] = defaultdict(list)
    for end in ends:
        by_provider[end.route[0].name].append(end)
    troubles = {name: _find_trouble(its) for name, its in by_provider.items()}
    for kind in (PROVIDER_DOWN, CREDENTIALS_REFUSED):
        members = {
            name: by_provider[name][0].reason
            for name, trouble in troubles.items()
            if trouble is kind
        }
        yield Finding(kind, members, judged=by_provider, run_id=run_id)
    rest = [end for end in ends if troubles[end.route[0].name] is None]
    short = {end.name: end.reason for end in rest if end.outcome != "ok"}
    yield Finding(MARKETS_SHORT, short, judged={end.name for end in rest}, run_id=run_id)
    yield _judge_quarantine([end for end in rest if end.received], run_id)


def _find_trouble(ends: Sequence[MarketEnd]) -> Kind | None:
    """Return what is wrong with a provider as a whole, when none of its markets got anything."""
    statuses = [status for end in ends for status in end.statuses]
    if not statuses or any(end.outcome != "failed" or end.received for end in ends):
        return None
    if any(status in _REFUSALS for status in statuses):
        return CREDENTIALS_REFUSED
    is_down = all(
        status is None or status == _TOO_MANY or status >= _SERVER_ERROR for status in statuses
    )
    return PROVIDER_DOWN if is_down else None


def _judge_quarantine(ends: Sequence[MarketEnd], run_id: UUID) -> Finding:
    bad = {
        end.name: f"{end.quarantined:,} of {end.received:,} bars"
        for end in ends
        if end.quarantined > MAX_QUARANTINE_RATIO * end.received
    }
    return Finding(QUARANTINE_RATE, bad, judged={end.name for end in ends}, run_id=run_id)
