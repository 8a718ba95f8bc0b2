"""The write path: a frame into a table, changing only what differs.

Rows are staged without any lock (``staging.py``). The merge then takes one global advisory lock, so
that merges follow one another: no deadlock, no unique violation, and dataset versions in commit
order. One join finds what is new or differs; only that is written, so writing the same data twice
changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from sqlalchemy import Connection, Table

from market_pipeline.storage.bulk.staging import Staged, find_types, stage_frame
from market_pipeline.storage.server.watchdog import allow
from market_pipeline.storage.tables import SCHEMA

MERGE_LOCK = 0x4D50_4D45
REPLACED_BY = ["known_until", "replaced_by_version", "replaced_by_run"]
# The join hashes the stored rows; too little memory would send it to disk.
_MEMORY = "SET LOCAL work_mem = '96MB'"
# The planner knows neither side: where many more rows are stored than come, keys are looked up.
_JOIN = """SELECT set_config('enable_' || way, (is_lookup = ({lookup}))::text, true) FROM (VALUES
    ('nestloop', true), ('hashjoin', false), ('mergejoin', false), ('seqscan', false)
) AS ways (way, is_lookup)"""
_ROW_BYTES = 200  # A stored bar has no more. Measured: as many as come are hashed in half the time.
_FATES = ("added", "changed", "revised")
_LOCK = f"SELECT pg_advisory_xact_lock({MERGE_LOCK})"


@dataclass(frozen=True, slots=True)
class WriteCounts:
    """What the database did with the rows of a write; some of the updated left a revision."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    revised: int = 0

    def __add__(self, other: "WriteCounts") -> "WriteCounts":
        return WriteCounts(
            self.inserted + other.inserted,
            self.updated + other.updated,
            self.unchanged + other.unchanged,
            self.revised + other.revised,
        )

    def describe(self) -> dict[str, int]:
        """Return what a trace says of a write."""
        return {
            "inserted": self.inserted,
            "updated": self.updated,
            "unchanged": self.unchanged,
        }

    @property
    def written(self) -> int:
        """Rows that are new or changed."""
        return self.inserted + self.updated


def upsert_frame(
    connection: Connection, table: Table, frame: pd.DataFrame, stamps: Mapping[str, object]
) -> WriteCounts:
    """Write a frame inside the caller's transaction and count what changed.

    Args:
        connection: In a transaction; nothing is visible before its commit.
        table: A table with a primary key; see ``tables.py`` for what its ``info`` may say.
        frame: One column for each column of the table but the stamps. Of rows with the same key
            the last is kept.
        stamps: The value of each stamp column.
    """
    return merge_staged(connection, stage_frame(connection, table, frame), stamps)


def merge_staged(
    connection: Connection, staged: Staged, stamps: Mapping[str, object]
) -> WriteCounts:
    """Merge staged rows into their table, under the lock until the transaction ends."""
    counts = merge_by(connection, staged, stamps, ()).get((), WriteCounts())
    unchanged = staged.count - counts.inserted - counts.updated
    return replace(counts, unchanged=unchanged)


@allow("bulk")
def merge_by(
    connection: Connection, staged: Staged, stamps: Mapping[str, object], by: Sequence[str]
) -> dict[tuple[Any, ...], WriteCounts]:
    """Merge staged rows, and count what changed by some columns of the key.

    Args:
        connection: In a transaction; it holds the lock of merges until its end.
        staged: The rows.
        stamps: The value of each stamp column.
        by: Columns of the key.

    Returns:
        Counts by the values of those columns; unchanged rows are not counted.
    """
    if not staged.count:
        return {}
    # Of one market only the span of what comes is read; that much is hashed.
    is_large = f"pg_relation_size('{_name(staged.table)}') > {staged.count * _ROW_BYTES}"
    join = _JOIN.format(lookup="false" if staged.span else is_large)
    statement = f"{_LOCK}; {_MEMORY}; {join}; {build_merge(staged, list(stamps), by)}"
    parameters = {
        **staged.parameters,
        **{f"stamp_{key}": stamps[key] for key in stamps},
        **{f"first_{key}": first for key, (first, _) in staged.span.items()},
        **{f"last_{key}": last for key, (_, last) in staged.span.items()},
    }
    # One round trip, a snapshot each: the merge sees what was committed before the lock was had.
    rows = connection.exec_driver_sql(statement, parameters).all()
    if not staged.relation:
        connection.exec_driver_sql("DROP TABLE incoming")
    return {
        tuple(key): WriteCounts(inserted, updated, 0, revised)
        for *key, inserted, updated, revised in rows
    }


def lock_merges(connection: Connection) -> None:
    """Wait for the merges before this one; later ones wait until the transaction ends."""
    connection.exec_driver_sql(_LOCK)


