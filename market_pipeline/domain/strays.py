"""Bars of no session: so many that the calendar must be wrong, or only strays.

The calendar is wrong when such bars come on more than half of the dates of one kind, and on at
least four. The kinds are the weekends on which the calendar is closed, the weekdays on which it is
closed, and the days of its sessions (hours outside them).
"""

import pandas as pd

from market_pipeline.domain.sessions import find_sessions

HANDFUL = 4


def find_stray_rule(strays: "pd.Series[pd.Timestamp]", sessions: pd.DataFrame) -> str | None:
    """Return in words by which rule strays come; None where there is none.

    Args:
        strays: open_time of bars that were refused because no session has them (UTC).
        sessions: The market's, over the whole span that was received; one at least.
    """
    known = pd.DatetimeIndex(sessions["session_date"])
    dates = pd.DatetimeIndex(strays.dt.floor("D").unique())
    span = pd.date_range(known[0], known[-1], freq="D").union(dates)
    closed, stray_closed = span.difference(known), dates.difference(known)
    kinds = {
        "weekends on which it is closed": (_list_weekends(stray_closed), _list_weekends(closed)),
        "weekdays on which it is closed": (_list_weekdays(stray_closed), _list_weekdays(closed)),
        "days at hours at which it is closed": (_list_hours(strays, sessions), known),
    }
    for kind, (came, could) in kinds.items():
        if len(came) >= HANDFUL and 2 * len(came) > len(could):
            return f"bars came on {len(came)} of {len(could)} {kind}"
    return None


def find_weekend_rule(dates: pd.DatetimeIndex) -> str | None:
    """Return in words by which rule rows come on weekends; None where there is none.

    More than half of the Saturdays and of the Sundays in the span have one, and four dates at
    least: a market that never closes. Rows on Sundays alone are the evenings of currencies.

    Args:
        dates: Of all rows, at 00:00 UTC, in any order.
    """
    span = pd.date_range(dates.min(), dates.max(), freq="D") if len(dates) else dates
    days = [(_pick_days(dates, day), _pick_days(span, day)) for day in (5, 6)]
    came, could = (sum(map(len, counted)) for counted in zip(*days, strict=True))
    is_rule = all(2 * len(some) > len(every) for some, every in days)
    return f"rows on {came} of {could} weekend dates" if is_rule and came >= HANDFUL else None


def _pick_days(dates: pd.DatetimeIndex, day: int) -> pd.DatetimeIndex:
    return dates[dates.day_of_week == day].unique()


def _list_weekdays(dates: pd.DatetimeIndex) -> pd.DatetimeIndex:
    return dates[dates.day_of_week < 5]


def _list_weekends(dates: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Return the Saturday of each weekend that has one of the dates."""
    weekend = dates[dates.day_of_week >= 5]
    return (weekend - pd.to_timedelta(weekend.day_of_week - 5, unit="D")).unique()


def _list_hours(strays: "pd.Series[pd.Timestamp]", sessions: pd.DataFrame) -> pd.DatetimeIndex:
    """Return the session dates on which bars of other hours came."""
    is_hour = strays.dt.floor("D") != strays
    hours = strays[is_hour & (find_sessions(strays, sessions) < 0)]
    dates = pd.DatetimeIndex(hours.dt.floor("D").unique())
    return dates.intersection(pd.DatetimeIndex(sessions["session_date"]))
