"""The mock provider's faults: each does what its name says, when and where it was asked to."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from market_pipeline.domain.errors import (
    PermanentProviderError,
    SettingError,
    TransientProviderError,
)
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import BAR_DTYPES, Market, PriceSnapshot, Window
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.providers.mock import MockProvider
from market_pipeline.providers.mock_faults import ALIASES, AMOUNTS, Fault, parse_faults
from market_pipeline.providers.rate_limiter import CallCounter, UnlimitedCalls, use_limiter
from market_pipeline_tests.frames import validate_frame

NOW = datetime(2024, 3, 15, 15, 47, tzinfo=UTC)
WINDOW = Window(datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 3, 16, tzinfo=UTC))
PRICES = ["open", "high", "low", "close"]
ROOT = Path(__file__).resolve().parents[2]


def find(symbol: str) -> Market:
    """Return the market of any symbol."""
    market = MockProvider({}).find_market(symbol)
    assert market is not None
    return market


def fetch(
    faults: str,
    symbol: str = "BTC-USD",
    interval: Interval = Interval.DAY,
    now: datetime = NOW,
    window: Window = WINDOW,
) -> pd.DataFrame:
    """Return what a provider with these faults answers to its first call."""
    return MockProvider({"MOCK_FAULTS": faults}).fetch_bars(find(symbol), interval, window, now)


def fetch_prices(faults: str, *symbols: str) -> list[PriceSnapshot]:
    """Return the live prices of a provider with these faults."""
    return MockProvider({"MOCK_FAULTS": faults}).fetch_snapshots(list(map(find, symbols)), NOW)


def list_days(bars: pd.DataFrame) -> list[int]:
    """Return the days of the month on which bars open."""
    return bars["open_time"].dt.day.tolist()


GOOD = fetch("")


def test_a_fault_of_another_market_changes_nothing() -> None:
    """The answer is the same to the last bit."""
    pd.testing.assert_frame_equal(fetch("ETH-USD:empty_page, SPX:timeout"), GOOD)


@pytest.mark.parametrize("name", ["throttled=90", "429=90"])
def test_throttled_tells_how_long_to_wait(name: str) -> None:
    """The call fails with status 429, and the limiter hears for how many seconds."""
    heard = []

    class ListeningLimiter(UnlimitedCalls):
        def report_throttled(self, provider: str, seconds: float) -> None:
            heard.append((provider, seconds))

    with use_limiter(ListeningLimiter()), pytest.raises(TransientProviderError) as failure:
        fetch(f"BTC-USD:{name}")
    assert failure.value.status == 429
    assert "retry after 90 s" in str(failure.value)
    assert heard == [("mock", 90.0)]


def test_every_call_passes_the_limiter() -> None:
    """One for each fetch of bars, refused ones too, and one for any number of live prices."""
    provider, limiter = (
        MockProvider({"MOCK_FAULTS": "BTC-USD:timeout x1"}),
        CallCounter(UnlimitedCalls()),
    )
    with use_limiter(limiter):
        with pytest.raises(TransientProviderError):
            provider.fetch_bars(find("BTC-USD"), Interval.DAY, WINDOW, NOW)
        provider.fetch_bars(find("BTC-USD"), Interval.DAY, WINDOW, NOW)
        provider.fetch_snapshots([find("ETH-USD"), find("SPX")], NOW)
    assert limiter.calls == 3


def test_timeout_is_worth_another_try() -> None:
    """It has no status, as nobody answered."""
    with pytest.raises(TransientProviderError, match="did not answer for BTC-USD in time") as error:
        fetch("BTC-USD:timeout")
    assert error.value.status is None


def test_wrong_symbol_is_refused_for_good() -> None:
    """Another market's prices never come through."""
    with pytest.raises(
        PermanentProviderError, match="asked for BTC-USD, the answer is for 'ETH-USD'"
    ):
        fetch("BTC-USD:wrong_symbol")


