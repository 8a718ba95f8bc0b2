"""Tools for agents, over the Model Context Protocol: the readers, and a warning with each answer.

An agent believes what it is given. So each answer says of which dataset version and how old its
data is, how complete, and every reason not to trust it. The tools read and never write, and ask no
provider. Needs the extra ``market-pipeline[mcp]``; the command ``market-pipeline mcp`` alone
imports this.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, Literal

import pandas as pd
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field
from sqlalchemy import Connection, Engine
from starlette.types import ASGIApp

from market_pipeline.api.configuration import Configuration
from market_pipeline.api.description import SUMMARY, VERSION
from market_pipeline.api.routes.ingest import describe_plan
from market_pipeline.api.security import RequestGuard
from market_pipeline.cache.protocol import Cache
from market_pipeline.domain.errors import PipelineError, UnknownMarketError
from market_pipeline.ingestion.estimate import estimate_run
from market_pipeline.ingestion.request import build_request
from market_pipeline.readers.aggregates import read_aggregates
from market_pipeline.readers.encoding import encode_json, list_records
from market_pipeline.readers.latest import fetch_latest
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.resolve import find_market_ids, read_all_markets
from market_pipeline.readers.statistics import read_roi_statistics
from market_pipeline.readers.why import explain_statistic
from market_pipeline.storage.bars.history import read_newest_version
from market_pipeline.storage.coverage.holes import list_holes
from market_pipeline.storage.coverage.listings import list_coverage, list_never_asked
from market_pipeline.storage.markets.listings import read_market_list

MOST_ROWS = 500
MOST_REASONS = 50
_RECENT = timedelta(days=30)
_INSTRUCTIONS = f"""{SUMMARY} Markets are named BTC-USD (the primary market) or mock:BTC-USD.
Before you use an answer, look at is_sound. Where it is false, reasons says what is missing, stale,
outdated or withheld: tell the user so, and do not fill gaps with numbers of your own. A null number
has its reason beside it. Times are UTC, ratios are fractions. No tool changes anything."""


class ToldCompleteness(BaseModel):
    """The bars that the calendar expects by now, and those that are there."""

    expected: int
    present: int
    missing: dict[str, int] = Field(description="Bars by the reason why they are not there")


class AgentAnswer(BaseModel):
    """Data, and what to know before it is used."""

    is_sound: bool = Field(description="False: see reasons before you use the data")
    reasons: list[str]
    dataset_version: int | None = Field(description="null before the first bar")
    newest_at: datetime | None = Field(description="The newest moment that the data speaks of")
    age_seconds: float | None = Field(description="Since then")
    completeness: ToldCompleteness | None = Field(
        description="Of the bars in question, else of the last 30 days; null: nothing is stored"
    )
    data: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools; each opens one snapshot of the database."""

    engine: Engine
    cache: Cache

    def markets(self) -> AgentAnswer:
        """List every stored market, and whether its last 30 days are complete."""
        with open_snapshot(self.engine) as connection:
            names = [name_market(market) for market in read_all_markets(connection).values()]
            return _answer(
                connection, list_records(read_market_list(connection)), _measure(connection, names)
            )

    def latest(self, symbols: list[str]) -> AgentAnswer:
        """Return price, newest final bars and statistics of markets."""
        values = [one.value for one in fetch_latest(symbols, self.engine, self.cache)]
        reasons = [
            f"{value['symbol']} {part.get('horizon', 'price')}: {part['reason']}"
            for value in values
            for part in (*([value["snapshot"]] if value["snapshot"] else []), *value["roi"])
            if part["reason"]
        ]
        reasons += [f"{one['symbol']}: no live price" for one in values if not one["snapshot"]]
        seen = [one["snapshot"]["observed_at"] for one in values if one["snapshot"]]
        with open_snapshot(self.engine) as connection:
            names = [f"{value['provider']}:{value['symbol']}" for value in values]
            measured = _measure(connection, names)
            return _answer(connection, values, measured, reasons, min(seen, default=None))

    def bars(
        self,
        symbol: str,
        start: str,
        end: str,
        interval: Literal["1h", "1d", "1w"] = "1d",
        as_of: str | None = None,
        version: int | None = None,
    ) -> AgentAnswer:
        """Return the final bars of a span, as of now, a past time or a dataset version."""
        with open_snapshot(self.engine) as connection:
            frame = read_aggregates(symbol, interval, start, end, as_of, version, engine=connection)
            more = len(frame) - MOST_ROWS
            cut = [f"the first {more:,} bars are left out: ask for a shorter span"]
            newest = None if frame.empty else frame["close_time"].max()
            rows = frame.iloc[-MOST_ROWS:].drop(columns=["run_id"])
            return _answer(connection, list_records(rows), frame, cut if more > 0 else (), newest)

    def statistics(self, symbol: str, horizon: str | None = None) -> AgentAnswer:
        """Return the newest risk and return of each horizon, such as 30d."""
        with open_snapshot(self.engine) as connection:
            frame = read_roi_statistics(symbol, horizon, engine=connection)
            reasons = _list_doubts(frame)
            newest = None if frame.empty else frame.index.min()
            return _answer(connection, list_records(frame), frame, reasons, newest)

    def why(
        self, symbol: str, statistic: str, horizon: str = "30d", version: int | None = None
    ) -> AgentAnswer:
        """Trace a statistic to its bars, revisions and runs; compare it with another version."""
        with open_snapshot(self.engine) as connection:
            found = explain_statistic(symbol, statistic, horizon, version, connection)
            frame = read_roi_statistics(symbol, horizon, engine=connection)
            row = json.loads(encode_json(asdict(found)))
            row["requests"] = row["requests"][:MOST_ROWS]
            return _answer(connection, [row], frame, _list_doubts(frame), found.as_of)

    def coverage(self, symbols: list[str] | None = None) -> AgentAnswer:
        """Return what is stored of each series; every hole is one of the reasons."""
        with open_snapshot(self.engine) as connection:
            of = None if symbols is None else find_market_ids(connection, symbols)
            rows = list_coverage(connection, of)
            holes = [*list_holes(connection, of), *list_never_asked(connection, of)]
            names = sorted({f"{row['provider']}:{row['symbol']}" for row in rows})
            newest = min((row["final_to"] for row in rows if row["final_to"]), default=None)
            told = json.loads(encode_json(rows))
            gaps = map(_describe_gap, holes)
            return _answer(connection, told, _measure(connection, names), gaps, newest)

    def plan(self, symbols: list[str] | None = None, start: str = "", end: str = "") -> AgentAnswer:
        """Count the requests of a run, or with start of a backfill; no provider is asked."""
        request = build_request(
            datetime.now(UTC), symbols or (), history_from=start, history_to=end
        )
        with open_snapshot(self.engine) as connection:
            estimates, unserved = estimate_run(connection, request, os.environ)
            plan = describe_plan(estimates, unserved).model_dump(mode="json")
            lost = [f"{symbol}: {cause}" for symbol, cause in unserved.items()]
            measured = _measure(connection, symbols or request.symbols)
            return _answer(connection, [plan], measured, [*lost, *plan["cuts"]])


