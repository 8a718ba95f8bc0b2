"""ROI statistics: the return of a market over a horizon, and its risk.

Here: the formulas, for all markets at once. Not here: which closes a horizon looks back on
(``returns``). Each measure equals empyrical-reloaded's, given a per-period risk-free rate and MAR
and the same annualisation factor.

With closes P_0 .. P_n, simple returns r between adjacent sessions, and A bars a year:

- ``roi`` = P_n / P_0 - 1
- ``annualised_return`` = (1 + roi)^(A/n) - 1, where n counts the sessions from P_0 to P_n whether
  or not a bar is missing between them; none for horizons under 30 days
- ``annualised_volatility`` = std(r, ddof=1) sqrt(A); ``realised_volatility`` is that of log returns
- ``sharpe`` = mean(r - rf) / std(r, ddof=1) sqrt(A)
- ``sortino`` = mean(r - mar) / sqrt(mean(min(r - mar, 0)^2)) sqrt(A), over all returns
- ``max_drawdown`` = min over t of P_t / max(P_0 .. P_t) - 1
- ``calmar`` = annualised_return / |max_drawdown|
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.arrays import BoolArray, FloatArray, IntArray
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import UTC_DTYPE
from market_pipeline.domain.returns import (
    INSUFFICIENT_DATA,
    NO_DOWNSIDE,
    OUT_OF_RANGE,
    ZERO_TOLERANCE,
    ZERO_VARIANCE,
    HorizonWindow,
    add_up,
    build_session_matrices,
    build_times,
    compute_mean_and_std,
    compute_period_rate,
    cut_windows,
    is_insufficient,
    is_zero_spread,
    name_versions,
    read_microseconds,
)
from market_pipeline.domain.sufficiency import MinReturns
from market_pipeline.domain.volatility import compute_realised_volatility

SHORT_HORIZON = "short_horizon"
MIN_DAYS_TO_ANNUALISE = 30

MEASURES = (
    "roi",
    "annualised_return",
    "annualised_volatility",
    "realised_volatility",
    "sharpe",
    "sortino",
    "max_drawdown",
    "calmar",
)
DRAWDOWN_TIMES = ("drawdown_peak_at", "drawdown_trough_at", "drawdown_recovered_at")
ROI_DTYPES: Mapping[str, str] = {
    "market_id": "int64",
    "interval": "str",
    "horizon": "str",
    "as_of": UTC_DTYPE,
    "method": "str",
    **dict.fromkeys(MEASURES, "float64"),
    **dict.fromkeys(DRAWDOWN_TIMES, UTC_DTYPE),
    "annualisation_factor": "float64",
    "n_returns": "int64",
    "n_missing": "int64",
    "first_bar_at": UTC_DTYPE,
    "reasons": "str",
}
ROI_COLUMNS = tuple(ROI_DTYPES)

Measures = dict[str, FloatArray]
MeasureMask = tuple[tuple[str, ...], BoolArray, str]


def compute_roi_statistics(
    bars: pd.DataFrame,
    calendars: Mapping[int, str],
    interval: Interval,
    horizons_days: Sequence[int],
    risk_free_annual: float = 0.0,
    mar_annual: float = 0.0,
    min_returns: int | None = None,
) -> pd.DataFrame:
    """Compute one row per market and horizon from final bars.

    Args:
        bars: Final bars of one interval: ``market_id``, ``open_time``, ``close_time``, ``close``,
            and ``dataset_version`` where known.
        calendars: The calendar of every market.
        interval: The length of the bars.
        horizons_days: How far each horizon looks back.
        risk_free_annual: A fraction a year.
        mar_annual: The minimum acceptable return, a fraction a year.
        min_returns: Fewer adjacent returns give no statistics; None: as ``MinReturns`` says.

    Returns:
        ``ROI_COLUMNS``, ordered by market_id and horizon; markets without a usable bar have no row.
        With versions also ``dataset_version`` (Int64), the newest among the bars of the window.
        Measures are fractions or ratios, NaN with an entry in ``reasons``: a bare reason speaks of
        the whole row, ``sortino: no_downside; calmar: no_downside`` of those measures alone.
        ``as_of`` and ``first_bar_at`` are the closes of the last and first bar used; the drawdown's
        times are closes too, missing where nothing fell or it has not recovered.
    """
    closed_at = read_microseconds(bars["close_time"])
    fewest = MinReturns(min_returns)
    frames = []
    for matrix in build_session_matrices(bars, calendars, interval):
        factor = matrix.annualisation_factor
        method = name_method(risk_free_annual, mar_annual, min_returns, f"{factor:.6g}")
        for window in cut_windows(matrix, horizons_days):
            insufficient = is_insufficient(window, fewest)
            with np.errstate(all="ignore"):
                measures, masks = _compute_measures(window, factor, risk_free_annual, mar_annual)
            columns = {
                "market_id": matrix.market_ids,
                "interval": interval.value,
                "horizon": f"{window.days}d",
                "method": method,
                "reasons": _explain(measures, masks, insufficient),
                **measures,
                **_describe_window(window, insufficient, closed_at),
                "annualisation_factor": factor,
                **name_versions(bars, window),
            }
            frames.append(pd.DataFrame(columns))
    return _join_frames(frames)


def name_method(
    risk_free_annual: float, mar_annual: float, min_returns: int | None, factor: str
) -> str:
    """Return what a row's ``method`` says; ``factor`` is its A, to six digits."""
    rates = f"rf={_spell_exactly(risk_free_annual)};mar={_spell_exactly(mar_annual)}"
    return f"simple;{rates};A={factor};{MinReturns(min_returns).name}"