def test_empty_page_has_no_bars() -> None:
    """An empty bar frame of the usual shape."""
    bars = fetch("BTC-USD:empty_page")
    assert bars.empty
    assert bars.dtypes.equals(GOOD.dtypes)


def test_skipped_page_leaves_out_a_span() -> None:
    """The end of a span is not in it; without one the middle third is missing."""
    assert list_days(fetch("BTC-USD:skipped_page@2024-03-05..2024-03-08")) == [
        1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15,
    ]  # fmt: skip
    assert list_days(fetch("BTC-USD:skipped_page")) == [1, 2, 3, 4, 5, 11, 12, 13, 14, 15]


def test_skipped_page_of_hours() -> None:
    """A time with an hour means that hour."""
    hours = fetch("BTC-USD:skipped_page@2024-03-05T13:00", interval=Interval.HOUR)
    missing = set(fetch("", interval=Interval.HOUR)["open_time"]) - set(hours["open_time"])
    assert missing == {pd.Timestamp("2024-03-05T13:00", tz="UTC")}


def test_truncated_history_keeps_the_newest() -> None:
    """Ten bars, or as many as were asked for."""
    pd.testing.assert_frame_equal(
        fetch("BTC-USD:truncated_history=3"), GOOD.tail(3).reset_index(drop=True)
    )
    assert len(fetch("BTC-USD:truncated_history")) == 10


def test_unclosed_bar_is_called_final() -> None:
    """With the values it had at that moment."""
    assert not GOOD["is_final"].iloc[-1]
    bars = fetch("BTC-USD:unclosed_bar")
    assert bars["is_final"].all()
    pd.testing.assert_frame_equal(bars[PRICES], GOOD[PRICES])


def test_restated_bar_has_other_values() -> None:
    """Only the final bars of the span, all four prices."""
    bars = fetch("BTC-USD:restated_bar=1.02@2024-03-14..2024-03-16")
    changed = (bars[PRICES] / GOOD[PRICES]).round(9)
    assert (changed.iloc[13] == 1.02).all()
    assert (changed.drop(index=13) == 1.0).all(axis=None)


def test_split_divides_what_came_before_once_it_happened() -> None:
    """Until its moment nobody knows of it; volumes grow by the same ratio."""
    faults = "BTC-USD:split=4@2024-03-10"
    bars = fetch(faults)
    expected = [0.25] * 9 + [1.0] * 6
    assert (bars["close"] / GOOD["close"]).round(9).tolist() == expected
    assert (GOOD["volume"] / bars["volume"]).round(9).tolist() == expected
    day_before = datetime(2024, 3, 9, 23, 59, tzinfo=UTC)
    pd.testing.assert_frame_equal(fetch(faults, now=day_before), fetch("", now=day_before))


def test_split_reaches_windows_that_end_before_it() -> None:
    """History is rescaled as a whole, also where it is asked for alone."""
    old = Window(datetime(2023, 1, 1, tzinfo=UTC), datetime(2023, 2, 1, tzinfo=UTC))
    ratio = fetch("BTC-USD:split@2024-03-10", window=old)["close"] / fetch("", window=old)["close"]
    assert (ratio.round(9) == 0.5).all()


@pytest.mark.parametrize(("span", "first"), [("", 0), ("@2024-03-10", 9)])
def test_rescaled_multiplies_all_prices_or_those_from_a_moment_on(span: str, first: int) -> None:
    """Whatever was asked when; volumes stay, and the live price is in the same scale."""
    bars = fetch(f"BTC-USD:rescaled=1.005{span}")
    expected = [1.0] * first + [1.005] * (15 - first)
    assert (bars["close"] / GOOD["close"]).round(9).tolist() == expected
    assert bars["volume"].equals(GOOD["volume"])
    (snapshot,) = fetch_prices(f"BTC-USD:rescaled=1.005{span}", "BTC-USD")
    assert snapshot.price == pytest.approx(bars["close"].iloc[-1])


