"""Yahoo's chart API, against its recorded answers."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from threading import Barrier
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.domain.errors import PermanentProviderError, TransientProviderError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.providers.listings import INDICES, LISTINGS
from market_pipeline.providers.yahoo import YahooProvider, clean_prices, parse_bars, parse_snapshot
from market_pipeline_tests.providers.clocks import QUICK, FakeTime
from market_pipeline_tests.replay import (
    ReplayServer,
    Reply,
    answer_with,
    build_chart_error,
    edit_json,
    load_recording,
    make_json_reply,
    read_recording,
)

LATER = datetime(2026, 1, 1, tzinfo=UTC)


def at(text: str) -> datetime:
    """Return a UTC time."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def find(symbol: str) -> Market:
    """Return a market that must be there."""
    market = YahooProvider({}).find_market(symbol)
    assert market is not None
    return market


def make_provider(server: ReplayServer, fake_time: FakeTime) -> YahooProvider:
    """Return a provider that asks the local server."""
    return YahooProvider(server.environ, clocks=fake_time.clocks, limits=QUICK)


def make_chart(symbol: str, zone: str, rows: list[tuple[str, Any]], **meta: object) -> Any:
    """Return a chart body of (time, close) rows; open, high and low equal the close."""
    prices = [price for _, price in rows]
    return {
        "chart": {
            "result": [
                {
                    "meta": {
                        "symbol": symbol,
                        "currency": "USD",
                        "exchangeTimezoneName": zone,
                        "dataGranularity": "1d",
                        "priceHint": 2,
                        **meta,
                    },
                    "timestamp": [int(at(time).timestamp()) for time, _ in rows],
                    "indicators": {
                        "quote": [
                            {
                                "open": prices,
                                "high": prices,
                                "low": prices,
                                "close": prices,
                                "volume": prices,
                            }
                        ]
                    },
                }
            ],
            "error": None,
        }
    }


def test_a_year_of_daily_bars_is_read_with_its_clock_changes() -> None:
    """E10: 252 recorded bars of MSFT, one per session date, each ending at its session's close."""
    body = load_recording("yahoo/chart_msft_1y_dividends_2021.json")
    bars = parse_bars(body, find("MSFT"), Interval.DAY, LATER)
    assert len(bars) == 252
    assert (bars["open_time"].dt.hour == 0).all()
    assert bars["open_time"].is_unique
    ends = bars.set_index("open_time")["close_time"]
    assert ends[pd.Timestamp("2021-03-12", tz="UTC")].hour == 21
    assert ends[pd.Timestamp("2021-03-15", tz="UTC")].hour == 20
    assert ends[pd.Timestamp("2021-11-26", tz="UTC")].hour == 18  # E12: the day after Thanksgiving
    assert bars["is_final"].all()


def test_float32_noise_is_left_out_and_no_digit_with_it() -> None:
    """The recorded 7200.17431640625 is the float32 whose shortest text is 7200.1743."""
    body = load_recording("yahoo/chart_btcusd_1d_2020-01-01_03.json")
    bars = parse_bars(body, find("BTC-USD"), Interval.DAY, LATER)
    assert bars["close"].tolist() == [7200.1743, 6985.47, 7344.8843]
    assert bars["volume_kind"].unique().tolist() == ["quote"]


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        (95147.484375, 95147.484),
        (3824.139892578125, 3824.14),
        (109114.8828125, 109114.88),
        (1.2345670102e-05, 1.2345670102e-05),
        (float(np.float32(1.234567e-05)), 1.234567e-05),
        (1.1e-18, 1.1e-18),
        (239.65, 239.65),
        (1e300, 1e300),
        (0.0, 0.0),
    ],
)
def test_e16_a_price_keeps_all_its_digits(sent: float, meant: float) -> None:
    """Of a float32 the shortest text that reads back as it; any other number as it was sent."""
    assert clean_prices(np.array([sent]))[0] == meant


@given(st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=1))
def test_every_float32_reads_back_as_itself(sent: list[float]) -> None:
    """What is left out was noise: the text is the shortest that means this number."""
    cleaned = clean_prices(np.array(sent))
    assert cleaned.astype(np.float32).tolist() == sent
    shortest = [float(str(np.float32(price))) for price in sent]
    assert cleaned.tolist() == shortest


