"""Completeness of a frame, and the refusal of a frame that is less complete than required.

It comes from the ledger, the calendar's grid and the bars that were read. No table is scanned.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection

from market_pipeline.domain.arrays import Micros
from market_pipeline.domain.completeness import (
    NOT_ASKED_YET,
    PROVISIONAL,
    Completeness,
    ExpectedSeries,
    MissingSpan,
    measure_completeness,
    name_backfill,
)
from market_pipeline.domain.coverage import BEGINNING, FETCH_FAILED, Coverage
from market_pipeline.domain.errors import HistoryRequestError, IncompleteHistoryError, SettingError
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.masking import MIXED_PARSING, NEVER_ASKED, UNEXPLAINED_HOLE
from market_pipeline.domain.records import Market, Window
from market_pipeline.domain.sessions import describe_source, is_schedule_known, remember_schedule
from market_pipeline.providers.registry import load_provider
from market_pipeline.readers.encoding import format_time
from market_pipeline.storage.coverage.ledger import read_coverage, read_flaws
from market_pipeline.storage.markets.trading_sessions import read_schedule

Requirement: TypeAlias = Literal["complete", "explained"] | None
_MOST_TOLD = 20
_MOST_LISTED = 1_000
_OF_BARS = (UNEXPLAINED_HOLE, NEVER_ASKED)
_FETCHED_BY_A_BACKFILL = (FETCH_FAILED, NEVER_ASKED, NOT_ASKED_YET, PROVISIONAL)


@dataclass(frozen=True, slots=True)
class BarSelection:
    """A span of a market's bars, to be checked.

    Attributes:
        market: Whose. interval: Of the bars. window: By open_time (UTC).
        clock: What was due by then is expected (UTC).
        closing: Only bars that close in it, both ends included; None: all.
        found: open_time of the bars that were read, microseconds since 1970; None: not read.
    """

    market: Market
    interval: Interval
    window: Window
    clock: datetime
    closing: Window | None = None
    found: Micros | None = None

    @property
    def fetched(self) -> Interval:
        """The interval that the bars are built from."""
        return find_fetched_interval(self.market, self.interval)


@dataclass(frozen=True, slots=True)
class CheckedSelection:
    """A span, how complete it is, and what makes its values doubtful: events, mixed parsing."""

    span: BarSelection
    completeness: Completeness
    doubts: tuple[MissingSpan, ...] = ()

    def list_violations(self, require: Requirement) -> list[MissingSpan]:
        """Return what does not meet a requirement."""
        missing = [
            absence
            for absence in self.completeness.absences
            if require == "complete" or not absence.is_explained
        ]
        return [*missing, *self.doubts]


def find_fetched_interval(market: Market, interval: Interval) -> Interval:
    """Return the interval that bars are built from: for weeks, the longest fetched one."""
    return interval if interval in market.intervals else market.intervals[-1]


def check_requirement(require: str | None) -> None:
    """Make sure that a requirement is one.

    Raises:
        HistoryRequestError: It is neither ``complete`` nor ``explained`` nor None.
    """
    if require not in (None, "complete", "explained"):
        raise HistoryRequestError(f"require={require!r}: expected 'complete', 'explained' or None")


def check_spans(
    connection: Connection, spans: Mapping[int, BarSelection], require: Requirement = None
) -> list[CheckedSelection]:
    """Return how complete spans are, one for each market.

    Args:
        connection: With one snapshot for all its queries.
        spans: What is checked, by market_id.
        require: With a requirement, doubts are looked for too: the answer takes more queries.

    Raises:
        SettingError: With a requirement, when a market's provider is not installed any more, or
            wrongly set: its publication lag is not known. Without, it counts as none.
    """
    know_calendars(connection, {span.market.calendar for span in spans.values()})
    known = read_coverage(connection, list(spans))
    doubts = {} if require is None else _read_doubts(connection, spans)
    return [
        CheckedSelection(
            span,
            _measure(known.get((market_id, span.fetched), Coverage()), span, require),
            tuple(doubts.get(market_id, ())),
        )
        for market_id, span in spans.items()
    ]


def demand(checked: Iterable[CheckedSelection], require: Requirement) -> None:
    """Refuse spans that do not meet a requirement.

    Raises:
        IncompleteHistoryError: Lists what is missing, why, and what would bring it.
    """
    violations = [
        (selection.span, violation)
        for selection in checked
        for violation in selection.list_violations(require)
    ]
    if require is not None and violations:
        raise _build_error(require, violations)


def summarise(checked: Iterable[CheckedSelection]) -> dict[str, Any]:
    """Return the value of ``attrs["completeness"]``: expected, present, and missing by reason."""
    expected, missing = 0, Counter[str]()
    for selection in checked:
        expected += selection.completeness.expected
        missing.update(selection.completeness.missing)
    present = expected - missing.total()
    return {"expected": expected, "present": present, "missing": dict(missing)}


def know_calendars(connection: Connection, calendars: Iterable[str]) -> None:
    """Take exchange calendars from the table where it has them: to build one takes long."""
    for calendar in sorted(set(calendars) - {ALWAYS_OPEN}):
        if not is_schedule_known(calendar):
            kept = read_schedule(connection, calendar, describe_source())
            if not kept.empty:
                remember_schedule(calendar, kept)


def _measure(known: Coverage, span: BarSelection, require: Requirement) -> Completeness:
    # Before 1970 and after the clock no bar is expected; years beyond those have no calendar.
    clock = max(span.clock, BEGINNING)
    start, end = (min(max(edge, BEGINNING), clock) for edge in (span.window.start, span.window.end))
    series = ExpectedSeries(
        span.interval, span.fetched, span.market.calendar, Window(start, end),
        clock - _find_lag(span, require), span.closing,
    )  # fmt: skip
    return measure_completeness(known, series, span.found)


def _find_lag(span: BarSelection, require: Requirement) -> timedelta:
    if span.closing is not None:
        return timedelta(0)
    try:
        return _read_lag(span.market, span.fetched)
    except SettingError:
        if require is not None:
            raise
        return timedelta(0)


@lru_cache(maxsize=4_096)
def _read_lag(market: Market, fetched: Interval) -> timedelta:
    """Return a provider's publication lag; to find a provider takes longer than to read bars."""
    provider = load_provider(market.provider, os.environ)
    return provider.describe_history(market, fetched).publication_lag