def test_an_equal_duplicate_is_harmless() -> None:
    """The row comes twice, next to itself."""
    bars = fetch("BTC-USD:duplicate@2024-03-05")
    assert list_days(bars)[3:7] == [4, 5, 5, 6]
    validated = validate_frame(bars, NOW)
    assert (validated.duplicates, len(validated.rejected)) == (1, 0)
    pd.testing.assert_frame_equal(validated.good, GOOD)


def test_a_conflicting_duplicate_is_found() -> None:
    """The second row says something else about the same day."""
    validated = validate_frame(fetch("BTC-USD:duplicate=1.05@2024-03-05"), NOW)
    assert validated.rejected["rule"].tolist() == ["conflicting_duplicate"]


@pytest.mark.parametrize("interval", [Interval.HOUR, Interval.DAY])
def test_an_off_grid_bar_is_found(interval: Interval) -> None:
    """Moved by seven minutes, so that the place where it belongs is empty."""
    good, bars = fetch("", interval=interval), fetch("BTC-USD:off_grid", interval=interval)
    validated = validate_frame(bars, NOW)
    assert validated.rejected["rule"].tolist() == ["off_grid"]
    assert validated.rejected["open_time"].iloc[0].minute == 7
    assert len(validated.good) == len(good) - 1


@pytest.mark.parametrize(("span", "closed"), [("", [2, 3, 9, 10]), ("@2024-03-09", [9])])
def test_bars_of_closed_dates_are_found(span: str, closed: list[int]) -> None:
    """New York's weekends have bars as well, far too high; the sessions' own are as they were."""
    good, bars = fetch("", "SPX"), fetch(f"SPX:closed_date=9{span}", "SPX")
    sessions = read_sessions("XNYS", WINDOW.start - timedelta(days=9), WINDOW.end)
    validated = validate_frame(bars, NOW, sessions)
    pd.testing.assert_frame_equal(validated.good, good)
    assert set(validated.rejected["rule"]) == {"not_a_session"}
    assert list_days(validated.rejected) == closed
    assert validated.rejected["close"].min() > 5 * good["close"].max()
    assert fetch(f"BTC-USD:closed_date{span}").equals(GOOD)


def test_sub_cent_prices_keep_their_shape() -> None:
    """Around 1e-8, still possible bars, with the same returns; the live price fits."""
    bars = fetch("BTC-USD:sub_cent_price")
    assert bars["close"].between(1e-9, 1e-7).all()
    assert validate_frame(bars, NOW).rejected.empty
    pd.testing.assert_series_equal(bars["close"].pct_change(), GOOD["close"].pct_change())
    (snapshot,) = fetch_prices("BTC-USD:sub_cent_price", "BTC-USD")
    assert snapshot.price == pytest.approx(bars["close"].iloc[-1])


@pytest.mark.parametrize("kind", sorted(set(AMOUNTS) - {"throttled", "timeout", "wrong_symbol"}))
@pytest.mark.parametrize("symbol", ["BTC-USD", "SPX"])
@pytest.mark.parametrize("days", [0, 1, 15])
def test_a_spoilt_answer_is_still_a_bar_frame(kind: str, symbol: str, days: int) -> None:
    """Columns, types and index are as promised, for empty, short and longer answers."""
    faults = f"*:{kind}@2024-03-05" if kind in ("restated_bar", "split") else f"*:{kind}"
    window = Window(WINDOW.start, WINDOW.start + timedelta(days=days))
    for interval in (Interval.HOUR, Interval.DAY):
        bars = fetch(faults, symbol, interval, window=window)
        assert bars.dtypes.astype(str).to_dict() == dict(BAR_DTYPES)
        assert bars.index.equals(pd.RangeIndex(len(bars)))
        assert bars["open_time"].is_monotonic_increasing


