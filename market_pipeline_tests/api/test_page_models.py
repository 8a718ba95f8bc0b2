"""What pages show, without a page: how values are written, which are chosen, what is drawn."""

from datetime import UTC, datetime, timedelta
from math import inf, nan
from typing import Any

import numpy as np
import pandas as pd
import pytest

from market_pipeline.api.pages.charts import build_market_chart, build_ratio_chart
from market_pipeline.api.pages.comparison import (
    MAX_SIDE,
    build_heat_map,
    choose_markets,
    choose_pair,
)
from market_pipeline.api.pages.formats import (
    MINUS,
    MISSING,
    describe_direction,
    describe_reason,
    describe_source,
    exact,
    format_age,
    format_compact,
    format_pct,
    format_price,
    format_span,
    say_plainly,
)
from market_pipeline.api.pages.freshness import summarise_freshness
from market_pipeline.api.pages.market import (
    FRACTIONS,
    RATIOS,
    build_cells,
    build_statistics,
    build_strip,
)
from market_pipeline.api.pages.marks import Mark, clip_marks, join_marks, mark_bars, mark_holes
from market_pipeline.api.pages.overview import PAGE_ROWS, build_line, list_markets
from market_pipeline.api.pages.pictures import Piece, draw_line, join_states
from market_pipeline.domain.coverage import FETCH_FAILED, Coverage, Hole
from market_pipeline.domain.freshness import TrackedSeries
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import DataIssue
from market_pipeline.domain.records import Window
from market_pipeline.domain.roi import compute_roi_statistics

NOW = datetime(2024, 3, 15, 12, tzinfo=UTC)  # a Friday; New York opens at 13:30 UTC


def make_market(number: int, **values: Any) -> dict[str, Any]:
    """Return a row of the overview."""
    return {
        "market_id": number,
        "provider": "mock",
        "symbol": f"M{number}-USD",
        "name": f"Coin {number}",
        "calendar": "24/7",
        "price": None,
        "close": 10.0,
        "close_time": NOW,
        "observed_at": None,
        "change_24h_ratio": None,
        "series": [TrackedSeries("24/7", Interval.HOUR, watermark=NOW)],
        "outcome": "ok",
    } | values


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (64_123.456, "64,123.46"),
        (999.5, "999.500"),
        (1.0, "1.00000"),
        (0.000012345678, "0.0000123457"),
        (0.0, "0.00"),
        (-37.63, f"{MINUS}37.6300"),
        (None, MISSING),
        (nan, MISSING),
        (inf, MISSING),
    ],
)
def test_a_price_has_the_digits_that_count(value: float | None, shown: str) -> None:
    """Two decimals of a large one, six digits of a small one, a dash for none."""
    assert format_price(value) == shown


def test_other_values_are_written_short_and_kept_exact() -> None:
    """What is rounded on the page is beside it to the last digit."""
    assert format_pct(-0.18594) == f"{MINUS}18.59 %"
    assert (format_pct(0.5), format_pct(0.5, is_signed=False)) == ("+50.00 %", "50.00 %")
    assert [format_compact(value) for value in (63.8e9, 1_234.0, 12.0, None)] == [
        "63.8 B",
        "1.23 k",
        "12",
        MISSING,
    ]
    assert exact(0.1 + 0.2) == "0.30000000000000004"
    assert (exact(None), describe_reason("zero_variance")) == ("", "the price did not move")
    assert (describe_reason("something new"), describe_reason(None)) == ("something new", "")
    assert [describe_direction(value) for value in (0.1, -0.1, 0.0, None)] == [
        "up",
        "down",
        "flat",
        "flat",
    ]


@pytest.mark.parametrize(
    ("span", "shown"),
    [
        (timedelta(seconds=119), "119 s"),
        (timedelta(seconds=120), "2 min"),
        (timedelta(hours=2), "2 h"),
        (timedelta(hours=47), "47 h"),
        (timedelta(days=2), "2 d"),
    ],
)
def test_an_age_is_told_in_its_largest_fitting_unit(span: timedelta, shown: str) -> None:
    """Nothing is *1 h*, which may be 119 minutes; what lies ahead says so."""
    assert format_span(span) == shown
    assert format_age(NOW - span, NOW) == f"{shown} ago"
    assert format_age(NOW + span, NOW) == f"in {shown}"


