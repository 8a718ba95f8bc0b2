"""What runs publish agrees with a computation that shares none of its code, and only then."""

import pytest
from sqlalchemy import Engine, text

from market_pipeline_tests.ingestion.installation import MARCH, Installation
from market_pipeline_tests.second_opinion import check_numbers

# One number of each kind, made wrong by a thousandth.
WRONG = (
    "market_roi_statistic SET sharpe = sharpe * 1.001",
    "market_roi_statistic SET max_drawdown = max_drawdown * 0.999",
    "market_comparison SET correlation = correlation * 0.999",
    "market_snapshot SET realised_volatility = realised_volatility * 1.001",
    "market_aggregate SET high = high * 1.001 WHERE interval = '1w'",
    "market_aggregate SET close = low WHERE interval = '1d'",
)


def test_every_number_of_a_run_is_recomputed(engine: Engine) -> None:
    """Statistics, comparisons, snapshots and weeks of three calendars agree with the formulas."""
    Installation(engine, ("BTC-USD", "ETH-USD", "SPX")).ingest(MARCH, days=400)
    assert check_numbers(engine) > 500


@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_number_is_found(engine: Engine, change: str) -> None:
    """A second opinion that cannot disagree would be none."""
    Installation(engine, ("BTC-USD", "SPX")).ingest(MARCH, days=60)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE market_data.{change}"))
    with pytest.raises(AssertionError, match="recomputed"):
        check_numbers(engine)
