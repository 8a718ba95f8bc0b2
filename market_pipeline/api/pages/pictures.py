"""Pictures without a script: lines and strips as SVG paths. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Polyline:
    """A line in a box of ``width`` by ``height``, in ``parts`` that no missing value lies between.

    ``end`` is its last point.
    """

    parts: tuple[str, ...]
    end: tuple[float, float]
    width: int
    height: int
    direction: str


def draw_line(
    values: Sequence[float | None], width: int = 120, height: int = 32
) -> Polyline | None:
    """Return the line through values, the oldest on the left; None for fewer than two.

    It breaks where a value is None.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    low, high = min(known), max(known)
    room, step = (high - low) or 1.0, (width - 6) / (len(values) - 1)
    places = [
        None
        if value is None
        else (round(2 + at * step, 1), round(2 + (height - 4) * (high - value) / room, 1))
        for at, value in enumerate(values)
    ]
    rise = known[-1] - known[0]
    direction = "up" if rise > 0 else "down" if rise < 0 else "flat"
    end = next(place for place in reversed(places) if place is not None)
    runs = [list(run) for is_gap, run in groupby(places, lambda place: place is None) if not is_gap]
    # A single place is a line of its own.
    doubled = [run * 2 if len(run) == 1 else run for run in runs]
    parts = tuple(" ".join(f"{x},{y}" for x, y in filter(None, run)) for run in doubled)
    return Polyline(parts, end, width, height, direction)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of equal states in a strip: from ``start`` on, ``length`` long, in its units."""

    state: str
    start: int
    length: int


def join_states(states: Sequence[str]) -> list[Piece]:
    """Return equal neighbours as one piece each."""
    pieces, start = [], 0
    for state, run in groupby(states):
        pieces.append(Piece(state, start, len(list(run))))
        start += pieces[-1].length
    return pieces