def test_words_are_plain_and_said_once() -> None:
    """One hole is no holes, codes are words, and a market's name does not repeat its source."""
    assert say_plainly("1 holes left, the first at 1d: provider_empty") == (
        "1 hole left, the first at 1d: the provider has no bars there"
    )
    assert say_plainly("21 bars rejected: off_grid") == (
        "21 bars rejected: no bar of this length starts then"
    )
    mock = {"symbol": "BTC-USD", "name": "BTC-USD", "provider": "mock", "venue": "mock"}
    assert describe_source(mock) == "mock"
    named = {**mock, "name": "Bitcoin / US dollar", "venue": "coinbase"}
    assert describe_source(named) == "Bitcoin / US dollar, mock, coinbase"


def make_bars(closes: list[float]) -> list[dict[str, Any]]:
    """Return final daily bars, one a day; NaN leaves a day out."""
    start = datetime(2024, 1, 1, tzinfo=UTC)
    return [
        {
            "open_time": start + timedelta(days=at),
            "close_time": start + timedelta(days=at + 1),
            **dict.fromkeys(("open", "high", "low", "close"), close),
            "volume": 1.0,
            "is_final": True,
        }
        for at, close in enumerate(closes)
        if close == close
    ]


MARKET = {"market_id": 1, "quote": "USD", "calendar": "24/7"}


def draw(bars: list[dict[str, Any]], *issues: DataIssue) -> dict[str, list[float | None]]:
    """Return the lines of a chart of days, by name."""
    chart = build_market_chart(bars, Interval.DAY, MARKET, issues)
    assert chart is not None
    return {line["name"].partition(",")[0]: line["values"] for line in chart["series"]}


def test_the_chart_says_what_the_statistics_say_also_over_a_hole() -> None:
    """The last volatility is the 30d statistic, or missing where that is; drawdown alike."""
    steady = list(100 * np.exp(np.cumsum(np.random.default_rng(4).normal(0, 0.01, 60))))
    short, long = list(steady), list(steady)
    short[40:44], short[44:] = [nan] * 4, [3 * close for close in steady[44:]]
    long[35:50] = [nan] * 15
    for closes in (steady, short, long):
        bars = make_bars(closes)
        frame = pd.DataFrame(bars).assign(market_id=1)
        (row,) = compute_roi_statistics(frame, {1: "24/7"}, Interval.DAY, [30]).to_dict("records")
        told = draw(bars)["Volatility"][-1]
        assert told == (
            None if np.isnan(row["realised_volatility"]) else row["realised_volatility"]
        )
        fall = [value for value in draw(make_bars(closes[29:]))["Drawdown"] if value is not None]
        if not np.isnan(row["max_drawdown"]):
            assert min(fall) == row["max_drawdown"]
    volatilities = [draw(make_bars(closes))["Volatility"][-1] for closes in (steady, short, long)]
    assert volatilities[0] is not None
    assert volatilities[1] == pytest.approx(volatilities[0], rel=0.2)
    assert volatilities[2] is None


def test_lines_break_at_a_hole_and_where_a_flaw_withholds() -> None:
    """A missing day has a place on the axis and no value, weekends of an exchange have neither."""
    closes = [100.0 + at % 5 for at in range(60)]
    bars = make_bars([*closes[:40], nan, nan, *closes[42:]])
    lines = draw(bars)
    assert lines["Drawdown"][39:43].count(None) == 2
    assert len(lines["Drawdown"]) == 60
    hole = DataIssue(1, "unexplained_hole", Window(bars[39]["close_time"], bars[40]["open_time"]))
    assert [at for at, value in enumerate(draw(bars, hole)["Volatility"]) if value] == [
        *range(30, 40)
    ]
    ratios = [
        {"open_time": bar["open_time"], "base_close": 2.0, "quote_close": 1.0}
        for bar in (bars[0], bars[1], bars[3], bars[4], bars[7])  # Monday, Tuesday, Thursday ..
    ]
    chart = build_ratio_chart(ratios, "a / b", ["24/7", "XFRA"])
    assert chart is not None
    assert chart["series"][0]["values"] == [2.0, 2.0, None, 2.0, 2.0, 2.0]
    assert chart["times"][0] == bars[0]["open_time"].timestamp()


