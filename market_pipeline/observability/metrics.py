"""Metrics: every one declared once, counted in this process or as totals that outlive it.

A long-lived process counts in memory::

    from market_pipeline.observability.metrics import counter

    JUMPS = counter("jumps_total", "Jumps seen", labels=("provider",))
    JUMPS.inc(provider="mock")

What a run counts would end with its process. ``JUMPS.sample(3, provider="mock")`` is a count to be
added to the stored totals in a transaction (``storage.alerts.metrics``). Both come out of
``/metrics``. Label names are fixed when declared; of label values there are no more than
``MAX_SERIES`` a metric: what goes beyond is counted as ``other``, so that nobody can fill the
memory with names.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import ClassVar, Literal

MetricKind = Literal["counter", "gauge", "histogram"]
Labels = tuple[tuple[str, str], ...]
MAX_SERIES = 1_000
OTHER = "other"
SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0,
)  # fmt: skip
_MAX_VALUE = 100


@dataclass(frozen=True, slots=True)
class Sample:
    """What one series of a metric has come to, or is to be raised by.

    Attributes:
        name: The metric's. labels: Names and values, in the declared order.
        value: The number; of a histogram the sum of what was observed.
        count: Observations of a histogram.
        buckets: Of them, those up to each bound; cumulative, without the last, endless one.
    """

    name: str
    labels: Labels
    value: float
    count: int = 0
    buckets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as it is documented.

    Attributes:
        name: In Prometheus' style. kind: counter, gauge or histogram.
        meaning: In one sentence. labels: Names. unit: Of the value; "" for a number of things.
        bounds: Of a histogram's buckets, in its unit.
    """

    name: str
    kind: MetricKind
    meaning: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    bounds: tuple[float, ...] = ()
    DECLARED: ClassVar[dict[str, "Metric"]] = {}

    def name_series(self, labels: Mapping[str, str]) -> Labels:
        """Return labels in the declared order.

        Raises:
            ValueError: They are not the declared ones.
        """
        if tuple(labels) != self.labels and labels.keys() != set(self.labels):
            raise ValueError(f"{self.name}: expected the labels {self.labels}, got {tuple(labels)}")
        # A list within: a generator takes twice as long, and every request comes by here.
        return tuple([(name, str(labels[name])[:_MAX_VALUE]) for name in self.labels])

    def sample(self, value: float, **labels: str) -> Sample:
        """Return a number of a series: an amount to add, or a gauge's state."""
        return Sample(self.name, self.name_series(labels), value)

    def observe_all(self, values: Iterable[float], **labels: str) -> Sample:
        """Return what some observations come to."""
        seen = list(values)
        buckets = tuple(sum(value <= bound for value in seen) for bound in self.bounds)
        return Sample(self.name, self.name_series(labels), sum(seen), len(seen), buckets)

    def inc(self, amount: float = 1.0, **labels: str) -> None:
        """Count in this process."""
        _STORE.add(self, self.name_series(labels), amount)

    def set(self, value: float, **labels: str) -> None:
        """Set a gauge of this process."""
        _STORE.put(self, self.name_series(labels), value)

    def observe(self, value: float, **labels: str) -> None:
        """Observe in this process."""
        _STORE.observe(self, self.name_series(labels), value)


def counter(name: str, meaning: str, labels: Sequence[str] = (), unit: str = "") -> Metric:
    """Declare what only grows; its name ends in ``_total``.

    Raises:
        ValueError: The name ends otherwise, or is declared already.
    """
    if not name.endswith("_total"):
        raise ValueError(f"{name}: a counter's name ends in _total")
    return _declare(Metric(name, "counter", meaning, tuple(labels), unit))


def gauge(name: str, meaning: str, labels: Sequence[str] = (), unit: str = "") -> Metric:
    """Declare what rises and falls.

    Raises:
        ValueError: The name is declared already.
    """
    return _declare(Metric(name, "gauge", meaning, tuple(labels), unit))


def histogram(
    name: str, meaning: str, labels: Sequence[str] = (), bounds: Sequence[float] = SECONDS
) -> Metric:
    """Declare a distribution of seconds; ``bounds`` are the upper ends of its buckets.

    Raises:
        ValueError: The name is declared already.
    """
    return _declare(Metric(name, "histogram", meaning, tuple(labels), "seconds", tuple(bounds)))


def collect() -> list[Sample]:
    """Return what this process has counted."""
    return _STORE.read()


def bound_labels(labels: Labels, known: int) -> Labels:
    """Return the labels under which a new series is kept when so many are known."""
    return labels if known < MAX_SERIES else tuple((name, OTHER) for name, _ in labels)


def _declare(metric: Metric) -> Metric:
    if Metric.DECLARED.setdefault(metric.name, metric) != metric:
        raise ValueError(f"{metric.name} is declared already, with another meaning")
    return metric


@dataclass(slots=True)
class _Series:
    """What is counted; each bucket's own observations, with the last, endless bucket."""

    buckets: list[int]
    value: float = 0.0


class _Store:
    """The series of this process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._series: dict[str, dict[Labels, _Series]] = {}

    def add(self, metric: Metric, labels: Labels, amount: float) -> None:
        with self._lock:
            self._find_series(metric, labels).value += amount

    def put(self, metric: Metric, labels: Labels, value: float) -> None:
        with self._lock:
            self._find_series(metric, labels).value = value

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        with self._lock:
            series = self._find_series(metric, labels)
            series.value += value
            series.buckets[bisect_left(metric.bounds, value)] += 1

    def read(self) -> list[Sample]:
        with self._lock:
            return [
                Sample(name, labels, series.value, sum(counts), tuple(accumulate(counts[:-1])))
                for name, found in self._series.items()
                for labels, series in found.items()
                for counts in [series.buckets]
            ]

    def _find_series(self, metric: Metric, labels: Labels) -> _Series:
        found = self._series.setdefault(metric.name, {})
        known = found.get(labels)
        if known is not None:
            return known
        key = bound_labels(labels, len(found))
        return found.setdefault(key, _Series([0] * (len(metric.bounds) + 1)))


_STORE = _Store()
