"""The coverage ledger: read as a whole for many markets, changed in the bars' own transaction."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, insert, select, text

from market_pipeline.domain.coverage import Coverage, Hole, Round, find_never_asked
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import (
    MIXED_PARSING,
    NEVER_ASKED,
    RESTATING,
    SUSPECTED_SPLIT,
    UNEXPLAINED_HOLE,
    DataIssue,
)
from market_pipeline.domain.parsing import ReadSpan, find_changes, list_spans
from market_pipeline.domain.records import Window
from market_pipeline.storage.bars import events
from market_pipeline.storage.bars.events import read_open_events
from market_pipeline.storage.coverage.holes import EXPLAINED
from market_pipeline.storage.ledgers import coverage_hole

Key = tuple[int, Interval]
_NO_END = datetime(2200, 1, 1, tzinfo=UTC)
# What is settled of some markets.
_READ = text("""
    SELECT market_id, interval, watermark, first_bar_at, last_bar_at, bars, verified, round,
        parsing, older_parsings, refreshed_at,
        ARRAY(SELECT lower(span) FROM unnest(settled) span ORDER BY span) AS starts,
        ARRAY(SELECT upper(span) FROM unnest(settled) span ORDER BY span) AS ends
    FROM market_data.market_coverage WHERE market_id = ANY(:markets)
""")
# The series whose settled time has gaps.
_IN_PIECES = text("""
    SELECT market_id, interval, calendar
    FROM market_data.market_coverage JOIN market_data.market USING (market_id)
    WHERE (CAST(:markets AS bigint[]) IS NULL OR market_id = ANY(:markets))
        AND (SELECT count(*) FROM unnest(settled)) > 1
    ORDER BY market_id, interval
""")
_ROUND_TIMES = ("began_at", "reached", "read_at")
# Puts what is known of a series in the place of what was.
_WRITE = text("""
    INSERT INTO market_data.market_coverage AS known (market_id, interval, settled, watermark,
        first_bar_at, last_bar_at, bars, verified, round, parsing, older_parsings, refreshed_at,
        refreshed_by)
    SELECT market_id, interval, CAST(settled AS tstzmultirange), watermark, first_bar_at,
        last_bar_at, bars, verified, round, parsing, older_parsings, refreshed_at,
        CASE WHEN refreshed_at IS NOT NULL THEN CAST(:run_id AS uuid) END
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS came (market_id bigint, interval text,
        settled text, watermark timestamptz, first_bar_at timestamptz, last_bar_at timestamptz,
        bars bigint, verified jsonb, round jsonb, parsing integer, older_parsings jsonb,
        refreshed_at timestamptz)
    ON CONFLICT (market_id, interval) DO UPDATE SET settled = excluded.settled,
        watermark = excluded.watermark, first_bar_at = excluded.first_bar_at,
        last_bar_at = excluded.last_bar_at, bars = excluded.bars, verified = excluded.verified,
        round = excluded.round, parsing = excluded.parsing,
        older_parsings = excluded.older_parsings,
        refreshed_at = coalesce(excluded.refreshed_at, known.refreshed_at),
        refreshed_by = coalesce(excluded.refreshed_by, known.refreshed_by)
""")
# The holes of a series of some markets that statistics may not span; most holes are explained.
_UNEXPLAINED = text(f"""
    SELECT market_id, starts_at, ends_at FROM market_data.coverage_hole
    WHERE market_id = ANY(:markets) AND "interval" = :interval AND NOT {EXPLAINED}
    ORDER BY market_id, starts_at
""")
# Counts new bars in.
_COUNT = text("""
    UPDATE market_data.market_coverage known SET bars = bars + inserted
    FROM unnest(CAST(:markets AS bigint[]), CAST(:intervals AS text[]), CAST(:counts AS bigint[]))
        AS more (market_id, interval, inserted)
    WHERE known.market_id = more.market_id AND known.interval = more.interval
