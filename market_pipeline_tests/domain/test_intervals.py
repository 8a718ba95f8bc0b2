"""Bar lengths and annualisation factors."""

from datetime import UTC, datetime, timedelta

import pytest

from market_pipeline.domain.intervals import Interval, floor_to_monday, get_annualisation_factor


@pytest.mark.parametrize(
    ("interval", "calendar", "factor"),
    [
        (Interval.HOUR, "24/7", 8760.0),
        (Interval.DAY, "24/7", 365.0),
        (Interval.WEEK, "24/7", 52.142857142857146),
        (Interval.HOUR, "XNYS", 1764.0),
        (Interval.DAY, "XNYS", 252.0),
        (Interval.WEEK, "XNYS", 52.0),
    ],
)
def test_a_year_holds_as_many_bars_as_its_calendar_trades(
    interval: Interval, calendar: str, factor: float
) -> None:
    """The annualisation factor follows the interval and the calendar."""
    assert get_annualisation_factor(interval, calendar) == factor


def test_hourly_factor_counts_the_bars_of_one_session() -> None:
    """An exchange that opens for five hours has 252 times five hourly bars a year."""
    assert get_annualisation_factor(Interval.HOUR, "XTKS", bars_per_session=5) == 1260.0


def test_an_interval_reads_and_lasts_as_its_name_says() -> None:
    """The notation of the field is the value, and the duration is its nominal length."""
    assert Interval("1w").duration == timedelta(days=7)
    assert f"{Interval.HOUR}" == "1h"


@pytest.mark.parametrize("day", [26, 27, 28, 29, 30, 31])
def test_every_day_of_a_week_floors_to_its_monday(day: int) -> None:
    """From Monday 00:00 to Sunday 23:59 the week is the same."""
    moment = datetime(2024, 8, day, 23, 59, tzinfo=UTC)
    assert floor_to_monday(moment) == datetime(2024, 8, 26, tzinfo=UTC)
