"""The validation of an answer: possible bars, and none that an older parser has stored."""

from dataclasses import replace
from datetime import datetime

from market_pipeline.domain.columns import BarColumns
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.grids import to_micros
from market_pipeline.domain.parsing import leave_older
from market_pipeline.domain.records import Market
from market_pipeline.domain.sessions import read_times_around
from market_pipeline.domain.validation import ValidatedBars, validate_bars
from market_pipeline.ingestion.batches import BarPage


def validate_answer(bars: BarColumns, market: Market, now: datetime) -> ValidatedBars:
    """Separate possible bars from impossible ones by the market's own sessions.

    Whatever its provider says: half a bar is not final.
    """
    bars = bars.with_final(bars.is_final & (bars.close_time <= to_micros(now)))
    return validate_bars(bars, now, read_times_around(bars.open_time, market.calendar))


def leave_older_bars(page: BarPage, known: Coverage | None) -> BarPage:
    """Return the page without bars that an older parser stored: no comparison, no overwriting."""
    good = leave_older(page.validated.good, known or Coverage())
    if good is page.validated.good:
        return page
    return replace(page, validated=replace(page.validated, good=good))