def build_server(engine: Engine, cache: Cache) -> MCPServer[Any]:
    """Return the server of the tools on a database and a cache."""
    server: MCPServer[Any] = MCPServer(
        "market-pipeline", instructions=_INSTRUCTIONS, version=VERSION, log_level="WARNING"
    )
    # The database itself refuses a write.
    tools = Tools(engine.execution_options(postgresql_readonly=True), cache)
    reads = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
    for tool in (
        tools.markets, tools.latest, tools.bars, tools.statistics, tools.why, tools.coverage,
        tools.plan,
    ):  # fmt: skip
        server.tool(annotations=reads)(_tell_errors(tool))
    return server


def build_app(server: MCPServer[Any], configuration: Configuration) -> ASGIApp:
    """Return the server as an app behind the API's guard: the same token, hosts and origins."""
    # The guard has checked Host and Origin.
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = server.streamable_http_app(
        stateless_http=True, json_response=True, transport_security=unchecked
    )
    return RequestGuard(app, configuration)


def name_market(market: Any) -> str:
    """Return the one name of a market."""
    return f"{market.provider}:{market.symbol}"


def _tell_errors(tool: Callable[..., AgentAnswer]) -> Callable[..., AgentAnswer]:
    """Return a tool whose deliberate errors reach the agent; the library hides all others."""

    @wraps(tool)
    def call(*arguments: Any, **options: Any) -> AgentAnswer:
        try:
            return tool(*arguments, **options)
        except PipelineError as error:
            raise ToolError(str(error)) from None

    return call


def _measure(connection: Connection, names: Sequence[str]) -> pd.DataFrame | None:
    """Return the daily bars of the last 30 days, for what they say of completeness."""
    now = datetime.now(UTC)
    try:
        return (
            read_aggregates(names, "1d", now - _RECENT, now, engine=connection) if names else None
        )
    except UnknownMarketError:
        return None  # A plan may be of markets that no run has stored yet.


def _answer(
    connection: Connection,
    data: list[dict[str, Any]],
    frame: pd.DataFrame | None,
    reasons: Iterable[str] = (),
    newest_at: datetime | str | None = None,
) -> AgentAnswer:
    """Return data with what is known against it; ``frame`` tells how complete it is."""
    told = None if frame is None else ToldCompleteness(**frame.attrs["completeness"])
    missing = told.missing if told else {"not_asked_yet": 0}
    every = [*(f"missing bars, {why}: {count:,}" for why, count in missing.items()), *reasons]
    newest = None if newest_at is None else pd.Timestamp(newest_at).to_pydatetime()
    version = None if frame is None else frame.attrs["dataset_version"]
    return AgentAnswer(
        is_sound=not every,
        reasons=every[:MOST_REASONS],
        dataset_version=(version or read_newest_version(connection)) or None,
        newest_at=newest,
        age_seconds=None if newest is None else (datetime.now(UTC) - newest).total_seconds(),
        completeness=told,
        data=data,
    )


def _list_doubts(frame: pd.DataFrame) -> list[str]:
    """Return why statistics are null, and which are older than their bars."""
    rows = frame.to_dict("records")
    nulls = [f"{row['horizon']}: {row['reason']}" for row in rows if pd.notna(row["reason"])]
    old = [f"{row['horizon']}: outdated, a bar changed since" for row in rows if row["is_outdated"]]
    return [*nulls, *old]


def _describe_gap(row: dict[str, Any]) -> str:
    """Return a hole, or a span that nobody asked for, in one line."""
    span = f"{row['starts_at']:%Y-%m-%d %H:%M} to {row['ends_at']:%Y-%m-%d %H:%M}"
    reason = row.get("reason", "never_asked")
    return f"{row['provider']}:{row['symbol']} {row['interval']} {span}: {reason}"
