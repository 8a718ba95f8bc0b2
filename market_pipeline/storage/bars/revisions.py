"""Revisions: final values that were replaced, and the batches of a run that replaced them."""

from datetime import datetime

from sqlalchemy import Connection, text

from market_pipeline.storage.rows import Row, fetch

# A replaced value, what replaced it, and when.
FIELDS = ("open", "high", "low", "close", "volume")
_PAIRS = ", ".join(
    f"old.{name} AS old_{name}, coalesce(now.{name}, later.{name}) AS {name}" for name in FIELDS
)
_VALUES = f"""old."interval", old.open_time, {_PAIRS},
    old.known_until AS replaced_at, old.replaced_by_version AS version,
    old.replaced_by_run AS run_id"""
# What came after a replaced value: it is in force now, or was replaced itself later.
_FOLLOWING = """
    LEFT JOIN market_data.market_aggregate now ON now.market_id = old.market_id
        AND now."interval" = old."interval" AND now.open_time = old.open_time
        AND now.dataset_version = old.replaced_by_version
    LEFT JOIN market_data.market_aggregate_revision later ON later.market_id = old.market_id
        AND later."interval" = old."interval" AND later.open_time = old.open_time
        AND later.dataset_version = old.replaced_by_version"""
# The values of a market that were replaced last.
_OF_MARKET = text(f"""
    SELECT {_VALUES} FROM market_data.market_aggregate_revision old {_FOLLOWING}
    WHERE old.market_id = :market_id
    ORDER BY old.replaced_by_version DESC, old."interval", old.open_time LIMIT :count
""")
# The replaced values of a market and interval that open in a span.
_OF_SPAN = text(f"""
    SELECT {_VALUES} FROM market_data.market_aggregate_revision old {_FOLLOWING}
    WHERE old.market_id = :market_id AND old."interval" = :interval
        AND old.open_time BETWEEN :first AND :last
    ORDER BY old.open_time, old.replaced_by_version
""")
# The values that a run replaced: they lie where its dataset versions say.
_BY_RUN = text(f"""
    SELECT symbol, provider, {_VALUES} FROM market_data.dataset_version batch
    JOIN market_data.market USING (market_id)
    JOIN market_data.market_aggregate_revision old ON old.market_id = batch.market_id
        AND old."interval" = batch."interval" AND old.replaced_by_version = batch.version
        AND old.open_time BETWEEN first_open_time AND last_open_time {_FOLLOWING}
    WHERE batch.version BETWEEN :first AND :last AND batch.run_id = ANY(:parts)
    ORDER BY symbol, provider, old."interval", old.open_time LIMIT :count
""")
# The batches of a run: how many bars have its values still, how many final ones it replaced.
_BATCHES = text("""
    WITH batch AS (
        SELECT * FROM market_data.dataset_version
        WHERE version BETWEEN :first AND :last AND run_id = ANY(:parts)
        ORDER BY version, "interval" LIMIT :count
    )
    SELECT version, symbol, provider, batch."interval", first_open_time, last_open_time, known_at,
        (SELECT count(*) FROM market_data.market_aggregate bar
            WHERE bar.market_id = batch.market_id
            AND bar."interval" = batch."interval" AND bar.dataset_version = batch.version
            AND bar.open_time BETWEEN first_open_time AND last_open_time) AS current,
        (SELECT count(*) FROM market_data.market_aggregate_revision old
            WHERE old.market_id = batch.market_id AND old."interval" = batch."interval"
            AND old.replaced_by_version = batch.version
            AND old.open_time BETWEEN first_open_time AND last_open_time) AS revised
    FROM batch JOIN market_data.market USING (market_id) ORDER BY version, batch."interval"
""")
# Which run wrote a version, and when.
_VERSION = text("""
    SELECT version, run_id, known_at FROM market_data.dataset_version
    WHERE version = :version LIMIT 1
""")


def read_revised(connection: Connection, market_id: int, count: int) -> list[Row]:
    """Return final values of a market that were replaced, and by what, the newest first.

    Returns:
        ``interval``, ``open_time``, ``old_`` and each of ``FIELDS``, the values that replaced them
        under the fields' own names, ``replaced_at`` (UTC), ``version`` and ``run_id`` of the
        replacement.
    """
    return fetch(connection, _OF_MARKET, market_id=market_id, count=count)


def read_revisions(
    connection: Connection, market_id: int, interval: str, first: datetime, last: datetime
) -> list[Row]:
    """Return what :func:`read_revised` does of bars that open in ``[first, last]``, in order."""
    span = {"market_id": market_id, "interval": interval, "first": first, "last": last}
    return fetch(connection, _OF_SPAN, **span)


def read_restated_bars(connection: Connection, run: Row, count: int) -> list[Row]:
    """Return what :func:`read_revised` does of the values that a run replaced, with their market.

    Args:
        connection: Any.
        run: ``parts``, ``first_version`` and ``last_version`` of its receipt.
        count: The most to return.
    """
    return fetch(connection, _BY_RUN, **_span(run), count=count)


def read_version(connection: Connection, version: int) -> Row | None:
    """Return the run and time of a dataset version as a run of that version alone; None: no bars.

    What :func:`read_version_batches` and :func:`read_restated_bars` take.
    """
    found = fetch(connection, _VERSION, version=version)
    span = {"first_version": version, "last_version": version}
    return {**found[0], **span, "parts": [found[0]["run_id"]]} if found else None


def read_version_batches(connection: Connection, run: Row, count: int) -> list[Row]:
    """Return the batches of a run: bars that still have its values, and final ones it replaced."""
    return fetch(connection, _BATCHES, **_span(run), count=count)


def _span(run: Row) -> Row:
    return {"first": run["first_version"], "last": run["last_version"], "parts": run["parts"]}
