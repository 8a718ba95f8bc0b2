"""What is computed from stored bars: whatever the clock, exact as of its version, and only once."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from market_pipeline.domain.comparisons import compute_comparisons
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.domain.roi import MEASURES, compute_roi_statistics
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.ingestion.commit import write_rows
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.orchestration.assets import choose_pairs
from market_pipeline.orchestration.computing import (
    Computed,
    compute_pairs,
    compute_prices,
    compute_roi,
)
from market_pipeline.settings import StatisticsSettings
from market_pipeline.storage.bars.history import BarSpan, read_bars_at_version
from market_pipeline.storage.rows import read_frame
from market_pipeline.storage.statistics.computed_inputs import write_fingerprints
from market_pipeline.storage.tables import market, market_comparison, market_roi_statistic
from market_pipeline_tests.readers.bar_history import MONDAY, Bar, History, make_days

SETTINGS = StatisticsSettings((7, 30, 365), None, 0.0, ())
HOLE = """
    INSERT INTO market_data.coverage_hole (market_id, "interval", starts_at, ends_at, reason, tries,
        first_seen_at, last_checked_at) VALUES (:market_id, '1d', :first, :last, 'fetch_failed', 1,
        now(), now())"""


@pytest.fixture
def history(engine: Engine) -> History:
    """An empty history on this test's database."""
    return History(engine)


def walk(days: int, seed: int = 1) -> list[float]:
    """Return closes that go up and down."""
    steps = np.random.default_rng(seed).normal(0, 0.02, days)
    return [float(close) for close in 100 * np.exp(np.cumsum(steps))]


def on(day: int) -> datetime:
    """Return midnight of a day, counted from the first bar's."""
    return MONDAY + timedelta(days=day)


def set_calendar(history: History, market_id: int, calendar: str) -> None:
    """Move a market to an exchange."""
    with history.engine.begin() as connection:
        changed = market.update().where(market.c.market_id == market_id)
        connection.execute(changed.values(calendar=calendar))


def make_sessions(calendar: str, closes: Sequence[float]) -> list[Bar]:
    """Return one final daily bar for each session."""
    sessions = read_sessions(calendar, MONDAY, MONDAY + timedelta(days=900)).head(len(closes))
    return [
        Bar(opened.to_pydatetime(), close)
        for opened, close in zip(sessions["session_date"], closes, strict=True)
    ]


def read_markets(engine: Engine) -> pd.DataFrame:
    """Return the markets as assets know them."""
    with engine.connect() as connection:
        return read_frame(connection, market.select().order_by(market.c.market_id))


def compute(
    engine: Engine, chosen: StatisticsSettings = SETTINGS, keys: Sequence[int] = ()
) -> tuple[Computed, Computed]:
    """Compute and write what a run about all or some markets does: statistics, comparisons."""
    markets = read_markets(engine)
    markets = markets[markets["market_id"].isin(keys)] if keys else markets
    calendars = dict(zip(markets["market_id"], markets["calendar"], strict=True))
    risk = compute_roi(engine, calendars, chosen)
    pairs = compute_pairs(engine, markets, choose_pairs(markets, ()), chosen)
    write(engine, market_roi_statistic, risk)
    write(engine, market_comparison, pairs)
    return risk, pairs


