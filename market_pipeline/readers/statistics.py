"""``read_roi_statistics`` and ``read_comparisons``: statistics as frames.

The tables keep one row for each series and ``as_of``. A statistic whose bars were corrected later
is computed again in its place. Its old value is not stored: ``explain_statistic`` computes it from
the bars of the old version.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pandas as pd
from sqlalchemy import Connection, Engine

from market_pipeline.domain.errors import HistoryRequestError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import UTC_DTYPE, Market, Window
from market_pipeline.readers.completeness import (
    BarSelection,
    Requirement,
    check_requirement,
    check_spans,
    demand,
    summarise,
)
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.outdated import flag_outdated
from market_pipeline.readers.pairs import read_pairs
from market_pipeline.readers.resolve import (
    check_version,
    find_markets,
    parse_interval,
    parse_past_moment,
    parse_window,
    read_all_markets,
)
from market_pipeline.storage.bars.history import read_newest_version
from market_pipeline.storage.statistics.series import StatisticSpan, read_roi_rows

Names = str | Sequence[str] | None
Moment = datetime | str | None
_LONGEST_BAR = timedelta(days=8)
_HIDDEN = ("market_id", "base_market_id", "quote_market_id", "run_id")


def read_roi_statistics(
    symbols: Names = None,
    horizon: str | None = None,
    start: Moment = None,
    end: Moment = None,
    as_of: Moment = None,
    version: int | None = None,
    interval: Interval | str = "1d",
    engine: Engine | Connection | None = None,
    require: Requirement = None,
) -> pd.DataFrame:
    """Return ROI statistics: the newest of each market and horizon, or those of a span of time.

    Args:
        symbols: ``BTC-USD`` is the symbol's primary market, ``yahoo:BTC-USD`` that of a provider;
            None: all markets.
        horizon: Such as ``30d``; None: all.
        start: With ``end``: all statistics whose ``as_of`` lies in ``[start, end)``. UTC.
        end: See ``start``.
        as_of: The newest statistics over bars that had closed by this time.
        version: The newest that were made of bars up to this dataset version.
        interval: Of the bars used.
        engine: Of :func:`open_database`, for many reads, or a connection in a transaction, for
            many reads of one moment; None opens the database for this one.
        require: ``complete`` refuses unless all bars are there that the calendar expects in the
            horizons of these statistics, as the ledger knows them now; see
            :func:`read_aggregates`. ``explained`` lets bars be missing that nobody will ever have.

    Returns:
        Indexed by ``as_of``, the close of the last bar used (datetime64[us, UTC]), ordered by
        symbol, provider, horizon and ``as_of``. Columns: ``symbol``, ``provider``, and those of the
        table ``market_roi_statistic``: numbers float64, NaN where unknown, with the ``reason``;
        counts and ``dataset_version`` Int64; times datetime64[us, UTC].
        ``is_outdated`` (bool) is true where a final bar of the row's window was corrected or loaded
        after the row was computed: only the newest row of a series is computed again.
        ``attrs["dataset_version"]`` is the newest there is. ``attrs["completeness"]`` says how many
        bars the horizons ``expected``, how many are ``present``, and ``missing`` by reason.

    Raises:
        UnknownMarketError: Names every market that is not stored.
        IncompleteHistoryError: What is required is not met.
        HistoryRequestError: A time, version or interval does not exist, or they contradict.
        StorageError: The database cannot be opened; one handed in raises SQLAlchemy's own errors.
    """
    asked = _choose_span(interval, horizon, start, end, as_of, version)
    check_requirement(require)
    with open_snapshot(engine) as connection:
        newest = read_newest_version(connection)
        markets = _choose_markets(connection, symbols, asked, newest)
        rows = read_roi_rows(connection, replace(asked, market_ids=list(markets)))
        flags = flag_outdated(connection, rows, ["market_id"], markets, Interval(asked.interval))
        checked = check_spans(connection, _find_spans(rows, markets, asked.interval), require)
    demand(checked, require)
    frame = _tidy(rows.assign(is_outdated=flags), {"": markets}, newest)
    frame.attrs["completeness"] = summarise(checked)
    return frame


def _find_spans(
    rows: pd.DataFrame, markets: Mapping[int, Market], interval: str
) -> dict[int, BarSelection]:
    """Return the bars behind a market's statistics: all that close in one of their horizons."""
    days = rows["horizon"].str.removesuffix("d").astype("int64")
    ends = pd.to_datetime(rows["as_of"], utc=True)
    starts = ends - pd.to_timedelta(days, unit="D")
    spans = {}
    for market_id in set(rows["market_id"].tolist()):
        is_its = rows["market_id"] == market_id
        start, end = starts[is_its].min(), ends[is_its].max()
        closing = Window(start.to_pydatetime(), end.to_pydatetime())
        opens = Window(closing.start - _LONGEST_BAR, closing.end)
        spans[market_id] = BarSelection(
            markets[market_id], Interval(interval), opens, closing.end, closing
        )
    return spans


