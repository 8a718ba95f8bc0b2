"""The end of a repair: decides whether a span was read again, and what happens to the other bars.

Some bars may not have come again, or the provider may not have them any more. They are in the old
scale. If one factor explains the difference, they are multiplied. Otherwise they stay, and the
event stays open over the place where old and new bars meet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
import pandas as pd
from sqlalchemy import Connection

from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.differences import (
    REPAIRING,
    RESCALED,
    SEAM,
    WITHDRAWN,
    Difference,
    find_next_open,
    find_span,
    find_window,
    multiply_bars,
)
from market_pipeline.domain.grids import find_grid, to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.ranges import merge_windows, subtract_windows
from market_pipeline.domain.reconciliation import find_inside
from market_pipeline.domain.records import Window
from market_pipeline.ingestion.bar_writing import write_market_bars
from market_pipeline.ingestion.batches import BarBatch
from market_pipeline.ingestion.outcomes import Kept
from market_pipeline.ingestion.plan import find_earliest, find_left
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import Request, Route
from market_pipeline.storage.bars.events import (
    EventSpan,
    open_difference,
    resolve_difference,
    update_difference,
)
from market_pipeline.storage.bars.stored import read_versioned_bars

REPAIRED, MULTIPLIED = "repaired", "multiplied"
Coverages = Mapping[Interval, Coverage]


@dataclass(frozen=True, slots=True)
class Leftover:
    """Bars of one interval that were not read again, and the other final bars of the span."""

    bars: pd.DataFrame
    rest: pd.DataFrame


@dataclass(frozen=True, slots=True)
class RepairState:
    """How a repair stands.

    Attributes:
        stage: The difference's from now on. span: Its time; without end it reaches up to now.
        resolution: How it ended; None: it goes on. left: Expected bars still to be read again.
        bars: What was multiplied and is to be written. settled: Spans of what was left over, which
            count as settled again, by interval.
    """

    stage: str
    span: tuple[datetime, datetime | None]
    resolution: str | None = None
    left: int = 0
    bars: pd.DataFrame | None = None
    settled: Mapping[Interval, tuple[Window, ...]] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether runs have nothing left to do about it."""
        return self.resolution is not None or self.stage == SEAM


def assess_repair(
    connection: Connection,
    market_id: int,
    route: Route,
    request: Request,
    difference: Difference,
    coverages: Coverages,
) -> RepairState:
    """Return how a repair stands after a batch.

    Args:
        connection: In the batch's transaction.
        market_id: The market's key.
        route: Provider and market.
        request: The run's.
        difference: In the stage ``repairing``.
        coverages: As they are with the batch.
    """
    calendar = route[1].calendar
    span = find_span(difference, calendar)
    left = _count_left(route, request, difference, coverages)
    if left:
        return RepairState(REPAIRING, span, left=left)
    found = _find_leftovers(connection, market_id, calendar, difference, coverages)
    if not found:
        return RepairState(REPAIRING, span, REPAIRED)
    settled = {
        interval: _list_spans(calendar, interval, leftover.bars)
        for interval, leftover in found.items()
    }
    if difference.has_one_factor:
        bars = pd.concat([leftover.bars for leftover in found.values()], ignore_index=True)
        bars = multiply_bars(bars, difference.ratio, difference.volume_ratio)
        return RepairState(REPAIRING, span, MULTIPLIED, bars=bars, settled=settled)
    meetings = [_find_meeting(calendar, interval, one) for interval, one in found.items()]
    # Bars among those that came are holes, and asked for again; older ones stay as they are.
    stage = SEAM if all(_is_older(leftover) for leftover in found.values()) else REPAIRING
    hull = min(meeting.start for meeting in meetings), max(meeting.end for meeting in meetings)
    return RepairState(stage, hull, settled=settled)


def _count_left(
    route: Route, request: Request, difference: Difference, coverages: Coverages
) -> int:
    """Return how many expected bars are still to be read again."""
    provider, market = route
    count = 0
    for interval, _ in difference.list_traces():
        earliest = find_earliest(provider.describe_history(market, interval), request)
        known = coverages.get(interval, Coverage())
        for part in find_left(difference, interval, known, earliest):
            count += find_grid(market.calendar, interval, part).count(part)
    return count


