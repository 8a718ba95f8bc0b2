"""Market versions: the number of the last change of each market, sent to listeners at commit.

A dataset version counts changes of bars alone. A market version also counts those of snapshots,
statistics and the list of markets. Both come from one sequence under the merge lock, so they follow
commit order: a version and values that are read in one snapshot belong together. Not here: the
listening thread (``listener``), and the cache that uses the versions (``cache``).
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


def bump_market_versions(
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


def bump_list_version(connection: Connection) -> int:
    """Note that the list of markets changes: whatever was read before counts as old."""
    version = take_dataset_version(connection)
    connection.execute(_STAMP_ALL, {"version": version})
    _notify(connection, version)
    return version


def read_market_versions(connection: Connection, scopes: Sequence[str]) -> Mapping[str, int]:
    """Return the version that values of each scope have in this snapshot; 0: never changed.

    Args:
        connection: Whose snapshot the values are read in as well.
        scopes: ``provider:symbol``, or ``*`` for the list of markets.
    """
    wanted = [*scopes, EVERYTHING]
    rows = connection.execute(_READ, {"scopes": wanted})
    return choose_versions({row.scope: row.version for row in rows}, scopes)


def read_version_pair(connection: Connection, scope: str) -> tuple[int, int]:
    """Return the version of a scope, its own or the list's, and the newest dataset version."""
    row = connection.execute(_READ_BOTH, {"scopes": [scope, EVERYTHING]}).one()
    return int(row.stamp), int(row.newest)


def choose_versions(stamps: Mapping[str, int], scopes: Iterable[str]) -> dict[str, int]:
    """Return each scope's version: its own, or that of the list of markets if newer."""
    floor = stamps.get(EVERYTHING, 0)
    return {scope: max(floor, stamps.get(scope, 0)) for scope in scopes}


def _notify(connection: Connection, version: int) -> None:
    connection.execute(_NOTIFY, {"channel": CHANNEL, "version": version})
