"""What is measured: a figure, its target, and the file the figures are written to."""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    Attributes:
        name: As in ``TARGETS``, or of a comparison without a target.
        value: The median over the runs, in ``unit``.
        unit: ``ratio``, ``s``, ``ms``, ``MB`` or ``rows``.
        runs: How many rounds it is the median of.
        detail: The single measurements, and what was compared with what.
    """

    name: str
    value: float
    unit: str
    runs: int
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that a figure has to keep: ``<``, ``<=``, ``>=`` or ``==``."""

    sign: str
    bound: float

    def is_met(self, value: float) -> bool:
        """Tell whether a value keeps the bound."""
        return _COMPARE[self.sign](value, self.bound)

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"


_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
}

TARGETS: Mapping[str, Target] = {
    "first_load_vs_copy": Target("<=", 1.15),
    "identical_reload_vs_copy": Target("<=", 0.75),
    "reload_wal_mb": Target("<", 1),
    "reload_dead_tuples": Target("==", 0),
    "delta_vs_copy": Target("<=", 1.0),
    "dlt_merge_vs_ours": Target(">=", 5),
    "per_row_vs_ours": Target(">=", 40),
    "small_batch_vs_best": Target("<=", 1.3),
    "client_rss_mb": Target("<=", 64),
    "ingest_vs_empty_job": Target("<=", 1.3),
    "empyrical_vs_ours": Target(">=", 20),
    "pairs_1000_seconds_vs_numpy": Target("<=", 5),
    "latest_10m_scans": Target("==", 0),
    "import_seconds_vs_dagster": Target("<=", 1.3),
    "plan_seconds_1e6": Target("<=", 1),
    "plan_seconds_1e7": Target("<=", 1),
    "plan_seconds_1e8": Target("<=", 1),
    "noop_ingest_vs_empty_job": Target("<=", 1.3),
    "backfill_vs_bare_write": Target(">=", 0.7),
    "as_of_vs_plain_read": Target("<=", 3),
    "tick_1000_vs_empty_job": Target("<=", 3),
    "merge_lock_ms_per_market": Target("<=", 1),
    "statements_per_market": Target("<=", 0.2),
    "two_processes_vs_one": Target(">=", 1.4),
    "fill_1000_vs_bare_write": Target(">=", 0.3),
    "fetch_vs_bare_client": Target("<=", 1.5),
    "latest_vs_bare_route": Target(">=", 0.6),
    "latest_p99_vs_bare_route": Target("<=", 3),
    "read_1m_vs_adbc": Target(">=", 0.9),
    "metrics_1000_ms": Target("<=", 100),
    "reader_p99_under_load_vs_idle": Target("<=", 4),
    "mock_ms_per_market": Target("<=", 2),
}
"""What the product has to reach; figures that are not listed are shown for comparison."""


def write_figures(figures: Sequence[Figure], file: Path) -> None:
    """Write figures as a JSON list, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    draft.replace(file)
