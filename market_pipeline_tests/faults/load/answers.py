"""Answers under load: which are honest, and how long they took."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

PROBLEM = {"type", "title", "status", "detail", "instance"}
GRACE_SECONDS = 30.0
"""So long after a restarted server answers, a busy machine may still notice that it was away."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: of a kind of request, when, and what is wrong with it by itself.

    Attributes:
        status: 0: there was no answer.
        flaw: "": as was asked for, or a refusal in the promised form.
        needs_outage: It says that the database is away.
    """

    kind: str
    path: str
    began: float
    seconds: float
    status: int
    flaw: str
    needs_outage: bool = False


@dataclass
class Notes:
    """What clients noted: answers, outages of the database, and the runs that they were given."""

    answers: list[Answer] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)
    failed_runs: set[str] = field(default_factory=set)
    runs_by_key: dict[str, set[str]] = field(default_factory=dict)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Note that the database is away during a block."""
        began = time.time()
        self.outages.append((began, float("inf")))
        yield
        self.outages[-1] = (began, time.time() + GRACE_SECONDS)

    def is_excused(self, began: float, ended: float) -> bool:
        """Tell whether the database was away in a span."""
        return any(began < until and since < ended for since, until in self.outages)

    def list_faults(self) -> list[str]:
        """Return one line for each kind of answer that was not honest."""
        told = Counter(f"{one.kind}: {flaw}" for one in self.answers if (flaw := self._judge(one)))
        return [f"{count} x {line}" for line, count in told.most_common()]

    def _judge(self, one: Answer) -> str:
        is_excused = self.is_excused(one.began, one.began + one.seconds)
        alone = f"{one.status} while the database was up: {one.path}"
        return one.flaw or (alone if one.needs_outage and not is_excused else "")


def find_flaw(answer: httpx.Response, expected: frozenset[int], path: str) -> str:
    """Return what is wrong with an answer; a refusal must say when to come again, and why."""
    if answer.status_code in expected:
        return ""
    if answer.status_code not in {429, 503}:
        return f"{answer.status_code} at {path}: {answer.text[:200]}"
    if path == "/readyz":
        return "" if answer.json()["status"] == "unavailable" else answer.text[:200]
    if not answer.headers.get("retry-after", "").isdecimal():
        return f"{answer.status_code} without Retry-After at {path}"
    if answer.headers["content-type"].startswith("text/html"):
        return ""
    told = read_problem(answer)
    is_right = told.keys() >= PROBLEM and told["status"] == answer.status_code
    return "" if is_right else f"{answer.status_code} without its form: {answer.text[:200]}"


def read_problem(answer: httpx.Response) -> dict[str, Any]:
    """Return the problem that an answer describes; nothing where it has another form."""
    is_problem = answer.headers.get("content-type", "") == "application/problem+json"
    told: dict[str, Any] = json.loads(answer.content) if is_problem else {}
    return told


def blames_database(answer: httpx.Response) -> bool:
    """Tell whether an answer says that the database is away; runs also need Dagster's webserver."""
    parts = read_problem(answer).get("degraded", [])
    return answer.status_code == 503 and not str(parts).startswith("['dagster")


def build_table(idle: Notes, loaded: Notes, after: Notes) -> Iterator[str]:
    """Yield the lines of a table: milliseconds by kind, idle, under load and afterwards."""
    yield "kind         idle p50    p99  load p50    p99     max  after p99   answers under load"
    for kind in dict.fromkeys(one.kind for one in loaded.answers):
        told = [_list_ms(notes.answers, kind) for notes in (idle, loaded, after)]
        statuses = Counter(one.status for one in loaded.answers if one.kind == kind)
        counts = ", ".join(f"{status or 'none'}: {n:,}" for status, n in sorted(statuses.items()))
        yield (
            f"{kind:<12}{_rank(told[0], 50):>9}{_rank(told[0], 99):>7}{_rank(told[1], 50):>10}"
            f"{_rank(told[1], 99):>7}{_rank(told[1], 100):>8}{_rank(told[2], 99):>11}   {counts}"
        )


def _list_ms(answers: Iterable[Answer], kind: str) -> list[float]:
    return sorted(one.seconds * 1e3 for one in answers if one.kind == kind)


def _rank(ordered: Sequence[float], percent: int) -> str:
    if not ordered:
        return "-"
    return f"{ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]:,.0f}"
