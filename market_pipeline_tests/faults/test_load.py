"""What `make load` calls wrong: it must be able to find it."""

import json

import httpx
import pytest

from market_pipeline_tests.faults.load.answers import (
    Answer,
    Notes,
    blames_database,
    find_flaw,
)
from market_pipeline_tests.faults.load.parts import compare_thirds

GOOD, PATH = frozenset({200}), "/api/holes"
TOLD = {"type": "about:blank", "title": "Gone", "status": 503, "detail": "away", "instance": PATH}


def refuse(status: int = 503, retry: str | None = "5", **members: object) -> httpx.Response:
    """Return a refusal."""
    headers = {"content-type": "application/problem+json"}
    headers |= {} if retry is None else {"retry-after": retry}
    body = json.dumps({**TOLD, "status": status, **members})
    return httpx.Response(status, headers=headers, text=body)


def note(notes: Notes, began: float, status: int, flaw: str = "") -> list[str]:
    """Note an answer of a second, and return what is wrong then."""
    notes.answers = [Answer("ledgers", PATH, began, 1.0, status, flaw, status == 503)]
    return notes.list_faults()


def test_a_refusal_that_says_why_and_when_to_come_again_has_no_flaw() -> None:
    """429 and 503 alike."""
    assert find_flaw(refuse(), GOOD, PATH) == ""
    assert find_flaw(refuse(429), GOOD, PATH) == ""


@pytest.mark.parametrize(
    "answer",
    [refuse(retry=None), refuse(retry="soon"), refuse(status=500), refuse(status=404)],
    ids=["never again", "no number", "broken", "not asked for"],
)
def test_any_other_refusal_has_a_flaw(answer: httpx.Response) -> None:
    """It names the status."""
    assert str(answer.status_code) in find_flaw(answer, GOOD, PATH)


def test_a_refusal_in_another_form_has_a_flaw() -> None:
    """The body says the status of the answer, in the form of all problems."""
    answer = httpx.Response(503, headers={"retry-after": "5"}, json={"detail": "away"})
    assert "without its form" in find_flaw(answer, GOOD, PATH)


def test_503_is_honest_only_while_the_database_is_away() -> None:
    """And in the seconds afterwards in which it may still be noticed."""
    notes = Notes(outages=[(100.0, 130.0)])
    assert note(notes, 99.5, 503) == note(notes, 129.0, 503) == []
    assert note(notes, 98.0, 503) == [f"1 x ledgers: 503 while the database was up: {PATH}"]
    assert note(notes, 131.0, 503) != []


def test_a_flaw_has_no_excuse() -> None:
    """Not even while the database is away."""
    notes = Notes(outages=[(100.0, 130.0)])
    assert note(notes, 110.0, 0, "no answer") == ["1 x ledgers: no answer"]


def test_growth_is_seen_between_thirds_after_a_warm_up() -> None:
    """The first fifth is not counted."""
    sizes = [0] * 3 + [10] * 4 + [20] * 4 + [40] * 4
    seen = [(float(second), size) for second, size in enumerate(sizes)]
    assert compare_thirds(seen) == (10, 40, 40)


def test_a_refusal_of_dagsters_does_not_blame_the_database() -> None:
    """Its webserver may be too busy to take a run; a page or an outage of the database may not."""
    assert not blames_database(refuse(degraded=["dagster webserver"]))
    assert blames_database(refuse(degraded=["database"]))
    assert blames_database(httpx.Response(503, text="", headers={"content-type": "text/html"}))
    assert not blames_database(refuse(429))
