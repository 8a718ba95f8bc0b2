"""Suspected splits: stored in the transaction of the bar, dismissed or confirmed by people.

Only series that their provider does not adjust are suspected: in a split-adjusted series a fall by
a half is real. Markets that are always open have no splits.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
from sqlalchemy import Connection

from market_pipeline.alerting.kinds import SPLIT_SUSPECTED
from market_pipeline.alerting.raising import Finding, report
from market_pipeline.domain.columns import BarColumns
from market_pipeline.domain.differences import WITHDRAWN
from market_pipeline.domain.grids import from_micros
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.planning import MISSING, RETRY
from market_pipeline.domain.records import Market, Window
from market_pipeline.domain.sessions import EPOCH
from market_pipeline.domain.splits import Jump, find_jumps, may_have_split
from market_pipeline.ingestion.batches import BarBatch
from market_pipeline.storage.bars.events import open_suspicion, read_suspicions, resolve_event
from market_pipeline.storage.bars.stored import read_bars

UNADJUSTED = "unadjusted"
# As many days as a median needs, and more than a calendar is ever closed.
_BEFORE, _AFTER = timedelta(days=400), timedelta(days=20)


def find_suspect_span(batch: BarBatch, days: BarColumns) -> Window | None:
    """Return where a batch may have brought a split, by close_time; None: nowhere.

    An ordinary run sees a few bars before the new one, and asks the database nothing.

    Args:
        batch: The pages.
        days: The daily bars that were written, fetched or built.
    """
    days = days.take(days.is_final)
    if not len(days) or not can_be_suspected(batch.route[1]):
        return None
    days = days.take(np.argsort(days.open_time))
    is_filled = any(page.request.purpose in (MISSING, RETRY) for page in batch.pages)
    # Bars may lie beside those that were missing.
    has_neighbours = is_filled and any(known.bars for known in batch.held.coverages.values())
    if not has_neighbours and not may_have_split(days.close):
        return None
    return Window(from_micros(days.close_time[0]), from_micros(days.close_time[-1]))


def can_be_suspected(market: Market) -> bool:
    """Tell whether a market can have a split that its provider does not adjust for."""
    return market.calendar != ALWAYS_OPEN and market.price_basis == UNADJUSTED


def suspect_splits(
    connection: Connection, market: Market, market_id: int, span: Window, run_id: UUID
) -> None:
    """Note the stored jumps of a span that look like splits, and take back those that are gone.

    One that was dismissed or confirmed is never suspected again.

    Args:
        connection: In the transaction that stored the bars.
        market: The market.
        market_id: Its key.
        span: Jumps to or from a bar that closes within it, both ends included.
        run_id: The run.
    """
    jumps = {jump.end: jump for jump in _find_jumps(connection, market_id, market, span)}
    known = read_suspicions(connection, market_id)
    told = {row["ends_at"] for row in known if row["resolution"] != WITHDRAWN}
    new = [jump for end, jump in jumps.items() if end not in told]
    gone = [
        row
        for row in known
        if row["resolved_at"] is None
        and row["ends_at"] not in jumps
        and span.start <= row["ends_at"]
        and row["starts_at"] <= span.end
    ]
    for jump in new:
        open_suspicion(connection, market_id, jump, run_id)
    for row in gone:
        resolve_event(connection, row["event_id"], WITHDRAWN)
    if new or gone:
        report_suspicions(connection, f"{market.provider}:{market.symbol}", market_id, run_id)


def report_suspicions(
    connection: Connection, name: str, market_id: int, run_id: UUID | None = None
) -> None:
    """Raise the alert about a market's suspected splits, or let it end when there are none."""
    rows = [row for row in read_suspicions(connection, market_id) if row["resolved_at"] is None]
    members = {name: "; ".join(row["detail"] for row in rows)} if rows else {}
    finding = Finding(SPLIT_SUSPECTED, members, evaluated={name}, run_id=run_id)
    report(connection, [finding], datetime.now(UTC))


def _find_jumps(connection: Connection, market_id: int, market: Market, span: Window) -> list[Jump]:
    start, end = max(span.start - _BEFORE, EPOCH), span.end + _AFTER
    days = read_bars(connection, market_id, Interval.DAY, start, end)
    jumps = find_jumps(days[days["is_final"]], market.calendar)
    return [jump for jump in jumps if jump.end >= span.start and jump.start <= span.end]
