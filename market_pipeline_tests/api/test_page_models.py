"""What pages show, without a page: how values are written, which are chosen, what is drawn."""

from datetime import UTC, datetime, timedelta
from math import inf, log, nan, sqrt
from statistics import stdev
from typing import Any

import numpy as np
import pytest

from market_pipeline.api.pages.charts import (
    build_market_chart,
    build_ratio_chart,
    compute_drawdowns,
    compute_rolling_volatility,
)
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
    exact,
    format_age,
    format_compact,
    format_pct,
    format_price,
    format_span,
)
from market_pipeline.api.pages.freshness import judge_freshness
from market_pipeline.api.pages.market import build_cells, build_strip
from market_pipeline.api.pages.overview import PAGE_ROWS, list_markets
from market_pipeline.api.pages.pictures import Piece, draw_line, join_states
from market_pipeline.domain.coverage import FETCH_FAILED, Coverage, Hole
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window

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
        "final_to_1h": NOW,
        "final_to_1d": None,
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


def test_drawdown_and_volatility_are_of_the_closes_so_far() -> None:
    """Against plain Python; the first thirty closes have no volatility."""
    assert compute_drawdowns(np.array([1.0, 2.0, 1.0, 3.0])).tolist() == [0.0, 0.0, -0.5, 0.0]
    closes = np.exp(np.sin(np.arange(40)))
    shown = compute_rolling_volatility(closes, 365)
    assert np.isnan(shown[:30]).all()
    returns = [log(closes[at] / closes[at - 1]) for at in range(10, 40)]
    assert shown[-1] == pytest.approx(stdev(returns) * sqrt(365))
    assert np.isnan(compute_rolling_volatility(closes[:30], 365)).all()


def test_charts_leave_out_what_is_provisional_and_are_none_without_bars() -> None:
    """Candles show the running bar; drawdown and volatility wait for its end."""
    bars = [
        {
            "open_time": NOW + timedelta(days=at),
            "open": 1.0,
            "high": 2.0,
            "low": 0.5,
            "close": close,
            "volume": 1.0,
            "is_final": at < 2,
        }
        for at, close in enumerate((2.0, 1.0, 0.1))
    ]
    market = {"quote": "USD", "calendar": "24/7"}
    chart = build_market_chart(bars, Interval.DAY, market)
    assert chart is not None
    candles, _, drawdown, _ = chart["data"]
    assert candles["close"] == [2.0, 1.0, 0.1]
    assert list(drawdown["y"]) == [0.0, -0.5]
    assert build_market_chart([], Interval.DAY, market) is None
    points = build_market_chart(
        [{**bar, "source_kind": "points"} for bar in bars], Interval.DAY, market
    )
    assert points is not None
    line = points["data"][0]
    assert (line["type"], line["y"]) == ("scatter", [2.0, 1.0, 0.1])  # they have no high and low
    assert "points" in points["layout"]["yaxis"]["title"]["text"]
    assert build_ratio_chart([], "a / b") is None


def test_a_line_fits_its_box_and_knows_where_it_went() -> None:
    """The oldest on the left, the highest on top; fewer than two values are no line."""
    line = draw_line([1.0, 3.0, 2.0], 106, 24)
    assert line is not None
    assert (line.points, line.end, line.direction) == (
        "2.0,22.0 52.0,2.0 102.0,12.0",
        (102.0, 12.0),
        "up",
    )
    flat = draw_line([5.0, 5.0])
    assert flat is not None
    assert flat.direction == "flat"
    assert draw_line([1.0]) is None
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
    strip = build_strip("1h", Coverage(settled=(Window(days[0], days[1]),), holes=(hole,)), NOW)
    assert strip is not None
    assert (strip.start, {piece.state for piece in strip.pieces}) == (days[0], {"settled"})
    wider = Coverage(
        settled=(Window(days[0], days[1]), Window(days[2], days[2] + timedelta(days=1))),
        holes=(hole,),
    )
    seen = build_strip("1h", wider, NOW)
    assert seen is not None
    assert [piece.state for piece in seen.pieces] == ["settled", "hole", "settled"]
    assert build_strip("1h", Coverage(), NOW) is None


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


def test_freshness_is_judged_by_the_markets_own_calendar() -> None:
    """On Friday before the bell New York's Thursday is as fresh as can be; a coin's is not."""
    thursday = datetime(2024, 3, 14, 20, tzinfo=UTC)
    state = {
        calendar: judge_freshness(
            {"calendar": calendar, "final_to_1h": thursday, "final_to_1d": None}, NOW
        )
        for calendar in ("XNYS", "24/7", "nowhere")
    }
    assert {name: found.state for name, found in state.items()} == {
        "XNYS": "current",
        "24/7": "behind",
        "nowhere": "current",
    }
    assert state["24/7"].behind == timedelta(hours=13)  # of sixteen, three are grace
    assert (
        judge_freshness({"calendar": "24/7", "final_to_1h": None, "final_to_1d": None}, NOW).state
        == "empty"
    )


def test_the_overview_finds_sorts_and_pages() -> None:
    """What is unknown comes last; a page beyond the last is the last."""
    rows = [
        make_market(1, price=5.0, observed_at=NOW, change_24h_ratio=-0.1),
        make_market(2, change_24h_ratio=0.2, outcome="failed"),
        make_market(3, close=None, final_to_1h=None),
    ]
    listing = list_markets(rows, "", "price", 1, NOW)
    assert [line.price for line in listing.lines] == [10.0, 5.0, None]
    assert [line.is_close for line in listing.lines] == [True, False, True]
    assert [line.row["market_id"] for line in list_markets(rows, "", "change", 1, NOW).lines] == [
        2,
        1,
        3,
    ]
    assert list_markets(rows, "", "health", 1, NOW).lines[0].row["market_id"] == 2
    assert [
        line.row["market_id"] for line in list_markets(rows, " coin 2", "symbol", 1, NOW).lines
    ] == [2]
    many = [make_market(number) for number in range(PAGE_ROWS + 1)]
    last = list_markets(many, "", "symbol", 9, NOW)
    assert (last.number, last.pages, len(last.lines)) == (2, 2, 1)
    assert list_markets([], "", "symbol", 1, NOW).pages == 1


def test_a_pair_is_stored_once_and_shown_both_ways() -> None:
    """Correlation is the same, a spread turns its sign, nothing is made up for a missing pair."""
    markets = [make_market(number) for number in (1, 2, 3)]
    pairs = [
        {
            "base_market_id": 1,
            "quote_market_id": 2,
            "correlation": 0.5,
            "roi_spread": 0.25,
            "reason": None,
        },
        {
            "base_market_id": 1,
            "quote_market_id": 3,
            "correlation": None,
            "roi_spread": None,
            "reason": "close_skew",
        },
    ]
    same = [[cell.value for cell in row] for row in build_heat_map(markets, pairs, "correlation")]
    assert same == [[None, 0.5, None], [0.5, None, None], [None, None, None]]
    cells = build_heat_map(markets, pairs, "roi_spread")
    assert (cells[0][1].value, cells[1][0].value) == (0.25, -0.25)
    assert [row[at].is_self for at, row in enumerate(cells)] == [True, True, True]
    assert (cells[2][0].reason, cells[1][2].reason) == ("close_skew", "not_stored")


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
