"""Claims: the right of one run to fetch a market, so that two runs do not fetch the same thing.

A claim is a row with a growing token. It expires unless it is renewed, and it ends at once with the
session that holds its run's lock. So a killed run blocks nobody, and a suspended run not for long.
A transaction that writes bars checks the token under a lock, so a run that was suspended past its
claim cannot commit over a newer one. The database's clock decides. Not here: when runs claim.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, Row, select, text
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
# All take them in the order of their markets, so that no two wait for each other.
_TAKE = text(f"""
    WITH free AS (
        SELECT market_id FROM market_data.fetch_claim WHERE market_id = ANY(:market_ids)
            AND (run_id = :run_id OR expires_at <= clock_timestamp()
                OR NOT {build_is_living("fetch_claim.run_id")})
        ORDER BY market_id FOR UPDATE SKIP LOCKED),
    taken AS (
        UPDATE market_data.fetch_claim held SET token = nextval('market_data.fetch_claim_seq'),
            run_id = :run_id, claimed_at = clock_timestamp(), expires_at = clock_timestamp() + :ttl
        FROM free WHERE held.market_id = free.market_id RETURNING held.market_id, token),
    made AS (
        INSERT INTO market_data.fetch_claim (market_id, token, run_id, claimed_at, expires_at)
        SELECT wanted, nextval('market_data.fetch_claim_seq'), :run_id, clock_timestamp(),
            clock_timestamp() + :ttl
        FROM unnest(CAST(:market_ids AS bigint[])) AS wanted
        WHERE NOT EXISTS (SELECT FROM market_data.fetch_claim WHERE market_id = wanted)
        ORDER BY wanted ON CONFLICT DO NOTHING RETURNING market_id, token)
    SELECT market_id, token FROM taken UNION ALL SELECT market_id, token FROM made
""")
# Lets claims hold on, and answers which are lost.
# A locked one is about to be committed, and holds: nobody waits for that.
_RENEW = text("""
    WITH own AS (
        SELECT * FROM unnest(CAST(:market_ids AS bigint[]), CAST(:tokens AS bigint[]))
            AS own (market_id, token)),
    free AS (
        SELECT held.market_id FROM market_data.fetch_claim held JOIN own USING (market_id, token)
        FOR UPDATE OF held SKIP LOCKED),
    renewed AS (
        UPDATE market_data.fetch_claim held SET expires_at = clock_timestamp() + :ttl
        FROM free WHERE held.market_id = free.market_id)
    SELECT own.market_id FROM own LEFT JOIN market_data.fetch_claim held USING (market_id, token)
    WHERE held.run_id IS NULL
""")
# Gives claims back; another run's stay.
_RELEASE = text("""
    DELETE FROM market_data.fetch_claim held
    USING unnest(CAST(:market_ids AS bigint[]), CAST(:tokens AS bigint[])) AS own (market_id, token)
    WHERE held.market_id = own.market_id AND held.token = own.token