@pytest.mark.parametrize(
    "name",
    [
        "chart_aapl_1d_2020-08-31_2020-11-07_div_split",
        "chart_btcusd_1d_2020-01-01_03",
        "chart_inrx_with_null",
        "chart_msft_1y_dividends_2021",
        "chart_tsla_recent_2021",
        "yfrs_chart_aapl",
    ],
)
def test_recorded_prices_of_every_kind_of_market_are_float32(name: str) -> None:
    """Shares, coins and currencies alike; the one recording with other numbers is of 2018."""
    quote = load_recording(f"yahoo/{name}.json")["chart"]["result"][0]["indicators"]["quote"][0]
    prices = [price for key in ("open", "high", "low", "close") for price in quote[key] if price]
    assert len(prices) >= 12
    assert np.float32(prices).astype(np.float64).tolist() == prices


@given(st.decimals("0.0001", "99999.9999", places=4))
def test_e9_pence_are_scaled_in_decimal(pence: Decimal) -> None:
    """Of 100.01 pence not 1.0001000000000001 pounds, whether sent as float32 or as a double."""
    exact = clean_prices(np.array([float(pence)]), is_minor=True)[0]
    assert exact == float(pence / 100)
    short = np.float32(float(pence))
    sent = clean_prices(np.array([float(short)]), is_minor=True)[0]
    assert sent == float(Decimal(str(short)) / 100)


def test_null_rows_are_left_out() -> None:
    """The recorded null of MUV2.DE is a holiday, not a price."""
    body = load_recording("yahoo/chart_muv2de_2017_2018_one_null.json")
    quote = body["chart"]["result"][0]["indicators"]["quote"][0]
    quote |= dict.fromkeys(("open", "high", "low", "volume"), quote["close"])  # not recorded
    bars = parse_bars(body, find("MUV2.DE"), Interval.DAY, LATER)
    assert len(bars) == 123
    assert bars["close"].notna().all()
    assert find("MUV2.DE").calendar == "XETR"


def test_e10_session_dates_follow_the_exchanges_own_clock() -> None:
    """Stamps of 23:00 UTC are the next date in London; the null row of four is left out."""
    body = load_recording("yahoo/chart_inrx_with_null.json")
    market = Market("yahoo", "INR", "INR=X", "", "INR", "INR", "CCY", "24/7", (Interval.DAY,))
    bars = parse_bars(body, market, Interval.DAY, LATER)
    assert bars["open_time"].dt.strftime("%m-%d").tolist() == ["07-10", "07-12", "07-13"]


def test_no_bars_at_all_is_an_empty_frame() -> None:
    """A weekend: ``timestamp`` is absent and the quote is empty."""
    body = load_recording("yahoo/chart_aapl_1m_weekend_no_timestamp_200.json")
    body["chart"]["result"][0]["meta"]["dataGranularity"] = "1h"
    assert parse_bars(body, find("AAPL"), Interval.HOUR, LATER).empty


def test_a_last_row_stamped_with_the_close_is_that_days_bar() -> None:
    """127 recorded bars of AAPL, the last stamped 20:00:01 UTC instead of 13:30."""
    body = load_recording("yahoo/yfrs_chart_aapl.json")
    bars = parse_bars(body, find("AAPL"), Interval.DAY, LATER)
    assert len(bars) == 127
    assert bars["open_time"].iloc[-1] == pd.Timestamp("2025-10-29", tz="UTC")
    assert bars["is_final"].all()


def test_e4_the_running_session_is_one_provisional_bar() -> None:
    """The regular row and the one stamped with the clock become one bar, with the latest close."""
    rows = [
        ("2024-01-11T14:30", 100.0),
        ("2024-01-12T14:30", 101.0),
        ("2024-01-12T18:46:05", 103.0),
    ]
    last_trade = int(at("2024-01-12T18:46:05").timestamp())
    body = make_chart("AAPL", "America/New_York", rows, regularMarketTime=last_trade)
    bars = parse_bars(body, find("AAPL"), Interval.DAY, at("2024-01-12T18:46:10"))
    assert bars["close"].tolist() == [100.0, 103.0]
    assert (bars["open"].iloc[1], bars["high"].iloc[1]) == (101.0, 103.0)
    assert bars["is_final"].tolist() == [True, False]
    assert bars["close_time"].iloc[1] == pd.Timestamp("2024-01-12T21:00", tz="UTC")


