"""Claims: the right of one run to fetch a market, so that two runs do not fetch the same thing.

A claim is a row with a growing token. It expires unless it is renewed, and it ends at once with the
session that holds its run's lock. So a killed run blocks nobody, and a suspended run not for long.
A transaction that writes bars checks the token under a lock, so a run that was suspended past its
claim cannot commit over a newer one. The database's clock decides. Not here: when runs claim.
"""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, Row, delete, func, select, text, update
from sqlalchemy.exc import DBAPIError

from market_pipeline.domain.errors import ClaimTimeoutError, SupersededError
from market_pipeline.storage.ledgers import fetch_claim
from market_pipeline.storage.server.watchdog import allow

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 1.0
# The first half of the advisory locks by which runs show that they live; the second is the run's.
_ALIVE = 0x6D70_6C76
_SHOW_LIFE = text(f"SELECT pg_advisory_lock_shared({_ALIVE}, hashtext(:run_id))")
_END_LIFE = text(f"SELECT pg_advisory_unlock_shared({_ALIVE}, hashtext(:run_id))")


def build_is_living(run_id: str) -> str:
    """Return SQL that tells whether a run shows life now; two of one hash live as long as either.

    Args:
        run_id: An SQL expression of the run's id.
    """
    # The inner query does not depend on the row, so it is run once however many rows there are.
    return f"""hashtext(CAST({run_id} AS text))::oid IN (
        SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND classid = {_ALIVE} AND objsubid = 2)"""


_LIVING = text(f"""
    SELECT run_id FROM unnest(CAST(:run_ids AS text[])) AS run_id
    WHERE {build_is_living("run_id")}
""")
# Two runs of one hash: the claim of the dead one runs out by time.
# Skips a locked row: its writer is about to commit, and may sleep in the middle of that.
_TAKE = text(f"""
    WITH free AS (
        SELECT market_id FROM market_data.fetch_claim WHERE market_id = :market_id
            AND (run_id = :run_id OR expires_at <= clock_timestamp()
                OR NOT {build_is_living("fetch_claim.run_id")})
        FOR UPDATE SKIP LOCKED),
    taken AS (
        UPDATE market_data.fetch_claim held SET token = nextval('market_data.fetch_claim_seq'),
            run_id = :run_id, claimed_at = clock_timestamp(), expires_at = clock_timestamp() + :ttl
        FROM free WHERE held.market_id = free.market_id RETURNING token),
    made AS (
        INSERT INTO market_data.fetch_claim (market_id, token, run_id, claimed_at, expires_at)
        SELECT :market_id, nextval('market_data.fetch_claim_seq'), :run_id, clock_timestamp(),
            clock_timestamp() + :ttl
        WHERE NOT EXISTS (SELECT FROM market_data.fetch_claim WHERE market_id = :market_id)
        ON CONFLICT DO NOTHING RETURNING token)
    SELECT token FROM taken UNION ALL SELECT token FROM made
""")


