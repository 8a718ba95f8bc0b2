"""CoinGecko, against its recorded answers."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.domain.errors import PermanentProviderError, SettingError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window
from market_pipeline.providers.coingecko import (
    CoinGeckoProvider,
    build_bars,
    build_snapshot_query,
    parse_points,
    parse_snapshots,
    split_hourly,
)
from market_pipeline_tests.frames import validate_frame
from market_pipeline_tests.providers.clocks import QUICK, FakeTime
from market_pipeline_tests.replay import (
    ReplayServer,
    answer_with,
    edit_json,
    load_recording,
    read_recording,
)

DAILY_2014 = "coingecko/market_chart_range_btc_daily_2014.json"
HOURLY_2024 = "coingecko/market_chart_range_uni_hourly_7d_2024.json"
MINUTES_2024 = "coingecko/market_chart_btc_days1_2024.json"
EVER = Window(datetime(2010, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC))


def at(text: str) -> datetime:
    """Return a UTC time."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def make_provider(server: ReplayServer, fake_time: FakeTime, **settings: str) -> CoinGeckoProvider:
    """Return a provider that asks the local server."""
    environ = server.environ | settings
    return CoinGeckoProvider(environ, clocks=fake_time.clocks, limits=QUICK)


def find(provider: CoinGeckoProvider, symbol: str = "BTC-USD") -> Market:
    """Return a market that must be there."""
    market = provider.find_market(symbol)
    assert market is not None
    return market


def test_a_day_is_closed_by_the_point_at_its_end() -> None:
    """The point of 2014-02-18 00:00 (625.01) closes the 17th, that of the 17th opens it."""
    bars = build_bars(
        parse_points(load_recording(DAILY_2014), EVER), Interval.DAY, at("2024-01-01")
    )
    day = bars.set_index("open_time").loc[pd.Timestamp("2014-02-17", tz="UTC")]
    assert (day["open"], day["high"], day["low"], day["close"]) == (645.14, 645.14, 625.01, 625.01)
    assert day["close_time"] == pd.Timestamp("2014-02-18", tz="UTC")
    assert (day["volume"], day["volume_kind"], day["source_kind"]) == (
        22066400.0,
        "rolling_24h",
        "points",
    )
    assert day["is_final"]


def test_a_day_without_a_point_at_either_end_is_absent() -> None:
    """The recording lacks 2015-01-28 00:00: neither the 27th nor the 28th has both its prices."""
    bars = build_bars(
        parse_points(load_recording(DAILY_2014), EVER), Interval.DAY, at("2024-01-01")
    )
    days = bars.set_index("open_time")["open"]
    assert days.loc["2015-01-26":"2015-01-30"].index.day.tolist() == [26, 29]  # type: ignore[misc]


def test_e4_a_day_becomes_final_35_minutes_after_its_end() -> None:
    """Finality is a matter of the clock, not of the last row."""
    points = parse_points(load_recording(DAILY_2014), EVER)
    for now, is_final in (("2015-01-30T00:34:59", False), ("2015-01-30T00:35:00", True)):
        last = build_bars(points, Interval.DAY, at(now)).iloc[-1]
        assert (last["open_time"], last["is_final"]) == (
            pd.Timestamp("2015-01-29", tz="UTC"),
            is_final,
        )


def test_e4_the_last_point_is_now_and_makes_a_provisional_day() -> None:
    """A point off midnight is the price of the moment: the running day's close so far."""
    body = {
        "prices": [[1704153600000, 10.0], [1704240000000, 12.0], [1704292800000, 11.0]],
        "total_volumes": [[1704153600000, 1.0], [1704240000000, 2.0], [1704292800000, 3.0]],
    }
    bars = build_bars(parse_points(body, EVER), Interval.DAY, at("2024-01-03T14:40:00"))
    last = bars.iloc[-1]
    assert last["open_time"] == pd.Timestamp("2024-01-03", tz="UTC")
    assert (last["open"], last["high"], last["low"], last["close"]) == (12.0, 12.0, 11.0, 11.0)
    assert list(bars["is_final"]) == [True, False]


