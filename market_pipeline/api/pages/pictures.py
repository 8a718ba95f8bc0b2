"""Pictures that need no script: lines and strips as SVG paths. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """A line in a box of ``width`` by ``height``; ``end`` is its last point."""

    points: str
    end: tuple[float, float]
    width: int
    height: int
    direction: str


def draw_line(values: Sequence[float], width: int = 120, height: int = 32) -> Line | None:
    """Return the line through values, the oldest on the left; None for fewer than two."""
    if len(values) < 2:
        return None
    low, high = min(values), max(values)
    room, step = (high - low) or 1.0, (width - 6) / (len(values) - 1)
    places = [
        (round(2 + at * step, 1), round(2 + (height - 4) * (high - value) / room, 1))
        for at, value in enumerate(values)
    ]
    rise = values[-1] - values[0]
    direction = "up" if rise > 0 else "down" if rise < 0 else "flat"
    return Line(" ".join(f"{x},{y}" for x, y in places), places[-1], width, height, direction)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of equal states in a strip: from ``start`` on, ``length`` long, in its units."""

    state: str
    start: int
    length: int


def join_states(states: Sequence[str]) -> list[Piece]:
    """Return equal neighbours as one piece each."""
    pieces: list[Piece] = []
    for at, state in enumerate(states):
        if pieces and pieces[-1].state == state:
            last = pieces.pop()
            pieces.append(Piece(state, last.start, last.length + 1))
        else:
            pieces.append(Piece(state, at, 1))
    return pieces
