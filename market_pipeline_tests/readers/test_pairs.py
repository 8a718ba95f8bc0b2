"""Comparisons that no run stored, and rows whose bars changed since."""

from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import Engine, text

from market_pipeline import read_comparisons, read_roi_statistics
from market_pipeline.domain.errors import HistoryRequestError
from market_pipeline.readers import pairs
from market_pipeline.readers.why import explain_statistic
from market_pipeline_tests.orchestration.test_computing import (
    HOLE,
    SETTINGS,
    compute,
    on,
    walk,
)
from market_pipeline_tests.readers.bar_history import Bar, History, make_days


@pytest.fixture
def history(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> History:
    """Three markets of which only the first two are compared by a run."""
    monkeypatch.setenv("ROI_HORIZONS_DAYS", "7,30,365")
    history = History(engine)
    keys = [history.add_market(f"{name}-USD") for name in "ABC"]
    for n, key in enumerate(keys):
        history.commit(key, make_days(walk(400 + n, seed=n)))
    compute(engine, keys=keys[:2])
    return history


def add_days(history: History, market_id: int, first: int, count: int) -> None:
    """Commit more days of a market."""
    history.commit(market_id, [Bar(on(first + n), 100.0 + n % 7) for n in range(count)])


def test_a_pair_that_is_not_stored_is_computed_when_read(history: History) -> None:
    """It is what a run would have stored, and says that it is not stored."""
    frame = read_comparisons("C-USD", engine=history.engine)
    assert list(frame["horizon"].unique()) == ["7d", "30d", "365d"]
    assert set(frame["base_symbol"]) == {"A-USD", "B-USD"}
    assert not frame["is_stored"].any()
    assert not frame["is_outdated"].any()
    compute(history.engine)
    stored = read_comparisons("C-USD", engine=history.engine)
    assert stored["is_stored"].all()
    pd.testing.assert_frame_equal(
        frame.drop(columns="is_stored"), stored.drop(columns="is_stored"), check_exact=True
    )


def test_stored_and_computed_pairs_come_in_one_answer(history: History) -> None:
    """Each pair once, with the horizon asked for, also one that no run knows."""
    frame = read_comparisons("A-USD", horizon="30d", engine=history.engine)
    assert frame["is_stored"].tolist() == [True, False]
    odd = read_comparisons("A-USD", "B-USD", horizon="45d", engine=history.engine)
    assert (odd["n_returns"].tolist(), odd["is_stored"].tolist()) == ([45], [False])
    with pytest.raises(HistoryRequestError, match="'30w'"):
        read_comparisons("A-USD", "C-USD", horizon="30w", engine=history.engine)


def test_a_computed_pair_is_withheld_by_the_same_flaws(history: History) -> None:
    """An unexplained hole of either market is its reason."""
    with history.engine.begin() as connection:
        connection.execute(text(HOLE), {"market_id": 3, "first": on(390), "last": on(391)})
    frame = read_comparisons("A-USD", "C-USD", engine=history.engine).set_index("horizon")
    assert frame["reason"].fillna("").to_dict() == {
        "7d": "", "30d": "unexplained_hole", "365d": "unexplained_hole",
    }  # fmt: skip
    assert np.isnan(frame.loc["30d", "correlation"])


def test_a_time_bounds_the_bars_of_a_computed_pair(history: History) -> None:
    """Only bars that had closed by then."""
    frame = read_comparisons(
        "A-USD", "C-USD", as_of=on(390) + timedelta(hours=1), engine=history.engine
    )
    assert set(frame.index) == {pd.Timestamp(on(390))}
    span = read_comparisons("C-USD", start=on(0), end=on(500), engine=history.engine)
    assert span.empty


def test_too_many_pairs_are_left_out_and_counted(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored still comes."""
    monkeypatch.setattr(pairs, "MAX_COMPUTED_PAIRS", 1)
    frame = read_comparisons(engine=history.engine)
    assert (len(frame), frame.attrs["pairs_left_out"]) == (3, 2)
    monkeypatch.setattr(pairs, "MAX_COMPUTED_PAIRS", 2)
    frame = read_comparisons(engine=history.engine)
    assert (len(frame), frame.attrs["pairs_left_out"]) == (9, 0)


def read_flags(history: History, of_pairs: bool = False) -> dict[tuple[Any, str], bool]:
    """Return which stored rows of the first market are outdated, by as_of and horizon."""
    read = read_comparisons if of_pairs else read_roi_statistics
    frame = read("A-USD", start=on(0), end=on(999), engine=history.engine)  # type: ignore[operator]
    return {
        ((as_of.to_pydatetime() - on(0)).days, horizon): flag
        for as_of, horizon, flag in zip(
            frame.index, frame["horizon"], frame["is_outdated"], strict=True
        )
    }


@pytest.mark.parametrize("of_pairs", [False, True])
def test_an_older_row_is_flagged_when_a_bar_of_its_window_changed(
    history: History, of_pairs: bool
) -> None:
    """Only rows over the bar, and never the newest, which is computed again."""
    for market_id in (1, 2):
        add_days(history, market_id, 400, 3)
    compute(history.engine, keys=[1, 2])
    assert not any(read_flags(history, of_pairs).values())
    history.commit(1, [Bar(on(396), 50.0)])
    compute(history.engine, keys=[1, 2])
    assert read_flags(history, of_pairs) == {
        (400, "7d"): True, (400, "30d"): True, (400, "365d"): True,
        (403, "7d"): False, (403, "30d"): False, (403, "365d"): False,
    }  # fmt: skip


def test_a_bar_outside_the_window_flags_nothing(history: History) -> None:
    """A correction of a year ago is none of the week's, a later day none of an older row's."""
    add_days(history, 1, 400, 1)
    compute(history.engine, keys=[1, 2])
    history.commit(1, [Bar(on(100), 50.0), Bar(on(401), 101.0)])
    compute(history.engine, keys=[1, 2])
    flags = read_flags(history)
    assert [key for key, flag in flags.items() if flag] == [(400, "365d"), (401, "365d")]


def test_a_history_loaded_later_flags_a_row_that_had_no_base(history: History) -> None:
    """Days before the first one that the row knew are in its horizon."""
    key = history.add_market("LATE-USD")
    add_days(history, key, 100, 20)
    compute(history.engine, keys=[key])
    add_days(history, key, 120, 1)
    compute(history.engine, keys=[key])
    add_days(history, key, 60, 40)
    frame = read_roi_statistics("LATE-USD", "30d", start=on(0), end=on(999), engine=history.engine)
    assert frame["reason"].tolist() == ["insufficient_data"] * 2
    assert frame["is_outdated"].tolist() == [True, True]
    week = read_roi_statistics("LATE-USD", "7d", start=on(0), end=on(999), engine=history.engine)
    assert week["is_outdated"].tolist() == [False, False]


def test_the_row_of_the_settings_in_use_is_the_newest(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was computed last: readers, pages and why follow the settings."""
    other = SETTINGS.__class__((7, 30, 365), 20, 0.04, ())
    compute(history.engine, other, keys=[1, 2])

    def read_methods() -> set[str]:
        frames = [
            read_roi_statistics("A-USD", engine=history.engine),
            read_comparisons("A-USD", "B-USD", engine=history.engine),
        ]
        told = explain_statistic("A-USD", "sharpe", "30d", engine=history.engine)
        return {told.method, *(method for frame in frames for method in frame["method"])}

    assert read_methods() == {"simple;rf=0;mar=0;A=365;min=0.8/5", "simple;skew=21600;min=0.8/5"}
    monkeypatch.setenv("ROI_MIN_RETURNS", "20")
    monkeypatch.setenv("RISK_FREE_RATE", "0.04")
    assert read_methods() == {"simple;rf=0.04;mar=0;A=365;min=20", "simple;skew=21600;min=20"}


def test_why_computes_with_the_settings_that_the_row_names(history: History) -> None:
    """Also of a row that was written before methods named the fewest returns: twenty."""
    with history.engine.begin() as connection:
        connection.execute(
            text("UPDATE market_data.market_roi_statistic SET method = 'simple;rf=0;mar=0;A=365'")
        )
    told = explain_statistic("A-USD", "sharpe", "30d", engine=history.engine)
    assert told.method == "simple;rf=0;mar=0;A=365"
    assert told.recomputed == told.value is not None