def make_points(*points: tuple[str, float]) -> pd.DataFrame:
    """Return points of 2024-01-01 by time of day."""
    pairs = [[at(f"2024-01-01T{time}").timestamp() * 1000, price] for time, price in points]
    return parse_points({"prices": pairs, "total_volumes": pairs}, EVER)


def list_bars(points: pd.DataFrame, now: str = "2024-01-02") -> list[tuple[object, ...]]:
    """Return hour, open, high, low, close and whether it is final, of each bar."""
    bars = build_bars(points, Interval.HOUR, at(now))
    columns = ["open", "high", "low", "close", "is_final"]
    rows = bars.set_index(bars["open_time"].dt.hour)[columns]
    return [tuple(row) for row in rows.itertuples()]


def test_recorded_hours_open_and_close_at_their_own_boundaries() -> None:
    """168 recorded points, each up to four minutes late, give 167 hours that follow each other."""
    points = parse_points(load_recording(HOURLY_2024), EVER)
    bars = build_bars(points, Interval.HOUR, at("2024-02-01"))
    assert len(points) == 168
    assert len(bars) == 167
    assert bars["open"].tolist()[1:] == bars["close"].tolist()[:-1]
    assert (bars["open"] != bars["close"]).mean() > 0.99
    first = bars.iloc[0]
    assert first["open_time"] == pd.Timestamp("2024-01-01T15:00", tz="UTC")
    assert (first["open"], first["close"]) == (7.34525785553632, points["price"].iloc[1])


