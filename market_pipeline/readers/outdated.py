"""Flags on stored rows: does their window hold a bar that is newer than the row?"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from sqlalchemy import Connection

from market_pipeline.domain.arrays import BoolArray
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.outdated import RowWindows, find_outdated, locate_windows
from market_pipeline.domain.records import Market
from market_pipeline.storage.bars.final_bars import CLOSES, FinalSpan, read_spans


def flag_outdated(
    connection: Connection,
    rows: pd.DataFrame,
    keys: Sequence[str],
    markets: Mapping[int, Market],
    interval: Interval,
) -> BoolArray:
    """Tell for each row whether a final bar of its window was corrected or loaded after it.

    Args:
        connection: Of the rows' own snapshot.
        rows: As stored.
        keys: The columns that hold market ids.
        markets: By market_id.
        interval: Of the bars used.
    """
    flags = np.zeros(len(rows), dtype=bool)
    calendars = pd.Series(
        [
            " ".join(sorted({markets[key].calendar for key in pair}))
            for pair in rows[list(keys)].to_numpy()
        ],
        dtype=object,
    )
    versions = rows["dataset_version"].fillna(0).to_numpy(dtype="int64")
    for names, at in calendars.groupby(calendars).indices.items():
        chosen = rows.iloc[at]
        windows = locate_windows(str(names).split(" "), interval, chosen)
        flags[at] = _flag_group(connection, chosen, keys, interval, windows, versions[at])
    return flags


def _flag_group(
    connection: Connection,
    rows: pd.DataFrame,
    keys: Sequence[str],
    interval: Interval,
    windows: RowWindows,
    versions: npt.NDArray[np.int64],
) -> BoolArray:
    """Tell it for rows whose markets have the same calendars."""
    flags = np.zeros(len(rows), dtype=bool)
    first, last = (moment.to_pydatetime() for moment in windows.span)
    spans = [FinalSpan(int(key), first, last) for key in np.unique(rows[list(keys)])]
    newer = read_spans(connection, interval, spans, CLOSES, newer_than=int(versions.min()))
    for market_id, bars in newer.groupby("market_id"):
        for key in keys:
            at = np.flatnonzero(rows[key] == market_id)
            part = RowWindows(windows.grid, windows.first[at], windows.last[at])
            flags[at] |= find_outdated(part, versions[at], bars)
    return flags