def _read_doubts(
    connection: Connection, spans: Mapping[int, BarSelection]
) -> dict[int, list[MissingSpan]]:
    doubts: dict[int, list[MissingSpan]] = {}
    for fetched in {span.fetched for span in spans.values()}:
        for issue in read_flaws(connection, list(spans), fetched):
            span = spans[issue.market_id]
            if span.fetched is fetched and issue.reason not in _OF_BARS:
                window = issue.window or span.window
                if _touches(window, span.closing or span.window):
                    doubt = MissingSpan(window, issue.reason, 0, is_explained=False)
                    doubts.setdefault(issue.market_id, []).append(doubt)
    return doubts


def _touches(doubt: Window, window: Window) -> bool:
    """Return whether a doubt lies in a window; one without length is a boundary within it."""
    return doubt.start < window.end and doubt.end > window.start


def _build_error(
    require: str, violations: Sequence[tuple[BarSelection, MissingSpan]]
) -> IncompleteHistoryError:
    told = "; ".join(_format_missing(span, one) for span, one in violations[:_MOST_TOLD])
    more = len(violations) - _MOST_TOLD
    commands = _list_commands(violations)
    cure = (
        f". This fetches what the provider has: {'; '.join(f'`{command}`' for command in commands)}"
    )
    return IncompleteHistoryError(
        f"require={require} is not met: {told}{f' and {more:,} more' if more > 0 else ''}"
        f"{cure if commands else '. No command can fetch it now'}",
        [_describe_missing(span, one) for span, one in violations[:_MOST_LISTED]],
        commands,
    )


def _name_market(span: BarSelection) -> str:
    return f"{span.market.provider}:{span.market.symbol}"


def _format_missing(span: BarSelection, missing: MissingSpan) -> str:
    bars = f", {missing.bars:,} bars" if missing.bars else ""
    window = f"{missing.window.start:%Y-%m-%d %H:%M} to {missing.window.end:%Y-%m-%d %H:%M}"
    return f"{_name_market(span)} {span.interval} {window}: {missing.reason}{bars}"


def _describe_missing(span: BarSelection, missing: MissingSpan) -> dict[str, Any]:
    return {
        "symbol": span.market.symbol,
        "provider": span.market.provider,
        "interval": span.interval.value,
        "starts_at": format_time(missing.window.start),
        "ends_at": format_time(missing.window.end),
        "reason": missing.reason,
        "bars": missing.bars,
    }


def _list_commands(violations: Sequence[tuple[BarSelection, MissingSpan]]) -> list[str]:
    """Return the commands that fetch missing bars, one for each market that has one."""
    markets = {selection.market for selection, _ in violations}
    commands = []
    for market in sorted(markets, key=lambda key: (key.symbol, key.provider)):
        of_it = [item for selection, item in violations if selection.market == market]
        windows = [item.window for item in of_it if item.reason in _FETCHED_BY_A_BACKFILL]
        if windows:
            start, end = (
                min(window.start for window in windows),
                max(window.end for window in windows),
            )
            commands.append(name_backfill(market, Window(start, end)))
        if any(item.reason == MIXED_PARSING for item in of_it):
            commands.append(f"market-pipeline markets reload {market.provider}:{market.symbol}")
    return commands
