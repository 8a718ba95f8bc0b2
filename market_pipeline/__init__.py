"""Market Pipeline: market data into PostgreSQL, by a pipeline that knows what it knows.

Rooms, from the bottom: ``domain``, ``settings``, ``observability``, ``providers``, ``storage`` and
``cache``, ``ingestion`` and ``readers``, ``orchestration`` and ``api``, and on top
``definitions`` and ``cli``. Each knows only the floors below it. The readers can be imported from
here; nothing of them is loaded before.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from market_pipeline.readers import read_aggregates as read_aggregates
    from market_pipeline.readers import read_agreement as read_agreement
    from market_pipeline.readers import read_comparisons as read_comparisons
    from market_pipeline.readers import read_latest as read_latest
    from market_pipeline.readers import read_roi_statistics as read_roi_statistics

_READERS = (
    "read_aggregates", "read_agreement", "read_comparisons", "read_latest", "read_roi_statistics",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load the readers when the first of them is asked for."""
    if name not in _READERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("market_pipeline.readers"), name)


def __dir__() -> list[str]:
    """Return the names, those not yet loaded included."""
    return sorted([*globals(), *_READERS])
