"""The coverage ledger: read as a whole for many markets, changed in the bars' own transaction."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, bindparam, delete, insert, select, text

from market_pipeline.domain.coverage import Coverage, Hole, Round, find_never_asked
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.domain.withholding import NEVER_ASKED, UNEXPLAINED_HOLE, Flaw
from market_pipeline.storage.events import read_open_events
from market_pipeline.storage.ledgers import coverage_hole
from market_pipeline.storage.tables import SCHEMA

Key = tuple[int, Interval]
_READ = text(f"""
    SELECT market_id, interval, watermark, first_bar_at, last_bar_at, bars, verified, round,
        refreshed_at,
        ARRAY(SELECT lower(span) FROM unnest(settled) span ORDER BY span) AS starts,
        ARRAY(SELECT upper(span) FROM unnest(settled) span ORDER BY span) AS ends
    FROM {SCHEMA}.market_coverage WHERE market_id = ANY(:markets)
""")  # noqa: S608 - a constant
_IN_PIECES = text(f"""
    SELECT market_id, interval, calendar
    FROM {SCHEMA}.market_coverage JOIN {SCHEMA}.market USING (market_id)
    WHERE (CAST(:markets AS bigint[]) IS NULL OR market_id = ANY(:markets))
        AND (SELECT count(*) FROM unnest(settled)) > 1
    ORDER BY market_id, interval
""")  # noqa: S608 - a constant
_ROUND_TIMES = ("began_at", "reached", "read_at")
_WRITE = text(f"""
    INSERT INTO {SCHEMA}.market_coverage AS known (market_id, interval, settled, watermark,
        first_bar_at, last_bar_at, bars, verified, round, refreshed_at, refreshed_by)
    VALUES (:market_id, :interval, CAST(:settled AS tstzmultirange), :watermark,
        :first_bar_at, :last_bar_at, :bars, CAST(:verified AS jsonb), CAST(:round AS jsonb),
        :refreshed_at, :refreshed_by)
    ON CONFLICT (market_id, interval) DO UPDATE SET settled = excluded.settled,
        watermark = excluded.watermark, first_bar_at = excluded.first_bar_at,
        last_bar_at = excluded.last_bar_at, bars = excluded.bars, verified = excluded.verified,
        round = excluded.round,
        refreshed_at = coalesce(excluded.refreshed_at, known.refreshed_at),
        refreshed_by = coalesce(excluded.refreshed_by, known.refreshed_by)
