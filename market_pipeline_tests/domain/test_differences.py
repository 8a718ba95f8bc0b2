"""Comparing bars and following a difference: against a plain model of two series."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from market_pipeline.domain.arrays import FloatArray, Micros
from market_pipeline.domain.columns import PRICES
from market_pipeline.domain.differences import (
    AGREEING_BARS,
    FIRST_PAGE_BARS,
    REPAIRING,
    RESCALED,
    TRACING,
    WITHDRAWN,
    BarComparison,
    Difference,
    Edge,
    Trace,
    compare,
    find_span,
    find_window,
    follow,
    keep_prices,
    multiply_bars,
    plan_probe,
    plan_trace,
)
from market_pipeline.domain.grids import from_micros, to_micros
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.records import Window
from market_pipeline_tests.frames import fill_columns

FIRST = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
PAGE = timedelta(days=60)
FOREVER = to_micros(datetime(1970, 1, 1, tzinfo=UTC))


def build_bars(places: Sequence[int], prices: FloatArray, is_final: bool = True) -> pd.DataFrame:
    """Return daily bars at some places; open, high and low follow the close."""
    opens = pd.DatetimeIndex([FIRST + place * DAY for place in places], dtype="datetime64[us, UTC]")
    closes = np.asarray(prices, dtype="float64")
    columns = {"open": closes, "high": closes * 1.01, "low": closes * 0.99, "close": closes}
    frame = pd.DataFrame({"open_time": opens, **columns})
    return frame.assign(volume=2.0, source_kind="traded", is_final=is_final)


def cut(bars: pd.DataFrame, window: Window) -> pd.DataFrame:
    """Return the bars that open within a window."""
    return bars[bars["open_time"].between(window.start, window.end, inclusive="left")]


def see(
    stored: pd.DataFrame, received: pd.DataFrame, window: Window, noise: float
) -> BarComparison:
    """Compare two frames."""
    return compare(fill_columns(stored), fill_columns(received), window, noise)


def place(moment: int) -> int:
    """Return which bar opens at a moment."""
    return (from_micros(moment) - FIRST) // DAY


def span(first: int, last: int) -> Window:
    """Return the window of the bars from one place to another, both included."""
    return Window(FIRST + first * DAY, FIRST + (last + 1) * DAY)


class Series:
    """A stored series, and the provider's: other by a factor at some places.

    ``known`` are the places of stored bars; the provider has all of them.
    """

    def __init__(self, count: int, different: set[int], gaps: set[int], ratio: float) -> None:
        self.known = [at for at in range(count) if at not in gaps]
        prices = 100 + np.arange(count) % 7
        factors = np.array([ratio if at in different else 1.0 for at in range(count)])
        self.stored = build_bars(self.known, prices[self.known])
        self.provided = build_bars(range(count), prices * factors)
        self.opens: Micros = np.array([to_micros(FIRST + at * DAY) for at in self.known])

    def ask(
        self, known: Difference | None, window: Window, is_next: bool = False
    ) -> Difference | None:
        """Compare one page, and follow."""
        stored = cut(self.stored, window)
        seen = see(stored, cut(self.provided, window), window, 0.0)
        return follow(known, Interval.DAY, seen, ALWAYS_OPEN, is_next)

    def trace(self, known: Difference | None, earliest: int = FOREVER) -> list[Window]:
        """Follow a difference to its end, keep it in ``found``, and return the pages."""
        pages: list[Window] = []
        while known is not None and (trace := known.traces.get(Interval.DAY)) is not None:
            trace, window = plan_trace(trace, self.opens, Interval.DAY, PAGE, earliest)
            known = replace(known, traces={Interval.DAY: trace})
            if window is None:
                break
            pages.append(window)
            assert len(pages) < 200
            known = self.ask(known, window, is_next=True)
        self.found = known
        return pages

    def read_edges(self) -> tuple[int, int]:
        """Return the places of the edges that were found."""
        assert self.found is not None
        trace = self.found.traces[Interval.DAY]
        assert trace is not None
        assert trace.is_found
        return place(trace.lower.at), place(trace.upper.at)


def test_prices_within_the_noise_are_the_stored_ones() -> None:
    """Each price by itself; beyond the noise nothing is touched, and volume never counts."""
    stored = build_bars([0, 1, 2], np.array([100.0, 100.0, 100.0]))
    received = build_bars([0, 1, 2], np.array([100.0 + 5e-5, 101.0, 100.0])).assign(volume=3.0)
    seen = see(stored, received, span(0, 2), 1e-6)
    assert seen.differs.tolist() == [False, True, False]
    kept = keep_prices(fill_columns(received), seen).to_frame()
    assert kept["close"].tolist() == [100.0, 101.0, 100.0]
    assert kept["volume"].tolist() == [3.0] * 3
    assert kept.loc[0, [*PRICES]].tolist() == stored.loc[0, [*PRICES]].tolist()


@pytest.mark.parametrize("column", PRICES)
def test_any_price_makes_a_difference(column: str) -> None:
    """Not the close alone."""
    stored = build_bars([0], np.array([100.0]))
    received = stored.assign(**{column: stored[column] * 1.0001})
    assert see(stored, received, span(0, 0), 1e-6).differs.tolist() == [True]


def test_bars_that_are_not_final_are_not_compared() -> None:
    """Neither a stored nor a received one."""
    one, other = build_bars([0], np.array([100.0])), build_bars([0], np.array([200.0]))
    for stored, received in (
        (one.assign(is_final=False), other),
        (one, other.assign(is_final=False)),
    ):
        assert len(see(stored, received, span(0, 0), 0.0).opens) == 0


@given(
    count=st.integers(1, 400),
    differing=st.lists(st.tuples(st.integers(0, 399), st.integers(1, 120)), min_size=1, max_size=3),
    gaps=st.sets(st.integers(0, 399), max_size=30),
    first=st.integers(0, 399),
    length=st.integers(1, 40),
)
@example(count=1, differing=[(0, 1)], gaps={0}, first=0, length=1)  # nothing is stored
def test_a_difference_is_followed_to_its_ends(
    count: int, differing: list[tuple[int, int]], gaps: set[int], first: int, length: int
) -> None:
    """Beyond each edge 20 bars agree, or all there are, and none before that is left out."""
    different = {at for start, n in differing for at in range(start, start + n)} - gaps
    series = Series(count, different, gaps, 1.03)
    known = series.ask(None, span(first, first + length - 1))
    touched = [at for at in series.known if at in different and first <= at < first + length]
    assert (known is None) == (not touched)
    pages = series.trace(known)
    if not touched:
        return
    lower, upper = series.read_edges()
    assert lower in different
    assert upper in different
    beyond = {
        -1: [at for at in series.known[::-1] if at < lower],
        1: [at for at in series.known if at > upper],
    }
    for bars in beyond.values():
        assert not different.intersection(bars[:AGREEING_BARS])
    assert lower <= walk(series.known, different, min(touched), -1)
    assert upper >= walk(series.known, different, max(touched), 1)
    assert series.found is not None
    assert (series.found.stage, series.found.spread) == (TRACING, pytest.approx(0, abs=1e-9))
    assert all(one.end - one.start <= PAGE for one in pages)


def walk(known: Sequence[int], different: set[int], start: int, step: int) -> int:
    """Return the last differing bar before 20 known ones agree in a row: bar by bar."""
    last, agreed = start, 0
    for at in sorted((at for at in known if (at - start) * step > 0), reverse=step < 0):
        agreed = 0 if at in different else agreed + 1
        if agreed == AGREEING_BARS:
            break
        last = at if at in different else last
    return last


def test_pages_double_what_was_compared() -> None:
    """From 20 bars on, up to the provider's page; the bar at the edge is asked for again."""
    series = Series(400, set(range(400)), set(), 2.0)
    pages = series.trace(series.ask(None, span(397, 399)))
    lengths = [(page.end - page.start) // DAY for page in pages]
    assert lengths[:4] == [FIRST_PAGE_BARS + 1, 25, 50, 60]
    assert series.read_edges() == (0, 399)
    assert len(pages) <= 9


def test_a_trace_goes_on_where_it_stopped() -> None:
    """Each page is planned from the state alone: stopped after any of them, nothing is repeated."""
    series = Series(300, set(range(100, 300)), set(), 0.5)
    whole = series.trace(series.ask(None, span(297, 299)))
    known = series.ask(None, span(297, 299))
    for page in whole:
        assert known is not None
        trace = known.traces[Interval.DAY]
        assert trace is not None
        _, window = plan_trace(trace, series.opens, Interval.DAY, PAGE, FOREVER)
        assert window == page
        known = series.ask(known, page, is_next=True)


def test_what_lies_beyond_the_reach_is_taken_to_differ_like_the_last_bar() -> None:
    """The lower edge is the first bar stored, unless a bar within reach agrees."""
    series = Series(200, set(range(200)), set(), 0.5)
    series.trace(series.ask(None, span(190, 199)), to_micros(FIRST + 150 * DAY))
    assert series.read_edges() == (0, 199)
    series = Series(200, set(range(155, 200)), set(), 0.5)
    series.trace(series.ask(None, span(190, 199)), to_micros(FIRST + 150 * DAY))
    assert series.read_edges() == (155, 199)


def test_a_difference_that_is_taken_back_is_withdrawn() -> None:
    """The bar at an edge came as it is stored."""
    series = Series(100, set(range(50, 100)), set(), 0.5)
    known = series.ask(None, span(90, 99))
    series.provided = series.stored
    series.trace(known)
    assert series.found is not None
    assert (series.found.stage, series.found.list_traces()) == (WITHDRAWN, [])
    assert series.ask(series.found, span(0, 99)) == series.found


def test_a_difference_among_bars_read_again_is_traced_again() -> None:
    """The edges stay as far out as they were, and no one factor explains the rest any more."""
    lower, upper = to_micros(FIRST + 10 * DAY), to_micros(FIRST + 90 * DAY)
    traces = {
        Interval.DAY: Trace(Edge(lower, lower, is_found=True), Edge(upper, upper, is_found=True))
    }
    known = Difference(REPAIRING, traces, 0.5, 0.0, 80)
    series = Series(100, set(range(40, 60)), set(), 0.5)
    assert series.ask(known, span(0, 20)) == known
    series.trace(series.ask(known, span(50, 55)))
    assert series.read_edges() == (40, 59)
    assert series.found is not None
    assert find_span(series.found, ALWAYS_OPEN) == (FIRST + 10 * DAY, FIRST + 91 * DAY)
    assert (series.found.stage, series.found.has_one_factor) == (TRACING, False)


def test_one_factor_needs_twenty_bars_that_agree_on_it() -> None:
    """A correction of one bar says nothing of others."""
    for different, ratio, has_one in ((range(40), 0.5, True), (range(19), 0.5, False)):
        known = Series(40, set(different), set(), ratio).ask(None, span(0, 39))
        assert known is not None
        assert (known.ratio, known.has_one_factor) == (pytest.approx(ratio), has_one)
    series = Series(40, set(range(40)), set(), 0.5)
    series.provided.loc[7, "high"] *= 1.01
    known = series.ask(None, span(0, 39))
    assert known is not None
    assert known.spread == pytest.approx(0.01)
    assert not known.has_one_factor


def test_the_end_is_open_until_it_was_found() -> None:
    """A bar deep in history does not touch today, once 20 bars after it agree."""
    series = Series(200, {50}, set(), 1.02)
    known = series.ask(None, span(45, 55))
    assert known is not None
    assert find_span(known, ALWAYS_OPEN) == (FIRST + 50 * DAY, None)
    series.trace(known)
    assert series.found is not None
    assert find_span(series.found, ALWAYS_OPEN) == (FIRST + 50 * DAY, FIRST + 51 * DAY)


def test_a_span_ends_where_the_next_session_is_expected() -> None:
    """Until then the close that differs is the market's last."""
    friday = to_micros(datetime(2024, 3, 28, tzinfo=UTC))  # Good Friday and the weekend follow.
    trace = Trace(Edge(friday, friday), Edge(friday, friday))
    assert find_window(trace, "XNYS", Interval.DAY).end == datetime(2024, 4, 1, tzinfo=UTC)


def test_another_interval_is_looked_at_over_the_same_span() -> None:
    """The newest page of it, from a day earlier on; none where nothing is stored."""
    opens = Series(100, set(), set(), 1.0).opens
    window = plan_probe(opens, span(30, 35), Interval.DAY, PAGE, FOREVER)
    assert window == span(29, 35)
    assert plan_probe(opens, span(0, 99), Interval.DAY, PAGE, FOREVER) == span(40, 99)
    assert plan_probe(opens, span(200, 210), Interval.DAY, PAGE, FOREVER) is None


@pytest.mark.parametrize(("volume_ratio", "volume"), [(4.0, 8.0), (1.0, 2.0), (None, 2.0)])
def test_volumes_are_multiplied_only_where_the_provider_did(
    volume_ratio: float | None, volume: float
) -> None:
    """Prices always are, and the bars are marked."""
    bars = multiply_bars(build_bars([0], np.array([100.0])), 0.25, volume_ratio)
    assert bars["close"].tolist() == [25.0]
    assert bars["volume"].tolist() == [volume]
    assert bars["source_kind"].tolist() == [RESCALED]
