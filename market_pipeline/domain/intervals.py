"""The bar lengths in use, and how many bars of each a year has."""

from datetime import datetime, timedelta
from enum import StrEnum

ALWAYS_OPEN = "24/7"
"""Calendar name of markets that never close."""


class Interval(StrEnum):
    """Length of a bar, in the notation of the field."""

    HOUR = "1h"
    DAY = "1d"
    WEEK = "1w"

    @property
    def duration(self) -> timedelta:
        """Nominal length; a session's daily bar may be shorter."""
        return _DURATIONS[self]


_DURATIONS = {
    Interval.HOUR: timedelta(hours=1),
    Interval.DAY: timedelta(days=1),
    Interval.WEEK: timedelta(weeks=1),
}


def get_annualisation_factor(
    interval: Interval, calendar: str, bars_per_session: float = 7
) -> float:
    """Return ``A``, the number of bars of this interval in a year of this calendar.

    Args:
        interval: The bar length.
        calendar: ``24/7`` or an exchange calendar's name.
        bars_per_session: Hourly bars in one exchange session (used for ``1h`` only).
    """
    if calendar == ALWAYS_OPEN:
        factors = {Interval.HOUR: 8760.0, Interval.DAY: 365.0, Interval.WEEK: 365 / 7}
    else:
        factors = {
            Interval.HOUR: 252.0 * bars_per_session,
            Interval.DAY: 252.0,
            Interval.WEEK: 52.0,
        }
    return factors[interval]


def floor_to_monday(moment: datetime) -> datetime:
    """Return Monday 00:00 of the moment's week, in the moment's own time zone (UTC here)."""
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight - timedelta(days=midnight.weekday())
