"""The promises that every provider keeps, as tests to inherit from.

Here: the tests. Not here: the made-up market and its server (``source.py``).
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pandas as pd
import pytest

from market_pipeline.domain.errors import (
    PermanentProviderError,
    ProviderError,
    TransientProviderError,
)
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window, build_empty_bar_frame
from market_pipeline.providers.base import Provider
from market_pipeline.providers.http import Clocks
from market_pipeline.providers.rate_limiter import CallCounter, UnlimitedCalls, use_limiter
from market_pipeline.testing.source import (
    LONGEST,
    LocalSource,
    WireReply,
    WireRequest,
    World,
    reply_json,
)

AHEAD = timedelta(seconds=5)
"""How far ahead a price may be stamped."""
BAD_BODIES = (
    b"", b"{", b"null", b"true", b"7", b'"text"', b"[]", b"{}", b"[[]]", b"[{}]", b"[null]",
    b"[[1,2,3,4,5,6]]", b'{"error":"no"}', b'{"result":[]}', b"[[1e999]]", b"[NaN]",
    b"<html><body>Please verify that you are human</body></html>", b"\xff\xfe\x00", b"a,b\n1,2\n",
)  # fmt: skip
_DTYPES = build_empty_bar_frame().dtypes.to_dict()


class ProviderContract:
    """The tests that need no server.

    Attributes:
        symbol: A market that the provider serves.
        now: The clock of the tests (UTC), a moment at which the market is open.
    """

    symbol: ClassVar[str] = "BTC-USD"
    now: ClassVar[datetime] = datetime(2024, 6, 12, 17, 20, tzinfo=UTC)
    provider: Provider
    market: Market

    def make_provider(self) -> Provider:
        """Return the provider under test."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _find_market(self, _prepare: None) -> None:
        self.provider = self.make_provider()
        market = self.provider.find_market(self.symbol)
        assert market is not None, f"find_market({self.symbol!r}) returned None"
        self.market = market

    @pytest.fixture
    def _prepare(self) -> None:
        """Do nothing: a subclass starts its server here."""

    def find_window(self, interval: Interval, pages: float) -> Window:
        """Return so many pages up to now, as far as provider and tests reach back."""
        terms = self.provider.describe_history(self.market, interval)
        length = min(pages * terms.page, terms.reaches_back or LONGEST, LONGEST)
        return Window(self.now - length, self.now)

    def fetch(
        self, interval: Interval, window: Window | None = None, now: datetime | None = None
    ) -> pd.DataFrame:
        """Return the bars of a window, by default of nine bars up to now."""
        window = window or Window(self.now - 9 * interval.duration, self.now)
        bars = self.provider.fetch_bars(self.market, interval, window, now or self.now)
        return bars if isinstance(bars, pd.DataFrame) else bars.to_frame()

    def test_it_says_what_it_is(self) -> None:
        """Name, one line of summary, a home page, and limits that allow a call."""
        provider = self.provider
        assert isinstance(provider, Provider), "a member of providers.base.Provider is missing"
        assert provider.name == provider.name.lower().strip()
        assert set(provider.name).isdisjoint(" :,="), "a name stands in lists and before a colon"
        assert provider.summary
        assert "\n" not in provider.summary
        assert provider.homepage.startswith("https://")
        for limit in (provider.calls_per_minute, provider.calls_per_month):
            assert limit is None or limit > 0

    def test_its_catalogue_names_its_own_markets(self) -> None:
        """Every listed symbol is found under its own name."""
        for symbol in self.provider.list_symbols():
            found = self.provider.find_market(symbol)
            assert found is not None, f"{symbol} is listed and not found"
            assert (found.provider, found.symbol) == (self.provider.name, symbol)
            assert found.provider_market_id
            assert found.intervals

    def test_its_terms_can_be_planned_with(self) -> None:
        """A page holds a bar and lies within reach; a bar is out before the next one closes."""
        for interval in self.market.intervals:
            terms = self.provider.describe_history(self.market, interval)
            assert terms.page >= interval.duration
            assert terms.reaches_back is None or terms.page <= terms.reaches_back
            assert timedelta(0) <= terms.publication_lag < interval.duration

    def test_bars_are_a_bar_frame(self) -> None:
        """Columns and types, in order, each once, and none that opens outside the window."""
        for interval in self.market.intervals:
            window = self.find_window(interval, 1)
            bars = self.fetch(interval, window)
            assert len(bars), f"no bars of {interval} in {window}"
            assert bars.dtypes.to_dict() == _DTYPES
            assert bars["interval"].unique().tolist() == [interval.value]
            assert bars["open_time"].is_monotonic_increasing
            assert bars["open_time"].is_unique
            assert bars["open_time"].between(window.start, window.end, inclusive="left").all()

    def test_a_long_window_is_its_parts_joined(self) -> None:
        """Asking for two and a half pages loses and repeats nothing."""
        for interval in self.market.intervals:
            window = self.find_window(interval, 2.5)
            middle = window.start + (window.end - window.start) / 2
            parts = Window(window.start, middle), Window(middle, window.end)
            joined = pd.concat([self.fetch(interval, part) for part in parts], ignore_index=True)
            whole = self.fetch(interval, window).reset_index(drop=True)
            pd.testing.assert_frame_equal(whole, joined)

    def test_the_given_clock_decides_what_is_final(self) -> None:
        """A bar is final once its close and the lag are past, by the run's clock alone."""
        for interval in self.market.intervals:
            lag = self.provider.describe_history(self.market, interval).publication_lag
            for now in (self.now, self.now - 3 * interval.duration):
                bars = self.fetch(interval, Window(now - 9 * interval.duration, now), now)
                is_due = bars["close_time"] + lag <= pd.Timestamp(now)
                assert bars["is_final"].tolist() == is_due.tolist()

    def test_a_price_has_its_time(self) -> None:
        """In UTC, and not from the future; nothing is asked for no market."""
        assert self.provider.fetch_snapshots([], self.now) == []
        for snapshot in self.provider.fetch_snapshots([self.market], self.now):
            assert snapshot.market == self.market
            assert snapshot.price > 0
            assert snapshot.observed_at.utcoffset() == timedelta(0)
            assert snapshot.observed_at <= self.now + AHEAD


