"""Claims: one run at a time fetches a market; one that slept past its claim writes nothing."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from multiprocessing.connection import Connection
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text

from market_pipeline.domain.errors import ClaimTimeoutError, SupersededError
from market_pipeline.storage.runs.claims import (
    hold_claim,
    hold_liveness_lock,
    hold_market,
    release_claims,
    renew_claim,
    take_claim,
    wait_for_claim,
)
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline_tests.children import Child, start_child

A, B, MORTAL = UUID(int=0xA), UUID(int=0xB), UUID(int=0xC)
LONG, SHORT, NONE = timedelta(minutes=10), timedelta(milliseconds=300), timedelta()
PATIENCE = timedelta(seconds=30)
MARKET = text(
    """
    INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base, quote, venue,
        calendar, intervals, price_basis)
    VALUES ('mock', :name, :name, 'nobody', 'A', 'USD', 'v', '24/7', '{1d}', 'unadjusted')
    RETURNING market_id
    """
)
WRITE = text("UPDATE market_data.market SET name = :name WHERE market_id = :market_id")
NAME = text("SELECT name FROM market_data.market WHERE market_id = :market_id")
EXPIRED = text("SELECT expires_at <= clock_timestamp() FROM market_data.fetch_claim")


@pytest.fixture
def market_id(engine: Engine) -> int:
    """A market that nobody holds."""
    with engine.begin() as connection:
        return int(connection.execute(MARKET, {"name": uuid4().hex}).scalar_one())


@pytest.fixture(autouse=True)
def living(engine: Engine) -> Iterator[None]:
    """Runs A and B live as long as the test."""
    with hold_liveness_lock(engine, A), hold_liveness_lock(engine, B):
        yield


def write(engine: Engine, market_id: int, token: int, name: str) -> None:
    """Commit a value as a run does: claim, value and release in one transaction."""
    with engine.begin() as connection:
        hold_claim(connection, market_id, token)
        connection.execute(WRITE, {"name": name, "market_id": market_id})
        release_claims(connection, {market_id: token})


def read_name(engine: Engine, market_id: int) -> str:
    """Return who wrote last."""
    with engine.connect() as connection:
        return str(connection.execute(NAME, {"market_id": market_id}).scalar_one())


# What the children do


def write_when_told(pipe: Connection, url: str, market_id: int, ttl: timedelta) -> None:
    """Claim as run A; write when told; say what came of it."""
    engine = open_engine(DatabaseAddress(url, is_embedded=False))
    token = take_claim(engine, market_id, A, ttl)
    pipe.send(token)
    pipe.recv()
    try:
        write(engine, market_id, token or 0, "the sleeper")
        pipe.send("written")
    except SupersededError as error:
        pipe.send(str(error))
    pipe.recv()


def stay_inside_a_write(pipe: Connection, url: str, market_id: int, ttl: timedelta) -> None:
    """Claim as run A, and be told to go on in the middle of the writing transaction."""
    engine = open_engine(DatabaseAddress(url, is_embedded=False))
    token = take_claim(engine, market_id, A, ttl) or 0
    with engine.begin() as connection:
        hold_claim(connection, market_id, token)
        connection.execute(WRITE, {"name": "the sleeper", "market_id": market_id})
        pipe.send(token)
        pipe.recv()
    pipe.send("written")
    pipe.recv()


def write_often(pipe: Connection, url: str, market_id: int, times: int) -> None:
    """Claim, write and release again and again; give the tokens."""
    engine = open_engine(DatabaseAddress(url, is_embedded=False))
    pipe.send("ready")
    run_id = pipe.recv()
    tokens = []
    while len(tokens) < times:
        token = take_claim(engine, market_id, run_id, LONG)
        if token is not None:
            write(engine, market_id, token, str(run_id))
            tokens.append(token)
    pipe.send(tokens)
    pipe.recv()


def claim_and_stay(pipe: Connection, url: str, market_id: int) -> None:
    """Claim as a run that lives in this process alone; write when told, if that comes."""
    engine = open_engine(DatabaseAddress(url, is_embedded=False))
    with hold_liveness_lock(engine, MORTAL):
        token = take_claim(engine, market_id, MORTAL, LONG)
        pipe.send(token)
        pipe.recv()


def die_inside_a_statement(pipe: Connection, url: str, market_id: int) -> None:
    """Hold the claim's row locked in a statement that takes ten minutes."""
    engine = open_engine(DatabaseAddress(url, is_embedded=False))
    with hold_liveness_lock(engine, MORTAL), engine.begin() as connection:
        token = take_claim(engine, market_id, MORTAL, LONG) or 0
        hold_claim(connection, market_id, token)
        pipe.send(token)
        connection.execute(text("SELECT pg_sleep(600)"))


