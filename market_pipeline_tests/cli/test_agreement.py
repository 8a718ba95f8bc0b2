"""agreement, as typed."""

import json
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine

from market_pipeline_tests.cli.conftest import Command
from market_pipeline_tests.readers.bar_history import History, make_days

SPAN = ("--from", "2024-01-01", "--to", "2024-02-01")


@pytest.fixture
def sources(engine: Engine) -> History:
    """Two sources of A-USD, of which the second is in cents; one of B-USD."""
    history = History(engine)
    for provider, factor in (("mock", 1), ("alpha", 100)):
        key = history.add_market("A-USD", provider, is_primary=provider == "mock")
        history.commit(key, make_days(factor * (50.0 + day) for day in range(10)))
    history.add_market("B-USD")
    return history


def test_pairs_are_listed_with_their_figures(
    sources: History, command: Command, database_url: str
) -> None:
    """The cause, and the days that differ most with both values; JSON has the same."""
    shown = command("agreement", *SPAN, DATABASE_URL=database_url)
    assert shown.returncode == 0, shown.stderr
    assert "A-USD of mock and alpha: the first is 0.01 times the second" in shown.stdout
    assert "B-USD" not in shown.stdout
    told = command("agreement", "A-USD", *SPAN, "--json", DATABASE_URL=database_url)
    (pair,) = json.loads(told.stdout)
    assert (pair["provider"], pair["other_provider"], pair["interval"]) == ("mock", "alpha", "1d")
    found = pair["agreement"]
    assert (found["bars"], found["missing"], found["verdict"]) == (10, 0, "differ")
    assert found["median_bp"] == pytest.approx(990_000)
    first = found["worst"][0]
    assert (first["close"] * 100, first["difference_bp"]) == (
        pytest.approx(first["other_close"]), pytest.approx(990_000),
    )  # fmt: skip
    assert datetime.fromisoformat(first["open_time"]).tzinfo == UTC
    assert sources.commits


def test_symbols_with_one_source_are_said_to_be_alone(
    sources: History, command: Command, database_url: str
) -> None:
    """Nothing to compare is no error; a symbol that nobody has is one."""
    alone = command("agreement", "B-USD", DATABASE_URL=database_url)
    assert (alone.returncode, "second witness" in alone.stdout) == (0, True)
    unknown = command("agreement", "NOPE", DATABASE_URL=database_url)
    assert unknown.returncode == 1
    assert "NOPE" in unknown.stderr
    assert sources.commits