def test_charts_leave_out_what_is_provisional_and_are_none_without_bars() -> None:
    """Candles show the running bar; drawdown and volatility wait for its end."""
    bars = [
        {
            "open_time": NOW.replace(hour=0) + timedelta(days=at),
            "close_time": NOW.replace(hour=0) + timedelta(days=at + 1),
            "open": 1.0,
            "high": 2.0,
            "low": 0.5,
            "close": close,
            "volume": 1.0,
            "is_final": at < 2,
        }
        for at, close in enumerate((2.0, 1.0, 0.1))
    ]
    chart = build_market_chart(bars, Interval.DAY, MARKET)
    assert chart is not None
    candles, _, drawdown, _ = chart["series"]
    assert (candles["close"], candles["final"]) == ([2.0, 1.0, 0.1], [True, True, False])
    assert drawdown["values"] == [0.0, -0.5, None]
    assert build_market_chart([], Interval.DAY, MARKET) is None
    assert build_market_chart(bars[2:], Interval.DAY, MARKET) is not None
    points = build_market_chart(
        [{**bar, "source_kind": "points"} for bar in bars], Interval.DAY, MARKET
    )
    assert points is not None
    line = points["series"][0]
    assert (line["type"], line["values"]) == ("line", [2.0, 1.0, 0.1])  # no high and low is known
    assert "points" in line["name"]
    assert build_ratio_chart([], "a / b", ["24/7"]) is None


def test_a_chart_has_room_for_holes_at_its_ends_and_none_for_closed_days() -> None:
    """The axis reaches over missing sessions; a weekend has no place, earlier bars neither."""
    bars = make_bars([1.0, 2.0, 3.0, 4.0, 5.0])  # Monday to Friday, the first a holiday
    market = {**MARKET, "calendar": "XNYS"}
    hole = Mark("hole", bars[4]["close_time"], bars[4]["close_time"] + timedelta(days=4), "why")
    chart = build_market_chart(bars[1:], Interval.DAY, market, earlier=bars[:1], marks=[hole])
    assert chart is not None
    days = [datetime.fromtimestamp(at, UTC).day for at in chart["times"]]
    assert days == [2, 3, 4, 5, 8, 9]  # without the 6th and 7th
    assert chart["series"][0]["close"] == [2.0, 3.0, 4.0, 5.0, None, None]
    assert chart["marks"] == [hole.describe()]


def test_marks_say_why_each_bar_is_not_to_be_taken_as_it_is() -> None:
    """Provisional, multiplied and missing ones; neighbours that say the same are one mark."""
    bars = make_bars([1.0, 2.0, 3.0, 4.0])
    bars[0]["source_kind"] = bars[1]["source_kind"] = "rescaled"
    bars[3]["is_final"] = False
    found = join_marks(clip_marks(mark_bars(bars), bars[1]["open_time"]))
    assert [(mark.kind, mark.start.day, mark.end.day) for mark in found] == [
        ("adjusted", 2, 3),
        ("provisional", 4, 5),
    ]
    assert len(join_marks(clip_marks(mark_bars(bars), bars[0]["open_time"]))) == 2
    gone = Hole(Window(bars[0]["open_time"], bars[1]["open_time"]), FETCH_FAILED, 1, NOW, NOW, NOW)
    never = Window(bars[2]["open_time"], bars[3]["open_time"])
    told = [mark.text for mark in mark_holes(Coverage(holes=(gone,)), [never])]
    assert told == [
        "the request failed (asked 1 time)",
        "no run has asked for some of the bars yet",
    ]


def test_a_line_fits_its_box_and_knows_where_it_went() -> None:
    """The oldest on the left, the highest on top; fewer than two values are no line."""
    line = draw_line([1.0, 3.0, 2.0], 106, 24)
    assert line is not None
    assert (line.parts, line.end, line.direction) == (
        ("2.0,22.0 52.0,2.0 102.0,12.0",),
        (102.0, 12.0),
        "up",
    )
    flat = draw_line([5.0, 5.0])
    assert flat is not None
    assert flat.direction == "flat"
    assert draw_line([1.0]) is None
    assert draw_line([None, 1.0, None]) is None
    broken = draw_line([1.0, 3.0, None, 2.0, None], 106, 24)
    assert broken is not None
    assert broken.parts == ("2.0,22.0 27.0,2.0", "77.0,12.0 77.0,12.0")
    assert broken.end == (77.0, 12.0)
    assert join_states(["a", "a", "b", "a"]) == [
        Piece("a", 0, 2),
        Piece("b", 2, 1),
        Piece("a", 3, 1),
    ]
    assert join_states([]) == []


