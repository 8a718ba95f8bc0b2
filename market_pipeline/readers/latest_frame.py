"""The frame of ``read_latest``: one row for each market, columns named by interval and horizon."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import UTC_DTYPE

_WORDS = ("symbol", "provider", "quote")
_NUMBERS = (
    "price", "change_24h_ratio", "volume_24h", "market_cap", "realised_volatility", "roi",
)  # fmt: skip
_MEASURES = ("roi", "sharpe", "sortino", "max_drawdown", "annualised_volatility")
Values = Mapping[str, Any]


def build_latest_frame(rows: Sequence[tuple[Values, str]]) -> pd.DataFrame:
    """Return the frame of markets' values and where each was read.

    Args:
        rows: Values as ``Latest.value`` has them, and ``cache`` or ``database``.
    """
    horizons = sorted(
        {statistic["horizon"] for values, _ in rows for statistic in values["roi"]},
        key=lambda horizon: (len(horizon), horizon),
    )
    kinds = _list_columns(horizons)
    records = [_flatten(values, source) for values, source in rows]
    frame = pd.DataFrame(
        {
            name: pd.Series([record.get(name) for record in records], dtype="object")
            for name in kinds
        }
    )
    times = [name for name, kind in kinds.items() if kind == UTC_DTYPE]
    frame[times] = frame[times].apply(pd.to_datetime, utc=True, format="ISO8601")
    typed = frame.astype(kinds)
    versions = typed["dataset_version"].dropna()
    indexed = typed.set_index("observed_at")
    indexed.attrs["dataset_version"] = int(versions.max()) if len(versions) else None
    return indexed


def _list_columns(horizons: Sequence[str]) -> dict[str, str]:
    """Return the columns in order, with their types."""
    kinds = {"observed_at": UTC_DTYPE, **dict.fromkeys(_WORDS, "str")}
    kinds |= {**dict.fromkeys(_NUMBERS, "float64"), "bars_as_of": UTC_DTYPE, "reason": "str"}
    for interval in Interval:
        kinds |= {f"close_{interval}": "float64", f"closed_at_{interval}": UTC_DTYPE}
    for horizon in horizons:
        kinds |= {f"{measure}_{horizon}": "float64" for measure in _MEASURES}
        kinds[f"reason_{horizon}"] = "str"
    return {**kinds, "source": "str", "dataset_version": "Int64"}


def _flatten(values: Values, source: str) -> dict[str, Any]:
    record: dict[str, Any] = {**(values["snapshot"] or {}), "source": source}
    record |= {name: values[name] for name in (*_WORDS, "dataset_version")}
    for bar in values["bars"]:
        record[f"close_{bar['interval']}"] = bar["close"]
        record[f"closed_at_{bar['interval']}"] = bar["close_time"]
    for row in values["roi"]:
        record |= {f"{name}_{row['horizon']}": row[name] for name in (*_MEASURES, "reason")}
    return record
