"""Marks of a chart: the bars that are missing or not to be taken as they are, each with its reason.

Here: what is marked, and over which span. Not here: how it is drawn (``static/charts.js``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from market_pipeline.api.pages.formats import describe_reason, format_time
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.differences import RESCALED
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import NEVER_ASKED
from market_pipeline.domain.records import Window
from market_pipeline.storage.bars.events import SUSPECTED_SPLIT, list_events
from market_pipeline.storage.bars.quarantine import list_quarantine
from market_pipeline.storage.bars.revisions import read_revisions
from market_pipeline.storage.coverage.ledger import read_never_asked

MOST_REFUSED = 1_000
_MOMENT = timedelta(microseconds=1)
_NOT_FINAL = "not final yet: the provider may still change it"
_MULTIPLIED = "prices were multiplied here, to the scale of the newer bars"


@dataclass(frozen=True, slots=True)
class Mark:
    """What is noted of the bars that open in ``[start, end)`` (UTC).

    The kind is ``hole``, ``provisional``, ``revised``, ``quarantined``, ``adjusted`` or ``split``.
    """

    kind: str
    start: datetime
    end: datetime
    text: str

    @property
    def last(self) -> datetime:
        """The last moment that it covers."""
        return self.end - _MOMENT

    def describe(self) -> dict[str, Any]:
        """Return it as JSON can hold it, in seconds since 1970."""
        span = {"start": self.start.timestamp(), "end": self.end.timestamp()}
        return {"kind": self.kind, "text": self.text, **span}


def read_marks(
    connection: Connection,
    market_id: int,
    interval: Interval,
    bars: Sequence[Mapping[str, Any]],
    coverage: Coverage,
) -> list[Mark]:
    """Return the marks of bars that are shown, and of what is missing since the first of them.

    Args:
        connection: Any.
        market_id: Whose.
        interval: Of the bars; weeks miss what their days miss.
        bars: In order of open_time.
        coverage: Of the interval that is fetched.
    """
    if not bars:
        return []
    start, length = bars[0]["open_time"], interval.duration
    fetched = find_fetched(interval)
    gaps = read_never_asked(connection, [market_id]).get((market_id, fetched), [])
    refused = list_quarantine(connection, MOST_REFUSED, market_id=market_id, status="open")
    last = bars[-1]["open_time"]
    revised = read_revisions(connection, market_id, interval.value, start, last)
    events = list_events(connection, [market_id], is_open=True)
    marks = [
        *mark_holes(coverage, gaps),
        *mark_bars(bars),
        *(
            Mark("revised", row["open_time"], row["open_time"] + length, _describe_revision(row))
            for row in revised
        ),
        *(
            # Of no length: it marks the bar that it lies in, also where it is off the grid.
            Mark(
                "quarantined", row["open_time"], row["open_time"] + _MOMENT, _describe_refused(row)
            )
            for row in refused
            if row["interval"] == fetched and row["open_time"]
        ),
        *(
            Mark("split", event["starts_at"], event["ends_at"], event["detail"])
            for event in events
            if event["kind"] == SUSPECTED_SPLIT
        ),
    ]
    return join_marks(clip_marks(marks, start))


def find_fetched(interval: Interval) -> Interval:
    """Return which bars are fetched for those of an interval: weeks are made of days."""
    return min(interval, Interval.DAY, key=lambda one: one.duration)


def mark_holes(coverage: Coverage, gaps: Iterable[Window]) -> list[Mark]:
    """Return a mark for each hole, explained ones too, and for what nobody asked for."""
    holes = [
        Mark("hole", hole.window.start, hole.window.end, describe_hole(hole.reason, hole.tries))
        for hole in coverage.holes
    ]
    return [*holes, *(Mark("hole", g.start, g.end, describe_reason(NEVER_ASKED)) for g in gaps)]


def mark_bars(bars: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """Return a mark for each bar that is not final, and for each whose prices were multiplied."""
    provisional = [bar for bar in bars if not bar["is_final"]]
    adjusted = [bar for bar in bars if bar.get("source_kind") == RESCALED]
    return [
        Mark(kind, bar["open_time"], bar["close_time"], text)
        for kind, text, found in (
            ("provisional", _NOT_FINAL, provisional),
            ("adjusted", _MULTIPLIED, adjusted),
        )
        for bar in found
    ]


def clip_marks(marks: Iterable[Mark], start: datetime) -> list[Mark]:
    """Return marks from a moment on, the first first; one that begins before it begins there."""
    kept = [replace(mark, start=max(mark.start, start)) for mark in marks if mark.end > start]
    return sorted(kept, key=lambda mark: (mark.start, mark.kind))


def join_marks(marks: Iterable[Mark]) -> list[Mark]:
    """Return neighbours that say the same as one."""
    joined: list[Mark] = []
    last: dict[tuple[str, str], int] = {}
    for mark in marks:
        key = (mark.kind, mark.text)
        at = last.get(key)
        if at is not None and joined[at].end >= mark.start:
            joined[at] = replace(joined[at], end=max(joined[at].end, mark.end))
        else:
            last[key] = len(joined)
            joined.append(mark)
    return joined


def describe_hole(reason: str, tries: int) -> str:
    """Return why bars are missing, and how often they were asked for."""
    return f"{describe_reason(reason)} (asked {tries} {'time' if tries == 1 else 'times'})"


def _describe_revision(row: Mapping[str, Any]) -> str:
    return f"replaced {format_time(row['replaced_at'])}, in version {row['version']}"


def _describe_refused(row: Mapping[str, Any]) -> str:
    return f"{describe_reason(row['rule'])}: {row['detail']}"
