"""The tools for agents, driven by the client of the official SDK: in process, by stdio, by HTTP."""

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from market_pipeline.api import agents
from market_pipeline.api.agents import MOST_ROWS, build_server
from market_pipeline.cache.memory import MemoryCache
from market_pipeline.readers import read_aggregates
from market_pipeline_tests.ingestion.test_next_run import NOON, Pipeline
from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.system.processes import run_in_background, wait_for
from market_pipeline_tests.system.project import SCRIPTS

COMMAND = str(SCRIPTS / "market-pipeline")
TOOLS = {"markets", "latest", "bars", "statistics", "why", "coverage", "plan"}
SPAN = {"symbol": "BTC-USD", "start": "2024-03-06", "end": "2024-03-15"}
CALLS: Mapping[str, dict[str, Any]] = {
    "markets": {},
    "latest": {"symbols": ["BTC-USD"]},
    "bars": SPAN,
    "statistics": {"symbol": "BTC-USD"},
    "why": {"symbol": "BTC-USD", "statistic": "sharpe"},
    "coverage": {},
    "plan": {"symbols": ["BTC-USD"]},
}
FIELDS = {
    "is_sound", "reasons", "dataset_version", "newest_at", "age_seconds", "completeness", "data",
}  # fmt: skip


def call(server: Any, **calls: Mapping[str, object]) -> dict[str, Any]:
    """Call tools by name on one connection, and return their results."""

    async def drive() -> dict[str, Any]:
        async with Client(server) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            return {
                name: await client.call_tool(name, dict(given)) for name, given in calls.items()
            }

    return asyncio.run(drive())


def ask(engine: Engine, tool: str, **given: object) -> dict[str, Any]:
    """Return one tool's answer."""
    result = call(build_server(engine, MemoryCache(60)), **{tool: given})[tool]
    assert not result.is_error, result.content
    return dict(result.structured_content)


def test_every_answer_says_what_it_is_worth(stored: Engine) -> None:
    """Version, age, completeness and reasons, of every tool."""
    results = call(build_server(stored, MemoryCache(60)), **CALLS)
    for name, result in results.items():
        told = result.structured_content
        assert set(told) == FIELDS, name
        assert told["dataset_version"] > 0, name
        assert told["data"], name
        assert told["is_sound"] == (not told["reasons"]), name
        assert told["completeness"]["expected"] >= told["completeness"]["present"], name
        assert told["age_seconds"] is None or told["age_seconds"] > 0, name


def test_stale_and_missing_data_is_not_sound(engine: Engine) -> None:
    """The reason is there to be told to a user; a whole span has none."""
    Pipeline(engine).run(NOON, "BTC-USD:skipped_page@2024-03-05..2024-03-06")
    whole = ask(engine, "bars", **SPAN)
    assert (whole["is_sound"], whole["reasons"]) == (True, [])
    assert whole["completeness"] == {"expected": 9, "present": 9, "missing": {}}
    broken = ask(engine, "bars", **{**SPAN, "start": "2024-03-04"})
    assert broken["is_sound"] is False
    assert broken["reasons"] == ["missing bars, provider_empty: 1"]
    stale = ask(engine, "latest", symbols=["BTC-USD"])
    assert any("not_asked_yet" in reason for reason in stale["reasons"])
    assert "BTC-USD: no live price" in stale["reasons"]
    holes = ask(engine, "coverage", symbols=["BTC-USD"])["reasons"]
    assert any("2024-03-05 00:00 to 2024-03-06 00:00: provider_empty" in reason for reason in holes)


def test_a_null_statistic_and_an_outdated_one_are_told(stored: Engine) -> None:
    """Each with its horizon."""
    assert "30d: insufficient_data" in ask(stored, "statistics", symbol="BTC-USD")["reasons"]
    with stored.begin() as connection:
        connection.execute(
            text("""UPDATE market_data.market_aggregate SET dataset_version = 99
                WHERE interval = '1d' AND open_time = '2024-03-12'""")
        )
        connection.execute(
            text("""INSERT INTO market_data.dataset_version (version, interval, market_id,
                first_open_time, last_open_time, known_at, run_id)
                SELECT 99, '1d', market_id, '2024-03-12', '2024-03-12', now(), run_id
                FROM market_data.market_aggregate WHERE interval = '1d' LIMIT 1""")
        )
    told = ask(stored, "statistics", symbol="BTC-USD", horizon="7d")
    assert any("outdated" in reason for reason in told["reasons"])


