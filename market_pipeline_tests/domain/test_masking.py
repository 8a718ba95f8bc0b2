"""Which statistics an issue withholds, and with which reason."""

import math
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pandas as pd
import pytest

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import (
    MIXED_PARSING,
    NEVER_ASKED,
    REASONS,
    RESTATING,
    UNEXPLAINED_HOLE,
    DataIssue,
    mask_unreliable,
)
from market_pipeline.domain.records import Window
from market_pipeline.domain.roi import MEASURES, compute_roi_statistics

MARCH = datetime(2024, 3, 1, tzinfo=UTC)
LAST = 59


def on(day: int) -> datetime:
    """Return midnight of a day of the series."""
    return MARCH + timedelta(days=day)


def compute(*missing: int, days: tuple[int, ...] = (30,)) -> pd.DataFrame:
    """Compute statistics of sixty days of which some are missing."""
    opens = pd.DatetimeIndex([on(day) for day in range(LAST + 1) if day not in missing]).as_unit(
        "us"
    )
    closes = [100.0 + day % 5 for day in range(LAST + 1) if day not in missing]
    bars = pd.DataFrame(
        {"market_id": 1, "open_time": opens, "close_time": opens + pd.Timedelta(days=1)}
    ).assign(close=closes)
    rows = compute_roi_statistics(bars, {1: "24/7"}, Interval.DAY, days)
    return rows.rename(columns={"reasons": "reason"})


def find_reasons(rows: pd.DataFrame, *issues: DataIssue) -> list[str | None]:
    """Return the reason of each row that is withheld, and None for the others."""
    told = mask_unreliable(rows, ("market_id",), MEASURES, issues)
    withheld = told[list(MEASURES)].isna().all(axis=1)
    return [reason if gone else None for reason, gone in zip(told["reason"], withheld, strict=True)]


def hole(first: int, end: int, reason: str = UNEXPLAINED_HOLE, market_id: int = 1) -> DataIssue:
    """Return an issue from one day to another."""
    return DataIssue(market_id, reason, Window(on(first), on(end)))


def test_a_hole_between_the_base_and_the_horizon_withholds() -> None:
    """The base of the thirty days to day 59 is day 29; missing, it is day 28 over a hole."""
    rows = compute(29)
    assert rows["first_bar_at"].tolist() == [pd.Timestamp(on(29))]
    assert find_reasons(rows, hole(29, 30)) == [UNEXPLAINED_HOLE]


def test_a_hole_before_the_base_does_not_touch_it() -> None:
    """What lies before the base close, after the last close, or in another market is no matter."""
    rows = compute()
    for issue in (hole(20, 29), hole(60, 70), hole(40, 45, market_id=2)):
        assert find_reasons(rows, issue) == [None]
    assert find_reasons(rows, hole(59, 60)) == [UNEXPLAINED_HOLE]


def test_a_history_without_a_base_says_what_is_missing() -> None:
    """Nobody asked for the days before it: that tells more than that there are too few."""
    rows = compute(*range(30))
    assert rows["reason"].tolist() == ["insufficient_data"]
    assert find_reasons(rows, hole(0, 30, NEVER_ASKED)) == [NEVER_ASKED]


@pytest.mark.parametrize(("at", "reason"), [(29, None), (30, None), (31, MIXED_PARSING)])
def test_a_boundary_withholds_what_lies_across_it(at: int, reason: str | None) -> None:
    """Two parsings may meet at the base close, which is at midnight of day 30, or before."""
    boundary = DataIssue(1, MIXED_PARSING, Window(on(at), on(at)))
    assert find_reasons(compute(), boundary) == [reason]
    assert find_reasons(compute(), DataIssue(1, MIXED_PARSING, Window(on(60), on(60)))) == [None]


def test_the_most_telling_reason_wins_in_any_order() -> None:
    """Of several issues the one stays that says most; what touches the whole market touches all."""
    rows = compute(days=(7, 30))
    issues = [hole(30, 60, reason) for reason in REASONS[1:]]
    for chosen in permutations(issues, 3):
        wanted = min((one.reason for one in chosen), key=REASONS.index)
        assert find_reasons(rows, *chosen) == [wanted, wanted]
    assert find_reasons(rows, DataIssue(1, RESTATING), hole(55, 56)) == [RESTATING, RESTATING]
    assert find_reasons(rows, hole(40, 41)) == [None, UNEXPLAINED_HOLE]


def test_the_other_side_of_a_pair_withholds_as_well() -> None:
    """A comparison without a base has no first bar, and is withheld by its horizon."""
    rows = pd.DataFrame(
        {
            "base_market_id": [1, 1],
            "quote_market_id": [2, 3],
            "horizon": pd.Categorical(["30d", "30d"]),
            "as_of": pd.DatetimeIndex([on(60)] * 2),
            "first_bar_at": pd.DatetimeIndex([on(30), None]),
            "correlation": [0.5, math.nan],
            "reason": pd.Categorical([None, "insufficient_data"]),
        }
    )
    keys = ("base_market_id", "quote_market_id")
    issues = [hole(30, 31, market_id=2), hole(29, 30, market_id=3)]
    told = mask_unreliable(rows, keys, ["correlation"], issues)
    assert told["reason"].tolist() == [UNEXPLAINED_HOLE, UNEXPLAINED_HOLE]
    assert told["correlation"].isna().all()


def test_a_pair_is_withheld_for_either_of_its_markets() -> None:
    """Each row has the weightiest reason of those that touch it, whatever the order of issues."""
    rows = pd.concat([compute()] * 3, ignore_index=True)
    rows = rows.assign(base=[1, 2, 3], quote=[2, 3, 4])
    issues = [hole(40, 45, market_id=2), hole(40, 45, NEVER_ASKED, 3), DataIssue(9, RESTATING)]
    for given in permutations([*issues, hole(40, 45, NEVER_ASKED, 2)]):
        told = mask_unreliable(rows, ("base", "quote"), MEASURES, given)
        assert told["reason"].tolist() == [UNEXPLAINED_HOLE, UNEXPLAINED_HOLE, NEVER_ASKED]
    told = mask_unreliable(rows, ("base", "quote"), MEASURES, [DataIssue(4, RESTATING)])
    assert told["reason"].fillna("").tolist() == ["", "", RESTATING]