def test_the_last_hour_of_a_day_closes_at_the_days_close(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """The price at midnight is one and the same, whichever interval is asked for."""
    provider = make_provider(server, fake_time)
    window, now = Window(at("2016-06-01"), at("2016-06-05")), at("2024-01-01")
    hours, days = (
        provider.fetch_bars(find(provider), interval, window, now).set_index("close_time")
        for interval in (Interval.HOUR, Interval.DAY)
    )
    assert len(days) == 4
    assert hours["close"].reindex(days.index).tolist() == days["close"].tolist()


def test_a_point_closes_the_hour_before_and_opens_the_one_after() -> None:
    """Stamped up to 20 minutes beside the hour it is the price at that hour."""
    points = make_points(("13:02:10", 10.0), ("13:58:40", 12.0), ("15:19:59", 11.0))
    assert list_bars(points) == [
        (13, 10.0, 12.0, 10.0, 12.0, True),
        (14, 12.0, 12.0, 11.0, 11.0, True),
    ]


def test_a_boundary_without_a_point_leaves_both_hours_out() -> None:
    """The point of 14:21 is nobody's: the hours before and after 14:00 have no price there."""
    points = make_points(("13:01", 10.0), ("14:21", 12.0), ("15:02", 11.0), ("16:03", 13.0))
    assert [row[0] for row in list_bars(points)] == [15]


def test_two_prices_at_one_boundary_are_none() -> None:
    """Both hours come in two versions, so that the rules refuse all four rows."""
    points = make_points(
        ("13:01", 10.0), ("14:01", 12.0), ("14:03", 12.5), ("15:02", 11.0), ("16:03", 13.0)
    )
    bars = build_bars(points, Interval.HOUR, at("2024-01-02"))
    validated = validate_frame(bars, at("2024-01-02"))
    assert validated.good["open_time"].dt.hour.tolist() == [15]
    assert validated.rejected["open_time"].dt.hour.tolist() == [13, 13, 14, 14]
    assert set(validated.rejected["rule"]) == {"conflicting_duplicate"}


def test_two_equal_prices_at_one_boundary_count_once() -> None:
    """Nothing is in doubt."""
    points = make_points(("13:01", 10.0), ("14:01", 12.0), ("14:03", 12.0), ("15:02", 11.0))
    assert [row[0] for row in list_bars(points)] == [13, 14]


def test_e4_an_hour_is_final_when_its_closing_point_is_35_minutes_old() -> None:
    """Until then it is provisional, and two points at its end are no conflict."""
    points = make_points(("13:01", 10.0), ("14:03", 12.0), ("14:06", 12.5))
    assert list_bars(points, "2024-01-01T14:37:59") == [(13, 10.0, 12.0, 10.0, 12.0, False)]
    assert list_bars(points, "2024-01-01T14:38:00") == [(13, 10.0, 12.0, 10.0, 12.0, True)]


@pytest.mark.parametrize(("minute", "rows"), [(2, 1), (22, 2), (38, 2), (55, 2)])
def test_e4_the_last_point_is_now_and_makes_a_provisional_hour(minute: int, rows: int) -> None:
    """The running hour opens at its boundary and ends, so far, at the price of the moment."""
    points = make_points(("14:03", 10.0), ("15:01", 12.0), (f"15:{minute:02}", 9.0))
    assert (
        list_bars(points, f"2024-01-01T15:{minute:02}:30")
        == [
            (14, 10.0, 12.0, 10.0, 12.0, minute >= 36),
            (15, 12.0, 12.0, 9.0, 9.0, False),
        ][:rows]
    )


def test_five_minute_points_make_no_hours() -> None:
    """An answer in another step than was asked for is in doubt at every hour: none is guessed."""
    points = parse_points(load_recording(MINUTES_2024), EVER)
    now = at("2024-01-15T12:00")
    validated = validate_frame(build_bars(points, Interval.HOUR, now), now)
    assert validated.good.empty
    assert set(validated.rejected["rule"]) == {"conflicting_duplicate"}


def test_null_points_are_left_out() -> None:
    """A null price is no price, a null volume is unknown."""
    body = {
        "prices": [[1704153600000, 10.0], [1704240000000, None], [1704326400000, 11]],
        "total_volumes": [[1704153600000, 1.0], [1704240000000, 2.0], [1704326400000, None]],
    }
    points = parse_points(body, EVER)
    assert list(points["price"]) == [10.0, 11.0]
    assert points["volume"].isna().tolist() == [False, True]


def test_e2_points_in_any_order_give_the_same_bars() -> None:
    """Order on the wire means nothing."""
    body = load_recording(DAILY_2014)
    shuffled = {name: rows[::-1] for name, rows in body.items()}
    now = at("2024-01-01")
    pd.testing.assert_frame_equal(
        build_bars(parse_points(shuffled, EVER), Interval.DAY, now),
        build_bars(parse_points(body, EVER), Interval.DAY, now),
    )


@pytest.mark.parametrize("interval", [Interval.HOUR, Interval.DAY])
def test_e1_two_prices_at_one_moment_are_quarantined(interval: Interval) -> None:
    """Nobody knows which is true: the bars that need that price are refused, under one rule."""
    start = at("2024-01-02")
    stamps = [start + step * interval.duration for step in range(5)]
    pairs = [[stamp.timestamp() * 1000, 10.0 + step] for step, stamp in enumerate(stamps)]
    body = {"prices": [*pairs, [pairs[2][0], 99.0]], "total_volumes": pairs}
    now = at("2024-02-01")
    validated = validate_frame(build_bars(parse_points(body, EVER), interval, now), now)
    assert validated.good["open_time"].tolist() == [stamps[0], stamps[3]]
    assert set(validated.rejected["open_time"]) == {stamps[1], stamps[2]}
    assert set(validated.rejected["rule"]) == {"conflicting_duplicate"}


def test_e1_the_same_point_twice_counts_once() -> None:
    """A repeated point contradicts nobody."""
    body = {"prices": [[1704153600000, 2], [1704153600000, 2]], "total_volumes": []}
    assert list(parse_points(body, EVER)["price"]) == [2.0]


@pytest.mark.parametrize("factor", [0.001, 1000, 1e6])
def test_d10_stamps_in_another_unit_are_refused(factor: float) -> None:
    """Seconds, micro- or nanoseconds instead of milliseconds are no empty answer."""
    body = {"prices": [[1704153600000 * factor, 1.0]], "total_volumes": []}
    with pytest.raises(PermanentProviderError, match="another unit"):
        parse_points(body, EVER)


def test_d10_points_far_outside_the_question_are_refused() -> None:
    """An answer to another question is an error, not an empty history."""
    window = Window(at("2023-01-01"), at("2023-02-01"))
    with pytest.raises(PermanentProviderError, match="all points lie outside"):
        parse_points(load_recording(DAILY_2014), window)


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        {"prices": {}, "total_volumes": []},
        {"prices": [[1704153600000]], "total_volumes": []},
        {"prices": [[1704153600000, "1"]], "total_volumes": []},
        {"prices": [[1704153600000, True]], "total_volumes": []},
        {"prices": [[None, 1]], "total_volumes": []},
        {"price": [[1704153600000, 1]], "total_volumes": []},
        {"error": "coin not found"},
    ],
)
def test_d10_another_shape_is_refused(body: object) -> None:
    """A renamed or retyped field is an error, never an empty history."""
    with pytest.raises(PermanentProviderError):
        parse_points(body, EVER)