def test_e4_a_stale_answer_after_the_close_stays_provisional() -> None:
    """A cached row from the middle of the session is not final, whatever the clock says."""
    last_trade = int(at("2024-01-12T18:46:05").timestamp())
    rows = [("2024-01-12T18:46:05", 103.0)]
    body = make_chart("AAPL", "America/New_York", rows, regularMarketTime=last_trade)
    bars = parse_bars(body, find("AAPL"), Interval.DAY, at("2024-01-12T23:00"))
    assert bars["is_final"].tolist() == [False]


@pytest.mark.parametrize(
    ("now", "is_final"), [("2024-01-12T21:29:59", False), ("2024-01-12T21:30:00", True)]
)
def test_e4_a_session_is_final_half_an_hour_after_its_close(now: str, *, is_final: bool) -> None:
    """Delayed quotes arrive first."""
    body = make_chart("AAPL", "America/New_York", [("2024-01-12T14:30", 101.0)])
    bars = parse_bars(body, find("AAPL"), Interval.DAY, at(now))
    assert bars["is_final"].tolist() == [is_final]


def test_e10_hours_begin_with_the_session() -> None:
    """New York's hours run 14:30, 15:30, ...; the last is short and holds the closing stamp."""
    times = [f"2024-01-12T{hour}:30" for hour in range(14, 21)]
    rows = [(time, 100.0 + number) for number, time in enumerate(times)]
    rows += [("2024-01-12T21:00", 110.0), ("2024-01-12T22:15", 1.0), ("2024-01-12T13:00", 2.0)]
    body = make_chart("AAPL", "America/New_York", rows, dataGranularity="1h")
    bars = parse_bars(body, find("AAPL"), Interval.HOUR, LATER)
    assert bars["open_time"].dt.strftime("%H:%M").tolist() == [time[-5:] for time in times]
    last = bars.iloc[-1]
    assert (last["open"], last["close"]) == (106.0, 110.0)
    assert last["close_time"] == pd.Timestamp("2024-01-12T21:00", tz="UTC")


def test_crypto_hours_begin_with_the_clock_hour() -> None:
    """A running hour stamped with the clock belongs to its hour."""
    rows = [("2024-01-12T23:00", 1.0), ("2024-01-13T00:00", 2.0), ("2024-01-13T00:17:05", 3.0)]
    body = make_chart("BTC-USD", "UTC", rows, dataGranularity="60m")
    bars = parse_bars(body, find("BTC-USD"), Interval.HOUR, at("2024-01-13T00:17:10"))
    assert bars["close"].tolist() == [1.0, 3.0]
    assert bars["open_time"].dt.hour.tolist() == [23, 0]
    assert bars["is_final"].tolist() == [True, False]


def test_prices_in_pence_become_pounds() -> None:
    """E9: London quotes in GBp; the series is in GBP."""
    body = make_chart("VOD.L", "Europe/London", [("2024-01-12T08:00", 71.58)], currency="GBp")
    bars = parse_bars(body, find("VOD.L"), Interval.DAY, LATER)
    assert (find("VOD.L").quote, bars["close"].tolist()) == ("GBP", [0.7158])


def test_e9_another_currency_is_refused() -> None:
    """A share listed in London in dollars is not silently a price in pounds."""
    body = make_chart("VOD.L", "Europe/London", [("2024-01-12T08:00", 71.58)])
    with pytest.raises(PermanentProviderError, match="quoted in 'USD', expected GBP"):
        parse_bars(body, find("VOD.L"), Interval.DAY, LATER)


def test_d13_an_answer_for_another_symbol_is_refused() -> None:
    """Yahoo mixing up two charts must not mix up two series."""
    body = load_recording("yahoo/chart_msft_1y_dividends_2021.json")
    with pytest.raises(PermanentProviderError, match="asked for AAPL, the answer is for 'MSFT'"):
        parse_bars(body, find("AAPL"), Interval.DAY, LATER)


def test_coarser_bars_than_asked_for_are_refused() -> None:
    """``range=max`` once answered quarters where days were asked."""
    body = make_chart(
        "AAPL", "America/New_York", [("2024-01-12T14:30", 1.0)], dataGranularity="3mo"
    )
    with pytest.raises(PermanentProviderError, match="asked for bars of 1d, answered were '3mo'"):
        parse_bars(body, find("AAPL"), Interval.DAY, LATER)


