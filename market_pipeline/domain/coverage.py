"""What is known about one interval of a market: what is settled, what is missing, and why.

*Settled* is time that was asked for and answered for good: its bars are final, or known not to be
there. A *hole* is an exception with a reason and, mostly, a time at which to ask again. Time that
is neither is simply missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from market_pipeline.domain.ranges import merge_windows, subtract_windows
from market_pipeline.domain.records import Window

FETCH_FAILED = "fetch_failed"
PROVIDER_EMPTY = "provider_empty"
NO_TRADES = "no_trades"
QUARANTINED = "quarantined"
BEFORE_FIRST = "before_first"
AFTER_LAST = "after_last"
ASKED_OFTEN = 4
"""From this many tries on, a provider that has nothing is believed."""

_NOW, _HOUR, _DAY = timedelta(0), timedelta(hours=1), timedelta(days=1)
_RARELY = timedelta(days=30)
_DELAYS: Mapping[str, tuple[timedelta, ...]] = {
    FETCH_FAILED: (_NOW, _NOW, timedelta(minutes=10), timedelta(minutes=30), _HOUR),
    PROVIDER_EMPTY: (_NOW, _HOUR, _DAY, _RARELY),
    NO_TRADES: (_NOW, _DAY, _RARELY),
    QUARANTINED: (_NOW, _DAY, _RARELY),
}


@dataclass(frozen=True, slots=True)
class Hole:
    """A span without the bars that the calendar expects.

    Attributes:
        window: From the first missing bar's open to the next expected one's (UTC).
        reason: One of the constants above.
        tries: How often it was asked for.
        first_seen_at: When it was first missed (UTC).
        last_checked_at: When it was last asked for (UTC).
        next_check_at: When it is asked for again (UTC); None: never.
        detail: What the provider said, where it said something.
    """

    window: Window
    reason: str
    tries: int
    first_seen_at: datetime
    last_checked_at: datetime
    next_check_at: datetime | None
    detail: str | None = None

    @property
    def is_explained(self) -> bool:
        """Whether statistics may go on over it: nobody will ever have these bars."""
        if self.reason == PROVIDER_EMPTY:
            return self.tries >= ASKED_OFTEN
        return self.reason in (NO_TRADES, BEFORE_FIRST, AFTER_LAST)

    def is_due(self, now: datetime) -> bool:
        """Whether it should be asked for now."""
        return self.next_check_at is not None and self.next_check_at <= now


@dataclass(frozen=True, slots=True)
class Coverage:
    """One interval of a market, as the ledger has it; all times UTC.

    Attributes:
        settled: Disjoint, in order.
        holes: In order; those that are settled as well were answered, by nothing.
        watermark: Close of the last final bar.
        first_bar_at: open_time of the first stored bar. last_bar_at: Of the last.
        bars: How many are stored.
        verified: For each age in days, the spans that were read when they were older than that.
        parsing: Version of the provider's parser that reads new bars.
        older_parsings: For each other version, the settled spans whose stored bars it read.
    """

    settled: tuple[Window, ...] = ()
    holes: tuple[Hole, ...] = ()
    watermark: datetime | None = None
    first_bar_at: datetime | None = None
    last_bar_at: datetime | None = None
    bars: int = 0
    verified: Mapping[int, tuple[Window, ...]] = field(default_factory=dict)
    parsing: int = 1
    older_parsings: Mapping[int, tuple[Window, ...]] = field(default_factory=dict)

    @property
    def older(self) -> list[Window]:
        """The settled spans whose stored bars another version of the parser read."""
        return merge_windows(span for spans in self.older_parsings.values() for span in spans)

    @property
    def current(self) -> list[Window]:
        """The settled spans whose bars, if they come again, can be compared with those stored."""
        return (
            subtract_windows(self.settled, self.older) if self.older_parsings else [*self.settled]
        )


def find_next_check(reason: str, tries: int, now: datetime) -> datetime | None:
    """Return when to ask again after ``tries`` tries; None for what is never asked again."""
    delays = _DELAYS.get(reason)
    return now + delays[min(tries, len(delays)) - 1] if delays else None