def write(engine: Engine, table: object, computed: Computed) -> None:
    """Write as the IO manager does."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    run = Run(uuid4(), "manual", now, build_request(now, ["BTC-USD"], "mock", 10))
    name = table.name  # type: ignore[attr-defined]
    write_rows(
        engine, run, table, computed.rows, "ok",  # type: ignore[arg-type]
        lambda connection: write_fingerprints(
            connection, name, computed.fingerprints, run.run_id
        ),
    )  # fmt: skip


def read_rows(engine: Engine, table: str) -> list[tuple[object, ...]]:
    """Return a table with the transaction that wrote each row, in order."""
    with engine.connect() as connection:
        found = connection.execute(text(f"SELECT xmin::text, t.* FROM market_data.{table} t"))
        return sorted((tuple(row) for row in found), key=str)


def read_statistics(engine: Engine) -> pd.DataFrame:
    """Return the stored statistics by horizon."""
    with engine.connect() as connection:
        rows = read_frame(connection, market_roi_statistic.select())
    return rows.set_index("horizon").sort_values("as_of")


def recompute(engine: Engine, row: pd.Series, calendar: str) -> dict[str, object]:  # type: ignore[type-arg]
    """Compute a stored statistic from all final bars of its version up to its ``as_of``."""
    span = BarSpan((row["market_id"],), Interval.DAY, Window(MONDAY - timedelta(days=9), on(9_999)))
    with engine.connect() as connection:
        found = read_bars_at_version(connection, span, row["dataset_version"])
    bars = pd.DataFrame(found).query("close_time <= @row.as_of")
    days = int(row["horizon"].removesuffix("d"))
    (again,) = compute_roi_statistics(
        bars, {row["market_id"]: calendar}, Interval.DAY, [days]
    ).to_dict("records")
    return again


def find_differences(engine: Engine, calendars: dict[int, str]) -> list[str]:
    """Return what of the stored statistics is not its formula over the bars of its version."""
    wrong = []
    rows = read_statistics(engine).reset_index()
    for row in rows[rows["market_id"].isin(calendars)].to_dict("records"):
        again = recompute(engine, pd.Series(row), calendars[row["market_id"]])
        wrong += [
            f"{row['horizon']} {name}: {row[name]}, again {again[name]}"
            for name in ("as_of", "method", "n_returns", "n_missing", *MEASURES)
            if str(again[name]) != str(row[name])
        ]
    return wrong


def test_a_market_that_ended_keeps_its_longest_horizon(history: History) -> None:
    """Bars of two years ago give a year's statistic, and come out the same ever after."""
    key = history.add_market("OLD-USD")
    history.commit(key, make_days(walk(400)))
    compute(history.engine)
    rows = read_statistics(history.engine)
    assert rows["roi"].notna().all()
    assert rows.loc["365d", "n_returns"] == 365


def test_a_pair_is_compared_where_both_last_had_a_bar(history: History) -> None:
    """One market ended long before the other's window begins; the pair has its year there."""
    closes = walk(1_000)
    one, two = history.add_market("LIVE-USD"), history.add_market("GONE-USD")
    history.commit(one, make_days(closes))
    history.commit(two, make_days(walk(450, seed=2)))
    third = history.add_market("ALSO-USD")
    history.commit(third, make_days(walk(1_000, seed=3)))
    rows = compute(history.engine)[1].rows
    pair = rows[(rows["base_market_id"] == one) & (rows["quote_market_id"] == two)]
    assert pair["as_of"].tolist() == [pd.Timestamp(on(450))] * 3
    assert pair["correlation"].notna().all()
    spread = closes[449] / closes[84] - walk(450, seed=2)[449] / walk(450, seed=2)[84]
    assert pair["roi_spread"].iloc[-1] == pytest.approx(spread, rel=1e-12)
    live = rows[(rows["base_market_id"] == one) & (rows["quote_market_id"] == third)]
    assert live["as_of"].tolist() == [pd.Timestamp(on(1_000))] * 3


def test_a_pair_of_two_calendars_reaches_as_far_as_its_joined_dates(history: History) -> None:
    """Many holes before the horizon push the joined base back by weeks, and its bars are read."""
    one, two = history.add_market("BTC-USD"), history.add_market("STOCK")
    set_calendar(history, two, "XSAU")
    history.commit(one, make_days(walk(900)))
    sessions = make_sessions("XSAU", walk(500, seed=2))
    last = sessions[-1].open_time
    gone = [bar for bar in sessions if not 365 <= (last - bar.open_time).days < 365 + 60]
    history.commit(two, gone)
    row = compute(history.engine)[1].rows.iloc[-1]
    bars, markets = [], read_markets(history.engine)
    with history.engine.connect() as connection:
        span = BarSpan((one, two), Interval.DAY, Window(MONDAY, on(9_999)))
        bars = pd.DataFrame(read_bars_at_version(connection, span, 2))
    (everything,) = compute_comparisons(
        bars, markets, Interval.DAY, [365], np.array([[one, two]])
    ).to_dict("records")
    assert everything["first_bar_at"] == row["first_bar_at"]
    assert everything["correlation"] == row["correlation"]
    assert (last - row["first_bar_at"].to_pydatetime()).days > 420


