"""Messages: bounded, and in them foreign text mentions nobody, links nowhere, styles nothing."""

import json
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.alerting.kinds import KINDS
from market_pipeline.alerting.messages import (
    MAX_BODY_BYTES,
    AlertView,
    build_body,
    encode,
    make_inert,
)

NOW = datetime(2024, 3, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "<!channel> wake up", "@everyone", "<@U123>", "<script>alert(1)</script>",
        "**bold** _it_ ~x~",
        "[click](https://evil.example)", "https://evil.example/x", "`code` ||spoiler||", "#general",
        "line\nforged: true\r\n\x1b[2J", "\u202eright to left", "&lt;!here&gt;",
    ],
)  # fmt: skip
def test_foreign_text_is_inert(text: str) -> None:
    """No sign is left that a chat or a terminal acts upon."""
    inert = make_inert(text)
    assert not set(inert) & set("@<>`*~|[]#&\n\r\x1b\u202e")
    assert "://" not in inert
    assert inert.isprintable()


def test_names_stay_readable() -> None:
    """Plain text is as it was."""
    text = "ingest failed: yahoo: SPX 1d: HTTP 503 (market_aggregates), 3 of 5"
    assert make_inert(text) == text


@given(st.text(), st.dictionaries(st.text(), st.text(), max_size=50), st.text())
def test_a_message_is_small_json_whatever_it_is_about(
    message: str, members: dict[str, str], word: str
) -> None:
    """Under 20 kB, valid UTF-8, the same bytes each time."""
    alert = AlertView(
        uuid4(), "markets_short", "warning", message * 100,
        {name: why * 100 for name, why in members.items()}, {word: word * 1_000}, None, NOW, 1,
    )  # fmt: skip
    body = build_body("raised", alert, NOW)
    assert len(encode(body)) < MAX_BODY_BYTES
    assert json.loads(encode(body)) == body


def test_every_kind_leads_to_an_entry_of_the_runbook(request: pytest.FixtureRequest) -> None:
    """An anchor that leads nowhere helps nobody at night."""
    headings = [
        line.removeprefix("## ").replace("`", "")
        for line in (request.config.rootpath / "RUNBOOK.md").read_text().splitlines()
        if line.startswith("## ")
    ]
    assert {kind.runbook for kind in KINDS.values()} <= set(headings)
    assert KINDS["markets_short"].anchor == "RUNBOOK.md#some-markets-came-short-outcome-partial"


def test_the_docs_list_every_kind_as_it_is(request: pytest.FixtureRequest) -> None:
    """Name, severity, meaning and entry; none too many."""
    page = (request.config.rootpath / "docs" / "alerts.md").read_text()
    told = [line for line in page.splitlines() if line.startswith("| `") and "RUNBOOK" in line]
    assert told == [
        f"| `{kind.name}` | {kind.severity} | {kind.meaning} | [{kind.runbook}](../{kind.anchor}) |"
        for kind in KINDS.values()
    ]
