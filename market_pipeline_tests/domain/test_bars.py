"""Weeks from days, and days from hours."""

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.domain.bars import floor_to_weeks
from market_pipeline.domain.columns import to_micros_array, to_times
from market_pipeline.domain.intervals import floor_to_monday
from market_pipeline.domain.records import (
    BAR_DTYPES,
    Window,
    build_bar_frame,
    build_empty_bar_frame,
)
from market_pipeline.domain.sessions import build_hourly_grid, read_sessions
from market_pipeline_tests.frames import build_days, build_weeks

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
LATER = datetime(2025, 1, 1, tzinfo=UTC)


def sessions_of(calendar: str, start: datetime = MONDAY, days: int = 7) -> pd.DataFrame:
    """Read the sessions of some days."""
    return read_sessions(calendar, start, start + timedelta(days=days))


def daily_of(sessions: pd.DataFrame, **columns: object) -> pd.DataFrame:
    """Build one final daily bar a session: open 1, 2, 3 .. and close half above."""
    opens = np.arange(1.0, len(sessions) + 1)
    defaults = {"open": opens, "high": opens + 1, "low": opens - 0.5, "close": opens + 0.5}
    spans = {"open_time": sessions["session_date"], "close_time": sessions["close_time"]}
    fields = {"interval": "1d", **spans, **defaults, "volume": 10.0, "volume_kind": "base"}
    return build_bar_frame({**fields, "trades": 4.0, "is_final": True, **columns})


def hourly_of(sessions: pd.DataFrame, **columns: object) -> pd.DataFrame:
    """Build one final hourly bar for each hour of the sessions."""
    hours = build_hourly_grid(sessions)
    daily = pd.DataFrame({"session_date": hours, "close_time": hours + pd.Timedelta(hours=1)})
    return daily_of(daily, interval="1h", **columns)


def test_a_full_week_is_one_final_bar() -> None:
    """Open first, close last, high greatest, low least, volume and trades added up."""
    week = build_weeks(daily_of(sessions_of("24/7")), sessions_of("24/7"), LATER)
    assert week.to_dict("records") == [
        {
            "interval": "1w",
            "open_time": pd.Timestamp("2024-01-01", tz="UTC"),
            "close_time": pd.Timestamp("2024-01-08", tz="UTC"),
            "open": 1.0,
            "high": 8.0,
            "low": 0.5,
            "close": 7.5,
            "volume": 70.0,
            "volume_kind": "base",
            "trades": 28.0,
            "source_kind": "traded",
            "is_final": True,
        }
    ]
    assert {name: str(dtype) for name, dtype in week.dtypes.items()} == dict(BAR_DTYPES)


def test_a_holiday_week_is_final_without_the_holiday() -> None:
    """New York trades four days in the week of New Year; the week closes on Friday at 21:00 UTC."""
    sessions = sessions_of("XNYS")
    week = build_weeks(daily_of(sessions), sessions, LATER)
    assert len(sessions) == 4
    assert week["is_final"].tolist() == [True]
    assert week["close_time"].tolist() == [pd.Timestamp("2024-01-05T21:00Z")]


def test_a_week_with_a_missing_day_is_provisional() -> None:
    """A hole in the middle keeps the week from being final."""
    sessions = sessions_of("24/7")
    week = build_weeks(daily_of(sessions).drop(index=3), sessions, LATER)
    assert week["is_final"].tolist() == [False]


def test_a_week_with_a_provisional_day_is_provisional() -> None:
    """Only final days make a final week."""
    sessions = sessions_of("24/7")
    finals = [True] * 6 + [False]
    week = build_weeks(daily_of(sessions, is_final=finals), sessions, LATER)
    assert week["is_final"].tolist() == [False]


def test_a_week_is_not_final_before_its_last_session_has_closed() -> None:
    """A provider that calls a running day final does not close the week."""
    sessions = sessions_of("24/7")
    sunday_night = datetime(2024, 1, 7, 23, tzinfo=UTC)
    week = build_weeks(daily_of(sessions), sessions, sunday_night)
    assert week["is_final"].tolist() == [False]


def test_a_day_that_is_no_session_is_no_part_of_a_week() -> None:
    """A Saturday row that an older version stored neither closes the week nor stretches it."""
    sessions = sessions_of("XNYS")
    days = daily_of(sessions_of("24/7"), high=[9.0, *[2.0] * 5, 99.0], volume=1.0)
    week = build_weeks(days, sessions, LATER)
    assert week[["open", "close", "high", "volume", "is_final"]].values.tolist() == [
        [2.0, 5.5, 2.0, 4.0, True]
    ]
    assert week["close_time"].tolist() == [pd.Timestamp("2024-01-05T21:00Z")]