# Alone


def test_a_claimed_market_is_refused_to_others_until_it_is_released(
    engine: Engine, market_id: int
) -> None:
    """One run at a time, and the next gets a greater token."""
    first = take_claim(engine, market_id, A, LONG)
    assert first is not None
    assert take_claim(engine, market_id, B, LONG) is None
    write(engine, market_id, first, "A")
    second = take_claim(engine, market_id, B, LONG)
    assert second is not None
    assert second > first


def test_a_run_that_claims_again_gets_a_new_token_and_loses_the_old(
    engine: Engine, market_id: int
) -> None:
    """A retried step goes on at once, and what is left of its first try cannot write."""
    first = take_claim(engine, market_id, A, LONG) or 0
    second = take_claim(engine, market_id, A, LONG) or 0
    assert second > first
    with pytest.raises(SupersededError, match=str(A)):
        write(engine, market_id, first, "first")
    write(engine, market_id, second, "second")
    assert read_name(engine, market_id) == "second"


def test_an_expired_claim_that_nobody_took_still_holds(engine: Engine, market_id: int) -> None:
    """A slow run that is alone loses nothing, and can make its claim last again."""
    token = take_claim(engine, market_id, A, NONE) or 0
    with engine.connect() as connection:
        assert connection.execute(EXPIRED).scalar_one() is True
    renew_claim(engine, market_id, token, LONG)
    assert take_claim(engine, market_id, B, LONG) is None
    renew_claim(engine, market_id, token, NONE)
    write(engine, market_id, token, "A")
    assert read_name(engine, market_id) == "A"


def test_a_claim_that_was_taken_over_can_neither_be_renewed_nor_released(
    engine: Engine, market_id: int
) -> None:
    """The old holder learns by whom, and does not free what is no longer its own."""
    old = take_claim(engine, market_id, A, NONE) or 0
    new = take_claim(engine, market_id, B, LONG) or 0
    with pytest.raises(SupersededError, match=str(B)):
        renew_claim(engine, market_id, old, LONG)
    with engine.begin() as connection:
        release_claims(connection, {market_id: old})
    write(engine, market_id, new, "B")


def test_a_held_market_is_free_after_the_block_and_no_other_of_its_run(
    engine: Engine, market_id: int
) -> None:
    """The end of the block gives back its own token, though the run's id has more."""
    with engine.begin() as connection:
        other = int(connection.execute(MARKET, {"name": "other"}).scalar_one())
    with hold_market(engine, other, A, LONG, PATIENCE):
        pass
    assert take_claim(engine, other, B, LONG) is not None
    with hold_market(engine, market_id, A, LONG, PATIENCE) as token:
        newer = take_claim(engine, market_id, A, LONG) or 0
        assert newer > token
    assert take_claim(engine, market_id, B, LONG) is None


def test_waiting_ends_with_the_patience_and_names_the_holder(
    engine: Engine, market_id: int
) -> None:
    """Who holds the market, until when, and how long one waited."""
    take_claim(engine, market_id, A, LONG)
    with pytest.raises(ClaimTimeoutError, match=rf"run {A}.* until 2\d{{3}}-.* UTC .*waited 0.3 s"):
        wait_for_claim(engine, market_id, B, LONG, timedelta(seconds=0.3))


# With real processes


