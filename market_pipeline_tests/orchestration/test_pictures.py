"""Pictures are legible PNGs of bounded size, whatever they have to show."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from market_pipeline.orchestration.pictures import (
    MAX_BYTES,
    Panel,
    draw_correlations,
    draw_drawdowns,
    draw_prices,
    has_range,
    shorten,
)
from market_pipeline.orchestration.plots import _build_matrix, show_gaps


def make_bars(days: int, start: float = 100.0, seed: int = 1) -> pd.DataFrame:
    """Return a random walk of daily bars."""
    rng = np.random.default_rng(seed)
    close = start * np.exp(np.cumsum(rng.normal(0, 0.03, days)))
    opened = np.concatenate([[start], close[:-1]])
    open_time = pd.date_range("2020-01-01", periods=days, tz="UTC")
    return pd.DataFrame(
        {
            "open_time": open_time,
            "close_time": open_time + pd.Timedelta(days=1),
            "open": opened,
            "high": np.maximum(opened, close) * 1.01,
            "low": np.minimum(opened, close) * 0.99,
            "close": close,
            "volume": rng.lognormal(20, 0.5, days),
        }
    )


def make_panels(count: int, days: int) -> list[Panel]:
    """Return panels of markets whose prices lie decades apart."""
    return [
        Panel(f"SYM{i}-USD from somewhere", "1,234.5 USD, +1.0 % since 1 Jan 2020", bars)
        for i in range(count)
        for bars in [make_bars(days, 10.0 ** (i % 12 - 5), seed=i)]
    ]


def measure(png: bytes) -> tuple[int, int]:
    """Return width and height, having decoded every pixel."""
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image.size


@pytest.mark.parametrize("draw", [draw_prices, draw_drawdowns])
@pytest.mark.parametrize(("markets", "days"), [(1, 1), (1, 36), (3, 36), (4, 3_650), (100, 130)])
def test_panels_stay_small(draw: "type[draw_prices]", markets: int, days: int) -> None:
    """One bar or ten years, one market or a hundred: legible, on one screen, under the limit."""
    png = draw(make_panels(markets, days))
    width, height = measure(png)
    assert len(png) < MAX_BYTES
    assert 700 <= width <= 900
    assert 180 <= height <= 700


@pytest.mark.parametrize("markets", [2, 3, 12, 13, 50, 1_000])
def test_a_heat_map_stays_small(markets: int) -> None:
    """However many markets are compared, what is drawn fits a screen and the limit."""
    returns = np.random.default_rng(2).normal(size=(markets, 60))
    labels = [f"SYMBOL{i}-USD" for i in range(markets)]
    png = draw_correlations(pd.DataFrame(np.corrcoef(returns), labels, labels), "Correlation")
    assert len(png) < MAX_BYTES
    assert max(measure(png)) <= 1_000


def test_bars_of_points_are_drawn_as_a_line() -> None:
    """They have no range: candles without wicks would say that the price never left the body."""
    bars = make_bars(30).assign(volume=np.nan)
    points = bars.assign(
        high=bars[["open", "close"]].max(axis=1), low=bars[["open", "close"]].min(axis=1)
    )
    assert [has_range(bars), has_range(points)] == [True, False]
    far = points.assign(open=points["close"] * 0.5, low=points["close"] * 0.5, high=points["close"])
    assert draw_prices([Panel("A", "", points)]) == draw_prices([Panel("A", "", far)])


def test_a_still_market_without_volume_is_drawn() -> None:
    """Equal prices and missing volumes are data, not an error."""
    bars = make_bars(5).assign(open=1.0, high=1.0, low=1.0, close=1.0, volume=np.nan)
    for draw in (draw_prices, draw_drawdowns):
        assert measure(draw([Panel("FLAT from here", "", bars)]))[0] == 900


@pytest.mark.parametrize("days", [60, 400])
def test_lines_break_where_the_calendar_expects_a_bar(days: int) -> None:
    """A missing day is a row without prices; a weekend of an exchange is none."""
    bars = make_bars(days).drop(index=range(20, 30)).reset_index(drop=True)
    filled = show_gaps(bars, "24/7")
    assert len(filled) == days
    assert filled["close"].isna().to_numpy().nonzero()[0].tolist() == [*range(20, 30)]
    assert (filled["open_time"].diff().dropna() == pd.Timedelta(days=1)).all()
    weekdays = bars[bars["open_time"].dt.day_of_week < 5]
    assert show_gaps(weekdays.iloc[30:40], "XFRA")["close"].notna().all()
    for draw in (draw_prices, draw_drawdowns):
        broken, whole = (draw([Panel("a", "", one)]) for one in (filled, bars))
        assert measure(broken) == measure(whole)
        if days > 130 or draw is draw_drawdowns:
            assert broken != whole


def test_one_market_more_changes_the_picture() -> None:
    """Every panel is drawn: a picture of two markets is taller than one of the first."""
    one, two = draw_prices(make_panels(1, 30)), draw_prices(make_panels(2, 30))
    assert measure(two)[1] > measure(one)[1]


def test_matrix_is_symmetric_with_ones_on_its_diagonal() -> None:
    """Stored pairs have one direction; a heat map shows both."""
    rows = pd.DataFrame(
        {"base_market_id": [1, 1], "quote_market_id": [2, 3], "correlation": [0.5, -0.2]}
    )
    matrix = _build_matrix(rows, {1: "A", 2: "B", 3: "C"})
    assert matrix.loc["A"].tolist() == [1.0, 0.5, -0.2]
    assert matrix.loc["B", "A"] == 0.5
    assert matrix.loc["C", "C"] == 1.0
    assert np.isnan(matrix.loc["B", "C"])


def test_markets_compared_with_few_benchmarks_make_narrow_matrix() -> None:
    """Beyond the markets of which all pairs are stored, the benchmarks are the columns."""
    rows = pd.DataFrame({"base_market_id": 1, "quote_market_id": range(2, 60), "correlation": 0.5})
    matrix = _build_matrix(rows, {i: f"M{i}" for i in range(1, 60)})
    assert list(matrix.columns) == ["M1"]
    assert len(matrix) == 59


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (1_200, "1.2 K"), (34e6, "34 M"), (5.6e9, "5.6 B"), (7e12, "7 T")],
)
def test_quantities_are_written_short(value: float, text: str) -> None:
    """Volumes of any size fit an axis."""
    assert shorten(value) == text