def test_the_same_inputs_are_not_computed_again(history: History) -> None:
    """A second run writes nothing into any table but its receipt, and says so."""
    one, two = history.add_market("BTC-USD"), history.add_market("ETH-USD")
    history.commit(one, make_days(walk(400)))
    history.commit(two, make_days(walk(400, seed=2)))
    first = compute(history.engine)
    assert [len(each.rows) for each in first] == [6, 3]
    assert [each.note for each in first] == ["", ""]
    tables = ("market_roi_statistic", "market_comparison", "computed_input", "market_stamp")
    before = [read_rows(history.engine, table) for table in tables]
    again = compute(history.engine)
    assert [len(each.rows) for each in again] == [0, 0]
    assert again[0].note == (
        "2 of 2 markets: bars, holes, events and settings did not change, so nothing was computed"
    )
    assert again[1].note.startswith("1 of 1 pairs")
    assert [read_rows(history.engine, table) for table in tables] == before


def test_only_what_changed_is_computed(history: History) -> None:
    """A new day of one market leaves the other's statistics alone, and rewrites no equal pair."""
    keys = [history.add_market(f"M{n}-USD") for n in range(3)]
    for n, key in enumerate(keys):
        history.commit(key, make_days(walk(400 - n, seed=n)))
    compute(history.engine)
    before = read_rows(history.engine, "market_comparison")
    history.commit(keys[0], [Bar(on(400), 120.0)])
    risk, pairs = compute(history.engine)
    assert set(risk.rows["market_id"]) == {keys[0]}
    assert len(pairs.rows) == 0  # no pair has a later joined date
    history.commit(keys[1], [Bar(on(399), 120.0)])
    assert len(compute(history.engine)[1].rows) == 9
    after = read_rows(history.engine, "market_comparison")
    assert len(set(after) - set(before)) == 3
    assert set(before) <= set(after)


def test_a_tick_is_no_news_and_a_corrected_day_is(history: History) -> None:
    """A running day, and final days that came again, change nothing; an old day's new close does.

    A day before the longest horizon may be corrected without news.
    """
    key = history.add_market("BTC-USD")
    days = make_days(walk(500))
    history.commit(key, days)
    compute(history.engine)
    history.commit(key, [*days[-3:], Bar(on(500), 130.0, is_final=False)])
    assert len(compute(history.engine)[0].rows) == 0
    history.commit(key, [Bar(on(2), 77.0), *days[400:]])
    assert len(compute(history.engine)[0].rows) == 0
    history.commit(key, [Bar(on(300), 77.0)])
    assert len(compute(history.engine)[0].rows) == 3
    assert len(compute(history.engine)[0].rows) == 0


def test_what_is_wrong_with_the_bars_is_an_input(history: History) -> None:
    """A hole that is found withholds without a new bar; one after the last bar is no matter."""
    key = history.add_market("BTC-USD")
    history.commit(key, make_days(walk(400)))
    compute(history.engine)
    with history.engine.begin() as connection:
        values = {"market_id": key, "first": on(405), "last": on(407)}
        connection.execute(text(HOLE), values)
    assert len(compute(history.engine)[0].rows) == 0
    with history.engine.begin() as connection:
        values = {"market_id": key, "first": on(380), "last": on(381)}
        connection.execute(text(HOLE), values)
    compute(history.engine)
    rows = read_statistics(history.engine)
    assert rows["reason"].fillna("").tolist().count("unexplained_hole") == 2
    withheld = rows[rows["reason"] == "unexplained_hole"]
    assert withheld[["roi", "drawdown_peak_at"]].isna().all(axis=None)
    assert rows.loc["7d", "roi"] is not None