class HttpProviderContract(ProviderContract):
    """The tests for a provider that asks a server.

    An author writes two methods: ``connect`` makes the provider of a local address, ``answer`` says
    in the service's own format what the service would say.

    Attributes:
        exact: The columns that must be those of the source: fewer for bars made of closes.
    """

    exact: ClassVar[list[str]] = ["open", "high", "low", "close", "volume"]
    world: World
    source: LocalSource

    def connect(self, address: str, clocks: Clocks) -> Provider:
        """Return the provider under test; it asks ``address`` and waits by ``clocks``."""
        raise NotImplementedError

    def answer(self, request: WireRequest, world: World) -> WireReply:
        """Return what the service would say of this market at this moment."""
        raise NotImplementedError

    def answer_unknown(self, request: WireRequest) -> WireReply:
        """Return what the service says of a market that it does not have."""
        del request
        return reply_json({"message": "not found"}, 404)

    @pytest.fixture
    def _prepare(self) -> Iterator[None]:
        self.world = World(self.now, begins_at=self.now - LONGEST - timedelta(days=1))
        with LocalSource(lambda request: self.answer(request, self.world)) as self.source:
            yield

    @pytest.fixture(autouse=True)
    def _follow_its_calendar(self, _find_market: None) -> None:
        self.world.calendar = self.market.calendar

    def make_provider(self) -> Provider:
        """Return the provider under test, connected to the local server."""
        clocks = Clocks(sleep=lambda _: None, utc=lambda: self.now, jitter=lambda: 1.0)
        return self.connect(self.source.address, clocks)

    def fetch_some(self) -> pd.DataFrame:
        """Return some bars of the finest interval."""
        return self.fetch(self.market.intervals[0])

    def test_bars_are_those_of_the_source(self) -> None:
        """Every bar of a page, each price and volume in its own column, the running bar so far."""
        for interval in self.market.intervals:
            window = self.find_window(interval, 1)
            bars = self.fetch(interval, window)
            wanted = pd.DataFrame(self.world.list_candles(interval)).set_index("open_time")
            wanted = wanted[(wanted.index >= window.start) & (wanted.index < window.end)]
            closed = wanted[wanted["close_time"] <= self.now]
            found = bars.set_index(pd.DatetimeIndex(bars["open_time"]).as_unit("us"))
            # Bars made of price points may lack the first, which has no opening price.
            assert not set(closed.index[1:]) - set(found.index), "bars are missing"
            assert not set(found.index) - set(wanted.index), "bars that the source does not have"
            for name in [*self.exact, "close_time"]:
                assert found[name].tolist() == wanted.loc[found.index, name].tolist(), name

    def test_nobody_is_asked_before_a_fetch(self) -> None:
        """Catalogue and terms are known offline, so planning costs no call."""
        self.provider.list_symbols()
        self.provider.explain_missing_settings()
        self.provider.describe_history(self.market, self.market.intervals[0])
        assert self.source.requests == []

    def test_an_interval_that_it_lacks_is_refused_unasked(self) -> None:
        """Weeks are built here, so no provider has them."""
        with pytest.raises(PermanentProviderError):
            self.fetch(Interval.WEEK)
        assert self.source.requests == []

    def test_a_page_is_one_call_of_the_budget(self) -> None:
        """Each request passes the limiter, and a window of a page takes one."""
        self.fetch_some()  # the first fetch may also ask what the service has
        for interval in self.market.intervals:
            self.source.requests.clear()
            counter = CallCounter(UnlimitedCalls())
            with use_limiter(counter):
                self.fetch(interval, self.find_window(interval, 1))
            assert (len(self.source.requests), counter.calls) == (1, 1)

    def test_what_was_not_traded_is_not_made_up(self) -> None:
        """No bar of a halted span, or one with volume 0; the bars around it come."""
        for interval in self.market.intervals:
            start, end = (self.now - bars * interval.duration for bars in (20, 10))
            self.world.halted = Window(start, end)
            bars = self.fetch(interval, Window(self.now - 40 * interval.duration, self.now))
            is_halted = bars["open_time"].between(start, end, inclusive="left")
            assert not (bars[is_halted]["volume"] != 0).any()
            assert (bars["open_time"] < start).any()
            assert (bars["open_time"] >= end).any()

    def test_silence_is_no_error(self) -> None:
        """An answer without bars is an empty frame, so that the hole is recorded as one."""
        self.world.halted = Window(self.now - LONGEST, self.now + LONGEST)
        bars = self.fetch_some()
        assert bars.empty
        assert bars.dtypes.to_dict() == _DTYPES

    def test_absence_is_an_error(self) -> None:
        """A market that the service does not have must not look like one without trades."""
        self.source.answer = self.answer_unknown
        with pytest.raises(PermanentProviderError):
            self.fetch_some()

    @pytest.mark.parametrize("status", [400, 401, 403])
    def test_a_refusal_is_permanent(self, status: int) -> None:
        """The same request would be refused again, so it is sent once."""
        self.source.fault = reply_json({"message": "no"}, status)
        with pytest.raises(PermanentProviderError):
            self.fetch_some()
        assert len(self.source.requests) == 1

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_an_outage_may_pass(self, status: int) -> None:
        """Each try is a call of the budget, and a limit makes all processes pause."""
        self.source.fault = WireReply(b"{}", status, headers={"Retry-After": "1"})
        counter = CallCounter(UnlimitedCalls())
        with use_limiter(counter), pytest.raises(TransientProviderError):
            self.fetch_some()
        assert counter.calls == len(self.source.requests) > 0
        assert counter.throttled > 0 or status == 500

    def test_a_server_that_is_not_there_may_come_back(self) -> None:
        """Refused connections are transient."""
        self.source.__exit__()
        with pytest.raises(TransientProviderError):
            self.fetch_some()

    def test_half_an_answer_is_none(self) -> None:
        """A body that ends before its length is not parsed."""
        self.source.is_cut = True
        with pytest.raises(TransientProviderError):
            self.fetch_some()

    def test_bad_bytes_give_nothing_or_one_error(self) -> None:
        """Whatever a server sends, nothing but a ProviderError gets out: no bar and no price."""
        for body in BAD_BODIES:
            self.source.fault = WireReply(body)
            with suppress(ProviderError):
                assert self.fetch_some().empty, f"bars were made of {body!r}"
            with suppress(ProviderError):
                found = self.provider.fetch_snapshots([self.market], self.now)
                assert found == [], f"a price was made of {body!r}"

    def test_a_restated_history_comes_as_it_is_now(self) -> None:
        """Nothing is remembered: a split shows in the next answer."""
        before = self.fetch_some()
        self.world.factor = 2.0
        after = self.fetch_some()
        assert (after["close"] / before["close"]).round(3).unique().tolist() == [2.0]

    def test_a_live_price_is_that_of_its_time(self) -> None:
        """The price that the source had at ``observed_at``."""
        (found,) = self.provider.fetch_snapshots([self.market], self.now)
        assert found.price == self.world.price_at(found.observed_at)