def test_a_week_without_a_session_is_none() -> None:
    """Stray days make no week, whatever the other weeks are."""
    days = daily_of(sessions_of("24/7", days=14))
    week = build_weeks(days, sessions_of("24/7", MONDAY + timedelta(days=7)), LATER)
    assert week["open_time"].tolist() == [pd.Timestamp("2024-01-08", tz="UTC")]
    assert build_weeks(days, sessions_of("24/7", LATER), LATER).empty


def test_a_week_does_not_wait_for_a_day_that_will_never_come() -> None:
    """Who else is missing keeps it provisional; the close is still that of its last session."""
    sessions = sessions_of("24/7")
    days = daily_of(sessions).drop(index=[3, 6])
    gone = [Window(MONDAY + timedelta(days=n), MONDAY + timedelta(days=n + 1)) for n in (3, 6)]
    for absent, is_final in (((), False), (gone[:1], False), (gone, True)):
        week = build_weeks(days, sessions, LATER, absent)
        assert week["is_final"].tolist() == [is_final]
        assert week["close_time"].tolist() == [pd.Timestamp("2024-01-08", tz="UTC")]
        assert week["close"].tolist() == [6.5]


def test_a_week_of_a_market_that_ended_is_final_at_once() -> None:
    """Nothing can come any more: the calendar's later sessions are not waited for."""
    sessions = sessions_of("XNYS")
    ended = Window(MONDAY + timedelta(days=3), MONDAY + timedelta(days=40))
    thursday = datetime(2024, 1, 4, 12, tzinfo=UTC)
    week = build_weeks(daily_of(sessions.iloc[:2]), sessions, thursday, [ended])
    assert week["is_final"].tolist() == [True]


def test_unknown_volumes_stay_unknown() -> None:
    """A week without any volume has none; one known day counts alone."""
    sessions = sessions_of("24/7", days=14)
    volumes = [np.nan] * 7 + [3.0] + [np.nan] * 6
    weeks = build_weeks(daily_of(sessions, volume=volumes), sessions, LATER)
    np.testing.assert_array_equal(weeks["volume"], [np.nan, 3.0])


@pytest.mark.parametrize(
    ("kinds", "kind"),
    [("rolling_24h", "rolling_24h"), (["base"] * 3 + ["quote"] * 4, "none")],
)
def test_volumes_that_do_not_add_up_are_not_added(kinds: str | list[str], kind: str) -> None:
    """Neither rolling volumes nor different units have a sum."""
    sessions = sessions_of("24/7")
    week = build_weeks(daily_of(sessions, volume_kind=kinds), sessions, LATER)
    assert week["volume"].isna().all()
    assert week["volume_kind"].tolist() == [kind]


def test_one_derived_day_makes_a_derived_week() -> None:
    """A week is only called traded when all of it was."""
    sessions = sessions_of("24/7")
    sources = ["traded"] * 6 + ["points"]
    week = build_weeks(daily_of(sessions, source_kind=sources), sessions, LATER)
    assert week["source_kind"].tolist() == ["points"]


def test_a_leap_week_has_seven_days() -> None:
    """29 February 2024 is a Thursday like any other."""
    sessions = sessions_of("24/7", datetime(2024, 2, 26, tzinfo=UTC))
    week = build_weeks(daily_of(sessions), sessions, LATER)
    assert week["close_time"].tolist() == [pd.Timestamp("2024-03-04", tz="UTC")]
    assert week["is_final"].tolist() == [True]


def test_rows_of_other_intervals_are_left_aside() -> None:
    """Hours and weeks in the frame change no week."""
    sessions = sessions_of("24/7")
    mixed = pd.concat([daily_of(sessions), hourly_of(sessions, high=99.0)])
    assert build_weeks(mixed, sessions, LATER)["high"].tolist() == [8.0]


def test_no_day_makes_no_week() -> None:
    """Nothing in, nothing out, with the columns of a bar frame."""
    empty = build_weeks(build_empty_bar_frame(), sessions_of("24/7"), LATER)
    assert empty.equals(build_empty_bar_frame())


def test_a_full_day_of_hours_is_one_final_bar() -> None:
    """A session of six and a half hours has seven hourly bars; the day closes with it."""
    sessions = sessions_of("XNYS", datetime(2024, 1, 2, tzinfo=UTC), 1)
    hours = hourly_of(sessions)
    day = build_days(hours, sessions)
    assert len(hours) == 7
    assert day[["open", "high", "low", "close", "volume", "is_final"]].values.tolist() == [
        [1.0, 8.0, 0.5, 7.5, 70.0, True]
    ]
    assert day["open_time"].tolist() == [pd.Timestamp("2024-01-02", tz="UTC")]
    assert day["close_time"].tolist() == [pd.Timestamp("2024-01-02T21:00Z")]


