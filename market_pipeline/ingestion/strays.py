"""Bars of no session in the quarantine: tells whether a market's calendar is wrong."""

from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import Connection

from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.records import Market
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.domain.strays import HANDFUL, find_stray_rule
from market_pipeline.storage.bars.quarantine import read_strays

YEAR = timedelta(days=366)


def suspect_calendar(
    connection: Connection, market: Market, market_id: int, coverages: Mapping[Interval, Coverage]
) -> str | None:
    """Return why a market's calendar is suspect, in words; None where it is not.

    The last year of what is stored counts, and what came in it and was refused; rows that somebody
    discarded do not.

    Args:
        connection: Any.
        market: The market.
        market_id: Its key.
        coverages: Its coverage, by interval.
    """
    if market.calendar == ALWAYS_OPEN:
        return None
    for interval, coverage in coverages.items():
        if coverage.first_bar_at is None or coverage.last_bar_at is None:
            continue
        first = max(coverage.first_bar_at, coverage.last_bar_at - YEAR)
        strays = read_strays(connection, market_id, interval, first - timedelta(days=1))
        if len(strays) < HANDFUL:
            continue
        end = coverage.last_bar_at + timedelta(days=1)
        rule = find_stray_rule(strays, read_sessions(market.calendar, first, end))
        if rule is not None:
            return (
                f"the calendar {market.calendar} is suspect: {rule}, in the year to "
                f"{coverage.last_bar_at:%Y-%m-%d}; they are in quarantine, not stored"
            )
    return None