def _spell_exactly(rate: float) -> str:
    """Return the shortest text that reads back as the rate: a row is computed again by it."""
    short = f"{rate:.6g}"
    return short if float(short) == rate else repr(rate)


def compute_drawdowns(closes: FloatArray) -> FloatArray:
    """Return each close's fall from the highest so far in its row, a fraction in [-1, 0].

    A close that is missing (NaN) has none, and the highest so far stays.
    """
    return np.asarray(closes / np.fmax.accumulate(closes, axis=-1) - 1, dtype=np.float64)


def _compute_measures(
    window: HorizonWindow, factor: float, risk_free_annual: float, mar_annual: float
) -> tuple[Measures, list[MeasureMask]]:
    """Return the measures by name, and which of them mean nothing for which rows, and why."""
    simple = window.ratios - 1
    steps = window.closes.shape[1] - 1 - window.first
    mean, std = compute_mean_and_std(simple)
    flat = is_zero_spread(std, mean)
    sharpe = (mean - compute_period_rate(risk_free_annual, factor)) / std * np.sqrt(factor)
    sortino, no_downside = _compute_sortino(simple, compute_period_rate(mar_annual, factor), factor)
    drawdown = np.nanmin(compute_drawdowns(window.closes), axis=1, initial=0.0)
    annualised = np.expm1(np.log1p(window.roi) * (factor / steps))
    measures = {
        "roi": window.roi,
        "annualised_return": annualised,
        "annualised_volatility": std * np.sqrt(factor),
        "realised_volatility": compute_realised_volatility(window.ratios, factor),
        "sharpe": sharpe,
        "sortino": sortino,
        "max_drawdown": drawdown,
        "calmar": annualised / -drawdown,
    }
    short = np.full(len(std), window.days < MIN_DAYS_TO_ANNUALISE)
    spreads = ("annualised_volatility", "realised_volatility", "sharpe")
    return measures, [
        (("annualised_return", "calmar"), short, SHORT_HORIZON),
        (spreads, flat, ZERO_VARIANCE),
        (("sortino",), no_downside, NO_DOWNSIDE),
        (("calmar",), drawdown > -ZERO_TOLERANCE, NO_DOWNSIDE),
    ]


