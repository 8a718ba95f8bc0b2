"""Clients of the API: those who read what dashboards and programs read, and those who post."""

import asyncio
import random
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from market_pipeline_tests.faults.load.answers import Answer, Notes, blames_database, find_flaw

CHANCE = random.Random(7)  # noqa: S311 - what is asked next
SYMBOLS = ("BTC-USD", "ETH-USD", "SOL-USD", "ADA-USD", "SPX", "AAPL")
# A call of the database has 4 s, a place in the pool 30 s, and a launch 60 s besides its wait.
READ_DEADLINE_SECONDS, POST_DEADLINE_SECONDS = 60.0, 150.0
_ARROW = "application/vnd.apache.arrow.stream"
_MARKET = "/api/markets/{symbol}"
READS: Mapping[str, tuple[str, ...]] = {
    "latest": (f"{_MARKET}/latest", f"{_MARKET}/latest", "/api/latest", "/api/markets"),
    "bars": (
        f"{_MARKET}/aggregates",
        f"{_MARKET}/aggregates?interval=1h&limit=500",
        f"{_MARKET}/aggregates?interval=1d&provisional=true",
    ),
    "arrow": (f"{_MARKET}/aggregates?interval=1h", f"{_MARKET}/roi"),
    "statistics": (f"{_MARKET}/roi", f"{_MARKET}/comparisons", f"{_MARKET}/why?horizon=7d"),
    "ledgers": (
        "/api/coverage?symbols={symbol}", "/api/holes", "/api/alerts", "/api/quarantine",
        "/api/runs?limit=50", "/api/runs/{run}", "/api/plan?symbols={symbol}",
    ),
    "pages": (
        "/", "/", "/markets/{symbol}", "/markets/{symbol}", "/coverage", "/runs", "/runs/{run}",
        "/alerts", "/compare",
    ),
    "watchers": ("/metrics", "/api/metrics", "/readyz", "/healthz"),
    "wrong": ("/api/markets/NONE-USD/latest", "/api/latest?unknown=1", "/nowhere"),
}  # fmt: skip
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # One for all: each would read all roots.
_NEVER_503 = ("/healthz", "/metrics", "/api/metrics")
_GOOD, _WRONG = frozenset({200, 304}), frozenset({400, 404})
_ACCEPTED, _PENDING = frozenset({200, 202}), 202
_TYPES = {"arrow": _ARROW, "pages": "text/html"}


