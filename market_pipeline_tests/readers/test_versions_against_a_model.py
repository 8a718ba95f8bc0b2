"""Reading any version or time, and the difference of any two, against a plain Python model."""

from collections.abc import Mapping
from datetime import timedelta
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_pipeline.domain.errors import NothingKnownYetError
from market_pipeline.readers import read_aggregates, read_changes
from market_pipeline_tests.readers.bar_history import (
    LENGTHS,
    MONDAY,
    Bar,
    History,
    Key,
    Model,
    read_back,
)

SYMBOLS = ("AAA-USD", "BBB-USD")
bars = st.builds(
    lambda place, interval, close, volume, is_final: Bar(
        MONDAY + place * LENGTHS[interval], close, interval, volume, is_final
    ),
    place=st.integers(0, 2),
    interval=st.sampled_from(["1h", "1d", "1w"]),
    close=st.sampled_from([10.0, 11.0, 12.5]),
    volume=st.sampled_from([None, 0.0, 7.0]),
    is_final=st.booleans(),
)
batches = st.tuples(st.sampled_from(SYMBOLS), st.lists(bars, min_size=1, max_size=8))
ANY_HISTORY = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def market_ids(history: History) -> dict[str, int]:
    """The markets' keys; the markets outlive an example, their bars do not."""
    return {symbol: history.add_market(symbol) for symbol in SYMBOLS}


def write(
    history: History, market_ids: Mapping[str, int], written: list[tuple[str, list[Bar]]]
) -> Model:
    """Write batches into the emptied database and into a model."""
    history.clear()
    model = Model()
    for symbol, batch in written:
        market_id = market_ids[symbol]
        model.commit(market_id, batch, history.commit(market_id, batch).version)
    return model


def read_all(history: History, market_ids: Mapping[str, int], **when: object) -> dict[Key, object]:
    """Return the bars of all intervals; an empty strict answer counts as none."""
    found: dict[Key, object] = {}
    for interval in LENGTHS:
        try:
            frame = read_aggregates(
                SYMBOLS, interval, MONDAY, MONDAY + timedelta(weeks=9), engine=history.engine,
                **when,
            ).reset_index()  # type: ignore[arg-type]  # fmt: skip
        except NothingKnownYetError:
            continue
        assert frame.equals(frame.sort_values(["symbol", "open_time"], ignore_index=True))
        found |= read_back(frame, market_ids)
    return found


@pytest.mark.faults
@pytest.mark.owner
@ANY_HISTORY
@given(written=st.lists(batches, min_size=1, max_size=6))
def test_every_version_and_time_reads_as_it_was(
    history: History, market_ids: dict[str, int], written: list[tuple[str, list[Bar]]]
) -> None:
    """By version, at its commit's time, just before the next one, and now: the model's rows."""
    model = write(history, market_ids, written)
    for commit in history.commits:
        expected = model.snapshots[commit.version]
        assert read_all(history, market_ids, version=commit.version) == expected
        assert read_all(history, market_ids, as_of=commit.known_at) == expected
        just_before = commit.known_at - timedelta(microseconds=1)
        before = model.snapshots.get(commit.version - 1, {})
        assert read_all(history, market_ids, as_of=just_before) == before
    assert read_all(history, market_ids) == expected
    assert read_all(history, market_ids, version=0) == {}


@pytest.mark.faults
@pytest.mark.owner
@ANY_HISTORY
@given(
    written=st.lists(batches, min_size=1, max_size=6),
    after=st.sampled_from([timedelta(hours=1), timedelta(days=2), timedelta(days=400)]),
)
def test_the_assumed_basis_adds_first_values_once_due(
    history: History,
    market_ids: dict[str, int],
    written: list[tuple[str, list[Bar]]],
    after: timedelta,
) -> None:
    """Known rows as they were; a row not yet known has its first values from its close on."""
    model = write(history, market_ids, written)
    first = model.find_first_values()
    times = [MONDAY + after, *(commit.known_at for commit in history.commits)]
    for as_of in (time for time in times if time <= history.commits[-1].known_at):
        versions = [one.version for one in history.commits if one.known_at <= as_of]
        due = {key: row for key, row in first.items() if key[2] + LENGTHS[key[1]] <= as_of}
        expected = {**due, **model.snapshots.get(max(versions, default=0), {})}
        assert read_all(history, market_ids, as_of=as_of, basis="assumed") == expected


@pytest.mark.owner
@ANY_HISTORY
@given(written=st.lists(batches, min_size=2, max_size=5))
def test_a_diff_is_the_difference_of_two_reads(
    history: History, market_ids: dict[str, int], written: list[tuple[str, list[Bar]]]
) -> None:
    """For any two versions: each bar that is new or has other values, once, and nothing else."""
    model = write(history, market_ids, written)
    model.snapshots[0] = {}
    for older, newer in combinations(sorted(model.snapshots), 2):
        before, after = model.snapshots[older], model.snapshots[newer]
        expected = {
            key: (before.get(key, (None, None))[:2], row)
            for key, row in after.items()
            if before.get(key, ())[:2] != row[:2]
        }
        changes = read_changes(older, newer, engine=history.engine)
        told = {
            (market_ids[row["symbol"]], row["interval"], row["open_time"]): (
                (row["old_close"], row["old_volume"]),
                (row["close"], row["volume"], row["version"]),
            )
            for row in changes.rows
        }
        assert told == expected
        assert changes.total == len(changes.rows) == len(expected)