@pytest.mark.parametrize("last", ["B holds", "B done", "B, then A done", "B, then A holds"])
def test_h4_a_process_suspended_past_its_claim_writes_nothing_over_a_newer_one(
    engine: Engine, database_url: str, market_id: int, last: str
) -> None:
    """Also in the order A, B, A, where the run that holds the claim now is the sleeper's own."""
    with start_child(write_when_told, database_url, market_id, SHORT) as child:
        child.hear()
        child.send_signal(signal.SIGSTOP)
        token = wait_for_claim(engine, market_id, B, LONG, PATIENCE)
        if last != "B holds":
            write(engine, market_id, token, "B")
        if last.startswith("B, then A"):
            token = take_claim(engine, market_id, A, LONG) or 0
        if last == "B, then A done":
            write(engine, market_id, token, "A")
        expected = read_name(engine, market_id)
        child.tell()
        child.send_signal(signal.SIGCONT)
        said = child.hear()
    holder = {"B holds": f"run {B}", "B, then A holds": f"run {A}"}.get(last, "another run")
    assert f"was claimed by {holder}" in said
    assert read_name(engine, market_id) == expected != "the sleeper"


def test_a_process_suspended_inside_its_write_keeps_its_claim(
    engine: Engine, database_url: str, market_id: int
) -> None:
    """Others are told no at once instead of hanging on its lock; its write is whole."""
    with start_child(stay_inside_a_write, database_url, market_id, NONE) as child:
        child.hear()
        child.send_signal(signal.SIGSTOP)
        assert take_claim(engine, market_id, B, LONG) is None
        child.tell()
        child.send_signal(signal.SIGCONT)
        assert child.hear() == "written"
    token = wait_for_claim(engine, market_id, B, LONG, PATIENCE)
    assert read_name(engine, market_id) == "the sleeper"
    write(engine, market_id, token, "B")


def test_a7_racing_processes_never_hold_one_claim_together(
    engine: Engine, database_url: str, market_id: int
) -> None:
    """Every token is given once, and none is taken away before its write (that would raise)."""
    with ExitStack() as stack:
        children: list[Child] = [
            stack.enter_context(start_child(write_often, database_url, market_id, 40))
            for _ in (A, B)
        ]
        assert [child.hear() for child in children] == ["ready", "ready"]
        for child, run_id in zip(children, (A, B), strict=True):
            child.tell(run_id)
        tokens = [token for child in children for token in child.hear()]
    assert len(set(tokens)) == 80
    assert read_name(engine, market_id) in (str(A), str(B))


def test_a_killed_holder_blocks_no_longer_than_its_claim(
    engine: Engine, database_url: str, market_id: int
) -> None:
    """Nobody cleans up after SIGKILL; the claim runs out by itself."""
    ttl = timedelta(seconds=2)
    with start_child(write_when_told, database_url, market_id, LONG) as child:
        token = child.hear()
        assert take_claim(engine, market_id, B, LONG) is None
        renew_claim(engine, market_id, token, ttl)
        child.send_signal(signal.SIGKILL)
    wait_for_claim(engine, market_id, B, LONG, ttl + timedelta(seconds=1))


def test_a_killed_holder_that_showed_its_life_blocks_nobody(
    engine: Engine, database_url: str, market_id: int
) -> None:
    """The claim has minutes to go, and is free as soon as the server sees the session end."""
    with start_child(claim_and_stay, database_url, market_id) as child:
        child.hear()
        assert take_claim(engine, market_id, B, LONG) is None
        child.send_signal(signal.SIGKILL)
        wait_for_claim(engine, market_id, B, LONG, PATIENCE)


def test_a_suspended_holder_that_shows_its_life_keeps_its_claim(
    engine: Engine, database_url: str, market_id: int
) -> None:
    """Its session is there: only time takes its claim away."""
    with start_child(claim_and_stay, database_url, market_id) as child:
        token = child.hear()
        child.send_signal(signal.SIGSTOP)
        assert take_claim(engine, market_id, B, LONG) is None
        renew_claim(engine, market_id, token, NONE)
        assert take_claim(engine, market_id, B, LONG) is not None


def test_a_holder_killed_inside_a_statement_blocks_nobody(
    engine: Engine, database_url: str, market_id: int
) -> None:
    """The server gives up a statement whose client is gone, and with it the locks."""
    with start_child(die_inside_a_statement, database_url, market_id) as child:
        child.hear()
        child.send_signal(signal.SIGKILL)
        wait_for_claim(engine, market_id, B, LONG, PATIENCE)
