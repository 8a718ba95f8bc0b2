"""Impossible bars are kept once, whatever is in them, and read back as they came."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, text

from market_pipeline.domain.records import BAR_COLUMNS, build_bar_frame, build_empty_bar_frame
from market_pipeline.storage.bars.quarantine import (
    parse_payloads,
    read_quarantine,
    record_rejected,
    resolve_rows,
)
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.frames import reject_frame, validate_frame

NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
RUN, OTHER_RUN = UUID(int=1), UUID(int=2)
BAR: dict[str, Any] = {
    "interval": "1d", "open_time": "2024-05-06", "close_time": "2024-05-07", "open": 10.0,
    "high": 12.0, "low": 10.5, "close": 11.0, "volume": 5.0, "volume_kind": "base", "trades": 3.0,
    "source_kind": "traded", "is_final": True,
}  # fmt: skip
NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
TIMES = st.one_of(st.integers(-(2**63) + 1, 2**63 - 1), st.just(np.iinfo(np.int64).min))
WORDS = st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0")))


def bars_of(*changes: dict[str, Any]) -> pd.DataFrame:
    """Build a bar frame of one bar with changes; as it is, its low lies above its open."""
    bars = [{**BAR, **change} for change in changes]
    columns: dict[str, Any] = {name: [bar[name] for bar in bars] for name in BAR_COLUMNS}
    for name in ("open_time", "close_time"):
        times = np.array(columns[name], dtype="datetime64[us]")
        columns[name] = pd.DatetimeIndex(times).tz_localize("UTC")
    return build_bar_frame(columns)


def reject(*changes: dict[str, Any]) -> pd.DataFrame:
    """Validate bars and return the rejected ones."""
    return validate_frame(bars_of(*changes), NOW).rejected


@pytest.fixture
def market_id(engine: Engine) -> int:
    """A market in the database."""
    return add_market(engine, "BTC-USD")


def add_market(engine: Engine, symbol: str) -> int:
    """Insert a market and return its key."""
    query = text(
        "INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base, quote,"
        " venue, calendar, intervals, price_basis) VALUES ('mock', :symbol, :symbol, :symbol,"
        " 'BTC', 'USD', 'mock', '24/7', '{1h,1d}', 'unadjusted') RETURNING market_id"
    )
    with engine.begin() as connection:
        return int(connection.execute(query, {"symbol": symbol}).scalar_one())


def record(engine: Engine, market_id: int, rejected: pd.DataFrame, **other: Any) -> int:
    """Record rejected bars in a transaction of their own."""
    run_id, now = other.get("run_id", RUN), other.get("now", NOW)
    with engine.begin() as connection:
        return record_rejected(connection, run_id, market_id, reject_frame(rejected), now)


def read(engine: Engine, **filters: Any) -> pd.DataFrame:
    """Return the quarantine."""
    with engine.connect() as connection:
        return read_quarantine(connection, **filters)


def resolve(engine: Engine, row_ids: list[int], status: str) -> list[int]:
    """Set the status of rows."""
    with engine.begin() as connection:
        return resolve_rows(connection, row_ids, status, NOW)


def test_a_rejected_bar_is_kept_with_its_reason_and_all_its_values(
    engine: Engine, market_id: int
) -> None:
    """Rule, evidence, run, times, and a payload that gives the same bar again."""
    assert record(engine, market_id, reject({})) == 1
    (row,) = read(engine).to_dict("records")
    assert (row["symbol"], row["provider"], row["interval"]) == ("BTC-USD", "mock", "1d")
    assert (row["rule"], row["status"], row["times_seen"]) == ("low_above_body", "open", 1)
    assert "low=10.5" in row["detail"]
    assert row["open_time"] == datetime(2024, 5, 6, tzinfo=UTC)
    assert (row["run_id"], row["first_seen_at"], row["last_seen_at"]) == (RUN, NOW, NOW)
    assert row["payload"] == {
        **BAR, "open_time": "2024-05-06T00:00:00.000000",
        "close_time": "2024-05-07T00:00:00.000000",
    }  # fmt: skip
    pd.testing.assert_frame_equal(parse_payloads([row["payload"]]), bars_of({}))


def test_the_same_row_again_is_counted_and_another_payload_is_kept_beside_it(
    engine: Engine, market_id: int
) -> None:
    """First seen and its run stay; what differs in any value is another row."""
    record(engine, market_id, reject({}))
    assert record(engine, market_id, reject({}, {"low": 10.9}), run_id=OTHER_RUN, now=LATER) == 1
    rows = read(engine).sort_values("row_id").to_dict("records")
    assert [row["times_seen"] for row in rows] == [2, 1]
    assert [row["run_id"] for row in rows] == [RUN, OTHER_RUN]
    assert [row["first_seen_at"] for row in rows] == [NOW, LATER]
    assert [row["last_seen_at"] for row in rows] == [LATER, LATER]


def test_one_batch_may_hold_a_row_several_times(engine: Engine, market_id: int) -> None:
    """Also a row without an open_time, which no key can tell apart by."""
    rejected = pd.concat([reject({}, {"open_time": "NaT"})] * 3, ignore_index=True)
    assert record(engine, market_id, rejected) == 2
    assert record(engine, market_id, rejected) == 0
    assert list(read(engine)["times_seen"]) == [6, 6]
    assert read(engine)["open_time"].isna().sum() == 1


def test_markets_are_told_apart(engine: Engine, market_id: int) -> None:
    """The same bar of two markets is two rows; each can be asked for."""
    record(engine, market_id, reject({}))
    other = add_market(engine, "ETH-USD")
    record(engine, other, reject({}))
    assert list(read(engine)["times_seen"]) == [1, 1]
    assert list(read(engine, market_ids=[other])["symbol"]) == ["ETH-USD"]
    assert len(read(engine, limit=1)) == 1


def test_nothing_rejected_asks_nothing_of_the_database(engine: Engine, market_id: int) -> None:
    """The ordinary batch costs nothing; any other, one statement."""
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    record(engine, market_id, validate_frame(build_empty_bar_frame(), NOW).rejected)
    assert statements == []
    record(engine, market_id, reject(*({"low": 10.5 + step / 1e6} for step in range(1500))))
    assert len(statements) == 1
    assert len(read(engine)) == 1500


def test_a_batch_that_is_rolled_back_keeps_nothing(engine: Engine, market_id: int) -> None:
    """The quarantine is part of the batch's transaction."""
    with engine.connect() as connection:
        record_rejected(connection, RUN, market_id, reject_frame(reject({})), NOW)
        connection.rollback()
    assert read(engine).empty