@contextmanager
def hold_liveness_lock(engine: Engine, run_id: UUID) -> Iterator[None]:
    """Let a run's claims count: they are free as soon as its process, or this block, ends.

    Holds one session of its own. If that is lost, others may take the claims; what this run writes
    afterwards is refused only where somebody did.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as session:
        session.execute(_SHOW_LIFE, {"run_id": str(run_id)})
        try:
            yield
        finally:
            # A session that was lost has freed the lock already.
            if not session.invalidated:
                # The session's end frees the lock too.
                with allow("cleanup"), suppress(DBAPIError):
                    session.execute(_END_LIFE, {"run_id": str(run_id)})


def find_living(connection: Connection, run_ids: Collection[UUID]) -> set[UUID]:
    """Return the runs that show life now; two of one hash live as long as either."""
    found = connection.execute(_LIVING, {"run_ids": [str(one) for one in run_ids]})
    return {UUID(run_id) for run_id in found.scalars()}


def take_claim(engine: Engine, market_id: int, run_id: UUID, ttl: timedelta) -> int | None:
    """Return a new token for a market, or None while another run holds it; never waits.

    A run that claims a market again gets a new token; its older one is then worthless. The claim
    counts within ``hold_liveness_lock`` only.

    Args:
        engine: The database.
        market_id: The market.
        run_id: Who claims it.
        ttl: How long the claim holds unless it is renewed.
    """
    row = {"market_id": market_id, "run_id": run_id, "ttl": ttl}
    # Autocommit: begun, done and committed by the server, however soon this process dies.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return connection.execute(_TAKE, row).scalar()


def wait_for_claim(
    engine: Engine, market_id: int, run_id: UUID, ttl: timedelta, patience: timedelta
) -> int:
    """Return a new token for a market as soon as nobody else holds it.

    Args:
        engine: The database.
        market_id: The market.
        run_id: Who claims it.
        ttl: How long the claim holds unless it is renewed.
        patience: How long to wait for it.

    Raises:
        ClaimTimeoutError: Another run held it all that time.
    """
    end = time.monotonic() + patience.total_seconds()
    pause = FIRST_PAUSE_SECONDS
    while (token := take_claim(engine, market_id, run_id, ttl)) is None:
        left = end - time.monotonic()
        if left <= 0:
            raise ClaimTimeoutError(_explain_timeout(engine, market_id, patience))
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
    return token


def renew_claim(engine: Engine, market_id: int, token: int, ttl: timedelta) -> None:
    """Let a claim hold for ``ttl`` from now; one that ran out counts until somebody takes it.

    Raises:
        SupersededError: Another run took the market.
    """
    changed = (
        update(fetch_claim)
        .where(fetch_claim.c.market_id == market_id, fetch_claim.c.token == token)
        .values(expires_at=func.clock_timestamp() + ttl)
    )
    with engine.begin() as connection:
        if not connection.execute(changed).rowcount:
            raise SupersededError(_explain_loss(market_id, _read(connection, market_id)))


def hold_claim(connection: Connection, market_id: int, token: int) -> None:
    """Make sure that the caller's transaction may write a market, and keep it so to its end.

    A claim that ran out counts until somebody takes it.

    Raises:
        SupersededError: Another run took the market; roll back, its result stands.
    """
    held = _read(connection, market_id, is_locked=True)
    if held is None or held.token != token:
        raise SupersededError(_explain_loss(market_id, held))


def release_claim(connection: Connection, market_id: int, token: int) -> None:
    """Give a claim back when the caller's transaction commits; another run's claim stays."""
    connection.execute(
        delete(fetch_claim).where(
            fetch_claim.c.market_id == market_id, fetch_claim.c.token == token
        )
    )


@allow("cleanup")
def release_run_claims(engine: Engine, run_id: UUID) -> int:
    """Give back all claims that a run still holds, and return how many there were."""
    with engine.begin() as connection:
        return connection.execute(
            delete(fetch_claim).where(fetch_claim.c.run_id == run_id)
        ).rowcount


def _read(connection: Connection, market_id: int, is_locked: bool = False) -> Row[Any] | None:
    query = select(fetch_claim).where(fetch_claim.c.market_id == market_id)
    return connection.execute(query.with_for_update() if is_locked else query).one_or_none()


def _explain_loss(market_id: int, held: Row[Any] | None) -> str:
    taker = "another run, which has finished," if held is None else f"run {held.run_id}"
    return (
        f"market {market_id} was claimed by {taker} after this run's claim ran out: "
        "nothing was written, its result stands. Run again if something is missing"
    )


def _explain_timeout(engine: Engine, market_id: int, patience: timedelta) -> str:
    with engine.connect() as connection:
        held = _read(connection, market_id)
    waited = f"waited {patience.total_seconds():g} s"
    if held is None:
        return f"market {market_id} was held by another run until now; {waited}. Run again"
    until = held.expires_at.astimezone(UTC)
    return (
        f"market {market_id} is being fetched by run {held.run_id}, which holds it until "
        f"{until:%Y-%m-%d %H:%M:%S} UTC unless it renews; {waited}. Run again later"
    )