@pytest.mark.parametrize("factor", [1000, 1_000_000, 1e-3])
def test_d10_stamps_in_another_unit_are_refused_or_out_of_the_window(
    server: ReplayServer, fake_time: FakeTime, factor: float
) -> None:
    """Milliseconds are refused; nothing lands at a wrong date."""

    def change(body: Any) -> Any:
        result = body["chart"]["result"][0]
        result["timestamp"] = [stamp * factor for stamp in result["timestamp"]]
        return body

    server.misbehave(edit_json(change))
    window = Window(at("2018-12-01"), at("2018-12-31"))
    try:
        bars = make_provider(server, fake_time).fetch_bars(
            find("SPX"), Interval.DAY, window, at("2018-12-31")
        )
    except PermanentProviderError:
        return
    assert bars.empty


@pytest.mark.parametrize(
    "damage",
    [
        lambda result: result["indicators"]["quote"][0].pop("open"),
        lambda result: result["indicators"]["quote"][0]["close"].pop(),
        lambda result: result["indicators"]["quote"][0]["close"].__setitem__(0, "7200"),
        lambda result: result["timestamp"].__setitem__(0, None),
        lambda result: result.__setitem__("timestamp", {}),
        lambda result: result["meta"].pop("symbol"),
        lambda result: result["meta"].__setitem__("exchangeTimezoneName", "Mars/Olympus"),
        lambda result: result["meta"].__setitem__("exchangeTimezoneName", "../../etc/passwd"),
        lambda result: result.pop("indicators"),
    ],
)
def test_d10_another_shape_is_refused(damage: Any) -> None:
    """A renamed, retyped or shortened column is an error, never fewer bars."""
    body = load_recording("yahoo/chart_btcusd_1d_2020-01-01_03.json")
    damage(body["chart"]["result"][0])
    with pytest.raises(PermanentProviderError):
        parse_bars(body, find("BTC-USD"), Interval.DAY, LATER)


@pytest.mark.parametrize(
    "body",
    [
        build_chart_error("Not Found", "No data found, symbol may be delisted"),
        {"finance": {"result": None, "error": {"code": "Bad Request", "description": "no"}}},
        {"chart": {"result": None, "error": None}},
        {"chart": {"result": [], "error": None}},
        {"chart": {"result": [None], "error": None}},
        {},
        [],
        None,
    ],
)
def test_d8_an_error_inside_a_success_is_refused(body: object) -> None:
    """Status 200 around an error envelope is an error."""
    with pytest.raises(PermanentProviderError):
        parse_bars(body, find("AAPL"), Interval.DAY, LATER)