def test_a_discarded_row_stays_discarded_and_a_replayed_one_opens_again(
    engine: Engine, market_id: int
) -> None:
    """What a person decided holds; what was thought good and comes again as broken is news."""
    record(engine, market_id, reject({}, {"low": 10.9}))
    first, second = sorted(read(engine)["row_id"])
    assert resolve(engine, [first], "discarded") == [first]
    assert resolve(engine, [first, second], "replayed") == [second]
    assert list(read(engine, status="open")["row_id"]) == []
    record(engine, market_id, reject({}, {"low": 10.9}), now=LATER)
    rows = {row["row_id"]: row for row in read(engine).to_dict("records")}
    assert (rows[first]["status"], rows[first]["resolved_at"]) == ("discarded", NOW)
    assert rows[second]["status"] == "open"
    assert pd.isna(rows[second]["resolved_at"])
    assert [row["times_seen"] for row in rows.values()] == [2, 2]


@given(
    st.fixed_dictionaries(
        {
            **dict.fromkeys(("open", "high", "low", "close", "volume", "trades"), NUMBERS),
            **dict.fromkeys(("open_time", "close_time"), TIMES),
            **dict.fromkeys(("interval", "volume_kind", "source_kind"), WORDS),
            "is_final": st.booleans(),
        }
    )
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_values_are_kept_and_read_back(
    engine: Engine, market_id: int, bar: dict[str, Any]
) -> None:
    """NaN, infinities, NaT, any year, any text: nothing stops the batch, and nothing is lost."""
    frame = bars_of(bar)
    with engine.connect() as connection:
        rejected = frame.assign(rule="not_finite", detail=str(bar["interval"]))
        record_rejected(connection, RUN, market_id, reject_frame(rejected), NOW)
        (row,) = read_quarantine(connection).to_dict("records")
        connection.rollback()
    pd.testing.assert_frame_equal(parse_payloads([row["payload"]]), frame, check_exact=True)


@pytest.mark.parametrize("open_time", ["-004-01-01", "12345-01-01", "NaT"])
def test_a_time_that_readers_cannot_hold_is_in_the_payload_alone(
    engine: Engine, market_id: int, open_time: str
) -> None:
    """Python's calendar has the years 1 to 9999; the driver would tell another time."""
    record(engine, market_id, reject({"open_time": open_time}))
    (row,) = read(engine).to_dict("records")
    assert pd.isna(row["open_time"])
    assert row["payload"]["open_time"].startswith(open_time)


def test_a_text_that_postgresql_refuses_is_spelled_out(engine: Engine, market_id: int) -> None:
    """The zero character has no place in a database's text."""
    record(engine, market_id, reject({"interval": "1\0d", "volume_kind": "\0"}))
    (row,) = read(engine).to_dict("records")
    assert row["interval"] == "1\\x00d"
    assert row["payload"]["volume_kind"] == "\\x00"


def test_row_ids_are_not_used_twice(engine: Engine, market_id: int) -> None:
    """What the command line was told stays the same row."""
    record(engine, market_id, reject({}))
    record(engine, market_id, reject({}))
    assert len(read_column(engine, "SELECT row_id FROM market_data.quarantined_row")) == 1
