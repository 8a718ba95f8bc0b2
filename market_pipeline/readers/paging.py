"""Bars of one market by page: a cursor keeps the dataset version, so that pages fit together."""

import base64
import binascii
import json
import operator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pandas as pd
from sqlalchemy import Connection

from market_pipeline.domain.errors import HistoryRequestError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window
from market_pipeline.readers.aggregates import Basis, read_span
from market_pipeline.readers.resolve import check_version
from market_pipeline.storage.bars.history import BarSpan

MAX_CURSOR_CHARACTERS = 200
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the bars asked for.

    Attributes:
        bars: As of ``read_aggregates``. version: The dataset version they are of.
        next_cursor: What to ask for to go on; None at the end.
    """

    bars: pd.DataFrame
    version: int
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class BarQuery:
    """A request for bars of one market by open_time in the window, at most ``limit``.

    ``basis`` is as of ``read_aggregates``.
    """

    interval: Interval
    window: Window
    limit: int
    as_of: datetime | None = None
    version: int | None = None
    basis: Basis = "strict"
    with_provisional: bool = False


def read_page(
    connection: Connection,
    market_id: int,
    market: Market,
    question: BarQuery,
    cursor: str | None,
    newest: int,
) -> Page:
    """Return the first bars of a question, or those after a cursor.

    Args:
        connection: With one snapshot for all its queries.
        market_id: The market's key.
        market: The market.
        question: The same for every page.
        cursor: ``next_cursor`` of the page before.
        newest: The newest dataset version of the snapshot.

    Raises:
        HistoryRequestError: The cursor is none of ours, or the version does not exist.
        NothingKnownYetError: There are bars, but none was known at ``as_of``.
    """
    asked = question if cursor is None else _go_on(question, cursor)
    if asked.version is not None:
        check_version(asked.version, newest)
    span = BarSpan((market_id,), asked.interval, asked.window, limit=asked.limit + 1)
    bars = read_span(
        connection,
        {market_id: market},
        span,
        asked.as_of,
        asked.version,
        asked.basis,
        asked.with_provisional,
    )
    version = newest if asked.version is None else asked.version
    bars.attrs["dataset_version"] = version
    if len(bars) <= asked.limit:
        return Page(bars, version, None)
    shown = bars.iloc[: asked.limit]
    pinned = None if asked.as_of is not None or asked.with_provisional else version
    return Page(shown, version, _write_cursor(shown.index[-1].to_pydatetime(), pinned))


def _write_cursor(after: datetime, version: int | None) -> str:
    text = json.dumps([after.isoformat(), version], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _go_on(question: BarQuery, cursor: str) -> BarQuery:
    after, version = _read_cursor(cursor)
    end = question.window.end
    start = min(max(question.window.start, after), end - _TICK) + _TICK
    window = Window(start, end)
    return replace(question, window=window, version=version)


def _read_cursor(cursor: str) -> tuple[datetime, int | None]:
    try:
        padded = cursor[:MAX_CURSOR_CHARACTERS] + "=" * (-len(cursor) % 4)
        after, version = json.loads(base64.urlsafe_b64decode(padded))
        moment = datetime.fromisoformat(after).astimezone(UTC)
        return moment, None if version is None else operator.index(version)
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
        raise HistoryRequestError(
            "the cursor is not from this API: leave it out to start from the first page"
        ) from None
