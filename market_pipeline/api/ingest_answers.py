"""Answers about a run that ingested, from its receipt and never from memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine

from market_pipeline.readers.encoding import format_time
from market_pipeline.storage.runs.receipts import read_run, read_run_markets, read_run_tables
from market_pipeline.storage.runs.ticks import read_parts

STATUSES = {"ok": "success", "partial": "partial", "failed": "failed"}
_EXAMPLE_ID = "3f6c1d1e-6a51-4f43-9f6e-0c1a2b3c4d5e"
_RESULTS = {
    "marketsIngested": "market",
    "snapshotsIngested": "market_snapshot",
    "aggregatesIngested": "market_aggregate",
    "comparisonsIngested": "market_comparison",
    "roiStatsIngested": "market_roi_statistic",
}


class IngestResult(BaseModel):
    """Rows by table, inserted, updated and unchanged together."""

    marketsIngested: int = Field(examples=[3])  # noqa: N815 - the API's spelling
    snapshotsIngested: int = Field(examples=[3])  # noqa: N815
    aggregatesIngested: int = Field(examples=[2352])  # noqa: N815
    comparisonsIngested: int = Field(examples=[12])  # noqa: N815
    roiStatsIngested: int = Field(examples=[12])  # noqa: N815
    startedAt: datetime  # noqa: N815
    completedAt: datetime | None  # noqa: N815
    trigger: Literal["manual", "cron", "schedule", "backfill"]


class MarketOutcome(BaseModel):
    """A market's part of the receipt."""

    model_config = ConfigDict(extra="forbid")

    symbol: str = Field(examples=["BTC-USD"])
    provider: str | None = Field(examples=["mock"], description="null: no provider serves it")
    outcome: Literal["ok", "partial", "failed", "missing"] = Field(
        description="missing: the run did not reach it"
    )
    reason: str | None = Field(description="The cause, in one line")
    inserted: int | None = Field(description="Fetched bars; null: no bars were requested")
    updated: int | None
    unchanged: int | None
    derived_inserted: int | None = Field(description="Days and weeks built from them")
    derived_updated: int | None
    derived_unchanged: int | None


class Receipt(BaseModel):
    """The receipt of a run."""

    outcome: Literal["ok", "partial", "failed", "running", "interrupted"] | None
    error: str | None = Field(description="The error that ended the run; null: no step failed")
    markets: list[MarketOutcome]
    tables: dict[str, dict[str, int]] = Field(
        examples=[{"market_aggregate": {"inserted": 2352, "updated": 0, "unchanged": 0}}]
    )


class ShardOutcome(BaseModel):
    """A run of a tick."""

    shard: int = Field(description="From 1; 0: it derived what needs all markets", examples=[1])
    outcome: Literal["ok", "partial", "failed", "running", "interrupted", "missing"] = Field(
        description="missing: no run has begun"
    )
    error: str | None
    runId: UUID | None  # noqa: N815
    link: str | None


class IngestAnswer(BaseModel):
    """A run that ended, or a tick: the runs that INGESTION_SHARDS let share its markets."""

    status: Literal["success", "partial", "failed"]
    result: IngestResult | None = Field(description="null: it failed before it wrote anything")
    markets: list[MarketOutcome] = Field(description="The markets that came short, with reasons")
    runId: UUID = Field(examples=[_EXAMPLE_ID])  # noqa: N815
    link: str = Field(description="The run in Dagster")
    shards: list[ShardOutcome] = Field(default=[], description="Of a tick; runId is then its own")
    receipt: Receipt


class IngestPending(BaseModel):
    """A run that has not ended."""

    status: Literal["pending"] = "pending"
    runId: UUID = Field(examples=[_EXAMPLE_ID])  # noqa: N815
    link: str = Field(description="The run in Dagster")
    statusUrl: str = Field(  # noqa: N815
        description="The address of its result", examples=[f"/api/ingest/{_EXAMPLE_ID}"]
    )


@dataclass(frozen=True, slots=True)
class RunResponse:
    """An answer about a run: the HTTP status and the body."""

    status: int
    body: dict[str, Any]


def read_answer(
    engine: Engine, run_id: UUID, dagster_status: str, link_run: Callable[..., str]
) -> RunResponse:
    """Return what is answered about a run that ended as Dagster says: SUCCESS, FAILURE, CANCELED.

    200 for all or some markets; 502 for a run that failed: the body is the same. A tick's answer
    names the runs of its shards.
    """
    with engine.connect() as connection:
        run = read_run(connection, run_id)
        shards = [_describe_part(part, link_run) for part in read_parts(connection, run_id)]
        receipt = _read_receipt(connection, run_id, run)
    result = None if run is None else _build_result(run, receipt["tables"])
    outcome = receipt["outcome"] if dagster_status == "SUCCESS" else "failed"
    short = [market for market in receipt["markets"] if market["outcome"] != "ok"]
    body = {
        "status": STATUSES.get(outcome or "", "failed"),
        "result": result,
        "markets": short,
        "runId": str(run_id),
        "link": link_run(run_id, bool(shards)),
        "shards": shards,
        "receipt": receipt,
    }
    return RunResponse(502 if body["status"] == "failed" else 200, body)


def _describe_part(part: Mapping[str, Any], link_run: Callable[..., str]) -> dict[str, Any]:
    run_id = part["run_id"]
    told = {name: part[name] for name in ("shard", "outcome", "error")}
    return {**told, "runId": run_id and str(run_id), "link": run_id and link_run(run_id)}


def _read_receipt(
    connection: Connection, run_id: UUID, run: Mapping[str, Any] | None
) -> dict[str, Any]:
    markets = read_run_markets(connection, run_id)
    return {
        "outcome": run["outcome"] if run else None,
        "error": run["error"] if run else None,
        "markets": [{name: row[name] for name in MarketOutcome.model_fields} for row in markets],
        "tables": {row.pop("table_name"): row for row in read_run_tables(connection, run_id)},
    }


def _build_result(
    run: Mapping[str, Any], tables: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    counts = {name: sum(tables.get(table, {}).values()) for name, table in _RESULTS.items()}
    times = {"startedAt": run["started_at"], "completedAt": run["completed_at"]}
    told = {name: time and format_time(time) for name, time in times.items()}
    return {**counts, **told, "trigger": run["trigger"]}
