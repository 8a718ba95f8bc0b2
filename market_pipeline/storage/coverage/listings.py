"""Listings of the coverage ledger: what is stored, never asked for, read by an older parser."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, TextClause, select, text

from market_pipeline.domain.coverage import Coverage, measure_round
from market_pipeline.domain.grids import find_grid
from market_pipeline.domain.intervals import Interval
from market_pipeline.storage.coverage.holes import EXPLAINED
from market_pipeline.storage.coverage.ledger import read_coverage, read_never_asked
from market_pipeline.storage.rows import Row, fetch
from market_pipeline.storage.server.watchdog import allow
from market_pipeline.storage.tables import market

# What is stored and missing of each market and interval.
_COVERAGE = text("""
    SELECT market_id, symbol, provider, interval, first_bar_at, last_bar_at, watermark AS final_to,
        bars, (SELECT count(*) FROM market_data.coverage_hole hole
            WHERE hole.market_id = known.market_id AND hole.interval = known.interval) AS n_holes,
        refreshed_at
    FROM market_data.market_coverage known JOIN market_data.market USING (market_id)
    WHERE CAST(:market_ids AS bigint[]) IS NULL OR market_id = ANY(:market_ids)
    ORDER BY symbol, provider, interval
""")
# Up to where each series of some markets is final, and its last explained hole: a bar that is known
# not to exist cannot be late.
_FINAL_TO = text(f"""
    SELECT market_id, interval, watermark, explained.starts_at, explained.ends_at
    FROM market_data.market_coverage known LEFT JOIN LATERAL (
        SELECT starts_at, ends_at FROM market_data.coverage_hole hole
        WHERE hole.market_id = known.market_id AND hole.interval = known.interval AND {EXPLAINED}
        ORDER BY starts_at DESC LIMIT 1) explained ON true
    WHERE market_id = ANY(:market_ids)
""")
# Where the ledger and the stored bars disagree.
_VERIFY = text("""
    SELECT symbol, provider, interval,
        known.bars AS bars_in_ledger, count(open_time) AS bars_stored,
        known.first_bar_at AS first_in_ledger, min(open_time) AS first_stored,
        known.last_bar_at AS last_in_ledger, max(open_time) AS last_stored
    FROM market_data.market_coverage known
    JOIN market_data.market USING (market_id)
    LEFT JOIN market_data.market_aggregate bar USING (market_id, interval)
    WHERE CAST(:market_ids AS bigint[]) IS NULL OR market_id = ANY(:market_ids)
    GROUP BY symbol, provider, interval, known.bars, known.first_bar_at, known.last_bar_at
    HAVING known.bars <> count(open_time) OR known.first_bar_at IS DISTINCT FROM min(open_time)
        OR known.last_bar_at IS DISTINCT FROM max(open_time)
    ORDER BY symbol, provider, interval
""")
# Where bars are stored that another version of the provider's parser has read.
_OLDER = text("""
    SELECT symbol, provider, interval, CAST(older.key AS integer) AS read_by_version,
        known.parsing AS newest_version, min(CAST(span->>0 AS timestamptz)) AS starts_at,
        max(CAST(span->>1 AS timestamptz)) AS ends_at
    FROM market_data.market_coverage known JOIN market_data.market USING (market_id),
        jsonb_each(older_parsings) older, jsonb_array_elements(older.value) span
    WHERE CAST(:market_ids AS bigint[]) IS NULL OR market_id = ANY(:market_ids)
    GROUP BY symbol, provider, interval, older.key, known.parsing
    ORDER BY symbol, provider, interval, older.key
""")


def list_older(connection: Connection, market_ids: Sequence[int] | None) -> list[Row]:
    """Return where bars are stored that another version of the provider's parser has read."""
    return _list(connection, _OLDER, market_ids)


def list_coverage(connection: Connection, market_ids: Sequence[int] | None) -> list[Row]:
    """Return one row for each market and interval; None: of all markets.

    Beside what is stored: ``n_holes``; ``n_never_asked``, the spans that nobody asked for;
    ``verified``, the share of settled history that this turn has read again; ``verified_at``, when
    its last page was read (UTC); ``turn_days``, how long a turn takes at its pace. NULL before the
    first page.
    """
    rows = _list(connection, _COVERAGE, market_ids)
    known = read_coverage(connection, sorted({row["market_id"] for row in rows}))
    never = Counter({k: len(v) for k, v in read_never_asked(connection, market_ids).items()})
    keys = [(row.pop("market_id"), Interval(row["interval"])) for row in rows]
    return [
        {**row, "n_never_asked": never[key], **_describe_turn(known[key])}
        for key, row in zip(keys, rows, strict=True)
    ]


def read_coverage_rows(connection: Connection, market_ids: Sequence[int]) -> list[Row]:
    """Return ``market_id``, ``interval`` and ``watermark`` of every series of some markets.

    And ``starts_at`` and ``ends_at`` of the last hole that is explained (UTC).
    """
    return fetch(connection, _FINAL_TO, market_ids=list(market_ids))


def list_never_asked(connection: Connection, market_ids: Sequence[int] | None) -> list[Row]:
    """Return every span between settled ones that nobody asked for, and the bars expected in it."""
    found = read_never_asked(connection, market_ids)
    if not found:
        return []
    columns = (market.c.market_id, market.c.symbol, market.c.provider, market.c.calendar)
    query = select(*columns).where(market.c.market_id.in_({key[0] for key in found}))
    names = {row.market_id: row for row in connection.execute(query)}
    return [
        {
            "symbol": names[key[0]].symbol,
            "provider": names[key[0]].provider,
            "interval": key[1].value,
            "starts_at": span.start,
            "ends_at": span.end,
            "bars": find_grid(names[key[0]].calendar, key[1], span).count(span),
        }
        for key, spans in found.items()
        for span in spans
    ]


@allow("bulk")
def verify_bars(connection: Connection, market_ids: Sequence[int] | None) -> list[Row]:
    """Return where the ledger and the stored bars disagree; scans the bars."""
    return _list(connection, _VERIFY, market_ids)


def _describe_turn(known: Coverage) -> dict[str, Any]:
    progress = measure_round(known)
    if progress is None or known.round is None or progress.days is None:
        return dict.fromkeys(("verified", "verified_at", "turn_days"))
    return {
        "verified": round(progress.share, 4),
        "verified_at": known.round.read_at,
        "turn_days": round(progress.days, 1),
    }


def _list(connection: Connection, query: TextClause, market_ids: Sequence[int] | None) -> list[Row]:
    return fetch(connection, query, market_ids=None if market_ids is None else list(market_ids))