def _compute_sortino(simple: FloatArray, mar: float, factor: float) -> tuple[FloatArray, BoolArray]:
    """Return the ratio, and where there is no return below the MAR to divide by."""
    excess = simple - mar
    mean, _ = compute_mean_and_std(excess)
    below = np.where(excess < 0, excess, 0.0)
    n = np.isfinite(excess).sum(axis=1)
    risk = np.sqrt(add_up(below * below) / n)
    return mean / risk * np.sqrt(factor), is_zero_spread(risk, mean)


def _find_drawdown(closes: FloatArray) -> dict[str, IntArray]:
    """Return the columns of the deepest drawdown's peak, trough and recovery, -1 where none is.

    The peak is the last close at its height before the trough, the trough the first at its depth,
    the recovery the first close after it as high as the peak.
    """
    columns = np.arange(closes.shape[1])
    depth = np.nan_to_num(compute_drawdowns(closes), nan=0.0)
    trough = np.argmin(depth, axis=1)
    height = np.fmax.reduce(np.where(columns <= trough[:, None], closes, np.nan), axis=1)
    as_high = closes >= height[:, None]
    peak = _find_last(as_high & (columns <= trough[:, None]))
    recovered = _find_first(as_high & (columns > trough[:, None]))
    fell = depth.min(axis=1) < 0
    found = {"peak": peak, "trough": trough, "recovered": recovered}
    return {name: np.where(fell, column, -1) for name, column in found.items()}


def _find_first(marks: BoolArray) -> IntArray:
    return np.where(marks.any(axis=1), np.argmax(marks, axis=1), -1)


def _find_last(marks: BoolArray) -> IntArray:
    return np.where(marks.any(axis=1), marks.shape[1] - 1 - np.argmax(marks[:, ::-1], axis=1), -1)


def _explain(
    measures: Measures, masks: list[MeasureMask], insufficient: BoolArray
) -> npt.NDArray[np.object_]:
    """Blank what means nothing, and return why; nothing stays NaN or infinite without a reason."""
    texts = np.full(len(insufficient), "", dtype=object)
    for name, values in measures.items():
        reasons = np.where(np.isfinite(values), "", OUT_OF_RANGE).astype(object)
        for _, rows, reason in (mask for mask in reversed(masks) if name in mask[0]):
            reasons[rows] = reason
        flawed = reasons != ""
        texts[flawed] += f"; {name}: " + reasons[flawed]
        measures[name] = np.where(flawed | insufficient, np.nan, values)
    stripped = [text.removeprefix("; ") or None for text in texts]
    return np.where(insufficient, INSUFFICIENT_DATA, np.array(stripped, dtype=object))


def _describe_window(
    window: HorizonWindow, insufficient: BoolArray, closed_at: IntArray
) -> dict[str, Any]:
    """Return the counts and times of a window; a row without statistics has no drawdown times."""
    columns = {
        "as_of": window.last,
        "first_bar_at": window.first,
        **{
            f"drawdown_{name}_at": np.where(insufficient, -1, column)
            for name, column in _find_drawdown(window.closes).items()
        },
    }
    times = {
        name: build_times(window.take_times(closed_at, column)) for name, column in columns.items()
    }
    return {**times, "n_returns": window.n_returns, "n_missing": window.n_missing}


def _join_frames(frames: list[pd.DataFrame]) -> pd.DataFrame:
    empty = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in ROI_DTYPES.items()})
    known = [frame[frame["as_of"].notna()] for frame in frames]
    rows = pd.concat([frame for frame in known if len(frame)] or [empty], ignore_index=True)
    rows = rows.sort_values("market_id", kind="stable", ignore_index=True)
    columns = [*ROI_COLUMNS, *(name for name in rows if name == "dataset_version")]
    return rows[columns].astype(dict(ROI_DTYPES))