@dataclass
class Client:
    """One connection that asks, waits for the answer, thinks, and asks again."""

    address: str
    notes: Notes
    run_id: str
    seconds: float
    pause_seconds: float
    tags: dict[str, str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def open(self) -> httpx.AsyncClient:
        """Return its connection, which it gives up before the server does (after 30 s)."""
        limits = httpx.Limits(max_connections=1, keepalive_expiry=20)
        return httpx.AsyncClient(
            base_url=self.address,
            timeout=self.seconds,
            limits=limits,
            trust_env=False,
            verify=_NO_TLS,
        )

    async def ask(
        self, http: httpx.AsyncClient, kind: str, method: str, path: str,
        expected: frozenset[int], **request: Any,
    ) -> httpx.Response | None:  # fmt: skip
        """Ask, and note the answer; None: there was none."""
        began, start, answer, flaw = time.time(), time.perf_counter(), None, ""
        try:
            async with asyncio.timeout(self.seconds):
                answer = await http.request(method, path, **request)
        except (httpx.TransportError, TimeoutError) as error:
            flaw = f"no answer ({type(error).__name__}) at {path}"
        seconds, status, blames = time.perf_counter() - start, 0, False
        if answer is not None:
            status, blames = answer.status_code, blames_database(answer)
            flaw = self._find_flaw(answer, kind, path, expected)
        self.notes.answers.append(Answer(kind, path, began, seconds, status, flaw, blames))
        return answer

    def _find_flaw(
        self, answer: httpx.Response, kind: str, path: str, expected: frozenset[int]
    ) -> str:
        if answer.status_code == 502 and self._note_failed(answer):
            return ""  # A run failed; its receipt tells when.
        if answer.status_code == 503 and path in _NEVER_503:
            return f"503 at {path}"
        told = answer.headers.get("content-type", "")
        if answer.status_code == 200 and not told.startswith(_TYPES.get(kind, "")):
            return f"{told} at {path}"
        return find_flaw(answer, expected, path) or self._find_step_back(path, answer)

    def _note_failed(self, answer: httpx.Response) -> bool:
        told = answer.json()
        self.notes.failed_runs.add(told.get("runId", ""))
        return told.get("status") == "failed" and bool(told.get("runId"))

    def _find_step_back(self, path: str, answer: httpx.Response) -> str:
        """Return what is wrong if older data came than this client has seen before."""
        version = int(answer.headers.get("x-dataset-version", 0))
        before = self.versions.get(path, 0)
        self.versions[path] = max(version, before)
        return f"version {version} after {before} at {path}" if 0 < version < before else ""


async def read(client: Client, until: float) -> None:
    """Read one thing after the other until a moment."""
    await asyncio.sleep(CHANCE.uniform(0, client.pause_seconds))
    async with client.open() as http:
        while time.time() < until:
            await _read_once(client, http)
            await asyncio.sleep(CHANCE.uniform(0, 2 * client.pause_seconds))


async def _read_once(client: Client, http: httpx.AsyncClient) -> None:
    kind = CHANCE.choice(list(READS))
    path = CHANCE.choice(READS[kind]).format(symbol=CHANCE.choice(SYMBOLS), run=client.run_id)
    wanted = _TYPES.get(kind, "application/json")
    headers = {"accept": wanted if "metrics" not in path else "*/*"}
    known = client.tags.get(kind + path)
    if known and CHANCE.random() < 0.5:
        headers["if-none-match"] = known
    expected = _WRONG if kind == "wrong" else _GOOD
    answer = await client.ask(http, kind, "GET", path, expected, headers=headers)
    if answer is not None and answer.status_code == 200 and "etag" in answer.headers:
        client.tags[kind + path] = answer.headers["etag"]


async def post(client: Client, number: int, until: float) -> None:
    """Ask for runs until a moment, and wait for each."""
    await asyncio.sleep(CHANCE.uniform(0, client.pause_seconds))
    async with client.open() as http:
        for turn in range(10_000):
            if time.time() >= until:
                return
            await _post_once(client, http, f"{number}-{turn}", until)
            await asyncio.sleep(CHANCE.uniform(0, 2 * client.pause_seconds))


async def _post_once(client: Client, http: httpx.AsyncClient, name: str, until: float) -> None:
    body: dict[str, Any] = {"symbols": [CHANCE.choice(SYMBOLS)]}
    way = CHANCE.choice(("plain", "own key", "shared key", "wrong"))
    if way == "wrong":
        await _post_wrongly(client, http)
        return
    key = {"own key": f"own-{name}", "shared key": f"shared-{int(time.time()) // 60}"}.get(way)
    if way == "shared key":
        body = {"symbols": list(SYMBOLS[:2])}
    run_id = await post_run(client, http, body, key)
    if run_id and key:
        # The same once more is the same run; something else under the key is refused.
        await post_run(client, http, body, key)
        other = {"json": {"symbols": ["SPX", "SOL-USD"]}, "headers": {"idempotency-key": key}}
        await client.ask(http, "posts wrong", "POST", "/api/ingest", frozenset({422}), **other)
    while run_id and time.time() < until:
        path = f"/api/ingest/{run_id}"
        answer = await client.ask(http, "run state", "GET", path, _ACCEPTED)
        if answer is not None and answer.status_code == 200:
            return
        await asyncio.sleep(2)


async def _post_wrongly(client: Client, http: httpx.AsyncClient) -> None:
    json = {"content-type": "application/json"}
    status, request = CHANCE.choice([
        (400, {"json": {"symbols": ["BTC-USD"], "unknown": 1}}),
        (400, {"content": b"{", "headers": json}),
        (415, {"content": b"symbols", "headers": {"content-type": "text/plain"}}),
        (413, {"content": b" " * 70_000, "headers": json}),
    ])  # fmt: skip
    await client.ask(http, "posts wrong", "POST", "/api/ingest", frozenset({status}), **request)


async def post_run(
    client: Client, http: httpx.AsyncClient, body: Mapping[str, Any], key: str | None,
    kind: str = "posts", **headers: str,
) -> str | None:  # fmt: skip
    """Ask for a run, note it, and return its id; None: it was refused."""
    headers |= {"idempotency-key": key} if key else {}
    answer = await client.ask(
        http, kind, "POST", "/api/ingest", _ACCEPTED, json=body, headers=headers
    )
    if answer is None or answer.status_code not in {*_ACCEPTED, 502}:
        return None
    run_id: str = answer.json()["runId"]
    client.notes.runs.add(run_id)
    if key:
        client.notes.runs_by_key.setdefault(key, set()).add(run_id)
    return run_id


async def crowd(client: Client, requests: int, begins: float) -> None:
    """Post many different requests without waiting for their runs: more than may wait."""
    await asyncio.sleep(max(begins - time.time(), 0))
    async with client.open() as http:
        for number in range(requests):
            body = {"symbols": ["BTC-USD"], "lookback_days": 30 + number}
            await post_run(client, http, body, None, "crowd", prefer="respond-async")