def test_faults_apply_in_their_order() -> None:
    """Of the two newest bars the middle one is doubled."""
    bars = fetch("BTC-USD:truncated_history=2, BTC-USD:duplicate")
    assert list_days(bars) == [14, 15, 15]


def test_a_star_means_every_market() -> None:
    """Also those nobody thought of."""
    assert fetch("*:empty_page", "FOO").empty


def test_a_fault_can_be_limited_to_an_interval() -> None:
    """Hours are answered, days are not."""
    assert fetch("BTC-USD:empty_page 1d").empty
    assert not fetch("BTC-USD:empty_page 1d", interval=Interval.HOUR).empty


def test_a_fault_concerns_only_windows_that_touch_its_span() -> None:
    """A call before or after the span is answered."""
    with pytest.raises(TransientProviderError):
        fetch("BTC-USD:timeout@2024-03-15")
    before = Window(WINDOW.start, datetime(2024, 3, 15, tzinfo=UTC))
    assert len(fetch("BTC-USD:timeout@2024-03-15", window=before)) == 14


def test_until_and_since_follow_the_runs_clock() -> None:
    """Active from ``since`` to just before ``until``, so that the next run repairs it."""
    moment = datetime(2024, 3, 15, 12, tzinfo=UTC)
    just_before = moment - timedelta(microseconds=1)
    for option, active_at, well_at in [
        ("until", just_before, moment),
        ("since", moment, just_before),
    ]:
        faults = f"BTC-USD:empty_page {option}=2024-03-15T12:00"
        assert fetch(faults, now=active_at).empty
        assert not fetch(faults, now=well_at).empty


def test_the_first_calls_only() -> None:
    """``x2`` counts each market's calls by itself."""
    provider = MockProvider({"MOCK_FAULTS": "*:empty_page x2"})
    lengths = [
        len(provider.fetch_bars(find(symbol), Interval.DAY, WINDOW, NOW))
        for symbol in ("BTC-USD", "ETH-USD", "BTC-USD", "BTC-USD", "ETH-USD", "ETH-USD")
    ]
    assert lengths == [0, 0, 0, 15, 0, 15]


def test_live_prices_do_not_use_up_the_calls_of_bars() -> None:
    """Both are counted by themselves."""
    provider = MockProvider({"MOCK_FAULTS": "BTC-USD:empty_page x1"})
    assert provider.fetch_snapshots([find("BTC-USD")], NOW) == []
    assert provider.fetch_bars(find("BTC-USD"), Interval.DAY, WINDOW, NOW).empty
    assert len(provider.fetch_snapshots([find("BTC-USD")], NOW)) == 1


def find_hits(seed: str) -> list[bool]:
    """Return which of 400 calls met a fault of 30 %."""
    provider = MockProvider({"MOCK_FAULTS": "BTC-USD:empty_page 30%", "MOCK_SEED": seed})
    day = Window(datetime(2024, 3, 5, tzinfo=UTC), datetime(2024, 3, 6, tzinfo=UTC))
    market = find("BTC-USD")
    return [provider.fetch_bars(market, Interval.DAY, day, NOW).empty for _ in range(400)]


def test_a_probability_is_drawn_from_the_seed() -> None:
    """The same calls fail with the same seed, others with another, about as many as asked for."""
    hits = find_hits("7")
    assert 90 <= sum(hits) <= 150
    assert find_hits("7") == hits
    assert find_hits("8") != hits


def test_a_refused_market_has_no_live_price() -> None:
    """The others keep theirs; when all are refused the call fails."""
    faults = "BTC-USD:429, ETH-USD:empty_page"
    prices = fetch_prices(faults, "BTC-USD", "ETH-USD", "SPX")
    assert [snapshot.market.symbol for snapshot in prices] == ["SPX"]
    with pytest.raises(TransientProviderError, match="429"):
        fetch_prices(faults, "BTC-USD")


