"""The bar frame."""

import math

import pandas as pd

from market_pipeline.domain.records import (
    BAR_COLUMNS,
    BAR_DTYPES,
    build_bar_frame,
    build_empty_bar_frame,
)


def test_constants_and_missing_columns_fill_a_bar_frame() -> None:
    """Volume and trades are unknown unless given, and every column has its dtype."""
    opens = pd.to_datetime(["2024-01-01", "2024-01-02"], utc=True)
    frame = build_bar_frame(
        {
            "interval": "1d",
            "open_time": opens,
            "close_time": opens + pd.Timedelta(days=1),
            "open": 1,
            "high": 2,
            "low": 1,
            "close": [1, 2],
            "is_final": True,
        }
    )
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == dict(BAR_DTYPES)
    assert math.isnan(frame["volume"][0])
    assert list(frame["volume_kind"]) == ["none", "none"]
    assert list(frame["source_kind"]) == ["traded", "traded"]


def test_an_empty_bar_frame_has_the_same_columns_and_dtypes() -> None:
    """Joining nothing to something keeps the dtypes."""
    frame = build_empty_bar_frame()
    assert tuple(frame.columns) == BAR_COLUMNS
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == dict(BAR_DTYPES)
