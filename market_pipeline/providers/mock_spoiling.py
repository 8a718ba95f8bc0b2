"""The changes that the faults of the mock provider make to a call and to its bars.

Here: one small function for each fault. Not here: their names and syntax, and the decision whether
a fault applies to a call (``mock_faults.py``).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.errors import PermanentProviderError, TransientProviderError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.providers import mock_faults
from market_pipeline.providers.mock_faults import Fault
from market_pipeline.providers.rate_limiter import report_throttled

NAME = "mock"
TOO_MANY_REQUESTS = 429
_PRICES = ["open", "high", "low", "close"]


def refuse_call(symbol: str, faults: Sequence[Fault]) -> None:
    """Fail as the first fault that refuses a call does, and report its pause to the limiter.

    Raises:
        TransientProviderError: It is throttled or does not answer.
        PermanentProviderError: Its answer is about another market.
    """
    for fault in faults:
        refuse = _REFUSALS.get(fault.kind)
        if refuse is not None:
            refuse(symbol, fault)


def _throttle(symbol: str, fault: Fault) -> None:
    report_throttled(NAME, fault.amount)
    raise TransientProviderError(
        NAME,
        f"answered 429 for {symbol}: too many requests, retry after {fault.amount:g} s",
        TOO_MANY_REQUESTS,
    )


def _time_out(symbol: str, _fault: Fault) -> None:
    raise TransientProviderError(NAME, f"did not answer for {symbol} in time")


def _confuse(symbol: str, _fault: Fault) -> None:
    other = "BTC-USD" if symbol != "BTC-USD" else "ETH-USD"
    raise PermanentProviderError(NAME, f"asked for {symbol}, the answer is for {other!r}")


def spoil_bars(bars: pd.DataFrame, faults: Sequence[Fault], level: float) -> pd.DataFrame:
    """Return what the faults leave of a well answered bar frame, each applied to the one before.

    Args:
        bars: A bar frame, ordered by open_time; it is not changed.
        faults: What goes wrong.
        level: The price around which the market moves.
    """
    for fault in faults:
        spoil = _EFFECTS.get(fault.kind)
        if spoil is not None:
            bars = spoil(bars, fault).reset_index(drop=True)
        elif fault.kind == mock_faults.SUB_CENT_PRICE:
            bars = _multiply(bars, np.ones(len(bars), dtype=bool), fault.amount / level)
    return bars


def scale_price(price: float, faults: Sequence[Fault], level: float) -> float:
    """Return a live price on the scale that the faults give a market's bars."""
    for fault in faults:
        if fault.kind == mock_faults.SUB_CENT_PRICE:
            price *= fault.amount / level
        elif fault.kind == mock_faults.RESCALED:
            price *= fault.amount
    return price


def _find_bars(bars: pd.DataFrame, span: Window) -> npt.NDArray[np.bool_]:
    is_inside = bars["open_time"].between(span.start, span.end, inclusive="left")
    return np.asarray(is_inside, dtype=np.bool_)


def _choose_bars(bars: pd.DataFrame, span: Window | None) -> npt.NDArray[np.bool_]:
    """Mark the bars of a span, or the one in the middle."""
    if span is not None:
        return _find_bars(bars, span)
    return np.asarray(np.arange(len(bars)) == len(bars) // 2, dtype=np.bool_)


def _multiply(bars: pd.DataFrame, is_chosen: npt.NDArray[np.bool_], ratio: float) -> pd.DataFrame:
    factors = np.where(is_chosen, ratio, 1.0)
    return bars.assign(**{name: bars[name] * factors for name in _PRICES})


def _empty(bars: pd.DataFrame, _fault: Fault) -> pd.DataFrame:
    return bars.iloc[:0]


def _skip(bars: pd.DataFrame, fault: Fault) -> pd.DataFrame:
    if fault.span is not None:
        return bars[~_find_bars(bars, fault.span)]
    first, count = len(bars) // 3, -(-len(bars) // 3)
    return bars.drop(index=bars.index[first : first + count])


def _truncate(bars: pd.DataFrame, fault: Fault) -> pd.DataFrame:
    return bars.tail(int(fault.amount))


def _close_early(bars: pd.DataFrame, fault: Fault) -> pd.DataFrame:
    is_chosen = True if fault.span is None else _find_bars(bars, fault.span)
    return bars.assign(is_final=bars["is_final"] | is_chosen)


def _restate(bars: pd.DataFrame, fault: Fault) -> pd.DataFrame:
    is_chosen = _choose_bars(bars, fault.span) & bars["is_final"].to_numpy()
    return _multiply(bars, is_chosen, fault.amount)


def _split(bars: pd.DataFrame, fault: Fault) -> pd.DataFrame:
    if fault.span is None:
        return bars
    is_before = (bars["open_time"] < fault.span.start).to_numpy()
    volume = bars["volume"] * np.where(is_before, fault.amount, 1.0)
    return _multiply(bars, is_before, 1 / fault.amount).assign(volume=volume)


def _rescale(bars: pd.DataFrame, fault: Fault) -> pd.DataFrame:
    is_chosen = np.ones(len(bars), dtype=bool)
    if fault.span is not None:
        is_chosen = (bars["open_time"] >= fault.span.start).to_numpy()
    return _multiply(bars, is_chosen, fault.amount)


def _duplicate(bars: pd.DataFrame, fault: Fault) -> pd.DataFrame:
    again = bars[_choose_bars(bars, fault.span)]
    again = _multiply(again, np.ones(len(again), dtype=bool), fault.amount)
    return pd.concat([bars, again]).sort_values("open_time", kind="stable")


def _shift(bars: pd.DataFrame, fault: Fault) -> pd.DataFrame:
    minutes = np.where(_choose_bars(bars, fault.span), fault.amount, 0.0)
    moved = bars["open_time"] + pd.to_timedelta(minutes, unit="min")
    return bars.assign(open_time=moved.astype(bars["open_time"].dtype))


def _trade_when_closed(bars: pd.DataFrame, fault: Fault) -> pd.DataFrame:
    if bars.empty or bars["interval"].iloc[0] != Interval.DAY:
        return bars
    opens = pd.DatetimeIndex(bars["open_time"])
    dates = pd.date_range(opens[0], opens[-1], freq="D", unit="us")
    added = bars.set_index(opens).reindex(dates.difference(opens), method="ffill")
    added = added.assign(open_time=added.index, close_time=added.index + pd.Timedelta(days=1))
    if fault.span is not None:
        added = added[_find_bars(added, fault.span)]
    added = _multiply(added, np.ones(len(added), dtype=bool), fault.amount)
    return pd.concat([bars, added]).sort_values("open_time", kind="stable")


_REFUSALS: Mapping[str, Callable[[str, Fault], None]] = {
    mock_faults.THROTTLED: _throttle,
    mock_faults.TIMEOUT: _time_out,
    mock_faults.WRONG_SYMBOL: _confuse,
}
_EFFECTS: Mapping[str, Callable[[pd.DataFrame, Fault], pd.DataFrame]] = {
    mock_faults.EMPTY_PAGE: _empty,
    mock_faults.SKIPPED_PAGE: _skip,
    mock_faults.TRUNCATED_HISTORY: _truncate,
    mock_faults.UNCLOSED_BAR: _close_early,
    mock_faults.RESTATED_BAR: _restate,
    mock_faults.SPLIT: _split,
    mock_faults.RESCALED: _rescale,
    mock_faults.DUPLICATE: _duplicate,
    mock_faults.OFF_GRID: _shift,
    mock_faults.CLOSED_DATE: _trade_when_closed,
}