def test_the_whole_grammar_is_read() -> None:
    """Amount, span, zone and options, with any blanks around commas."""
    first, second = parse_faults(
        " eth-usd:429=12.5@2024-01-05T12:00+02:00..2024-01-08 1h x3 5% until=2024-02-01,, *:timeout"
    )
    assert first == Fault(
        "throttled",
        "ETH-USD",
        12.5,
        Window(datetime(2024, 1, 5, 10, tzinfo=UTC), datetime(2024, 1, 8, tzinfo=UTC)),
        interval=Interval.HOUR,
        calls=3,
        probability_ratio=0.05,
        until=datetime(2024, 2, 1, tzinfo=UTC),
    )
    assert second == Fault("timeout", "*")
    assert parse_faults(" , ") == ()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("BTC-USD:splitt", "fault 'splitt' is unknown: expected one of throttled, timeout,"),
        ("timeout", "expected SYMBOL:FAULT"),
        ("BTC USD:timeout", "expected SYMBOL:FAULT"),
        ("$$$:timeout", r"symbol '\$\$\$' is malformed"),
        ("BTC-USD:timeout=3", "timeout takes no amount"),
        ("BTC-USD:429=", "'' is not an amount: expected a number above 0, such as 30"),
        ("BTC-USD:429=-1", "'-1' is not an amount"),
        ("BTC-USD:429=nan", "'nan' is not an amount"),
        ("BTC-USD:429=1e9", "'1e9' is not an amount"),
        ("BTC-USD:truncated_history=2.5", "expected a whole number above 0, such as 10"),
        ("BTC-USD:split", "split needs a time, such as split@2024-01-05"),
        ("BTC-USD:restated_bar", "restated_bar needs a time"),
        ("BTC-USD:split@2024-01-05..2024-01-08", "split takes one moment"),
        ("BTC-USD:rescaled@2024-01-05..2024-01-08", "rescaled takes one moment"),
        ("BTC-USD:timeout@yesterday", "'yesterday' is not a time: expected UTC such as 2024-01-05"),
        ("BTC-USD:timeout@2024-01-08..2024-01-05", "ends before it begins"),
        ("BTC-USD:timeout@2024-01-08..2024-01-08", "ends before it begins"),
        ("BTC-USD:timeout@2024-01-08..", "'' is not a time"),
        ("BTC-USD:timeout x0", "option 'x0' is unknown: expected x2, 30%, 1h, 1d, since=TIME"),
        ("BTC-USD:timeout 101%", "option '101%' is unknown"),
        ("BTC-USD:timeout 1w", "option '1w' is unknown"),
        ("BTC-USD:timeout until=soon", "'soon' is not a time"),
        ("BTC-USD:timeout@0001-01-01T00:00+14:00", "is not a time"),
        ("BTC-USD:timeout@9999-12-31", "is not a time"),
    ],
)
def test_a_wrong_entry_is_told_with_what_was_expected(entry: str, said: str) -> None:
    """The variable and the entry are named, among others that are right."""
    start = re.escape(f"MOCK_FAULTS has {entry!r}: ")
    with pytest.raises(SettingError, match=f"^{start}.*{said}"):
        MockProvider({"MOCK_FAULTS": f"SPX:429 x1, {entry}, ETH-USD:timeout"})


@pytest.mark.parametrize(
    "path", ["docs/mock-faults.md", "market_pipeline/providers/mock_faults.py"]
)
def test_the_tables_name_every_fault_and_its_amount(path: str) -> None:
    """No fault is known to the code alone."""
    text = (ROOT / path).read_text()
    for name in [*AMOUNTS, *ALIASES]:
        assert re.search(rf"\b{name}\b", text)
    for kind, amount in AMOUNTS.items():
        shown = "" if amount is None else f"{amount:g}".replace("e-08", "e-8")
        row = rf"(?m)^(\| `{kind}`[^|]*\| {shown} \||{kind}( \(429\))?\s+{shown}\s)"
        assert re.search(row, text), kind
