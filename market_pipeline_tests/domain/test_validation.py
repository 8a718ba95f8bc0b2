"""Which bars are impossible, and what happens to duplicates."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.domain.records import BAR_COLUMNS, build_bar_frame, build_empty_bar_frame
from market_pipeline.domain.sessions import build_hourly_grid, read_sessions
from market_pipeline_tests.frames import validate_frame

NOW = datetime(2024, 6, 1, tzinfo=UTC)
SOUND = {
    "interval": "1d",
    "open_time": "2024-05-06T00:00Z",
    "close_time": "2024-05-07T00:00Z",
    "open": 10.0,
    "high": 12.0,
    "low": 9.0,
    "close": 11.0,
    "volume": 5.0,
    "volume_kind": "base",
    "trades": 3.0,
    "source_kind": "traded",
    "is_final": True,
}


def frame_of(*changes: dict[str, Any]) -> pd.DataFrame:
    """Build a bar frame of sound bars with some fields changed."""
    bars = [{**SOUND, **change} for change in changes]
    columns = {name: [bar[name] for bar in bars] for name in BAR_COLUMNS}
    for name in ("open_time", "close_time"):
        columns[name] = pd.to_datetime(columns[name], utc=True, format="ISO8601")
    return build_bar_frame(columns)


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("not_finite", {"open": np.nan}),
        ("not_finite", {"high": np.inf}),
        ("not_finite", {"volume": np.inf}),
        ("not_finite", {"low": -np.inf, "volume": -1.0}),
        ("price_not_positive", {"low": 0.0}),
        ("price_not_positive", {"close": -11.0}),
        ("low_above_body", {"low": 10.5}),
        ("high_below_body", {"high": 10.9}),
        ("volume_negative", {"volume": -0.1}),
        ("volume_negative", {"trades": -1.0}),
        ("in_the_future", {"open_time": "2024-06-02T00:00Z", "close_time": "2024-06-03T00:00Z"}),
        ("absurd_time", {"open_time": "1969-12-31T00:00Z"}),
        ("absurd_time", {"open_time": None}),
        ("bad_span", {"close_time": "2024-05-06T00:00Z"}),
        ("bad_span", {"close_time": None}),
        ("off_grid", {"open_time": "2024-05-06T13:30Z"}),
        ("off_grid", {"interval": "1w", "open_time": "2024-05-05T00:00Z"}),
        ("off_grid", {"interval": "1h", "open_time": "2024-05-06T13:30Z"}),
        ("off_grid", {"interval": "5m"}),
    ],
)
def test_an_impossible_bar_is_rejected_under_its_rule(rule: str, change: dict[str, Any]) -> None:
    """The row is kept with the rule it breaks and the values that break it; its neighbour lands."""
    validated = validate_frame(frame_of(change, {"open_time": "2024-04-29T00:00Z"}), NOW)
    assert list(validated.rejected["rule"]) == [rule]
    assert "=" in validated.rejected["detail"][0]
    assert list(validated.good["open_time"]) == [pd.Timestamp("2024-04-29", tz="UTC")]


@pytest.mark.parametrize(
    "change",
    [
        {"volume": np.nan, "trades": np.nan},
        {"volume": 0.0},
        {"open": 1e-18, "high": 1e18, "low": 1e-18},
        {"open": 9.0, "high": 11.0},
        {"interval": "1w"},
        {"interval": "1h", "open_time": "2024-05-06T13:00Z"},
        {"open_time": "2024-06-01T00:00Z", "close_time": "2024-06-02T00:00Z", "is_final": False},
    ],
)
def test_an_unusual_bar_passes(change: dict[str, Any]) -> None:
    """Unknown volume, spikes, bars without shadows and the running bar are possible."""
    validated = validate_frame(frame_of(change), NOW)
    assert (len(validated.good), len(validated.rejected), validated.duplicates) == (1, 0, 0)


def new_york(first: datetime = datetime(2024, 1, 1, tzinfo=UTC), days: int = 180) -> pd.DataFrame:
    """Read sessions of New York."""
    return read_sessions("XNYS", first, first + timedelta(days=days))


def test_hourly_bars_of_an_exchange_start_where_its_grid_says() -> None:
    """Within a session the half hour is right and the full hour is not."""
    hours = ({"interval": "1h", "open_time": f"2024-05-06T{at}Z"} for at in ("13:30", "14:00"))
    validated = validate_frame(frame_of(*hours), NOW, new_york())
    assert [f"{time:%H:%M}" for time in validated.good["open_time"]] == ["13:30"]
    assert list(validated.rejected["rule"]) == ["off_grid"]


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("not_a_session", {"open_time": "2024-05-04T00:00Z"}),  # a Saturday
        ("not_a_session", {"open_time": "2024-05-27T00:00Z"}),  # Memorial Day
        ("off_grid", {"open_time": "2024-05-04T00:07Z"}),
        ("not_a_session", {"interval": "1h", "open_time": "2024-05-04T15:30Z"}),
        ("not_a_session", {"interval": "1h", "open_time": "2024-05-06T11:30Z"}),  # before the bell
        ("not_a_session", {"interval": "1h", "open_time": "2024-05-06T20:00Z"}),  # at the close
        ("not_finite", {"open_time": "2024-05-04T00:00Z", "close": np.nan}),
    ],
)
def test_a_bar_that_no_session_has_is_told_from_an_impossible_one(
    rule: str, change: dict[str, Any]
) -> None:
    """Its stamp is a start of a bar, but the calendar has no session then; the neighbour lands."""
    change = {"close_time": "2024-05-28T00:00Z", **change}
    validated = validate_frame(
        frame_of(change, {"open_time": "2024-05-06T00:00Z"}), NOW, new_york()
    )
    assert list(validated.rejected["rule"]) == [rule]
    assert list(validated.good["open_time"]) == [pd.Timestamp("2024-05-06", tz="UTC")]


@pytest.mark.parametrize("date", ["2023-12-30", "2024-06-29"])
def test_a_date_beyond_what_the_calendar_knows_is_no_closed_date(date: str) -> None:
    """Before its first session and after its last one a calendar says nothing."""
    bar = {"open_time": f"{date}T00:00Z", "close_time": "2024-07-01T00:00Z"}
    validated = validate_frame(frame_of(bar), datetime(2024, 8, 1, tzinfo=UTC), new_york())
    assert len(validated.good) == 1


def test_a_market_that_never_closes_has_a_session_for_every_bar() -> None:
    """Saturdays are days as others."""
    days = ({"open_time": f"2024-05-{day:02}T00:00Z"} for day in range(1, 7))
    bars = frame_of(*({**day, "close_time": "2024-05-09T00:00Z"} for day in days))
    sessions = read_sessions("24/7", datetime(2024, 5, 1, tzinfo=UTC), NOW)
    assert validate_frame(bars, NOW, sessions).rejected.empty


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 24 * 179), min_size=1, max_size=40, unique=True), st.booleans())
def test_every_bar_is_of_a_session_or_says_that_it_is_not(hours: list[int], is_daily: bool) -> None:
    """What lands is exactly what the calendar expects, whatever the provider sends."""
    sessions = new_york()
    step = timedelta(days=1) if is_daily else timedelta(hours=1)
    first = datetime(2024, 1, 2, 0, 0 if is_daily else 30, tzinfo=UTC)
    opens = sorted({first + (n % 170 if is_daily else n) * step for n in hours})
    interval = "1d" if is_daily else "1h"
    bars = ({"interval": interval, "open_time": at, "close_time": at + step} for at in opens)
    validated = validate_frame(frame_of(*bars), datetime(2025, 1, 1, tzinfo=UTC), sessions)
    expected = sessions["session_date"] if is_daily else pd.Series(build_hourly_grid(sessions))
    known = expected[expected.isin(opens)]
    assert list(validated.good["open_time"]) == list(known)
    assert set(validated.rejected["rule"]) <= {"not_a_session", "off_grid"}
    assert is_daily is False or set(validated.rejected["rule"]) <= {"not_a_session"}


def test_the_detail_shows_the_values_that_break_the_rule() -> None:
    """The reason can be read without the payload."""
    validated = validate_frame(frame_of({"low": 10.5}), NOW)
    assert validated.rejected["detail"][0] == "open=10.0, high=12.0, low=10.5, close=11.0"


def test_equal_rows_are_one_bar_and_are_counted() -> None:
    """A repeated row is neither stored twice nor quarantined, unknown values included."""
    validated = validate_frame(
        frame_of({"trades": np.nan}, {"trades": np.nan}, {"trades": np.nan}), NOW
    )
    assert (len(validated.good), len(validated.rejected), validated.duplicates) == (1, 0, 2)


def test_of_contradicting_rows_the_last_received_is_kept() -> None:
    """The other is rejected as a conflicting duplicate."""
    validated = validate_frame(frame_of({"close": 11.0}, {"close": 11.5}), NOW)
    assert list(validated.good["close"]) == [11.5]
    assert list(validated.rejected["close"]) == [11.0]
    assert list(validated.rejected["rule"]) == ["conflicting_duplicate"]


def test_of_contradicting_rows_made_of_points_none_is_kept() -> None:
    """A price at one moment is a fact of which two versions came: neither is better."""
    rows = ({"close": close, "source_kind": "points"} for close in (11.0, 11.5, 11.5))
    validated = validate_frame(frame_of(*rows), NOW)
    assert validated.good.empty
    assert list(validated.rejected["close"]) == [11.0, 11.5]
    assert set(validated.rejected["rule"]) == {"conflicting_duplicate"}
    assert validated.duplicates == 1


@pytest.mark.parametrize("finals", [(True, False), (False, True)])
def test_a_final_row_wins_over_a_provisional_one_in_any_order(finals: tuple[bool, bool]) -> None:
    """Finality counts more than the order of arrival."""
    rows = ({"is_final": final, "close": 11.0 if final else 11.5} for final in finals)
    validated = validate_frame(frame_of(*rows), NOW)
    assert list(validated.good["close"]) == [11.0]
    assert list(validated.rejected["close"]) == [11.5]


def test_a_provisional_row_with_the_final_values_is_only_a_repeat() -> None:
    """Equal values do not conflict, and the bar is final."""
    validated = validate_frame(frame_of({"is_final": True}, {"is_final": False}), NOW)
    assert list(validated.good["is_final"]) == [True]
    assert (len(validated.rejected), validated.duplicates) == (0, 1)


def test_an_impossible_row_does_not_displace_a_sound_one() -> None:
    """Duplicates are settled among sound rows only."""
    validated = validate_frame(frame_of({}, {"close": np.nan}), NOW)
    assert list(validated.good["close"]) == [11.0]
    assert list(validated.rejected["rule"]) == ["not_finite"]


def test_good_bars_are_ordered_by_interval_and_time() -> None:
    """Whatever order the provider sends them in."""
    validated = validate_frame(
        frame_of({"interval": "1w"}, {}, {"open_time": "2024-05-05T00:00Z"}), NOW
    )
    assert list(validated.good["interval"]) == ["1d", "1d", "1w"]
    assert validated.good["open_time"].dt.day.tolist() == [5, 6, 6]


def test_nothing_stays_nothing() -> None:
    """An empty frame gives empty frames with their columns."""
    validated = validate_frame(build_empty_bar_frame(), NOW)
    assert tuple(validated.good.columns) == BAR_COLUMNS
    assert tuple(validated.rejected.columns) == (*BAR_COLUMNS, "rule", "detail")


numbers = st.one_of(st.floats(), st.sampled_from([1.0, 2.0, 0.0, -1.0, 1e308]))
times = st.one_of(
    st.none(),
    st.sampled_from(["2024-05-06T00:00Z", "2024-05-07T00:00Z", "2024-05-13T00:00Z"]),
    st.integers(-62_000_000_000, 250_000_000_000).map(
        lambda seconds: (
            pd.Timestamp(0, tz="UTC").as_unit("s") + timedelta(seconds=seconds)
        ).isoformat()
    ),
)
rows = st.fixed_dictionaries(
    {
        "interval": st.sampled_from(["1h", "1d", "1w", "", "1M"]),
        "open_time": times,
        "close_time": times,
        **dict.fromkeys(("open", "high", "low", "close", "volume", "trades"), numbers),
        "is_final": st.booleans(),
    }
)
near_rows = st.fixed_dictionaries(
    {
        "open_time": st.sampled_from(["2024-05-06T00:00Z", "2024-04-29T00:00Z"]),
        "close": st.sampled_from([10.0, 11.0]),
        "is_final": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(rows, near_rows), max_size=8))
def test_every_row_is_good_rejected_or_a_repeat(changes: list[dict[str, Any]]) -> None:
    """No row is lost, no number raises, and keys of good bars are unique."""
    validated = validate_frame(frame_of(*changes), NOW)
    assert len(validated.good) + len(validated.rejected) + validated.duplicates == len(changes)
    assert not validated.good.duplicated(["interval", "open_time"]).any()
    assert (validated.rejected["rule"] != "").all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(rows, near_rows), max_size=8))
def test_validating_good_bars_again_changes_nothing(changes: list[dict[str, Any]]) -> None:
    """Validating is idempotent."""
    good = validate_frame(frame_of(*changes), NOW).good
    again = validate_frame(good, NOW)
    pd.testing.assert_frame_equal(again.good, good)
    assert (len(again.rejected), again.duplicates) == (0, 0)