def take_dataset_version(connection: Connection) -> int:
    """Return the next dataset version; the merge lock is held, so versions follow commit order."""
    version = connection.exec_driver_sql(f"{_LOCK}; SELECT nextval('{SCHEMA}.dataset_version_seq')")
    return int(version.scalar_one())


def build_merge(staged: Staged, stamps: list[str], by: Sequence[str] = ()) -> str:
    """Return the statement that merges ``incoming`` and answers inserted, updated, revised.

    They are counted by some columns of the key, which stand before them; by none there is one row.

    All parts of a statement see the rows as they were before it, so revisions keep the old values.
    Counting ``delta`` first makes the join end before the first row is written: it would otherwise
    read the rows that it just inserted again and again.
    """
    table, name = staged.table, _name(staged.table)
    keys = [column.name for column in table.primary_key]
    values = [column for column in staged.columns if column not in keys]
    same_key = _match(staged, "delta")
    is_whole = "(SELECT count(*) FROM delta) > 0"
    changes = [f'"{column}" = delta."{column}"' for column in values]
    changes += [f'"{stamp}" = {_stamp(table, stamp)}' for stamp in stamps]
    selected = [f'delta."{column}"' for column in staged.columns]
    selected += [_stamp(table, stamp) for stamp in stamps]
    grouped = _quote([*by])
    returned = [f'stored."{column}"' for column in by]
    counted = [f"count(*) FILTER (WHERE fate = '{fate}')" for fate in _FATES]
    fates = " UNION ALL ".join(f"SELECT '{fate}' AS fate, * FROM {fate}" for fate in _FATES)
    return f"""
        WITH {staged.relation}delta AS MATERIALIZED ({_build_delta(staged, keys[0], values)}),
        {_build_revisions(table, same_key, by)}
        changed AS (UPDATE {name} stored SET {", ".join(changes)} FROM delta
            WHERE {same_key} AND delta.is_stored AND {is_whole}
                RETURNING {", ".join(returned) or "1"}),
        added AS (INSERT INTO {name} ({_quote([*staged.columns, *stamps])})
            SELECT {", ".join(selected)} FROM delta
            WHERE NOT is_stored AND {is_whole} RETURNING {grouped or "1"})
        SELECT {", ".join([*filter(None, [grouped]), *counted])} FROM ({fates}) AS fates
        {f"GROUP BY {grouped}" if by else ""}
    """


def _match(staged: Staged, rows: str) -> str:
    """Return the condition that a stored row has the key of one of the rows.

    What all keys have in common is said beside it: of a large table only that part is read.
    """
    parts = [f'stored."{key.name}" = {rows}."{key.name}"' for key in staged.table.primary_key]
    for key, (first, last) in staged.span.items():
        kind = find_types(staged.table, (key,))[0]
        least, most = (f"%({end}_{key})s::{kind}" for end in ("first", "last"))
        parts.append(
            f'stored."{key}" = {least}'
            if first == last
            else f'stored."{key}" BETWEEN {least} AND {most}'
        )
    return " AND ".join(parts)


def _build_delta(staged: Staged, key: str, values: list[str]) -> str:
    table = staged.table
    differs = [f'stored."{name}" IS DISTINCT FROM incoming."{name}"' for name in values]
    return f"""
        SELECT incoming.*, stored."{key}" IS NOT NULL AS is_stored
        FROM incoming LEFT JOIN {_name(table)} stored ON {_match(staged, "incoming")}
        WHERE stored."{key}" IS NULL
            OR ({" OR ".join(differs or ["false"])}) AND {table.info.get("guard", "true")}
    """


def _build_revisions(table: Table, same_key: str, by: Sequence[str]) -> str:
    revisions: Table | None = table.info.get("revisions")
    keys = _quote([*by]) or "1"
    if revisions is None:
        return f"revised AS (SELECT {keys} FROM delta WHERE false),"
    kept = [column.name for column in table.columns]
    replacing = [_stamp(table, name) for name in ("known_at", "dataset_version", "run_id")]
    return f"""
        revised AS (INSERT INTO {_name(revisions)} ({_quote([*kept, *REPLACED_BY])})
            SELECT {", ".join([*(f'stored."{name}"' for name in kept), *replacing])}
            FROM delta JOIN {_name(table)} stored ON {same_key}
            WHERE delta.is_stored AND stored.is_final RETURNING {keys}),
    """


def _stamp(table: Table, name: str) -> str:
    kind = find_types(table, (name,))[0]
    return f"%(stamp_{name})s::{kind}"


def _name(table: Table) -> str:
    return f'"{table.schema}"."{table.name}"'


def _quote(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