""")
Tokens = Mapping[int, int]
"""The token of each market that is claimed."""


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


def take_claims(
    engine: Engine, market_ids: Iterable[int], run_id: UUID, ttl: timedelta
) -> dict[int, int]:
    """Return new tokens for the markets that no other run holds; never waits.

    A run that claims a market again gets a new token; its older one is then worthless. Claims count
    within ``hold_liveness_lock`` only.

    Args:
        engine: The database.
        market_ids: The markets.
        run_id: Who claims them.
        ttl: How long the claims hold unless they are renewed.
    """
    row = {"market_ids": list(market_ids), "run_id": run_id, "ttl": ttl}
    # Autocommit: begun, done and committed by the server, however soon this process dies.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return {taken.market_id: taken.token for taken in connection.execute(_TAKE, row)}


def take_claim(engine: Engine, market_id: int, run_id: UUID, ttl: timedelta) -> int | None:
    """Return a new token for one market, or None while another run holds it."""
    return take_claims(engine, [market_id], run_id, ttl).get(market_id)


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
            raise explain_timeout(engine, market_id, patience)
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
    return token


def renew_claims(engine: Engine, tokens: Tokens, ttl: timedelta) -> dict[int, SupersededError]:
    """Let claims hold for ``ttl`` from now, and return why some are lost: other runs took them.

    A claim that ran out counts until somebody takes it.
    """
    with engine.begin() as connection:
        lost = connection.execute(_RENEW, {**_list(tokens), "ttl": ttl}).scalars().all()
        return _explain_losses(connection, lost)


def renew_claim(engine: Engine, market_id: int, token: int, ttl: timedelta) -> None:
    """Let one claim hold for ``ttl`` from now.

    Raises:
        SupersededError: Another run took the market.
    """
    for loss in renew_claims(engine, {market_id: token}, ttl).values():
        raise loss


def hold_claims(connection: Connection, tokens: Tokens) -> dict[int, SupersededError]:
    """Make sure that the caller's transaction may write markets, and keep it so to its end.

    Returns:
        Why some may not be written: another run took them.
    """
    query = select(fetch_claim.c.market_id, fetch_claim.c.token)
    query = query.where(fetch_claim.c.market_id.in_(list(tokens)))
    query = query.order_by(fetch_claim.c.market_id).with_for_update()
    held = {row.market_id: row.token for row in connection.execute(query)}
    lost = [one for one, token in tokens.items() if held.get(one) != token]
    return _explain_losses(connection, lost)


def hold_claim(connection: Connection, market_id: int, token: int) -> None:
    """Make sure that the caller's transaction may write one market, and keep it so to its end.

    Raises:
        SupersededError: Another run took the market; roll back.
    """
    for loss in hold_claims(connection, {market_id: token}).values():
        raise loss


def release_claims(connection: Connection, tokens: Tokens) -> None:
    """Give claims back when the caller's transaction commits; those of other runs stay."""
    connection.execute(_RELEASE, _list(tokens))


@allow("cleanup")
def give_back_claims(engine: Engine, tokens: Tokens) -> None:
    """Give claims back at once; those of other runs stay, and those of this run's other streams."""
    with engine.begin() as connection:
        release_claims(connection, tokens)


@contextmanager
def hold_market(
    engine: Engine, market_id: int, run_id: UUID, ttl: timedelta, patience: timedelta
) -> Iterator[int]:
    """Claim a market as soon as nobody else holds it, until the block ends; yield the token.

    Raises:
        ClaimTimeoutError: Another run held it longer than ``patience``.
    """
    with hold_liveness_lock(engine, run_id):
        token = wait_for_claim(engine, market_id, run_id, ttl, patience)
        try:
            yield token
        finally:
            give_back_claims(engine, {market_id: token})


def _list(tokens: Tokens) -> dict[str, list[int]]:
    return {"market_ids": list(tokens), "tokens": list(tokens.values())}


def _read(connection: Connection, market_id: int) -> Row[Any] | None:
    query = select(fetch_claim).where(fetch_claim.c.market_id == market_id)
    return connection.execute(query).one_or_none()


def _explain_losses(
    connection: Connection, market_ids: Sequence[int]
) -> dict[int, SupersededError]:
    if not market_ids:
        return {}
    query = select(fetch_claim).where(fetch_claim.c.market_id.in_(market_ids))
    takers = {row.market_id: row for row in connection.execute(query)}
    return {one: _explain_loss(one, takers.get(one)) for one in market_ids}


def _explain_loss(market_id: int, held: Row[Any] | None) -> SupersededError:
    taker = "another run, which has finished," if held is None else f"run {held.run_id}"
    return SupersededError(
        f"market {market_id} was claimed by {taker} after this run's claim ran out, "
        "so this run writes no more of it"
    )


def explain_timeout(engine: Engine, market_id: int, patience: timedelta) -> ClaimTimeoutError:
    """Return the error that tells who held a market all the time."""
    with engine.connect() as connection:
        held = _read(connection, market_id)
    waited = f"waited {patience.total_seconds():g} s"
    if held is None:
        told = f"market {market_id} was held by another run until now; {waited}. Run again"
        return ClaimTimeoutError(told)
    until = held.expires_at.astimezone(UTC)
    return ClaimTimeoutError(
        f"market {market_id} is being fetched by run {held.run_id}, which holds it until "
        f"{until:%Y-%m-%d %H:%M:%S} UTC unless it renews; {waited}. Run again later"
    )
