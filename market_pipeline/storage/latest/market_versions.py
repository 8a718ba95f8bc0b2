"""Stamps: the version of the last change of each market, of any kind; sent to listeners at commit.

A dataset version names bars alone; a stamp also counts snapshots, statistics and the list of
markets. Both are drawn from one sequence under the merge lock, so stamps follow commit order: who
reads a stamp and values in one snapshot knows exactly which values they are. Not here: who listens
(``listener``), what is cached by it (``cache``).
"""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, text

from market_pipeline.storage.bulk.upsert import take_dataset_version

CHANNEL = "market_data_changed"
EVERYTHING = "*"
# Notes the version of the last change of some markets.
_STAMP = text("""
    INSERT INTO market_data.market_stamp (scope, version)
    SELECT DISTINCT provider || ':' || symbol, :version FROM market_data.market
    WHERE market_id = ANY(:market_ids)
    ON CONFLICT (scope) DO UPDATE SET version = excluded.version
""")
# Notes that the list of markets changes.
_STAMP_ALL = text(f"""
    INSERT INTO market_data.market_stamp (scope, version) VALUES ('{EVERYTHING}', :version)
    ON CONFLICT (scope) DO UPDATE SET version = excluded.version
""")
# Tells listeners, at the commit.
_NOTIFY = text("SELECT pg_notify(:channel, CAST(:version AS text))")
# The versions of some scopes.
_READ = text("SELECT scope, version FROM market_data.market_stamp WHERE scope = ANY(:scopes)")
# The newest version of some scopes, and the newest dataset version.
_READ_BOTH = text("""
    SELECT
        (SELECT coalesce(max(version), 0) FROM market_data.market_stamp WHERE scope = ANY(:scopes))
            AS stamp,
        (SELECT coalesce(max(version), 0) FROM market_data.dataset_version) AS newest
""")


def stamp_markets(
    connection: Connection, market_ids: Iterable[int], version: int | None = None
) -> int:
    """Note that values of markets change with this transaction, and tell listeners at its commit.

    Args:
        connection: In a transaction; other writers wait until it ends.
        market_ids: Whose values.
        version: Of ``take_dataset_version`` in this transaction; None takes the next one.

    Returns:
        The version.
    """
    taken = take_dataset_version(connection) if version is None else version
    ids = sorted({int(one) for one in market_ids})
    connection.execute(_STAMP, {"version": taken, "market_ids": ids})
    _notify(connection, taken)
    return taken


def stamp_everything(connection: Connection) -> int:
    """Note that the list of markets changes: whatever was read before counts as old."""
    version = take_dataset_version(connection)
    connection.execute(_STAMP_ALL, {"version": version})
    _notify(connection, version)
    return version


def read_stamps(connection: Connection, scopes: Sequence[str]) -> Mapping[str, int]:
    """Return the version that values of each scope have in this snapshot; 0: never changed.

    Args:
        connection: Whose snapshot the values are read in as well.
        scopes: ``provider:symbol``, or ``*`` for the list of markets.
    """
    wanted = [*scopes, EVERYTHING]
    rows = connection.execute(_READ, {"scopes": wanted})
    return choose_versions({row.scope: row.version for row in rows}, scopes)


def read_stamp(connection: Connection, scope: str) -> tuple[int, int]:
    """Return a scope's version as ``read_stamps`` does, and the newest dataset version with it."""
    row = connection.execute(_READ_BOTH, {"scopes": [scope, EVERYTHING]}).one()
    return int(row.stamp), int(row.newest)


def choose_versions(stamps: Mapping[str, int], scopes: Iterable[str]) -> dict[str, int]:
    """Return each scope's version: its own, or that of the list of markets if newer."""
    floor = stamps.get(EVERYTHING, 0)
    return {scope: max(floor, stamps.get(scope, 0)) for scope in scopes}


def _notify(connection: Connection, version: int) -> None:
    connection.execute(_NOTIFY, {"channel": CHANNEL, "version": version})