def test_e13_an_unknown_symbol_is_told_as_yahoo_says_it(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """404 is final and carries Yahoo's words."""
    window = Window(at("2024-01-01"), at("2024-02-01"))
    with pytest.raises(PermanentProviderError, match="No data found") as failure:
        make_provider(server, fake_time).fetch_bars(
            find("NOPE"), Interval.DAY, window, at("2024-02-01")
        )
    assert failure.value.status == 404


def test_a_window_outside_a_listing_has_no_bars(server: ReplayServer, fake_time: FakeTime) -> None:
    """Yahoo's 400 about missing data is an empty answer, not a failure."""
    error = build_chart_error("Bad Request", "Data doesn't exist for startDate = 1, endDate = 2")
    server.misbehave(answer_with(make_json_reply(error).body, 400))
    window = Window(at("1970-01-01"), at("1970-02-01"))
    assert (
        make_provider(server, fake_time)
        .fetch_bars(find("TSLA"), Interval.DAY, window, at("2024-01-01"))
        .empty
    )


def test_d1_the_plain_text_limit_is_transient(server: ReplayServer, fake_time: FakeTime) -> None:
    """``Too Many Requests`` in plain text is retried, then told."""
    body = read_recording("yahoo/crumb_rate_limited_429.txt")
    server.misbehave(answer_with(body, 429, "text/plain"), times=4)
    with pytest.raises(TransientProviderError, match="HTTP 429: Too Many Requests"):
        make_provider(server, fake_time).fetch_snapshots([find("SPX")], at("2024-01-01"))


def test_s7_the_symbol_is_one_encoded_path_segment(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """``^GSPC`` travels as %5EGSPC."""
    window = Window(at("2018-12-03"), at("2018-12-08"))
    bars = make_provider(server, fake_time).fetch_bars(
        find("SPX"), Interval.DAY, window, at("2019-01-01")
    )
    assert server.requests[0].path == "/yahoo/v8/finance/chart/%5EGSPC"
    assert bars["open_time"].dt.day.tolist() == [3, 4, 6, 7]  # E12: closed for a funeral on the 5th


@pytest.mark.parametrize("symbol", ["../V7", "A?B=1", "A#B", "A%2FB", "A/B", "^GSPC", "A:B", "A=X"])
def test_s7_symbols_that_are_no_tickers_are_not_served(symbol: str) -> None:
    """Nothing that could lead elsewhere is in the catalogue."""
    assert YahooProvider({}).find_market(symbol) is None


def test_hourly_history_beyond_two_years_is_not_asked_for(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """The limit follows the real clock: an older window is empty without a request."""
    fake_time.utc_now = at("2024-06-01")
    provider = make_provider(server, fake_time)
    old, recent = Window(at("2018-01-01"), at("2018-06-01")), Window(at("2020-01-01"), LATER)
    assert provider.fetch_bars(find("BTC-USD"), Interval.HOUR, old, at("2018-06-01")).empty
    assert server.requests == []
    bars = provider.fetch_bars(find("BTC-USD"), Interval.HOUR, recent, at("2024-06-01"))
    assert bars["open_time"].iloc[0] == pd.Timestamp("2022-06-02T01:00", tz="UTC")


def test_the_catalogue_is_static() -> None:
    """Indices, listed pairs and tickers with the calendar of their exchange; nothing else."""
    expected = {
        "SPX": ("^GSPC", "XNYS", "USD"),
        "BTC-USD": ("BTC-USD", "24/7", "USD"),
        "AAPL": ("AAPL", "XNYS", "USD"),
        "BRK-B": ("BRK-B", "XNYS", "USD"),
        "BRK.B": ("BRK-B", "XNYS", "USD"),
        "SAP.DE": ("SAP.DE", "XETR", "EUR"),
        "7203.T": ("7203.T", "XTKS", "JPY"),
        "AIR.PA": ("AIR.PA", "XPAR", "EUR"),
    }
    for symbol, (name, calendar, currency) in expected.items():
        market = find(symbol)
        assert (market.provider_market_id, market.calendar, market.quote) == (
            name,
            calendar,
            currency,
        )
    for symbol in ("FOO-USD", "BTC-EUR", "AAPL.XX", "1234"):
        assert YahooProvider({}).find_market(symbol) is None


def test_every_calendar_in_the_catalogue_exists() -> None:
    """A ticker of each listed exchange gets bars with that exchange's closes."""
    calendars = {calendar for calendar, _ in LISTINGS.values()} | {
        row[3] for row in INDICES.values()
    }
    for calendar in sorted(calendars)[::6]:  # building each takes a while; all were tried once
        assert len(read_sessions(calendar, at("2024-01-08"), at("2024-01-13"))) >= 4


def test_a_snapshot_is_the_last_trade(server: ReplayServer, fake_time: FakeTime) -> None:
    """Price and time come from the chart's meta object."""
    (snapshot,) = make_provider(server, fake_time).fetch_snapshots([find("MSFT")], LATER)
    assert (snapshot.price, snapshot.observed_at) == (408.21, at("2025-02-21T21:00:01"))
    assert snapshot.volume_24h is None


def test_prices_are_asked_for_at_once(fake_time: FakeTime) -> None:
    """The server answers when as many requests are there as FETCH_WORKERS says."""
    three = Barrier(3)

    class Waiting(ReplayServer):
        def answer(self, path: str, query: Mapping[str, str]) -> Reply:
            three.wait(timeout=60)
            return super().answer(path, query)

    with Waiting() as server:
        environ = {**server.environ, "FETCH_WORKERS": "3"}
        provider = YahooProvider(environ, clocks=fake_time.clocks)
        found = provider.fetch_snapshots([find("MSFT"), find("AAPL"), find("TSLA")], LATER)
    assert [one.market.symbol for one in found] == ["MSFT", "AAPL", "TSLA"]


def test_one_failing_market_does_not_take_the_others_prices(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """The markets that answered have prices; only when none did, the failure is raised."""
    provider = make_provider(server, fake_time)
    found = provider.fetch_snapshots([find("NOPE"), find("SPX")], LATER)
    assert [one.market.symbol for one in found] == ["SPX"]
    with pytest.raises(PermanentProviderError):
        provider.fetch_snapshots([find("NOPE")], LATER)


def test_a_meta_without_a_price_has_no_snapshot() -> None:
    """Null is not zero."""
    body = make_chart("AAPL", "America/New_York", [], regularMarketPrice=None)
    assert parse_snapshot(body, find("AAPL")) == []