def read_comparisons(
    symbols: Names = None,
    against: Names = None,
    horizon: str | None = None,
    start: Moment = None,
    end: Moment = None,
    as_of: Moment = None,
    version: int | None = None,
    interval: Interval | str = "1d",
    engine: Engine | Connection | None = None,
) -> pd.DataFrame:
    """Return comparisons: the newest of each pair and horizon, or those of a span of time.

    Pairs that are not stored are computed from final bars when they are read, with the settings of
    now, unless a span or version is asked for, or more than 1,225 of them are missing.

    Args:
        symbols: Markets on either side of a pair; None: all.
        against: Markets that the other side must be; None: any.
        horizon: Such as ``30d``; None: all.
        start: With ``end``: all comparisons whose ``as_of`` lies in ``[start, end)``. UTC.
        end: See ``start``.
        as_of: The newest comparisons over bars that had closed by this time.
        version: The newest that were made of bars up to this dataset version.
        interval: Of the bars used.
        engine: Of :func:`open_database`, for many reads, or a connection in a transaction, for
            many reads of one moment; None opens the database for this one.

    Returns:
        Indexed by ``as_of`` (datetime64[us, UTC]), ordered by pair, horizon and ``as_of``. Columns:
        ``base_symbol``, ``base_provider``, ``quote_symbol``, ``quote_provider``, and those of the
        table ``market_comparison``, with dtypes and ``is_outdated`` as of
        :func:`read_roi_statistics`. ``is_stored`` (bool) is false where the row was computed when
        it was read. ``attrs["pairs_left_out"]`` counts pairs that are not stored and were too many
        to compute.

    Raises:
        UnknownMarketError, HistoryRequestError, StorageError: As of :func:`read_roi_statistics`.
    """
    asked = _choose_span(interval, horizon, start, end, as_of, version)
    with open_snapshot(engine) as connection:
        newest = read_newest_version(connection)
        markets = _choose_markets(connection, symbols, asked, newest)
        others = None if against is None else list(find_markets(connection, against))
        every = read_all_markets(connection)
        found = read_pairs(connection, every, replace(asked, market_ids=list(markets)), others)
    frame = _tidy(found.rows, {"base_": every, "quote_": every}, newest)
    frame.attrs["pairs_left_out"] = found.left_out
    return frame


def _choose_span(
    interval: Interval | str,
    horizon: str | None,
    start: Moment,
    end: Moment,
    as_of: Moment,
    version: int | None,
) -> StatisticSpan:
    """Return the question without its markets, checked but for the version."""
    if (start is None) != (end is None):
        raise HistoryRequestError("start and end belong together: give both, or none")
    if sum(given is not None for given in (start, as_of, version)) > 1:
        raise HistoryRequestError("a span, as_of and version exclude each other: give one of them")
    window = None if start is None or end is None else parse_window(start, end)
    return StatisticSpan(
        market_ids=(),
        interval=parse_interval(interval).value,
        horizon=horizon,
        start=window.start if window else None,
        end=window.end if window else None,
        until=None if as_of is None else parse_past_moment("as_of", as_of),
        version=version,
        is_newest=window is None,
    )


def _choose_markets(
    connection: Connection, names: Names, asked: StatisticSpan, newest: int
) -> dict[int, Market]:
    if asked.version is not None:
        check_version(asked.version, newest)
    return read_all_markets(connection) if names is None else find_markets(connection, names)


def _tidy(
    rows: pd.DataFrame, sides: Mapping[str, Mapping[int, Market]], newest: int
) -> pd.DataFrame:
    """Return rows under their markets' names, in order, indexed by ``as_of``."""
    names: dict[str, list[str]] = {}
    for side, markets in sides.items():
        chosen = [markets[key] for key in rows[f"{side}market_id"]]
        names[f"{side}symbol"] = [market.symbol for market in chosen]
        names[f"{side}provider"] = [market.provider for market in chosen]
    named = pd.DataFrame(names, dtype="str")
    kept = rows.drop(columns=[name for name in _HIDDEN if name in rows])
    frame = pd.concat([named, kept], axis=1)
    frame = frame.astype({name: _choose_type(name) for name in frame.columns})
    length = frame["horizon"].str.len().rename("length")
    order = frame.assign(length=length).sort_values(
        [*names, "interval", "length", "horizon", "as_of"], kind="stable"
    )
    indexed = order.drop(columns="length").set_index("as_of")
    indexed.attrs["dataset_version"] = newest or None
    return indexed


def _choose_type(name: str) -> str:
    if name.endswith(("_at", "as_of")):
        return UTC_DTYPE
    if name.startswith("n_") or name == "dataset_version":
        return "Int64"
    if name.startswith("is_"):
        return "bool"
    words = ("interval", "horizon", "method", "reason")
    return "str" if name in words or name.endswith(("symbol", "provider")) else "float64"