def _find_leftovers(
    connection: Connection,
    market_id: int,
    calendar: str,
    difference: Difference,
    coverages: Coverages,
) -> dict[Interval, Leftover]:
    """Return the bars that were stored before the difference was seen, and did not come again."""
    found = {}
    for interval, trace in difference.list_traces():
        window = find_window(trace, calendar, interval)
        bars = read_versioned_bars(connection, market_id, interval, window.start, window.end)
        bars = bars[bars["is_final"]]
        holes = [hole.window for hole in coverages.get(interval, Coverage()).holes]
        opens = np.asarray(pd.DatetimeIndex(bars["open_time"]).as_unit("us").asi8)
        came = find_inside(subtract_windows(trace.released, holes), opens)
        is_old = ~came | (bars["source_kind"] == RESCALED).to_numpy()
        if difference.version is not None:
            is_old &= (bars["dataset_version"] <= difference.version).to_numpy()
        if is_old.any():
            bars = bars.drop(columns="dataset_version")
            found[interval] = Leftover(bars[is_old], bars[~is_old])
    return found


def _list_spans(calendar: str, interval: Interval, bars: pd.DataFrame) -> tuple[Window, ...]:
    """Return the spans of bars, each up to where the next one is expected."""
    opens = [at.to_pydatetime() for at in bars["open_time"]]
    spans = [Window(at, find_next_open(calendar, interval, to_micros(at))) for at in opens]
    return tuple(merge_windows(spans))


def _is_older(leftover: Leftover) -> bool:
    """Tell whether bars end before those that came again begin."""
    return leftover.rest.empty or bool(
        leftover.bars["open_time"].max() < leftover.rest["open_time"].min()
    )


def _find_meeting(calendar: str, interval: Interval, leftover: Leftover) -> Window:
    """Return the span over which old and new bars meet."""
    older = leftover.bars
    if not leftover.rest.empty:
        older = older[older["open_time"] < leftover.rest["open_time"].min()]
    start = older["close_time"].iloc[-1] if len(older) else leftover.bars["open_time"].iloc[0]
    if _is_older(leftover) and not leftover.rest.empty:
        end = leftover.rest["close_time"].iloc[0].to_pydatetime()
    else:
        end = find_next_open(calendar, interval, to_micros(leftover.bars["open_time"].iloc[-1]))
    return Window(start.to_pydatetime(), end)


def describe_bars(difference: Difference) -> str:
    """Return what came back, in a sentence."""
    return (
        f"stored final bars came back at {difference.ratio:.6g} times their price, "
        f"give or take {difference.spread:.2%}"
    )


def describe_difference(difference: Difference, ending: RepairState) -> str | None:
    """Return what is still to be done about a difference, in a sentence; None: nothing."""
    if ending.resolution is not None:
        return None
    start, end = ending.span
    until = "on" if end is None else f"to {end:%Y-%m-%d %H:%M}"
    told = (
        f"the provider restated its history from {start:%Y-%m-%d %H:%M} {until} (UTC): "
        f"{describe_bars(difference)}"
    )
    if ending.stage == SEAM:
        return f"{told}; it has no older bars, and no single factor explains the difference"
    if ending.stage == REPAIRING:
        what = f"{ending.left} bars are" if ending.left else "bars that did not come again are"
        return f"{told}; {what} still to be read again; statistics over them are NULL until then"
    return f"{told}; runs are looking for its ends; statistics over it are NULL until then"


def keep_difference(
    connection: Connection, run: Run, batch: BarBatch, difference: Difference, kept: Kept
) -> Kept:
    """Write what is known of a market's difference, and end it where its span was read again."""
    market_id = batch.market_id
    if difference.stage == WITHDRAWN:
        if not batch.opens_event:
            resolve_difference(connection, market_id, WITHDRAWN)
        return replace(kept, ended_from=run.request.window.start)
    ending = RepairState(difference.stage, find_span(difference, batch.route[1].calendar))
    if difference.stage == REPAIRING:
        ending = assess_repair(
            connection, market_id, batch.route, run.request, difference, kept.coverages
        )
    span, known = (
        EventSpan(*ending.span, describe_bars(difference)),
        replace(difference, stage=ending.stage),
    )
    if batch.opens_event:
        open_difference(connection, market_id, known, span, run.run_id)
    else:
        update_difference(connection, market_id, known, span)
    if ending.resolution is not None:
        resolve_difference(connection, market_id, ending.resolution)
    return _write_ending(connection, run, batch, ending, kept)


def _write_ending(
    connection: Connection, run: Run, batch: BarBatch, ending: RepairState, kept: Kept
) -> Kept:
    """Write the bars that were multiplied, and let what was left over count as settled."""
    written = kept.written
    if ending.bars is not None:
        market, market_id = batch.route[1], batch.market_id
        written += write_market_bars(connection, run, market, market_id, ending.bars)
    settled = {
        interval: replace(
            kept.coverages[interval],
            settled=tuple(merge_windows([*kept.coverages[interval].settled, *spans])),
        )
        for interval, spans in ending.settled.items()
    }
    reason = describe_difference(batch.difference, ending) if batch.difference else None
    return Kept(
        written,
        {**kept.coverages, **settled},
        reason,
        ending.span[0] if ending.is_over else None,
    )
