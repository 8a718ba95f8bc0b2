"""Events over a span of a market's series: while one is open, statistics over it wait.

Runs follow a ``difference`` and read its span again; a market has at most one that is open. A
``suspected_split`` waits for a person. A ``split`` was written by an older version for a series
that it was reading again: it continues as a difference over all bars.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, func, insert, or_, select, text, update

from market_pipeline.domain.differences import REPAIRING, SEAM, Difference, Edge, Trace
from market_pipeline.domain.grids import from_micros, to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.domain.splits import Jump
from market_pipeline.storage.ledgers import dataset_version, market_event
from market_pipeline.storage.tables import market

DIFFERENCE, SUSPECTED_SPLIT, SPLIT = "difference", "suspected_split", "split"
_IS_OPEN = market_event.c.resolved_at.is_(None)
_IS_AT_WORK = (
    _IS_OPEN,
    market_event.c.kind.in_((DIFFERENCE, SPLIT)),
    or_(
        market_event.c.trace["stage"].astext.is_(None), market_event.c.trace["stage"].astext != SEAM
    ),
)
_ALL = (
    select(market.c.provider, market.c.symbol, market_event)
    .join(market, market.c.market_id == market_event.c.market_id)
    .order_by(market_event.c.event_id.desc())
)

# The quarantined rows that came before their prices were restated, and when that was.
_RESTATED = text(f"""
    SELECT row_id, max(detected_at) AS at FROM market_data.quarantined_row one
    JOIN market_data.market_event event USING (market_id)
    WHERE row_id = ANY(:row_ids) AND one.last_seen_at < event.detected_at
        AND CASE kind WHEN '{SUSPECTED_SPLIT}'
            THEN resolution = 'confirmed' AND coalesce(open_time < starts_at, true)
            ELSE coalesce(resolution, '') NOT IN ('withdrawn', 'dismissed')
                AND coalesce(open_time >= starts_at, true)
                AND coalesce(open_time < ends_at, true) END
    GROUP BY row_id
""")


@dataclass(frozen=True, slots=True)
class EventSpan:
    """What an event says of a span; ``end`` is None where it reaches up to now (UTC)."""

    start: datetime | None
    end: datetime | None
    detail: str


@dataclass(frozen=True, slots=True)
class OpenDifference:
    """What runs have left open of a market.

    Attributes:
        version: The newest dataset version of all. difference: At work; None: there is none.
        written_since: Where bars were written since it was seen, by interval.
    """

    version: int
    difference: Difference | None = None
    written_since: Mapping[Interval, Window] = field(default_factory=dict)


def read_open_events(connection: Connection, market_ids: Sequence[int]) -> list[Mapping[str, Any]]:
    """Return ``market_id``, ``kind``, ``starts_at`` and ``ends_at`` of all open events."""
    columns = (market_event.c[name] for name in ("market_id", "kind", "starts_at", "ends_at"))
    query = select(*columns).where(market_event.c.market_id.in_(list(market_ids)), _IS_OPEN)
    return [dict(row) for row in connection.execute(query).mappings()]


def read_differences(connection: Connection, market_ids: Sequence[int]) -> dict[int, Difference]:
    """Return the difference at work of each market that has one."""
    query = select(market_event).where(market_event.c.market_id.in_(list(market_ids)), *_IS_AT_WORK)
    rows = connection.execute(query.order_by(market_event.c.event_id)).mappings()
    return {row["market_id"]: _parse_difference(row) for row in rows}


def read_left_open(connection: Connection, market_ids: Sequence[int]) -> dict[int, OpenDifference]:
    """Return the difference at work of each market, for most of which there is none."""
    newest = func.coalesce(func.max(dataset_version.c.version), 0)
    version = int(connection.execute(select(newest)).scalar_one())
    found = dict.fromkeys(market_ids, OpenDifference(version))
    for market_id, known in read_differences(connection, market_ids).items():
        since = version if known.version is None else known.version
        written = _read_written(connection, market_id, since)
        found[market_id] = OpenDifference(version, known, written)
    return found


def _read_written(connection: Connection, market_id: int, version: int) -> dict[Interval, Window]:
    """Return where a market's fetched bars were written after a dataset version, by interval."""
    columns = (dataset_version.c.first_open_time, dataset_version.c.last_open_time)
    its = (dataset_version.c.market_id == market_id, dataset_version.c.version > version)
    query = (
        select(dataset_version.c.interval, func.min(columns[0]), func.max(columns[1]))
        .where(*its, dataset_version.c.interval != Interval.WEEK.value)
        .group_by(dataset_version.c.interval)
    )
    return {
        Interval(name): Window(first, last + Interval(name).duration)
        for name, first, last in connection.execute(query)
    }


def open_difference(
    connection: Connection, market_id: int, one: Difference, span: EventSpan, run_id: UUID
) -> None:
    """Note a difference that was just seen."""
    row = {**_describe_difference(one, span), "market_id": market_id, "kind": DIFFERENCE}
    now = func.clock_timestamp()
    connection.execute(insert(market_event).values(**row, detected_at=now, run_id=run_id))


def update_difference(
    connection: Connection, market_id: int, one: Difference, span: EventSpan
) -> None:
    """Put what is known now in the place of what was."""
    this = (market_event.c.market_id == market_id, *_IS_AT_WORK)
    changes = _describe_difference(one, span)
    connection.execute(update(market_event).where(*this).values(changes))