def test_a_strip_shows_settled_time_holes_and_nothing_that_was_never_asked() -> None:
    """A quarter of the span is a hole that is still wanted."""
    days = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 7, 9)]
    hole = Hole(Window(days[1], days[2]), FETCH_FAILED, 1, NOW, NOW, NOW)
    whole = Coverage(settled=(Window(days[0], days[1]),), holes=(hole,))
    strip = build_strip("1h", whole, Window(days[0], days[1]))
    assert strip is not None
    assert (strip.start, {piece.state for piece in strip.pieces}) == (days[0], {"settled"})
    assert strip.missing == hole.window
    wider = Coverage(
        settled=(Window(days[0], days[1]), Window(days[2], days[2] + timedelta(days=1))),
        holes=(hole,),
    )
    seen = build_strip("1h", wider, Window(days[0], days[2] + timedelta(days=1)))
    assert seen is not None
    assert [piece.state for piece in seen.pieces] == ["settled", "hole", "settled"]
    assert build_strip("1h", Coverage(), Window(days[0], days[1])) is None


def test_a_missing_number_has_one_reason_for_all_its_spans() -> None:
    """A column for each horizon, and a sentence for each reason instead of one for each cell."""
    names = [*FRACTIONS, *RATIOS]
    whole = dict.fromkeys(names, 0.5)
    short = {**whole, "calmar": None, "reason": "calmar: short_horizon", "horizon": "7d"}
    none = {**dict.fromkeys(names), "reason": "unexplained_hole"}
    rows = [short, {**none, "horizon": "90d"}, {**none, "horizon": "365d"}]
    table = build_statistics(rows)
    assert [len(cells) for cells in table.measures] == [3] * len(names)
    assert table.reasons == [
        "7d (Calmar): too short a span to annualise.",
        "90d and 365d: bars are missing without an explanation.",
    ]


def test_a_cell_has_a_value_or_a_reason() -> None:
    """Ratios are plain numbers, the others fractions."""
    names = (
        "roi",
        "annualised_return",
        "annualised_volatility",
        "realised_volatility",
        "max_drawdown",
        "sharpe",
        "sortino",
        "calmar",
    )
    row = {**dict.fromkeys(names, 0.5), "sortino": None, "reason": "no_downside"}
    cells = {cell.statistic: cell for cell in build_cells(row)}
    assert list(cells) == list(names)
    assert (cells["sortino"].value, cells["sortino"].reason) == (None, "no_downside")
    assert (cells["roi"].value, cells["roi"].reason) == (0.5, None)
    assert (cells["roi"].is_fraction, cells["sharpe"].is_fraction) == (True, False)


def test_freshness_is_checked_by_the_markets_own_calendar() -> None:
    """On Friday before the bell New York's Thursday is as fresh as can be; a coin's is not."""
    thursday = datetime(2024, 3, 14, 20, tzinfo=UTC)
    state = {
        calendar: summarise_freshness(
            [TrackedSeries(calendar, Interval.HOUR, watermark=thursday)], NOW
        )
        for calendar in ("XNYS", "24/7", "nowhere")
    }
    assert {name: found.state for name, found in state.items()} == {
        "XNYS": "current",
        "24/7": "behind",
        "nowhere": "current",
    }
    assert state["24/7"].behind == timedelta(hours=13)  # of sixteen, three are grace
    assert summarise_freshness([TrackedSeries("24/7", Interval.HOUR)], NOW).state == "empty"