""")
# Forgets holes that are filled or have changed.
_FORGET = text("""
    DELETE FROM market_data.coverage_hole hole
    USING unnest(CAST(:markets AS bigint[]), CAST(:intervals AS text[]),
        CAST(:starts AS timestamptz[])) AS gone (market_id, interval, starts_at)
    WHERE hole.market_id = gone.market_id AND hole.interval = gone.interval
        AND hole.starts_at = gone.starts_at
""")
# The markets with bars that an older parser read.
_HAS_OLDER = text("""
    SELECT DISTINCT market_id FROM market_data.market_coverage
    WHERE market_id = ANY(:markets) AND older_parsings <> '{}'
""")
# The close of the first final bar in each of some spans of a series.
_FIRST_CLOSES = text("""
    SELECT (SELECT close_time FROM market_data.market_aggregate
        WHERE market_id = :market AND interval = :interval AND is_final
            AND open_time >= starts_at AND open_time < ends_at
        ORDER BY open_time LIMIT 1)
    FROM unnest(CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[]))
        WITH ORDINALITY AS span (starts_at, ends_at, place) ORDER BY place
""")


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
            parsing=found[key]["parsing"],
            older_parsings=_parse_marks(found[key]["older_parsings"]),
            round=_parse_round(found[key]["round"]),
            refreshed_at=found[key]["refreshed_at"],
        )
        for key in found
    }


@dataclass(frozen=True, slots=True)
class CoverageChange:
    """New coverage of a series in the place of the old.

    Attributes:
        key: Market and interval. before: As it was read under the market's claim. after: As it is.
        refreshed_at: When the provider answered (UTC); None: it did not.
    """

    key: Key
    before: Coverage
    after: Coverage
    refreshed_at: datetime | None = None


def write_coverages(
    connection: Connection, changes: Sequence[CoverageChange], run_id: UUID
) -> None:
    """Put new coverage in the place of the old.

    Args:
        connection: In the transaction of the bars.
        changes: Of each series once.
        run_id: Who asked.
    """
    if changes:
        rows = json.dumps([_describe_change(change) for change in changes])
        connection.execute(_WRITE, {"rows": rows, "run_id": run_id})
        _write_holes(connection, changes, run_id)


def count_inserted(connection: Connection, inserted: Mapping[Key, int]) -> None:
    """Add new bars to the coverage of their series."""
    if inserted:
        values = {
            "markets": [market_id for market_id, _ in inserted],
            "intervals": [interval.value for _, interval in inserted],
            "counts": list(inserted.values()),
        }
        connection.execute(_COUNT, values)


def _describe_change(change: CoverageChange) -> dict[str, Any]:
    after = change.after
    spans = ",".join(f"[{w.start.isoformat()},{w.end.isoformat()})" for w in after.settled)
    times = {name: getattr(after, name) for name in ("watermark", "first_bar_at", "last_bar_at")}
    times["refreshed_at"] = change.refreshed_at
    return {
        "market_id": change.key[0],
        "interval": change.key[1].value,
        "settled": f"{{{spans}}}",
        **{name: None if at is None else at.isoformat() for name, at in times.items()},
        "bars": after.bars,
        "verified": _format_marks(after.verified),
        "round": _format_round(after.round),
        "parsing": after.parsing,
        "older_parsings": _format_marks(after.older_parsings),
    }


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


def _write_holes(connection: Connection, changes: Sequence[CoverageChange], run_id: UUID) -> None:
    gone: list[tuple[int, str, datetime]] = []
    new: list[dict[str, Any]] = []
    for change in changes:
        before, after = set(change.before.holes), set(change.after.holes)
        (market_id, interval) = change.key
        gone += [(market_id, interval.value, hole.window.start) for hole in before - after]
        new += [_describe_hole(change.key, hole, run_id) for hole in after - before]
    if gone:
        markets, intervals, starts = map(list, zip(*gone, strict=True))
        values = {"markets": markets, "intervals": intervals, "starts": starts}
        connection.execute(_FORGET, values)
    if new:
        connection.execute(insert(coverage_hole), new)


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


def _format_marks(verified: Mapping[int, Sequence[Window]]) -> dict[str, list[list[str]]]:
    return {str(age): _format_spans(spans) for age, spans in verified.items()}


def _parse_marks(marks: Mapping[str, list[list[str]]]) -> dict[int, tuple[Window, ...]]:
    return {int(age): _parse_spans(spans) for age, spans in marks.items()}


def _format_round(turn: Round | None) -> dict[str, Any]:
    if turn is None:
        return {}
    times = {name: getattr(turn, name).isoformat() for name in _ROUND_TIMES}
    return {**times, "skipped": _format_spans(turn.skipped)}


def _parse_round(kept: Mapping[str, Any]) -> Round | None:
    if not kept:
        return None
    times = {name: datetime.fromisoformat(kept[name]) for name in _ROUND_TIMES}
    return Round(**times, skipped=_parse_spans(kept["skipped"]))


def _format_spans(spans: Sequence[Window]) -> list[list[str]]:
    return [[span.start.isoformat(), span.end.isoformat()] for span in spans]


def _parse_spans(spans: Sequence[Sequence[str]]) -> tuple[Window, ...]:
    return tuple(Window(*map(datetime.fromisoformat, span)) for span in spans)


def read_flaws(
    connection: Connection, market_ids: Sequence[int], interval: Interval
) -> list[DataIssue]:
    """Return what keeps statistics of some markets from being trusted."""
    wanted = {"markets": list(market_ids), "interval": interval.value}
    flaws = [
        DataIssue(market_id, UNEXPLAINED_HOLE, Window(start, end))
        for market_id, start, end in connection.execute(_UNEXPLAINED, wanted)
    ]
    flaws += [
        DataIssue(market_id, NEVER_ASKED, span)
        for (market_id, of), spans in read_never_asked(connection, market_ids).items()
        for span in spans
        if of is interval
    ]
    flaws += _read_mixed(connection, market_ids, interval)
    return [*flaws, *map(_describe_event, read_open_events(connection, market_ids))]


def _describe_event(event: Mapping[str, Any]) -> DataIssue:
    """Return what an open event withholds; what reaches up to now has no end yet."""
    reason = SUSPECTED_SPLIT if event["kind"] == events.SUSPECTED_SPLIT else RESTATING
    start, end = event["starts_at"], event["ends_at"]
    window = None if start is None else Window(start, end or _NO_END)
    return DataIssue(event["market_id"], reason, window)


def _read_mixed(
    connection: Connection, market_ids: Sequence[int], interval: Interval
) -> list[DataIssue]:
    """Return a flaw at each moment at which bars of one parser end and those of another begin."""
    mixed = connection.execute(_HAS_OLDER, {"markets": list(market_ids)}).scalars().all()
    known = read_coverage(connection, mixed) if mixed else {}
    flaws: list[DataIssue] = []
    for market_id in mixed:
        # Days that are built here are of the parser of their hours.
        series = known.get((market_id, interval)) or known.get((market_id, Interval.HOUR))
        spans = list_spans(series) if series is not None else []
        filled = _find_first_closes(connection, (market_id, interval), spans)
        moments = find_changes(filled)
        flaws += [DataIssue(market_id, MIXED_PARSING, Window(at, at)) for at in moments]
    return flaws


def _find_first_closes(
    connection: Connection, key: Key, spans: Sequence[ReadSpan]
) -> list[ReadSpan]:
    values = {
        "market": key[0],
        "interval": key[1].value,
        "starts": [span.window.start for span in spans],
        "ends": [span.window.end for span in spans],
    }
    closes = connection.execute(_FIRST_CLOSES, values).scalars()
    return [replace(span, first_close=at) for span, at in zip(spans, closes, strict=True)]


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
