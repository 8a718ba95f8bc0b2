"""Whatever a provider did wrong: no wrong number meanwhile, and the right ones in the end.

Sequences of faults, look-backs, clocks, cut-off runs and backfills over markets of several
calendars run against the real pipeline. At every point each published number equals its formula
over the bars of its version. After clean runs, bars, weeks, coverage and statistics equal those of
an installation whose provider never did anything wrong.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from market_pipeline_tests.ingestion.installation import MARCH, Installation
from market_pipeline_tests.second_opinion import check_numbers

pytestmark = pytest.mark.faults

MARKETS = ("BTC-USD", "SPX", "VOD@XLON")
CLEAN_RUNS = 5
Span = tuple[str, str]
# Each is several runs.
EXAMPLES = max(1, int(os.environ.get("SEEDS", "1")) // 4)
BARS = """
    SELECT symbol, interval, open_time, close_time, open, high, low, close, volume, is_final
    FROM market_data.market_aggregate JOIN market_data.market USING (market_id) ORDER BY 1, 2, 3"""
COVERAGE = """
    SELECT symbol, interval, settled::text, watermark, first_bar_at, last_bar_at, bars
    FROM market_data.market_coverage JOIN market_data.market USING (market_id) ORDER BY 1, 2"""
HOLES = """
    SELECT symbol, interval, starts_at, ends_at, reason
    FROM market_data.coverage_hole JOIN market_data.market USING (market_id) ORDER BY 1, 2, 3"""
EVENTS = """
    SELECT kind, starts_at, ends_at, detail FROM market_data.market_event
    WHERE resolved_at IS NULL"""
STATISTICS = """
    SELECT DISTINCT ON (symbol, horizon) symbol, horizon, as_of, roi, sharpe, sortino,
        max_drawdown, realised_volatility, n_returns, reason
    FROM market_data.market_roi_statistic JOIN market_data.market USING (market_id)
    ORDER BY 1, 2, as_of DESC"""
COMPARISONS = """
    SELECT DISTINCT ON (base.symbol, quote.symbol, horizon) base.symbol AS base,
        quote.symbol AS quote, horizon, as_of, price_ratio, roi_spread, correlation, reason
    FROM market_data.market_comparison
    JOIN market_data.market base ON base.market_id = base_market_id
    JOIN market_data.market quote ON quote.market_id = quote_market_id
    ORDER BY 1, 2, 3, as_of DESC"""
COMPARED = {
    "bars": BARS, "coverage": COVERAGE, "holes": HOLES, "events": EVENTS,
    "statistics": STATISTICS, "comparisons": COMPARISONS,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One run with its faults.

    Attributes:
        hours: Since the run before. faults: As MOCK_FAULTS. days: The look-back.
        commits: After how many the run is cut off; None: it ends.
        history: Days before the clock from and to which history is filled instead; None: it is not.
    """

    hours: int
    faults: str = ""
    days: int = 20
    commits: int | None = None
    history: tuple[int, int] | None = None


_AGES = st.integers(1, 40)
_RATIOS = st.sampled_from([0.25, 0.5, 0.97, 0.995, 1.005, 1.03, 2.0, 4.0])


@st.composite
def list_faults(draw: st.DrawFn, markets: Sequence[str] = MARKETS) -> str:
    """Draw what a provider does wrong in one run, with one market or with all."""
    symbols = [market.partition("@")[0] for market in markets]
    symbol, age = draw(st.sampled_from(["*", *symbols])), draw(_AGES)
    day = (MARCH - timedelta(days=age)).date()
    until = (MARCH - timedelta(days=age - draw(st.integers(1, 5)))).date()
    kinds = [
        f"{symbol}:rescaled={draw(_RATIOS)}",
        f"{symbol}:rescaled={draw(_RATIOS)}@{day}",
        f"{symbol}:restated_bar={draw(_RATIOS)}@{day}..{until}",
        f"{symbol}:timeout",
        f"{symbol}:timeout 50%",
        f"{symbol}:empty_page 1h",
        f"{symbol}:skipped_page",
        f"{symbol}:skipped_page@{day}..{until}",
        f"{symbol}:truncated_history=30",
        f"{symbol}:duplicate=1.01@{day}..{until}",
        f"{symbol}:off_grid@{day}",
        f"{symbol}:unclosed_bar",
    ]
    return draw(st.sampled_from(kinds))


STEPS = st.builds(
    Step,
    hours=st.sampled_from([1, 5, 24, 49, 120]),
    faults=st.one_of(st.just(""), list_faults()),
    days=st.sampled_from([5, 20, 60]),
    commits=st.sampled_from([None, None, None, 1, 2]),
    history=st.sampled_from([None, None, None, (70, 50), (40, 30)]),
)


@given(steps=st.lists(STEPS, min_size=1, max_size=4))
@example(steps=[Step(0, "*:rescaled=1.03", days=20)])
@example(steps=[Step(0), Step(49, "*:rescaled=0.25@2024-03-05")])
@example(steps=[Step(0, days=5), Step(5, history=(70, 50))])
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.owner
@pytest.mark.timeout(1800)
def test_e18_every_sequence_ends_in_what_a_good_provider_would_have_given(
    engine: Engine, steps: list[Step]
) -> None:
    """No published number is wrong on the way, and clean runs make everything right."""
    installation = Installation(engine, MARKETS)
    healed = _play(installation, steps)
    wanted = _play(installation, [_clean(step) for step in steps], check=False)
    for name in COMPARED:
        assert healed[name] == wanted[name], name


def _play(
    installation: Installation, steps: Sequence[Step], *, check: bool = True
) -> dict[str, Any]:
    """Run the steps on an empty database, then clean runs, and return what is stored."""
    installation.empty()
    now, spans = MARCH, list[Span]()
    for step in steps:
        now += timedelta(hours=step.hours)
        span = _find_span(step, now)
        spans += [span] if span is not None else []
        installation.ingest(now, step.faults, step.days, *(span or ()), commits=step.commits)
        if check:
            check_numbers(installation.engine)
    # What was cut off is asked for again: a span of history by its own command, the rest by runs.
    for span in spans:
        installation.ingest(now, "", 1, *span)
    days = max(step.days for step in steps) + (now - MARCH).days + CLEAN_RUNS
    for number in range(1, CLEAN_RUNS + 1):
        installation.ingest(now + timedelta(days=number), days=days)
        if check:
            check_numbers(installation.engine)
    return {name: installation.read(query) for name, query in COMPARED.items()}


def _find_span(step: Step, now: datetime) -> Span | None:
    """Return from which to which day a step fills history; None: it does not."""
    if step.history is None:
        return None
    first, last = ((now - timedelta(days=age)).date().isoformat() for age in step.history)
    return first, last


def _clean(step: Step) -> Step:
    return Step(step.hours, "", step.days, None, step.history)