def resolve_difference(connection: Connection, market_id: int, resolution: str) -> None:
    """Close a market's difference at work."""
    this = (market_event.c.market_id == market_id, *_IS_AT_WORK)
    changes = {"resolved_at": func.clock_timestamp(), "resolution": resolution}
    connection.execute(update(market_event).where(*this).values(changes))


def read_suspicions(connection: Connection, market_id: int) -> list[Mapping[str, Any]]:
    """Return all suspected splits of a market, those that were decided on included."""
    this = (market_event.c.market_id == market_id, market_event.c.kind == SUSPECTED_SPLIT)
    query = select(market_event).where(*this).order_by(market_event.c.starts_at)
    return [dict(row) for row in connection.execute(query).mappings()]


def open_suspicion(connection: Connection, market_id: int, jump: Jump, run_id: UUID) -> None:
    """Note a jump that looks like a split."""
    row = {
        "market_id": market_id,
        "kind": SUSPECTED_SPLIT,
        "starts_at": jump.start,
        "ends_at": jump.end,
        "ratio": jump.ratio,
        "spread": abs(jump.change / jump.ratio - 1),
        "detail": jump.description,
        "run_id": run_id,
    }
    now = func.clock_timestamp()
    connection.execute(insert(market_event).values(**row, detected_at=now))


def resolve_event(connection: Connection, event_id: int, resolution: str) -> bool:
    """Close an event; False when it is closed already."""
    this = (market_event.c.event_id == event_id, _IS_OPEN)
    changes = {"resolved_at": func.clock_timestamp(), "resolution": resolution}
    return connection.execute(update(market_event).where(*this).values(changes)).rowcount > 0


def list_events(
    connection: Connection, market_ids: Sequence[int] | None, is_open: bool
) -> list[dict[str, Any]]:
    """Return events with their market's names, the newest first.

    Args:
        connection: On the market tables.
        market_ids: Whose; None: all.
        is_open: Only those that are open.
    """
    query = _ALL if market_ids is None else _ALL.where(market_event.c.market_id.in_(market_ids))
    rows = connection.execute(query.where(_IS_OPEN) if is_open else query).mappings()
    return [dict(row) for row in rows]


def read_event(connection: Connection, event_id: int) -> dict[str, Any] | None:
    """Return one event with its market's names."""
    query = _ALL.where(market_event.c.event_id == event_id)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else dict(row)


def is_seam(event: Mapping[str, Any]) -> bool:
    """Tell whether an event stays open over what no run can read again."""
    return bool(event["trace"].get("stage") == SEAM)


def read_restated_rows(connection: Connection, row_ids: Sequence[int]) -> dict[int, datetime]:
    """Return which quarantined rows came in a scale that was given up since, and when (UTC)."""
    rows = connection.execute(_RESTATED, {"row_ids": list(map(int, row_ids))})
    return {row.row_id: row.at for row in rows}


def _describe_difference(one: Difference, span: EventSpan) -> dict[str, Any]:
    traces = {
        interval.value: None if trace is None else _format_trace(trace)
        for interval, trace in one.traces.items()
    }
    names = ("stage", "bars", "volume_ratio", "version")
    progress = {name: getattr(one, name) for name in names}
    return {
        "starts_at": span.start,
        "ends_at": span.end,
        "detail": span.detail,
        "ratio": one.ratio,
        "spread": one.spread,
        "trace": {**progress, "intervals": traces},
    }


def _format_trace(trace: Trace) -> dict[str, Any]:
    base = None if trace.base is None else _format_span(trace.base)
    return {
        "lower": _format_edge(trace.lower), "upper": _format_edge(trace.upper),
        "released": [_format_span(span) for span in trace.released], "base": base,
    }  # fmt: skip


def _format_span(span: Window) -> list[str]:
    return [span.start.isoformat(), span.end.isoformat()]


def _format_edge(edge: Edge) -> dict[str, Any]:
    moments = {name: from_micros(getattr(edge, name)).isoformat() for name in ("at", "seen")}
    return {**asdict(edge), **moments}


def _parse_difference(row: Mapping[Any, Any]) -> Difference:
    told = row["trace"]
    if not told:
        return Difference(stage=REPAIRING, ratio=row["ratio"] or 1.0)
    traces = {
        Interval(name): None if trace is None else _parse_trace(trace)
        for name, trace in told["intervals"].items()
    }
    names = ("stage", "bars", "volume_ratio", "version")
    known = {name: told[name] for name in names}
    return Difference(traces=traces, ratio=row["ratio"], spread=row["spread"], **known)


def _parse_trace(told: Mapping[str, Any]) -> Trace:
    spans = tuple(map(_parse_span, told["released"]))
    base = None if told["base"] is None else _parse_span(told["base"])
    return Trace(_parse_edge(told["lower"]), _parse_edge(told["upper"]), spans, base)


def _parse_span(told: Sequence[str]) -> Window:
    return Window(*map(datetime.fromisoformat, told))


def _parse_edge(told: Mapping[str, Any]) -> Edge:
    moments = {name: to_micros(datetime.fromisoformat(told[name])) for name in ("at", "seen")}
    return Edge(**{**told, **moments})
