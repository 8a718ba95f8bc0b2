"""Which version of a parser read which stored bars: spans of time, against a model of bars."""

from datetime import UTC, datetime, timedelta

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.domain.coverage import FETCH_FAILED, Coverage, Hole
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.parsing import (
    TO_READ_AGAIN,
    ReadSpan,
    adopt_parsing,
    find_changes,
    leave_older,
    list_spans,
    renew_spans,
    retire_spans,
)
from market_pipeline.domain.records import Window, build_bar_frame
from market_pipeline_tests.frames import fill_columns

START = datetime(2024, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
HOURS = range(40)


def span(first: int, end: int) -> Window:
    """Return a window of whole hours."""
    return Window(START + first * HOUR, START + end * HOUR)


def hole(first: int, end: int) -> Hole:
    """Return a hole of whole hours."""
    return Hole(span(first, end), FETCH_FAILED, 1, START, START, None)


def make_bars(hours: list[int], *, is_final: bool = True) -> pd.DataFrame:
    """Return hourly bars."""
    opens = pd.DatetimeIndex([START + hour * HOUR for hour in hours], dtype="datetime64[us, UTC]")
    prices = dict.fromkeys(("open", "high", "low", "close"), 1.0)
    times = {"open_time": opens, "close_time": opens + HOUR}
    return build_bar_frame({"interval": "1h", **times, **prices, "is_final": is_final})


def find_parsing(coverage: Coverage, hour: int) -> int | None:
    """Return which version read an hour's bar; None: it is not stored."""
    moment = START + hour * HOUR
    found = [one for one in list_spans(coverage) if one.window.start <= moment < one.window.end]
    assert len(found) <= 1
    return found[0].parsing if found else None


def test_the_stored_spans_become_older_and_holes_do_not() -> None:
    """What fills a hole later is read by the new version."""
    coverage = Coverage(settled=(span(0, 10), span(20, 30)), holes=(hole(4, 6),), parsing=1)
    after = adopt_parsing(coverage, 2)
    assert (after.parsing, after.settled, after.holes) == (2, coverage.settled, coverage.holes)
    assert after.older_parsings == {1: (span(0, 4), span(6, 10), span(20, 30))}
    assert adopt_parsing(after, 2) is after


def test_a_series_that_is_empty_has_nothing_older() -> None:
    """A new market is read by today's version from the beginning."""
    assert adopt_parsing(Coverage(), 2) == Coverage(parsing=2)


def test_a_version_that_returns_reads_its_own_bars_as_before() -> None:
    """Also a provider that is taken back a version does not mix."""
    first = Coverage(settled=(span(0, 10),), parsing=1)
    second = adopt_parsing(first, 2)
    more = Coverage(settled=(span(0, 20),), parsing=2, older_parsings=second.older_parsings)
    again = adopt_parsing(more, 1)
    assert [find_parsing(again, hour) for hour in (5, 15)] == [1, 2]
    assert again.current == [span(0, 10)]


@given(st.sets(st.sampled_from(HOURS)), st.tuples(st.sampled_from(HOURS), st.integers(1, 10)))
def test_of_an_answer_only_older_bars_are_left_out(older: set[int], asked: tuple[int, int]) -> None:
    """Bar by bar; the frame itself where there is nothing to leave out."""
    known = Coverage(older_parsings={1: tuple(span(hour, hour + 1) for hour in older)})
    hours = list(range(asked[0], asked[0] + asked[1]))
    left = leave_older(fill_columns(make_bars(hours)), known).to_frame()
    expected = [START + hour * HOUR for hour in hours if hour not in older]
    assert left["open_time"].tolist() == expected


@given(
    older=st.sets(st.sampled_from(HOURS)),
    asked=st.tuples(st.sampled_from(HOURS), st.integers(1, 10)),
    came=st.sets(st.sampled_from(HOURS)),
)
def test_what_comes_final_is_of_todays_version(
    older: set[int], asked: tuple[int, int], came: set[int]
) -> None:
    """Within what was asked for; the rest stays as it was read."""
    spans = tuple(span(hour, hour + 1) for hour in sorted(older))
    known = Coverage(settled=(span(0, 60),), parsing=2, older_parsings={1: spans})
    window = span(asked[0], asked[0] + asked[1])
    inside = sorted(hour for hour in came if asked[0] <= hour < asked[0] + asked[1])
    bars = fill_columns(make_bars(inside))
    after = renew_spans(known, Interval.HOUR, ALWAYS_OPEN, window, bars)
    for hour in HOURS:
        is_older = hour in older and hour not in inside
        assert find_parsing(after, hour) == (1 if is_older else 2)


def test_a_provisional_bar_replaces_no_final_one() -> None:
    """It stays as it was read, since the final values stay."""
    known = Coverage(settled=(span(0, 10),), parsing=2, older_parsings={1: (span(0, 10),)})
    bars = fill_columns(make_bars([3], is_final=False))
    after = renew_spans(known, Interval.HOUR, ALWAYS_OPEN, span(3, 4), bars)
    assert after.older_parsings == known.older_parsings


def test_what_is_to_be_read_again_adds_up() -> None:
    """Marked twice it is marked once."""
    known = Coverage(settled=(span(0, 10),), parsing=2)
    once = retire_spans(known, [span(0, 4)], TO_READ_AGAIN)
    twice = retire_spans(once, [span(2, 6)], TO_READ_AGAIN)
    assert twice.older_parsings == {TO_READ_AGAIN: (span(0, 6),)}


def test_a_change_lies_just_before_the_first_close_of_another_version() -> None:
    """A span without bars changes nothing, nor do two spans of one version."""
    spans = [
        ReadSpan(1, span(0, 2), START + HOUR),
        ReadSpan(1, span(3, 4), START + 4 * HOUR),
        ReadSpan(2, span(4, 6)),
        ReadSpan(2, span(6, 8), START + 7 * HOUR),
        ReadSpan(1, span(9, 12), START + 10 * HOUR),
    ]
    instant = timedelta(microseconds=1)
    assert find_changes(spans) == [START + 7 * HOUR - instant, START + 10 * HOUR - instant]
    assert find_changes(spans[:3]) == []