""")  # noqa: S608 - a constant


def read_coverage(connection: Connection, market_ids: Sequence[int]) -> dict[Key, Coverage]:
    """Return what is known of each market and interval; what was never asked for is absent."""
    holes = _read_holes(connection, market_ids)
    rows = connection.execute(_READ, {"markets": list(market_ids)}).mappings()
    found = {(row["market_id"], Interval(row["interval"])): row for row in rows}
    return {
        key: Coverage(
            settled=tuple(map(Window, found[key]["starts"], found[key]["ends"])),
            holes=tuple(holes[key]),
            watermark=found[key]["watermark"],
            first_bar_at=found[key]["first_bar_at"],
            last_bar_at=found[key]["last_bar_at"],
            bars=found[key]["bars"],
            verified=_parse_marks(found[key]["verified"]),
            round=_parse_round(found[key]["round"]),
            refreshed_at=found[key]["refreshed_at"],
        )
        for key in found
    }


def write_coverage(
    connection: Connection,
    key: Key,
    before: Coverage,
    after: Coverage,
    refreshed_at: datetime | None,
    run_id: UUID,
) -> None:
    """Put new coverage in the place of the old.

    Args:
        connection: In the transaction of the bars.
        key: Market and interval.
        before: As it was read in this transaction.
        after: As it is now.
        refreshed_at: When the provider answered (UTC); None: it did not.
        run_id: Who asked.
    """
    spans = ",".join(f"[{w.start.isoformat()},{w.end.isoformat()})" for w in after.settled)
    row = {
        "market_id": key[0],
        "interval": key[1].value,
        "settled": f"{{{spans}}}",
        "watermark": after.watermark,
        "first_bar_at": after.first_bar_at,
        "last_bar_at": after.last_bar_at,
        "bars": after.bars,
        "verified": _format_marks(after.verified),
        "round": _format_round(after.round),
        "refreshed_at": refreshed_at,
        "refreshed_by": None if refreshed_at is None else run_id,
    }
    connection.execute(_WRITE, row)
    _write_holes(connection, key, set(before.holes), set(after.holes), run_id)


def _read_holes(connection: Connection, market_ids: Sequence[int]) -> dict[Key, list[Hole]]:
    query = select(coverage_hole).where(coverage_hole.c.market_id.in_(list(market_ids)))
    holes: dict[Key, list[Hole]] = defaultdict(list)
    for row in connection.execute(query.order_by(coverage_hole.c.starts_at)).mappings():
        hole = Hole(
            window=Window(row["starts_at"], row["ends_at"]),
            reason=row["reason"],
            tries=row["tries"],
            first_seen_at=row["first_seen_at"],
            last_checked_at=row["last_checked_at"],
            next_check_at=row["next_check_at"],
            detail=row["detail"],
        )
        holes[row["market_id"], Interval(row["interval"])].append(hole)
    return holes


def _write_holes(
    connection: Connection, key: Key, before: set[Hole], after: set[Hole], run_id: UUID
) -> None:
    gone, new = before - after, after - before
    if gone:
        this = (coverage_hole.c.market_id == key[0], coverage_hole.c.interval == key[1].value)
        statement = delete(coverage_hole).where(*this, coverage_hole.c.starts_at == bindparam("at"))
        connection.execute(statement, [{"at": hole.window.start} for hole in gone])
    if new:
        rows = [_describe_hole(key, hole, run_id) for hole in new]
        connection.execute(insert(coverage_hole), rows)


def _describe_hole(key: Key, hole: Hole, run_id: UUID) -> dict[str, Any]:
    return {
        "market_id": key[0],
        "interval": key[1].value,
        "starts_at": hole.window.start,
        "ends_at": hole.window.end,
        "reason": hole.reason,
        "detail": hole.detail,
        "tries": hole.tries,
        "first_seen_at": hole.first_seen_at,
        "last_checked_at": hole.last_checked_at,
        "next_check_at": hole.next_check_at,
        "run_id": run_id,
    }


def _format_marks(verified: Mapping[int, Sequence[Window]]) -> str:
    return json.dumps({str(age): _format_spans(spans) for age, spans in verified.items()})


def _parse_marks(marks: Mapping[str, list[list[str]]]) -> dict[int, tuple[Window, ...]]:
    return {int(age): _parse_spans(spans) for age, spans in marks.items()}


def _format_round(turn: Round | None) -> str:
    if turn is None:
        return "{}"
    times = {name: getattr(turn, name).isoformat() for name in _ROUND_TIMES}
    return json.dumps({**times, "skipped": _format_spans(turn.skipped)})


def _parse_round(kept: Mapping[str, Any]) -> Round | None:
    if not kept:
        return None
    times = {name: datetime.fromisoformat(kept[name]) for name in _ROUND_TIMES}
    return Round(**times, skipped=_parse_spans(kept["skipped"]))


def _format_spans(spans: Sequence[Window]) -> list[list[str]]:
    return [[span.start.isoformat(), span.end.isoformat()] for span in spans]


def _parse_spans(spans: Sequence[Sequence[str]]) -> tuple[Window, ...]:
    return tuple(Window(*map(datetime.fromisoformat, span)) for span in spans)


def read_flaws(connection: Connection, market_ids: Sequence[int], interval: Interval) -> list[Flaw]:
    """Return what keeps statistics of some markets from being trusted."""
    flaws = [
        Flaw(market_id, UNEXPLAINED_HOLE, hole.window)
        for (market_id, of), found in _read_holes(connection, market_ids).items()
        for hole in found
        if of is interval and not hole.is_explained
    ]
    flaws += [
        Flaw(market_id, NEVER_ASKED, span)
        for (market_id, of), spans in read_never_asked(connection, market_ids).items()
        for span in spans
        if of is interval
    ]
    events = read_open_events(connection, market_ids)
    return [*flaws, *(Flaw(market_id, kind) for market_id, kind in events.items())]


def read_never_asked(
    connection: Connection, market_ids: Sequence[int] | None = None
) -> dict[Key, list[Window]]:
    """Return the spans between settled ones that nobody asked for; None: of all markets.

    Series without such spans are absent. Only those in pieces are looked at: mostly none.
    """
    wanted = {"markets": None if market_ids is None else list(market_ids)}
    calendars = {
        (row.market_id, Interval(row.interval)): row.calendar
        for row in connection.execute(_IN_PIECES, wanted)
    }
    if not calendars:
        return {}
    known = read_coverage(connection, sorted({market_id for market_id, _ in calendars}))
    found = {
        key: find_never_asked(known[key], key[1], calendar) for key, calendar in calendars.items()
    }
    return {key: spans for key, spans in found.items() if spans}
