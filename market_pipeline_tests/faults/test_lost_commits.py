"""B3: the server committed, and its answer never came: nothing is lost, doubled or torn.

Each statement that ends a transaction of a run meets this once. The run may not call itself good
without a check, and may not wait for ever; the next one finds what was committed.
"""

import time

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from market_pipeline_tests.cli.conftest import Command
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.faults.installations import Disturbed, go_through
from market_pipeline_tests.faults.invariants import assert_invariants
from market_pipeline_tests.faults.proxy import BLACK_HOLE, COMMIT, RESET, Proxy
from market_pipeline_tests.ingestion.installation import MARCH

# Far more than a deadline of two seconds takes on a busy machine, far less than for ever.
END_SECONDS = 120.0
# The transactions of a run, by what each writes.
MARKETS = b"INSERT INTO market_data.market "
BARS = b"INSERT INTO market_data.ingestion_request"
PRICES = b"'market_snapshot'"
PAIRS = b"'market_comparison'"
STATISTICS = b"'market_roi_statistic'"
CLAIMS = b"nextval('market_data.fetch_claim_seq')"
# Alone in its transaction, unlike the one of a wave.
GIVEN_BACK = rb"BEGIN[^\0]*\0Q.{4}\s*DELETE FROM market_data.fetch_claim"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", [RESET, BLACK_HOLE])
@pytest.mark.parametrize("written", [MARKETS, BARS, PRICES, PAIRS, STATISTICS])
def test_b3_an_answer_to_commit_that_is_lost_is_an_error_and_no_row_is_lost_or_doubled(
    written: bytes, how: str, installation: Disturbed, proxied: Engine, proxy: Proxy
) -> None:
    """Whichever transaction of a run it was: told within the deadline, and repaired by the next."""
    proxy.lose_answer(COMMIT, how, written)
    begun = time.monotonic()
    with go_through(installation, proxied), pytest.raises(OperationalError) as caught:
        installation.ingest(MARCH)
    assert time.monotonic() - begun < END_SECONDS
    assert proxy.lost.is_set()
    assert "run again; what was already committed stays" in str(caught.value)
    installation.recover()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", [RESET, BLACK_HOLE])
def test_b3_claims_whose_taking_was_not_answered_keep_nobody_out(
    how: str, installation: Disturbed, proxied: Engine, proxy: Proxy
) -> None:
    """The run ends though it has them; the next one takes them over at once."""
    proxy.lose_answer(CLAIMS, how)
    with go_through(installation, proxied), pytest.raises(OperationalError):
        installation.ingest(MARCH)
    assert proxy.lost.is_set()
    installation.recover()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", [RESET, BLACK_HOLE])
def test_b3_claims_whose_end_was_not_answered_do_not_fail_the_run(
    how: str, installation: Disturbed, proxied: Engine, proxy: Proxy
) -> None:
    """Nothing that matters is in that transaction: the server frees them by itself."""
    proxy.lose_answer(COMMIT, how, GIVEN_BACK)
    with go_through(installation, proxied):
        installation.ingest(MARCH)
    assert proxy.lost.is_set()
    installation.recover()


WHOLE = ("ingest", "--symbols", "BTC-USD,SPX", "--window-end", "2024-03-15", "--lookback-days", "9")
OUTCOMES = "SELECT outcome FROM market_data.ingestion_run ORDER BY started_at"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("message", "after", "code"),
    [(COMMIT, BARS, 1), (b"INSERT INTO event_logs", b"", 1), (COMMIT, b"SET ended_at", 0)],
    ids=["bars", "dagster", "end"],
)
def test_b3_the_command_tells_it_and_the_next_one_repairs_it(
    message: bytes, after: bytes, code: int,
    command: Command, engine: Engine, proxy: Proxy, proxied_url: str,
) -> None:  # fmt: skip
    """Exit code and receipt say the same, and the run after it is good."""
    proxy.lose_answer(message, RESET, after)
    done = command(*WHOLE, DATABASE_URL=proxied_url)
    assert proxy.lost.is_set()
    assert done.returncode == code, done.stderr
    assert_invariants(engine)
    assert command(*WHOLE).returncode == 0
    assert_invariants(engine, is_repaired=True, is_closed=True)
    assert read_column(engine, OUTCOMES) == ["failed" if code else "ok", "ok"]
