"""How ways are compared: in rounds, each from a prepared state, outside the clock."""

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.figures import Figure

Seconds = Mapping[str, Sequence[float]]
Report = Callable[[str], None]


def do_nothing() -> None:
    """Leave the state as it is."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do the work.

    Attributes:
        name: Unique among the compared.
        run: What is timed.
        prepare: Brings about the state it starts from; not timed.
        conclude: Looks at what was done; not timed.
        units: How many rows or calls one run stands for; ratios are by unit.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] = do_nothing
    conclude: Callable[[], object] = do_nothing
    units: int = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the rounds measured: seconds for each unit, way by way, round by round."""

    seconds: Seconds
    units: Mapping[str, int]

    @property
    def rounds(self) -> int:
        """How often each way ran."""
        return min(len(measured) for measured in self.seconds.values())

    def divide(self, above: str, below: str) -> list[float]:
        """Return one way's time for each unit over another's, round by round."""
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return [one / other for one, other in pairs]

    def build_ratio(self, name: str, above: str, below: str, note: str = "") -> Figure:
        """Return the median ratio of two ways as a figure."""
        ratios = self.divide(above, below)
        detail: dict[str, Any] = {
            "ratios": [round(ratio, 4) for ratio in ratios],
            "seconds": {way: self.list_seconds(way) for way in (above, below)},
            "units": {way: self.units[way] for way in (above, below)},
        }
        return Figure(
            name, round(median(ratios), 4), "ratio", len(ratios), detail | _describe(note)
        )

    def find_fastest(self, ways: Iterable[str]) -> str:
        """Return the way with the least median time for each unit."""
        return min(ways, key=lambda way: median(self.seconds[way]))

    def list_seconds(self, way: str) -> list[float]:
        """Return what each run of a way took, in seconds."""
        return [round(one * self.units[way], 4) for one in self.seconds[way]]


def _describe(note: str) -> dict[str, str]:
    return {"note": note} if note else {}


def compare(ways: Iterable[Way], rounds: int, report: Report) -> Comparison:
    """Run every way once in each round."""
    chosen = list(ways)
    seconds: dict[str, list[float]] = {way.name: [] for way in chosen}
    for number in range(1, rounds + 1):
        for way in chosen:
            taken = time_way(way)
            seconds[way.name].append(taken / way.units)
            report(f"round {number} of {rounds}: {way.name} {taken:.4g} s")
    return Comparison(seconds, {way.name: way.units for way in chosen})


def time_way(way: Way) -> float:
    """Return how many seconds one run takes from its prepared state."""
    way.prepare()
    gc.collect()
    began = time.perf_counter()
    way.run()
    taken = time.perf_counter() - began
    way.conclude()
    return taken
