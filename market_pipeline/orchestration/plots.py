"""The picture of a write: chooses its markets, reads their bars, and draws it.

A picture shows final daily bars, or what was computed from them. It is drawn only when those
changed: a run that brings only live prices and provisional bars never loads matplotlib.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pandas as pd

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.returns import build_times, fill_gaps, read_microseconds
from market_pipeline.orchestration.market_reader import MarketReader
from market_pipeline.orchestration.pictures import (
    MAX_HEAT_MAP_SIDE,
    MAX_PANELS,
    Panel,
    draw_correlations,
    draw_coverage,
    draw_drawdowns,
    draw_prices,
)
from market_pipeline.storage.coverage.ledger import read_coverage
from market_pipeline.storage.runs.evidence import has_new_final_days


@dataclass(frozen=True, slots=True)
class WriteContext:
    """A write that changed rows: on whose behalf, for which markets, and what was computed."""

    run_id: UUID
    reader: MarketReader
    rows: pd.DataFrame


def draw_picture(table_name: str, context: WriteContext) -> bytes | None:
    """Return a PNG of what was written to a table, None where there is nothing to see."""
    draw = _PICTURES.get(table_name)
    return draw(context) if draw else None


def _draw_price_history(context: WriteContext) -> bytes | None:
    """Draw the look-back's final daily bars of the first markets, if the run changed any."""
    reader = context.reader
    shown = _list_rows(reader.markets)[:MAX_PANELS]
    market_ids = [market.market_id for market in shown]
    with reader.engine.connect() as connection:
        if not has_new_final_days(connection, market_ids, context.run_id):
            return None
    bars = reader.read_final_bars(Interval.DAY, reader.request.lookback_days, market_ids)
    panels = [
        Panel(
            _title(market),
            _note_change(of_market, market.quote),
            show_gaps(of_market, market.calendar),
        )
        for market in shown
        if len(of_market := bars[bars["market_id"] == market.market_id])
    ]
    return draw_prices(panels) if panels else None


def draw_coverage_map(context: WriteContext) -> bytes | None:
    """Draw what of the run's markets is settled and what is missing, from the ledger alone."""
    reader = context.reader
    labels = _label_markets(reader.markets)
    with reader.engine.connect() as connection:
        known = read_coverage(connection, list(labels))
    rows = {f"{labels[key[0]]} {key[1]}": known[key] for key in sorted(known)}
    return draw_coverage(rows, reader.request.now)


def _draw_drawdown_history(context: WriteContext) -> bytes | None:
    """Draw the first markets' drawdowns over their longest horizon that has one."""
    reader = context.reader
    measured = context.rows.dropna(subset=["max_drawdown"]).sort_values("n_returns")
    longest = {row.market_id: row for row in _list_rows(measured)}
    markets = _list_rows(reader.markets)
    shown = [market for market in markets if market.market_id in longest][:MAX_PANELS]
    if not shown:
        return None
    days = max(int(row.horizon.removesuffix("d")) for row in longest.values())
    bars = reader.read_final_bars(Interval.DAY, days, [market.market_id for market in shown])
    return draw_drawdowns(
        [_build_panel(market, longest[market.market_id], bars) for market in shown]
    )


def _draw_correlation_map(context: WriteContext) -> bytes | None:
    """Draw the correlations of the horizon that has most of them, the longest of such."""
    known = context.rows.dropna(subset=["correlation"])
    if known.empty:
        return None
    counts = known["horizon"].value_counts()
    horizon = max(counts.index, key=lambda label: (counts[label], int(label.removesuffix("d"))))
    rows = known[known["horizon"] == horizon]
    markets = context.reader.markets
    matrix = _build_matrix(rows, _label_markets(markets))
    source = " and ".join(markets["provider"].unique())
    left_out = len(matrix) > MAX_HEAT_MAP_SIDE
    note = f" ({MAX_HEAT_MAP_SIDE} of {len(matrix)})" if left_out else ""
    title = f"Correlation of daily returns from {source}"
    return draw_correlations(
        matrix, f"{title}, {horizon} to {_write_date(rows['as_of'].max())}{note}"
    )


_PICTURES: Mapping[str, Callable[[WriteContext], bytes | None]] = {
    "market_aggregate": _draw_price_history,
    "market_comparison": _draw_correlation_map,
    "market_roi_statistic": _draw_drawdown_history,
}


def _build_panel(market: Any, row: Any, bars: pd.DataFrame) -> Panel:
    within = bars["close_time"].between(row.first_bar_at, row.as_of)
    of_market = bars[within & (bars["market_id"] == market.market_id)].reset_index(drop=True)
    note = f"{row.horizon} to {_write_date(row.as_of)}: {100 * row.max_drawdown:,.1f} %"
    return Panel(_title(market), note, show_gaps(of_market, market.calendar))


def show_gaps(bars: pd.DataFrame, calendar: str) -> pd.DataFrame:
    """Return daily bars with a row that has no prices where the calendar expects one more."""
    bars = bars.drop_duplicates("open_time")  # A picture is no place to fail of a bar stored twice.
    opens = read_microseconds(bars["open_time"])
    at, place = fill_gaps([calendar], Interval.DAY, opens)
    filled = bars.set_index(place).reindex(range(len(at)))
    times = pd.Series(build_times(at), index=filled.index)
    return filled.assign(open_time=times, close_time=filled["close_time"].fillna(times))


def _build_matrix(rows: pd.DataFrame, labels: Mapping[int, str]) -> pd.DataFrame:
    """Return the symmetric matrix; where all were compared with a few only, those are columns."""
    mirrored = rows.rename(
        columns={"base_market_id": "quote_market_id", "quote_market_id": "base_market_id"}
    )
    matrix = pd.concat([rows, mirrored]).pivot_table(
        index="base_market_id", columns="quote_market_id", values="correlation"
    )
    matrix = matrix.loc[:, matrix.count() >= matrix.count().max() / 2]
    for market_id in matrix.columns:
        matrix.loc[market_id, market_id] = 1.0
    return matrix.rename(index=labels, columns=labels)


def _label_markets(markets: pd.DataFrame) -> dict[int, str]:
    several = markets["provider"].nunique() > 1
    return {
        row.market_id: f"{row.provider}:{row.symbol}" if several else row.symbol
        for row in _list_rows(markets)
    }


def _list_rows(frame: pd.DataFrame) -> list[Any]:
    return list(frame.itertuples())


def _title(market: Any) -> str:
    return f"{market.symbol} from {market.provider}"


def _note_change(bars: pd.DataFrame, quote: str) -> str:
    first, last = bars["close"].iloc[0], bars["close"].iloc[-1]
    since = _write_date(bars["open_time"].iloc[0])
    return f"{last:,.6g} {quote}, {100 * (last / first - 1):+,.1f} % since {since}"


def _write_date(moment: pd.Timestamp) -> str:
    return f"{moment.day} {moment:%b %Y}"
