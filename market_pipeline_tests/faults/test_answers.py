"""Answers that are wrong and look like success: a page twice, none, half of one; a price of 0."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from market_pipeline.domain.columns import PRICES
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window
from market_pipeline_tests.faults.installations import Disturbed, Watched
from market_pipeline_tests.faults.invariants import find_broken
from market_pipeline_tests.ingestion.installation import MARCH
from market_pipeline_tests.second_opinion import check_numbers

PAGES_OF_HOURS = 150
"""Days of which the mock answers hours in three pages."""
MISSING = "SELECT count(*)::int AS holes FROM market_data.coverage_hole"
STATISTIC = """SELECT roi, reason FROM market_data.market_roi_statistic
    JOIN market_data.market USING (market_id) WHERE symbol = 'BTC-USD' AND horizon = '30d'
    ORDER BY as_of DESC LIMIT 1"""
REFUSED = "SELECT count(*)::int AS bars FROM market_data.quarantined_row"

TWICE = "bars are neither stored, known nor in quarantine"
"""Says that bars came twice though they were asked for once, which is what happens here."""


class Repeating(Watched):
    """Answers every request with the page that it sent first, as a broken cursor does."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[tuple[str, Interval], Any] = {}

    def fetch_bars(self, market: Market, interval: Interval, window: Window, now: datetime) -> Any:
        """Answer, or repeat."""
        key = (market.symbol, interval)
        if key not in self._first:
            self._first[key] = super().fetch_bars(market, interval, window, now)
        return self._first[key]


class Worthless(Watched):
    """Says that a market was worth nothing on the day from which a month is measured."""

    def fetch_bars(self, market: Market, interval: Interval, window: Window, now: datetime) -> Any:
        """Answer with prices of 0 on that day."""
        bars = super().fetch_bars(market, interval, window, now).to_frame()
        day = (MARCH - timedelta(days=31)).date()
        bars.loc[bars["open_time"].dt.date == day, PRICES] = 0.0
        return bars


def ingest_from(provider: Watched, installation: Disturbed, now: datetime = MARCH) -> None:
    """Ingest, and make sure that nothing wrong is stored."""
    provider.served |= installation.provider.served
    installation.provider = provider
    installation.ingest(now, days=PAGES_OF_HOURS)
    with installation.engine.connect() as connection:
        assert set(find_broken(connection, is_closed=False)) <= {TWICE}
    assert check_numbers(installation.engine)


@pytest.mark.parametrize(
    "provider",
    [Repeating(), Watched("*:skipped_page"), Watched("*:truncated_history=30 1h")],
    ids=["a page comes again", "bars are skipped", "a page is short"],
)
def test_d11_a_page_that_comes_again_or_short_or_not_at_all_leaves_a_hole_and_no_double(
    provider: Watched, installation: Disturbed
) -> None:
    """The run ends, what is missing is known, and the next answers fill it."""
    ingest_from(provider, installation)
    assert installation.read(MISSING)[0]["holes"] > 0
    ingest_from(Watched(), installation, MARCH + timedelta(days=2))
    installation.compare_with_served()


def test_e17_a_base_price_of_0_is_refused_and_its_return_has_a_reason(
    installation: Disturbed,
) -> None:
    """Nothing is divided by it; once the price is right the return is there."""
    ingest_from(Worthless(), installation)
    assert installation.read(REFUSED)[0]["bars"] > 0
    (before,) = installation.read(STATISTIC)
    assert before["roi"] is None
    assert before["reason"]
    ingest_from(Watched(), installation, MARCH + timedelta(days=2))
    (after,) = installation.read(STATISTIC)
    assert after["roi"] is not None
