"""The movement of a number: the bars it was made of before and after, side by side. Pure."""

import pandas as pd


def describe_movement(before: pd.DataFrame, after: pd.DataFrame, known_before: pd.DataFrame) -> str:
    """Say in words how two sets of bars of one market differ.

    Args:
        before: The bars used before: ``open_time``, ``close``, ``run_id``, unique open_times.
        after: The bars used after.
        known_before: The bars that were there before, used or not.

    Returns:
        Such as ``3 bars restated by run 5e61..., 1 bar new, 1 bar left the horizon``.
    """
    used, now = before.set_index("open_time"), after.set_index("open_time")
    shared = now.index.intersection(used.index)
    restated = now.loc[shared][now.loc[shared, "close"] != used.loc[shared, "close"]]
    added = now.index.difference(used.index)
    is_new = ~added.isin(known_before["open_time"])
    parts = [
        f"{_count(n)} restated by run {run}"
        for run, n in restated["run_id"].fillna("unknown").value_counts(sort=False).items()
    ]
    rest = {
        "new": int(is_new.sum()),
        "came into the horizon": int((~is_new).sum()),
        "left the horizon": len(used.index.difference(now.index)),
    }
    parts += [f"{_count(n)} {what}" for what, n in rest.items() if n]
    return ", ".join(parts) or "no bar differs"


def _count(n: int) -> str:
    return f"{n:,} bar{'' if n == 1 else 's'}"