def test_settings_are_an_input_and_part_of_the_key(history: History) -> None:
    """Other settings make rows of their own beside those of before."""
    key = history.add_market("BTC-USD")
    history.commit(key, make_days(walk(400)))
    compute(history.engine)
    compute(history.engine, StatisticsSettings((7, 30, 365), 20, 0.02, ()))
    methods = set(read_statistics(history.engine)["method"])
    assert methods == {
        "simple;rf=0;mar=0;A=365;min=0.8/5", "simple;rf=0.02;mar=0;A=365;min=20",
    }  # fmt: skip


def test_what_was_not_written_leaves_no_fingerprint(history: History) -> None:
    """A write that fails is computed again by the next run."""
    key = history.add_market("BTC-USD")
    history.commit(key, make_days(walk(60)))
    risk = compute_roi(history.engine, {key: "24/7"}, SETTINGS)
    broken = Computed(risk.rows.assign(max_drawdown=7.0), risk.fingerprints)
    with pytest.raises(Exception, match="drawdown_in_range"):
        write(history.engine, market_roi_statistic, broken)
    assert read_rows(history.engine, "computed_input") == []
    assert len(compute(history.engine)[0].rows) == 3


def test_a_live_price_stands_on_bars_that_had_closed(history: History) -> None:
    """Each market by the time of its own price; an issue in the window masks both statistics."""
    keys = [history.add_market(f"M{n}-USD") for n in range(3)]
    for key in keys:
        history.commit(key, make_days(walk(100)))
    with history.engine.begin() as connection:
        connection.execute(text(HOLE), {"market_id": keys[2], "first": on(85), "last": on(86)})
    at = pd.DatetimeIndex([on(60) - timedelta(seconds=1), on(100), on(101)]).as_unit("us")
    prices = pd.DataFrame({"market_id": keys, "observed_at": at, "price": 200.0})
    rows = compute_prices(history.engine, dict.fromkeys(keys, "24/7"), prices)
    assert rows["bars_as_of"].tolist() == [pd.Timestamp(on(day)) for day in (59, 100, 100)]
    assert rows["roi"].tolist()[:2] == [200.0 / walk(100)[28] - 1, 200.0 / walk(100)[69] - 1]
    assert rows["reason"].fillna("").tolist() == ["", "", "unexplained_hole"]
    assert rows[["roi", "realised_volatility"]].iloc[2].isna().all()
    assert rows["dataset_version"].tolist() == [1, 2, 3]


def revise(days: Iterable[int], seed: int) -> list[Bar]:
    """Return bars of other closes."""
    return [Bar(on(day), 90.0 + (seed * (day + 3)) % 17) for day in days]


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.randoms(use_true_random=False))
def test_every_row_is_its_formula_over_the_bars_of_its_version(
    history: History, draws: Random
) -> None:
    """Whatever was loaded, revised or left out, before and after: to the last bit, at any clock."""
    keys = [history.add_market(f"{uuid4()}", is_primary=False) for _ in range(2)]
    set_calendar(history, keys[1], "XSHG")
    calendars = dict(zip(keys, ("24/7", "XSHG"), strict=True))
    dates = {bar.open_time for bar in make_sessions("XSHG", [1.0] * 300)}
    for step in range(draws.randint(2, 4)):
        for key in keys:
            first = draws.randint(0, 420)
            chosen = [day for day in range(first, 440) if draws.random() < 0.97]
            bars = revise(chosen, seed=draws.randint(1, 16))
            kept = [bar for bar in bars if key == keys[0] or bar.open_time in dates]
            if kept:
                history.commit(key, kept if step else kept[: draws.randint(1, len(kept))])
        compute(history.engine, keys=keys)
        before = read_rows(history.engine, "market_roi_statistic")
        assert [len(each.rows) for each in compute(history.engine, keys=keys)] == [0, 0]
        assert read_rows(history.engine, "market_roi_statistic") == before
    assert find_differences(history.engine, calendars) == []
