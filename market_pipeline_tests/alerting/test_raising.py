"""Raising: one open alert a fingerprint, few messages, all in the caller's transaction."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from market_pipeline.alerting.kinds import (
    CUSTOM,
    DATA_STALE,
    MARKETS_SHORT,
    PROVIDER_DOWN,
    RUN_FAILED,
)
from market_pipeline.alerting.messages import MAX_BODY_BYTES, encode
from market_pipeline.alerting.raising import (
    Finding,
    acknowledge,
    forget_inactive,
    raise_alert,
    report,
    resolve_cleared,
)
from market_pipeline.domain.errors import SettingError
from market_pipeline_tests.databases import read_column

NOW = datetime(2024, 3, 15, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
_MARKET = """
    INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base, quote, venue,
        calendar, intervals, price_basis, is_active)
    VALUES (:name, 'x', 'X-USD', 'X', 'X', 'USD', 'mock', '24/7', '{1d}', 'unadjusted', :active)"""


def find(engine: Engine, *findings: Finding, at: datetime = NOW) -> None:
    """Report in a transaction of its own."""
    with engine.begin() as connection:
        report(connection, findings, at)


def read_messages(engine: Engine) -> list[tuple[str, dict[str, Any]]]:
    """Return type and data of what is in the outbox, in order."""
    query = "SELECT body FROM market_data.alert_delivery ORDER BY created_at"
    return [(body["type"], body["data"]) for body in read_column(engine, query)]  # type: ignore[index]


def short(*names: str, evaluated: tuple[str, ...] | None = None) -> Finding:
    """Markets that came short."""
    return Finding(MARKETS_SHORT, dict.fromkeys(names, "timeout"), evaluated=evaluated)


def test_the_same_finding_is_one_alert_and_one_message(engine: Engine) -> None:
    """Repeats are counted."""
    for minute in range(3):
        find(engine, short("mock:A"), at=NOW + minute * MINUTE)
    ((kind, data),) = read_messages(engine)
    assert (kind, data["message"]) == ("alert.raised", "markets short (1): mock:A: timeout")
    assert read_column(engine, "SELECT times FROM market_data.alert") == [3]


def test_f5_a_transaction_that_is_rolled_back_raises_nothing(engine: Engine) -> None:
    """What was not written was not found."""
    with engine.connect() as connection:
        report(connection, [short("mock:A")], NOW)
        connection.rollback()
    assert read_messages(engine) == []


def test_f6_a_thousand_markets_are_one_short_message(engine: Engine) -> None:
    """The list is cut, the count is not, and hostile text does not make it longer than allowed."""
    names = [f"mock:M{number:04d}-USD" for number in range(1_000)]
    find(engine, Finding(MARKETS_SHORT, dict.fromkeys(names, "\U0001f4a5" * 5_000)))
    (body,) = read_column(engine, "SELECT body FROM market_data.alert_delivery")
    assert len(encode(body)) < MAX_BODY_BYTES  # type: ignore[arg-type]
    ((_, data),) = read_messages(engine)
    assert data["members_total"] == 1_000
    assert 0 < len(data["members"]) <= 20
    assert "markets short (1,000)" in data["message"]


def test_markets_that_nobody_looked_at_stay(engine: Engine) -> None:
    """A run of one market says nothing of another."""
    find(engine, short("mock:A", "mock:B", evaluated=("mock:A", "mock:B")))
    find(engine, short(evaluated=("mock:A",)))
    assert read_column(engine, "SELECT members FROM market_data.alert") == [{"mock:B": "timeout"}]
    find(engine, short(evaluated=("mock:B",)))
    assert read_column(engine, "SELECT cleared_at FROM market_data.alert") == [NOW]


def test_f7_a_market_that_comes_and_goes_is_told_of_once_and_resolved_once(engine: Engine) -> None:
    """Four times an hour, for three hours, then well: not twelve messages."""
    moment = NOW
    for quarter in range(12):
        moment = NOW + quarter * 15 * MINUTE
        find(
            engine,
            short(*(["mock:A"] if quarter % 2 == 0 else []), evaluated=("mock:A",)),
            at=moment,
        )
        with engine.begin() as connection:
            resolve_cleared(connection, moment)
    with engine.begin() as connection:
        assert resolve_cleared(connection, moment + 61 * MINUTE) == 1
        assert resolve_cleared(connection, moment + 62 * MINUTE) == 0
    assert [kind for kind, _ in read_messages(engine)] == ["alert.raised", "alert.resolved"]
    find(engine, short("mock:A"), at=moment + 63 * MINUTE)
    assert [kind for kind, _ in read_messages(engine)][-1] == "alert.raised"
    assert len(set(read_column(engine, "SELECT alert_id FROM market_data.alert"))) == 2


def test_a_market_that_joins_is_told_of_after_the_cool_down(engine: Engine) -> None:
    """Who reads the first message learns how far it has spread, but not at every run."""
    find(engine, short("mock:A"))
    find(engine, short("mock:A", "mock:B"), at=NOW + MINUTE)
    assert len(read_messages(engine)) == 1
    find(engine, short("mock:A", "mock:B", "mock:C"), at=NOW + 61 * MINUTE)
    kind, data = read_messages(engine)[-1]
    assert (kind, data["members_total"]) == ("alert.updated", 3)


def test_what_lasts_a_day_is_recalled_until_it_is_acknowledged(engine: Engine) -> None:
    """One reminder a day; none once somebody has taken it on."""
    for hours in (0, 23, 25):
        find(engine, short("mock:A"), at=NOW + timedelta(hours=hours))
    assert [kind for kind, _ in read_messages(engine)] == ["alert.raised", "alert.reminder"]
    (alert_id,) = read_column(engine, "SELECT alert_id FROM market_data.alert")
    with engine.begin() as connection:
        assert acknowledge(connection, alert_id, NOW)  # type: ignore[arg-type]
    find(engine, short("mock:A"), at=NOW + timedelta(hours=60))
    assert len(read_messages(engine)) == 2


def test_what_gets_worse_is_told_at_once(engine: Engine) -> None:
    """A severity rises; it never falls while the alert is open."""
    for severity in ("warning", "critical", "info"):
        find(engine, Finding(CUSTOM, {"x": "y"}, message="disk", severity=severity))
    told = [(kind, data["severity"]) for kind, data in read_messages(engine)]
    assert told == [("alert.raised", "warning"), ("alert.updated", "critical")]


def test_an_event_ends_when_it_is_acknowledged_or_after_a_week(engine: Engine) -> None:
    """A job that is never run again does not stay open for ever; a state does."""
    find(engine, Finding(RUN_FAILED, {"a": "x"}, subject="a", message="a failed"))
    find(engine, Finding(RUN_FAILED, {"b": "x"}, subject="b", message="b failed"))
    find(engine, Finding(DATA_STALE, {"mock:A": "old"}))
    query = "SELECT alert_id FROM market_data.alert WHERE fingerprint = 'run_failed:a'"
    with engine.begin() as connection:
        assert acknowledge(connection, read_column(engine, query)[0], NOW)  # type: ignore[arg-type]
        assert resolve_cleared(connection, NOW + 61 * MINUTE) == 1
        resolve_cleared(connection, NOW + timedelta(days=8))
        assert resolve_cleared(connection, NOW + timedelta(days=8, hours=2)) == 1
    open_ones = "SELECT kind FROM market_data.alert WHERE resolved_at IS NULL"
    assert read_column(engine, open_ones) == ["data_stale"]


def test_two_transactions_at_once_open_one_alert(engine: Engine) -> None:
    """The second one waits for the first, and is counted."""
    barrier = threading.Barrier(2)

    def work(name: str) -> None:
        with engine.begin() as connection:
            barrier.wait()
            report(connection, [short(name, evaluated=(name,))], NOW)

    threads = [threading.Thread(target=work, args=(f"mock:{one}",)) for one in "AB"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_column(engine, "SELECT jsonb_build_array(times, members) FROM market_data.alert")
    assert found == [[2, {"mock:A": "timeout", "mock:B": "timeout"}]]
    assert len(read_messages(engine)) == 1


def test_what_nobody_ingests_any_more_leaves_its_alerts(engine: Engine) -> None:
    """Markets that were deactivated or purged, and providers without another market."""
    down = Finding(PROVIDER_DOWN, dict.fromkeys(("mock", "gone"), "timeout"))
    with engine.begin() as connection:
        for provider, is_active in (("mock", True), ("gone", False)):
            connection.execute(text(_MARKET), {"name": provider, "active": is_active})
        report(connection, [short("mock:X-USD", "gone:X-USD", "mock:PURGED-USD"), down], NOW)
        forget_inactive(connection, NOW)
    members = read_column(engine, "SELECT members FROM market_data.alert ORDER BY kind")
    assert members == [{"mock:X-USD": "timeout"}, {"mock": "timeout"}]


def test_an_alert_of_ones_own(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a transaction of its own on the database in use, or in the caller's."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    raise_alert("warning", "disk at 91 %", {"mount": "/data"})
    with engine.begin() as connection:
        raise_alert("error", "disk at 97 %", fingerprint="disk", connection=connection)
    (_, first), (_, second) = read_messages(engine)
    assert (first["message"], first["context"]) == ("disk at 91 %", {"mount": "/data"})
    assert (second["severity"], second["kind"]) == ("error", "custom")
    with pytest.raises(SettingError, match="severity 'loud'"):
        raise_alert("loud", "x")