def test_bars_are_the_readers_and_a_cut_is_told(stored: Engine) -> None:
    """The newest are given."""
    told = ask(stored, "bars", **SPAN)
    frame = read_aggregates("BTC-USD", "1d", SPAN["start"], SPAN["end"], engine=stored)
    assert [row["close"] for row in told["data"]] == list(frame["close"])
    Pipeline(stored).run(NOON, days=40)
    many = ask(
        stored, "bars", symbol="BTC-USD", start="2024-02-10", end="2024-03-15", interval="1h"
    )
    assert len(many["data"]) == MOST_ROWS
    assert many["reasons"] == ["the first 316 bars are left out: ask for a shorter span"]


def test_a_refusal_reaches_the_agent_and_a_fault_does_not(stored: Engine) -> None:
    """What to do is said; a stack trace or a statement never is."""
    server = build_server(stored, MemoryCache(60))
    results = call(
        server, bars={**SPAN, "symbol": "NO-USD"}, why={**CALLS["why"], "statistic": "luck"}
    )
    assert all(result.is_error for result in results.values())
    assert "there is BTC-USD, ETH-USD" in results["bars"].content[0].text
    assert "expected one of roi" in results["why"].content[0].text
    with stored.begin() as connection:
        connection.execute(text("ALTER TABLE market_data.market RENAME TO gone"))
    broken = call(server, markets={})["markets"]
    assert broken.is_error
    assert "SELECT" not in broken.content[0].text


def test_a_tool_cannot_write(stored: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database refuses it, whatever the code says."""
    refused: list[str] = []

    def write(connection: Connection) -> None:
        try:
            connection.execute(text("DELETE FROM market_data.market_snapshot"))
        except DBAPIError as error:
            refused.append(str(error.orig))
            raise

    monkeypatch.setattr(agents, "read_market_list", write)
    assert call(build_server(stored, MemoryCache(60)), markets={})["markets"].is_error
    assert "read-only transaction" in refused[0]


def test_a_client_starts_the_command(
    stored: Engine, project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """Over standard input and output, nothing but the protocol on the latter."""
    del stored
    parameters = StdioServerParameters(
        command=COMMAND, args=["mcp"], env=dict(project_environment), cwd=tmp_path
    )
    told = call(parameters, latest=CALLS["latest"])["latest"].structured_content
    assert told["data"][0]["snapshot"]["price"] == 60_000


def test_over_http_the_token_is_needed(
    stored: Engine, project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """The API's own guard stands before it."""
    del stored
    token, port = "t" * 32, choose_port()
    address = f"http://127.0.0.1:{port}/mcp"
    environment = {**project_environment, "API_TOKEN": token}
    with run_in_background(
        [COMMAND, "mcp", "--http", "--port", str(port)], environment, tmp_path
    ) as server:
        wait_for(lambda: answers(address), 300.0, "the server", server)
        assert httpx.post(address, json={}, timeout=60, trust_env=False).status_code == 401
        evil = {"Authorization": f"Bearer {token}", "Host": "evil.example"}
        assert (
            httpx.post(address, json={}, headers=evil, timeout=60, trust_env=False).status_code
            == 421
        )
        told = asyncio.run(ask_over_http(address, token))
    assert {row["symbol"] for row in told["data"]} == {"BTC-USD", "ETH-USD"}


def answers(address: str) -> bool:
    """Tell whether somebody listens."""
    try:
        return httpx.get(address, trust_env=False).status_code == 401
    except httpx.TransportError:
        return False


async def ask_over_http(address: str, token: str) -> dict[str, Any]:
    """Return what the tool ``markets`` answers."""
    import httpx2

    bearer = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=bearer, trust_env=False) as http,
        Client(streamable_http_client(address, http_client=http)) as client,
    ):
        result = await client.call_tool("markets", {})
    return dict(result.structured_content or {})


def test_the_extra_is_loaded_only_when_it_is_used(
    project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """Other commands do without; this one says what to install."""
    blocked = "import sys; sys.modules['mcp'] = None; from market_pipeline.cli.main import main; "
    for arguments, code in ((["providers"], 0), (["mcp"], 1)):
        ran = subprocess.run(
            [sys.executable, "-c", f"{blocked} main({arguments})"],
            env=dict(project_environment), cwd=tmp_path,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == code, ran.stderr
    assert "pip install 'market-pipeline[mcp]'" in ran.stderr
