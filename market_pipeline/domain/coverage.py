"""Coverage of one interval of a market: what is settled, what is missing, and why.

*Settled* is time that was asked for and answered for good: its bars are final, or known not to
exist. A *hole* is an exception with a reason and, mostly, a time at which to ask again. Time that
is neither is missing. Between the first and the last settled span it was *never asked* for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from market_pipeline.domain.grids import find_grid
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.ranges import clip_windows, merge_windows, subtract_windows
from market_pipeline.domain.records import Window

FETCH_FAILED = "fetch_failed"
PROVIDER_EMPTY = "provider_empty"
NO_TRADES = "no_trades"
QUARANTINED = "quarantined"
BEFORE_FIRST = "before_first"
AFTER_LAST = "after_last"
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
OUT_OF_REACH = "out_of_reach"
ASKED_OFTEN = 4
"""From this many tries on, a provider that has nothing is believed."""

_NOW, _HOUR, _DAY = timedelta(0), timedelta(hours=1), timedelta(days=1)
_RARELY = timedelta(days=30)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
"""No bar opens before it."""
_DELAYS: Mapping[str, tuple[timedelta, ...]] = {
    FETCH_FAILED: (_NOW, _NOW, timedelta(minutes=10), _HOUR, _DAY, _RARELY),
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
        """Whether statistics may span it, because these bars will never exist."""
        if self.reason == PROVIDER_EMPTY:
            return self.tries >= ASKED_OFTEN
        return self.reason in (NO_TRADES, BEFORE_FIRST, AFTER_LAST)

    def is_due(self, now: datetime) -> bool:
        """Whether it should be asked for now."""
        return self.next_check_at is not None and self.next_check_at <= now


@dataclass(frozen=True, slots=True)
class Round:
    """How far the turn has come in which settled history is read again; all times UTC.

    Attributes:
        began_at: When the turn began.
        reached: Up to where, by open_time, it has come.
        read_at: When its last page was asked for.
        skipped: What failed when its turn came: it waits for the next one.
    """

    began_at: datetime
    reached: datetime
    read_at: datetime
    skipped: tuple[Window, ...] = ()


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
        round: The turn in which all of it is read again; None: no page of it was read yet.
        refreshed_at: When the provider last answered (UTC).
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
    round: Round | None = None
    refreshed_at: datetime | None = None

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


def find_gone(coverage: Coverage) -> list[Window]:
    """Return the spans whose bars will never come: what is explained, and all after the last."""
    return [
        Window(hole.window.start, NEVER if hole.reason == AFTER_LAST else hole.window.end)
        for hole in coverage.holes
        if hole.is_explained
    ]


def find_next_check(reason: str, tries: int, now: datetime) -> datetime | None:
    """Return when to ask again after ``tries`` tries; None for what is never asked again."""
    delays = _DELAYS.get(reason)
    return now + delays[min(tries, len(delays)) - 1] if delays else None


@dataclass(frozen=True, slots=True)
class RoundProgress:
    """How a turn stands.

    Attributes:
        share: Of the time that was settled when the turn began, how much was read again.
        days: How long a whole turn takes at its pace so far; None: no page was read yet.
    """

    share: float
    days: float | None


def measure_round(coverage: Coverage) -> RoundProgress | None:
    """Return how the turn stands in which settled history is read again; None before the first."""
    turn = coverage.round
    if turn is None:
        return None
    all_of_it = clip_windows(coverage.settled, Window(BEGINNING, turn.began_at))
    passed = clip_windows(all_of_it, Window(BEGINNING, turn.reached))
    whole, gone = _add_up(all_of_it), _add_up(passed)
    if not whole or not gone:
        return RoundProgress(0.0, None)
    read = _add_up(subtract_windows(passed, turn.skipped))
    return RoundProgress(read / whole, (turn.read_at - turn.began_at) / _DAY * (whole / gone))


def _add_up(windows: Iterable[Window]) -> timedelta:
    return sum((window.end - window.start for window in windows), _NOW)


def find_never_asked(coverage: Coverage, interval: Interval, calendar: str) -> list[Window]:
    """Return the spans between the first and the last settled span that no run asked for, in order.

    They are neither settled nor in a hole, and the calendar expects bars in each of them.
    """
    if len(coverage.settled) < 2:
        return []
    whole = Window(coverage.settled[0].start, coverage.settled[-1].end)
    holes = [hole.window for hole in coverage.holes]
    left = subtract_windows([whole], [*coverage.settled, *holes])
    if not left:
        return []
    grid = find_grid(calendar, interval, Window(left[0].start, left[-1].end))
    return [part for part in left if grid.count(part)]


def lose_reach(coverage: Coverage, earliest: datetime | None) -> Coverage:
    """Return the coverage whose holes before the provider's reach are never asked for again.

    Args:
        coverage: As it was.
        earliest: The provider has nothing before it (UTC); None: no limit known.
    """
    if earliest is None or not any(_is_lost(hole, earliest) for hole in coverage.holes):
        return coverage
    holes = [
        replace(hole, reason=OUT_OF_REACH, next_check_at=None) if _is_lost(hole, earliest) else hole
        for hole in coverage.holes
    ]
    return replace(coverage, holes=tuple(holes))


def _is_lost(hole: Hole, earliest: datetime) -> bool:
    is_open = hole.reason != OUT_OF_REACH and not hole.is_explained
    return is_open and hole.window.end <= earliest


def wake_failures(coverage: Coverage, now: datetime, span: Window) -> Coverage:
    """Return the coverage whose failures are due now: who asks for a span by name does not wait.

    What was out of reach is due as well, for the provider may reach further since. Holes that were
    answered by nothing keep their time, and so do those that do not touch the span.
    """
    holes = [
        replace(hole, next_check_at=now)
        if hole.reason in (FETCH_FAILED, OUT_OF_REACH) and clip_windows([hole.window], span)
        else hole
        for hole in coverage.holes
    ]
    return replace(coverage, holes=tuple(holes))