def test_a_market_is_as_fresh_as_its_worst_series() -> None:
    """Hours of now do not hide days that are ten days late; what will never come is not late."""
    hours = TrackedSeries("24/7", Interval.HOUR, watermark=NOW)
    days = TrackedSeries("24/7", Interval.DAY, watermark=NOW.replace(hour=0) - timedelta(days=10))
    found = summarise_freshness([hours, days], NOW)
    assert (found.state, found.interval) == ("behind", Interval.DAY)
    assert (found.final_to, found.behind) == (days.watermark, timedelta(days=10))
    gone = Window(NOW - timedelta(days=11), NOW + timedelta(days=1))
    explained = TrackedSeries("24/7", Interval.DAY, watermark=days.watermark, explained=gone)
    assert summarise_freshness([hours, explained], NOW).state == "current"
    late = TrackedSeries("24/7", Interval.DAY, timedelta(days=11), days.watermark)
    assert summarise_freshness([hours, late], NOW).state == "current"
    never = summarise_freshness([hours, TrackedSeries("24/7", Interval.DAY)], NOW)
    assert (never.state, never.final_to, never.behind) == ("behind", None, None)


def test_the_overview_finds_sorts_and_pages() -> None:
    """What is unknown comes last; a page beyond the last is the last."""
    rows = [
        make_market(1, price=5.0, observed_at=NOW, change_24h_ratio=-0.1),
        make_market(2, change_24h_ratio=0.2, outcome="failed"),
        make_market(3, close=None, series=[TrackedSeries("24/7", Interval.HOUR)]),
    ]
    lines = [build_line(row, NOW) for row in rows]

    def sort(by: str) -> list[int]:
        return [line.row["market_id"] for line in list_markets(lines, "", by, 1).items]

    listing = list_markets(lines, "", "price", 1)
    assert [line.price for line in listing.items] == [10.0, 5.0, None]
    assert [line.is_close for line in listing.items] == [True, False, True]
    assert (sort("change"), sort("-change")) == ([2, 1, 3], [1, 2, 3])
    assert (sort("symbol"), sort("-symbol")) == ([1, 2, 3], [3, 2, 1])
    assert (sort("volume"), sort("freshness")) == ([1, 2, 3], [3, 1, 2])
    assert sort("health")[0] == 2
    found = list_markets(lines, " coin 2", "symbol", 1).items
    assert [line.row["market_id"] for line in found] == [2]
    many = [build_line(make_market(number), NOW) for number in range(20 * PAGE_ROWS + 1)]
    last = list_markets(many, "", "symbol", 99)
    assert (last.number, last.pages, len(last.items)) == (21, 21, 1)
    assert last.shown_pages == [1, None, 19, 20, 21]
    assert list_markets([], "", "symbol", 1).pages == 1


def test_a_pair_is_stored_once_and_shown_both_ways() -> None:
    """Correlation is the same, a spread turns its sign, nothing is made up for no common day."""
    markets = [make_market(number) for number in (1, 2, 3)]
    pairs = [
        {
            "base_market_id": 1,
            "quote_market_id": 2,
            "correlation": 0.5,
            "roi_spread": 0.25,
            "reason": None,
            "is_stored": True,
        },
        {
            "base_market_id": 1,
            "quote_market_id": 3,
            "correlation": None,
            "roi_spread": None,
            "reason": "close_skew",
            "is_stored": False,
        },
    ]
    same = [[cell.value for cell in row] for row in build_heat_map(markets, pairs, "correlation")]
    assert same == [[None, 0.5, None], [0.5, None, None], [None, None, None]]
    cells = build_heat_map(markets, pairs, "roi_spread")
    assert (cells[0][1].value, cells[1][0].value) == (0.25, -0.25)
    assert [row[at].is_self for at, row in enumerate(cells)] == [True, True, True]
    assert (cells[2][0].reason, cells[1][2].reason) == ("close_skew", "no_common_date")
    assert [cells[0][at].is_stored for at in (1, 2)] == [True, False]


def test_a_comparison_chooses_what_was_asked_for_and_two_different_markets() -> None:
    """Names that are not there fall back to the first; one market alone has no partner."""
    markets = [make_market(number) for number in range(1, 4)]
    assert choose_pair(markets, "mock:M3-USD", "mock:M1-USD") == (markets[2], markets[0])
    assert choose_pair(markets, "mock:M2-USD", "mock:M2-USD") == (markets[1], markets[0])
    assert choose_pair(markets, "gone", "") == (markets[0], markets[1])
    assert choose_pair(markets[:1], "", "") == (markets[0], None)
    assert choose_pair([], "", "") == (None, None)
    assert choose_markets(markets, "m1, M3") == [markets[0], markets[2]]
    assert len(choose_markets([make_market(number) for number in range(99)], "")) == MAX_SIDE
