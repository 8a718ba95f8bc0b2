"""The closes of the sessions of given dates, for parsers that know only a bar's date."""

from datetime import timedelta

import pandas as pd

from market_pipeline.domain.sessions import read_sessions


def find_session_closes(
    dates: "pd.Series[pd.Timestamp]", calendar: str
) -> "pd.Series[pd.Timestamp]":
    """Return the close of each date's session; the date's end where the calendar has no session.

    Dates are at 00:00 UTC, in any order, repeated or not; at least one.
    """
    first, last = dates.min().to_pydatetime(), dates.max().to_pydatetime() + timedelta(days=1)
    sessions = read_sessions(calendar, first, last).set_index("session_date")
    closes = pd.DatetimeIndex(sessions["close_time"].reindex(pd.DatetimeIndex(dates)))
    found = pd.Series(closes.as_unit("us"), index=dates.index)
    return found.fillna(dates + pd.Timedelta(days=1))