def test_d10_further_fields_are_ignored(server: ReplayServer, fake_time: FakeTime) -> None:
    """A field that was not there yesterday harms nobody."""
    server.misbehave(edit_json(lambda body: body | {"tvl": [1]}))
    provider = make_provider(server, fake_time)
    window = Window(at("2014-06-01"), at("2014-06-03"))
    assert len(provider.fetch_bars(find(provider), Interval.DAY, window, at("2024-01-01"))) == 2


def test_a_window_is_asked_so_that_its_first_bar_has_an_open(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """The question runs from the first day's midnight to the last day's end, in seconds."""
    provider = make_provider(server, fake_time)
    window = Window(at("2014-06-01"), at("2014-06-03T12:00"))
    bars = provider.fetch_bars(find(provider), Interval.DAY, window, at("2024-01-01"))
    assert list(bars["open_time"].dt.day) == [1, 2, 3]
    assert bars["open"].tolist()[1:] == bars["close"].tolist()[:-1]
    (seen,) = server.requests
    assert seen.path == "/coingecko/coins/bitcoin/market_chart/range"
    assert seen.query == {
        "vs_currency": "usd",
        "from": "1401580800",
        "to": "1401840000",
        "interval": "daily",
    }


def test_overlapping_windows_agree(server: ReplayServer, fake_time: FakeTime) -> None:
    """A bar does not depend on the window that asked for it."""
    provider, now = make_provider(server, fake_time), at("2024-01-01")
    wide = Window(at("2014-06-01"), at("2014-07-01"))
    narrow = Window(at("2014-06-10"), at("2014-06-12"))
    for interval in (Interval.DAY, Interval.HOUR):
        many = provider.fetch_bars(find(provider), interval, wide, now)
        few = provider.fetch_bars(find(provider), interval, narrow, now)
        inside = many[many["open_time"].between(narrow.start, narrow.end, inclusive="left")]
        pd.testing.assert_frame_equal(inside.reset_index(drop=True), few)


@given(
    start=st.integers(1_420_070_400, 1_767_225_600).map(lambda s: datetime.fromtimestamp(s, UTC)),
    hours=st.integers(1, 24 * 400),
)
def test_hourly_spans_are_cut_to_what_is_answered_hour_by_hour(start: datetime, hours: int) -> None:
    """Each part is 2 to 90 days long, and together they cover the span."""
    window = Window(start, start + timedelta(hours=hours))
    parts = list(split_hourly(window))
    assert parts[0].start <= window.start
    assert parts[-1].end == window.end
    assert all(a.end >= b.start for a, b in pairwise(parts))
    assert all(timedelta(days=2) <= p.end - p.start <= timedelta(days=90) for p in parts)


def test_free_plans_are_asked_for_the_past_year_only(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """The limit follows the real clock; a bar whose start is beyond it is left out."""
    fake_time.utc_now = at("2025-06-01T12:00")
    provider = make_provider(server, fake_time, COINGECKO_PLAN="keyless")
    window = Window(at("2024-05-01"), at("2024-06-10"))
    bars = provider.fetch_bars(find(provider), Interval.DAY, window, at("2025-06-01T12:00"))
    assert bars["open_time"].iloc[0] == pd.Timestamp("2024-06-02", tz="UTC")
    assert int(server.requests[0].query["from"]) == int(at("2024-06-01T12:05").timestamp())
    assert "x-cg-demo-api-key" not in server.requests[0].headers


def test_history_that_needs_a_paid_plan_is_not_asked_for(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """The error says which plan would answer; no request is wasted."""
    provider = make_provider(server, fake_time, COINGECKO_PLAN="demo", COINGECKO_API_KEY="k")
    window = Window(at("2014-06-01"), at("2014-07-01"))
    with pytest.raises(PermanentProviderError, match=r"need a paid plan.*COINGECKO_PLAN=pro"):
        provider.fetch_bars(find(provider), Interval.DAY, window, at("2014-07-01"))
    assert server.requests == []


def test_d3_the_recorded_refusal_of_old_history_is_final(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """Error 10012 comes as 401 and is told as it was said."""
    body = read_recording("coingecko/market_chart_days_max_keyless_401.json")
    server.misbehave(answer_with(body, 401))
    provider = make_provider(server, fake_time)
    with pytest.raises(PermanentProviderError, match="within the past 365 days"):
        provider.fetch_bars(find(provider), Interval.DAY, EVER, at("2024-01-01"))


@pytest.mark.parametrize(("status", "header"), [(200, "pro"), (401, "demo")])
def test_the_plan_of_a_key_is_found_once(
    server: ReplayServer, fake_time: FakeTime, status: int, header: str
) -> None:
    """``/key`` answers pro keys alone; the key then travels in that plan's header."""
    if status != 200:
        body = read_recording("coingecko/ping_demo_bad_key_401.json")
        server.misbehave(answer_with(body, status), path="/coingecko/key")
    provider = make_provider(server, fake_time, COINGECKO_PLAN="", COINGECKO_API_KEY="CG-1")
    for _ in range(2):
        provider.fetch_snapshots([find(provider)], at("2024-01-15"))
    assert [seen.path.rpartition("/")[2] for seen in server.requests] == [
        "key",
        "markets",
        "markets",
    ]
    assert server.requests[-1].headers[f"x-cg-{header}-api-key"] == "CG-1"
    assert all("CG-1" not in str(seen.query) for seen in server.requests)


def test_a_plan_without_its_key_says_what_to_set() -> None:
    """The provider is not ready, and says so before any request."""
    missing = CoinGeckoProvider({"COINGECKO_PLAN": "demo"}).explain_missing_settings()
    assert missing == "set COINGECKO_API_KEY, or COINGECKO_PLAN=keyless (now demo)"
    assert CoinGeckoProvider({"COINGECKO_PLAN": ""}).explain_missing_settings() is None


def test_snapshots_of_many_coins_are_one_request(server: ReplayServer, fake_time: FakeTime) -> None:
    """Ids stand side by side without a blank, which would drop all but the first."""
    provider = make_provider(server, fake_time)
    snapshots = provider.fetch_snapshots(
        [find(provider, "ETH-USD"), find(provider)], at("2024-01-15T09:00")
    )
    assert [one.market.symbol for one in snapshots] == ["ETH-USD", "BTC-USD"]
    bitcoin = snapshots[1]
    assert (bitcoin.price, bitcoin.market_cap) == (42652.0, 837025489900.0)
    assert bitcoin.observed_at == at("2024-01-15T08:54:11")
    assert bitcoin.change_24h_ratio == pytest.approx(-0.0078864)
    assert [seen.query["ids"] for seen in server.requests] == ["ethereum,bitcoin"]


def test_600_coins_are_three_requests(server: ReplayServer, fake_time: FakeTime) -> None:
    """A page holds 250 coins."""
    ids = ",".join(f"C{number}-USD=coin-{number}" for number in range(599))
    provider = make_provider(server, fake_time, COINGECKO_IDS=ids)
    markets = [find(provider)] + [find(provider, f"C{number}-USD") for number in range(599)]
    server.misbehave(
        edit_json(lambda _: [load_recording("coingecko/coins_markets_btc_eth_page1_2024.json")[0]])
    )
    row = load_recording("coingecko/coins_markets_btc_eth_page1_2024.json")[0]
    for number in (250, 550):
        server.misbehave(edit_json(lambda _, n=number: [row | {"id": f"coin-{n}"}]))
    assert len(provider.fetch_snapshots(markets, at("2024-01-15"))) == 3
    assert [seen.query["ids"].count(",") + 1 for seen in server.requests] == [250, 250, 100]


def test_d8_no_coin_at_all_is_an_error(server: ReplayServer, fake_time: FakeTime) -> None:
    """200 and ``[]`` for a live market is no success."""
    server.misbehave(edit_json(lambda _: []))
    provider = make_provider(server, fake_time)
    with pytest.raises(PermanentProviderError, match="none of the 1 coins"):
        provider.fetch_snapshots([find(provider)], at("2024-01-15"))


def test_d13_a_coin_nobody_asked_for_is_ignored(server: ReplayServer, fake_time: FakeTime) -> None:
    """The price of another coin never lands under this symbol."""
    provider = make_provider(server, fake_time)
    rows = load_recording("coingecko/coins_markets_top100_usd_2024.json")
    snapshots = parse_snapshots(rows, [find(provider, "ETH-USD")])
    assert [(one.market.symbol, one.price) for one in snapshots] == [("ETH-USD", 2511.71)]


@pytest.mark.parametrize(
    "change",
    [
        {"current_price": "42652"},
        {"last_updated": "yesterday"},
        {"last_updated": "2024-01-15T08:54:11"},
        {"total_volume": [1]},
    ],
)
def test_d10_a_coin_with_other_types_is_refused(change: dict[str, object]) -> None:
    """A number as text is a change of shape."""
    row = load_recording("coingecko/coins_markets_btc_eth_page1_2024.json")[0] | change
    market = find(CoinGeckoProvider({}))
    with pytest.raises(PermanentProviderError):
        parse_snapshots([row], [market])


def test_a_coin_without_a_price_has_no_snapshot() -> None:
    """Null is not zero."""
    row = load_recording("coingecko/coins_markets_btc_eth_page1_2024.json")[0]
    market = find(CoinGeckoProvider({}))
    assert parse_snapshots([row | {"current_price": None}], [market]) == []
    assert parse_snapshots([row | {"last_updated": None}], [market]) == []


def test_e14_symbols_are_mapped_by_id_never_by_ticker() -> None:
    """SPX is an index; the coin of that ticker (spx6900) must not answer for it."""
    provider = CoinGeckoProvider({})
    assert provider.find_market("SPX") is None
    assert provider.find_market("SPX-USD") is None
    assert find(provider).provider_market_id == "bitcoin"


def test_more_coins_come_from_the_environment() -> None:
    """COINGECKO_IDS adds markets, in other currencies too, and overrides the built-in ids."""
    provider = CoinGeckoProvider({"COINGECKO_IDS": "foo-usd=foo-id, BTC-EUR=bitcoin"})
    assert find(provider, "FOO-USD").provider_market_id == "foo-id"
    euro = find(provider, "BTC-EUR")
    assert euro.quote == "EUR"
    assert build_snapshot_query([euro])[1]["vs_currency"] == "eur"


@pytest.mark.parametrize("text", ["FOO-USD", "FOO-USD=", "FOO=foo", "FOO-USD=../key", "F O=x"])
def test_s7_a_malformed_coin_id_is_a_wrong_setting(text: str) -> None:
    """An id cannot lead to another path."""
    with pytest.raises(SettingError):
        CoinGeckoProvider({"COINGECKO_IDS": text})


def test_an_unknown_plan_is_a_wrong_setting() -> None:
    """The message names the variable and the words it takes."""
    with pytest.raises(SettingError, match=r"COINGECKO_PLAN='gold'.*demo"):
        CoinGeckoProvider({"COINGECKO_PLAN": "gold"})