@pytest.mark.parametrize(
    "date", [datetime(2024, 3, 10, tzinfo=UTC), datetime(2024, 11, 3, tzinfo=UTC)]
)
def test_an_always_open_day_needs_24_hours_when_clocks_change(date: datetime) -> None:
    """Daylight saving time neither adds nor takes an hour of UTC."""
    sessions = sessions_of("24/7", date, 1)
    hours = hourly_of(sessions)
    assert build_days(hours, sessions)["is_final"].tolist() == [True]
    assert build_days(hours.drop(index=12), sessions)["is_final"].tolist() == [False]


def test_a_half_day_is_final_with_its_few_hours() -> None:
    """Christmas Eve ends at 18:00 UTC with four bars."""
    sessions = sessions_of("XNYS", datetime(2024, 12, 24, tzinfo=UTC), 1)
    day = build_days(hourly_of(sessions), sessions)
    assert day["close_time"].tolist() == [pd.Timestamp("2024-12-24T18:00Z")]
    assert day["is_final"].tolist() == [True]


def test_a_day_does_not_wait_for_an_hour_that_will_never_come() -> None:
    """A provisional hour keeps it provisional all the same."""
    sessions = sessions_of("24/7", days=1)
    hours = hourly_of(sessions).drop(index=12)
    gone = [Window(MONDAY + timedelta(hours=12), MONDAY + timedelta(hours=13))]
    assert build_days(hours, sessions, gone)["is_final"].tolist() == [True]
    running = hours.assign(is_final=hours.index != 3)
    assert build_days(running, sessions, gone)["is_final"].tolist() == [False]


def test_hours_outside_the_session_do_not_count() -> None:
    """Trade before the bell or on a holiday is not part of a day."""
    sessions = sessions_of("XNYS")
    around_the_clock = hourly_of(sessions_of("24/7"))
    assert len(build_days(around_the_clock, sessions)) == 4
    assert build_days(around_the_clock, sessions.iloc[:0]).empty


days_present = st.lists(
    st.tuples(st.integers(0, 27), st.floats(1, 100), st.booleans(), st.floats(0, 9) | st.none()),
    unique_by=lambda day: day[0],
    min_size=1,
)


@settings(max_examples=60, deadline=None)
@given(
    days_present,
    st.sets(st.integers(0, 27)),
    st.sampled_from(["24/7", "XNYS"]),
    st.randoms(use_true_random=False),
)
def test_weeks_agree_with_a_plain_model(
    days: list[tuple[Any, ...]], gone: set[int], calendar: str, shuffle: Random
) -> None:
    """Whatever days are there or never come, in whatever order, a loop over them says the same."""
    opens = pd.DatetimeIndex([MONDAY + timedelta(days=n) for n, *_ in days])
    closes = np.array([price for _, price, *_ in days])
    fields = {"open": closes, "high": closes + 1, "low": closes / 2, "close": closes}
    spans = {"open_time": opens, "close_time": opens + pd.Timedelta(days=1)}
    volumes = [np.nan if volume is None else volume for *_, volume in days]
    finals = [final for _, _, final, _ in days]
    frame = build_bar_frame(
        {"interval": "1d", **spans, **fields, "volume": volumes, "volume_kind": "base"}
        | {"is_final": finals}
    )
    order = shuffle.sample(range(len(days)), len(days))
    sessions = sessions_of(calendar, days=28)
    absent = [Window(*(MONDAY + timedelta(days=n + more) for more in (0, 1))) for n in sorted(gone)]
    built = build_weeks(frame.iloc[order], sessions, LATER, absent)
    dates = {(date.to_pydatetime() - MONDAY).days for date in sessions["session_date"]}
    days = [day for day in days if day[0] in dates]
    assert len(built) == len({n // 7 for n, *_ in days})
    for week, row in zip(sorted({n // 7 for n, *_ in days}), built.itertuples(), strict=True):
        members = sorted(day for day in days if day[0] // 7 == week)
        known = [volume for *_, volume in members if volume is not None]
        assert row.open_time == MONDAY + timedelta(weeks=week)
        assert (row.open, row.close) == (members[0][1], members[-1][1])
        assert row.high == max(price + 1 for _, price, *_ in members)
        assert row.low == min(price / 2 for _, price, *_ in members)
        assert row.volume == pytest.approx(sum(known)) if known else np.isnan(row.volume)
        waited_for = {n for n in dates if n // 7 == week} - gone
        has_all = waited_for <= {n for n, *_ in members}
        assert row.is_final == (has_all and all(final for _, _, final, _ in members))


@given(st.lists(st.integers(0, 4_000_000_000), min_size=1))
def test_flooring_many_times_agrees_with_flooring_one(seconds: list[int]) -> None:
    """The vectorised floor is floor_to_monday of each."""
    moments = [datetime.fromtimestamp(second, UTC) for second in seconds]
    times = pd.Series(moments, dtype="datetime64[us, UTC]")
    floored = to_times(floor_to_weeks(to_micros_array(times)))
    assert floored.tolist() == [floor_to_monday(moment) for moment in moments]
