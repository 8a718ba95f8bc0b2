"""What a run's checks judge by: its receipt, coverage, holes, and the bars that it wrote.

Four questions, whatever the number of markets. None reads a table as a whole: the bars of a run lie
where its dataset versions say, between their first and last open_time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pandas as pd
from sqlalchemy import Connection, TextClause, text

from market_pipeline.domain.coverage import (
    AFTER_LAST,
    ASKED_OFTEN,
    BEFORE_FIRST,
    NO_TRADES,
    PROVIDER_EMPTY,
)
from market_pipeline.storage.coverage.listings import list_never_asked
from market_pipeline.storage.runs.states import read_absent_markets

MAX_EXAMPLES = 20
_RECEIPT = text("""
    SELECT receipt.*, symbol, provider
    FROM market_data.ingestion_run_market receipt JOIN market_data.market USING (market_id)
    WHERE receipt.run_id = :run_id ORDER BY symbol, provider
""")
_LAST = text("""
    SELECT run_id FROM market_data.ingestion_run run
    WHERE EXISTS (SELECT FROM market_data.ingestion_run_market part WHERE part.run_id = run.run_id)
    ORDER BY started_at DESC LIMIT 1
""")
# As Hole.is_explained says.
EXPLAINED = (
    f"(reason IN ('{NO_TRADES}', '{BEFORE_FIRST}', '{AFTER_LAST}') "
    f"OR reason = '{PROVIDER_EMPTY}' AND tries >= {ASKED_OFTEN})"
)
# A bar that is known not to exist cannot be late: the last explained hole says up to where.
COVERAGE = text(f"""
    SELECT market_id, interval, watermark, explained.starts_at, explained.ends_at
    FROM market_data.market_coverage known LEFT JOIN LATERAL (
        SELECT starts_at, ends_at FROM market_data.coverage_hole hole
        WHERE hole.market_id = known.market_id AND hole.interval = known.interval AND {EXPLAINED}
        ORDER BY starts_at DESC LIMIT 1) explained ON true
    WHERE market_id = ANY(:market_ids)
""")
_HOLES = text(f"""
    SELECT symbol, provider, interval, starts_at, ends_at, reason, tries, count(*) OVER () AS found
    FROM market_data.coverage_hole JOIN market_data.market USING (market_id)
    WHERE market_id = ANY(:market_ids) AND NOT {EXPLAINED}
    ORDER BY starts_at DESC, market_id, interval LIMIT {MAX_EXAMPLES}
""")
_BARS = text(f"""
    WITH spans AS (
        SELECT market_id, interval,
            unnest(range_agg(tstzrange(first_open_time, last_open_time, '[]'))) AS span
        FROM market_data.ingestion_run_market receipt
        JOIN market_data.dataset_version USING (market_id)
        WHERE receipt.run_id = :run_id AND dataset_version.run_id = :run_id
            AND version BETWEEN first_version AND last_version
        GROUP BY market_id, interval),
    written AS (
        SELECT market_id, interval, open_time, count(*) AS copies,
            bool_or((low > 0 AND low <= open AND low <= close AND high >= open AND high >= close
                AND high < 'Infinity') IS NOT TRUE) AS is_disordered
        FROM spans JOIN market_data.market_aggregate USING (market_id, interval)
        WHERE open_time BETWEEN lower(span) AND upper(span)
        GROUP BY market_id, interval, open_time HAVING bool_or(run_id = :run_id))
    SELECT count(*), count(*) FILTER (WHERE copies > 1), count(*) FILTER (WHERE is_disordered),
        (array_agg(to_jsonb(written)) FILTER (WHERE copies > 1))[1:{MAX_EXAMPLES}],
        (array_agg(to_jsonb(written)) FILTER (WHERE is_disordered))[1:{MAX_EXAMPLES}]
    FROM written
""")


@dataclass(frozen=True, slots=True)
class WrittenBars:
    """The bars a run wrote: how many, and those that no constraint should have let in.

    Attributes:
        bars: Keys written.
        repeated: Of them, those stored more than once. disordered: Those whose low is not lowest,
            whose high is not highest, or that are no prices.
        repeated_examples: The first of them, with market_id, interval and open_time (ISO 8601).
        disordered_examples: The same of the others.
    """

    bars: int
    repeated: int
    disordered: int
    repeated_examples: Sequence[Mapping[str, Any]]
    disordered_examples: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """What is known about a run.

    Attributes:
        run_id: Whose receipt it is; None when there is none at all.
        receipt: One row per market: the receipt's columns, ``symbol`` and ``provider``.
        coverage: One row per market and interval: ``watermark``, and ``starts_at`` and ``ends_at``
            of the last hole that is explained (UTC).
        holes: The last unexplained ones, ``found`` being how many there are.
        never_asked: The spans between settled ones that nobody asked for.
        written: Its bars.
        absent: ``symbol``, ``outcome`` and ``reason`` of what it was asked for and did not fetch.
    """

    run_id: UUID | None
    receipt: pd.DataFrame
    coverage: pd.DataFrame
    holes: pd.DataFrame
    never_asked: Sequence[Mapping[str, Any]]
    written: WrittenBars
    absent: Sequence[Mapping[str, Any]] = ()


def read_run_evidence(connection: Connection, run_id: UUID) -> RunEvidence:
    """Read the evidence about a run; about the last one that fetched bars when it did not."""
    receipt = _read(connection, _RECEIPT, run_id=run_id)
    about: UUID | None = run_id
    if receipt.empty:
        about = connection.execute(_LAST).scalar()
        receipt = _read(connection, _RECEIPT, run_id=about)
    market_ids = [int(one) for one in receipt["market_id"]]
    bars, repeated, disordered, *examples = connection.execute(_BARS, {"run_id": about}).one()
    return RunEvidence(
        about,
        receipt,
        _read(connection, COVERAGE, market_ids=market_ids),
        _read(connection, _HOLES, market_ids=market_ids),
        list_never_asked(connection, market_ids),
        WrittenBars(bars, repeated, disordered, examples[0] or [], examples[1] or []),
        () if about is None else read_absent_markets(connection, about),
    )


def _read(connection: Connection, query: TextClause, **values: object) -> pd.DataFrame:
    result = connection.execute(query, values)
    return pd.DataFrame(result.fetchall(), columns=list(result.keys()), dtype=object)
