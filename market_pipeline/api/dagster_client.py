"""Dagster over its GraphQL: the only way by which the API starts and watches runs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import httpx

from market_pipeline.api.problems import RETRY_SECONDS, ProblemError
from market_pipeline.domain.ticks import TICK_TAG
from market_pipeline.domain.triggers import (
    BACKFILL_TAGS,
    BEATS_WITHIN_SECONDS,
    LAUNCH_TAG,
    TRIGGER_TAG,
)

TIMEOUT_SECONDS = 6.0
JOB = "ingest"
LOCATION = "market_pipeline.definitions"
REPOSITORY = "__repository__"
ENDED = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
_QUEUE = """query { runsOrError(filter: {statuses: [QUEUED]}) { __typename ... on Runs { count } }
  instance { daemonHealth { allDaemonStatuses { daemonType required lastHeartbeatTime } } } }"""
_FIND = """query ($launch: String!) { runsOrError(limit: 1, filter: {tags: [{key: "%s",
  value: $launch}]}) { __typename ... on Runs { results { runId } } } }"""
_STATUS = """query ($run: ID!) { runOrError(runId: $run) { __typename
  ... on Run { status endTime } } }"""
_LAUNCH = """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""

_SCHEDULE = """query ($location: String!, $repository: String!, $schedule: String!) {
  scheduleOrError(scheduleSelector: {repositoryLocationName: $location,
    repositoryName: $repository, scheduleName: $schedule}) {
  __typename ... on Schedule { cronSchedule scheduleState { status } } } }"""
_SCHEDULE_NAMES = {"location": LOCATION, "repository": REPOSITORY, "schedule": "ingest_schedule"}


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of a run: Dagster's word, and when it ended (UTC)."""

    status: str
    ended_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in ENDED


class WebserverMissingError(ProblemError):
    """Nobody listens where Dagster's webserver is expected."""


class DagsterClient:
    """Questions and orders to Dagster's webserver.

    It has an address for people, without a slash at the end, and perhaps another for the API.
    """

    def __init__(self, url: str, graphql_url: str = "") -> None:
        self.url = url
        self._base = graphql_url or url
        self._client: httpx.AsyncClient | None = None

    def link_run(self, run_id: UUID | str, is_tick: bool = False) -> str:
        """Return where a run, or the runs of a tick, are shown to people."""
        tag = urlencode({"q[0]": f"tag:{TICK_TAG}={run_id}"})
        return f"{self.url}/runs{f'?{tag}' if is_tick else f'/{run_id}'}"

    async def is_reachable(self, timeout_seconds: float = TIMEOUT_SECONDS) -> bool:
        """Tell whether the webserver answers."""
        try:
            answer = await self._open().get(f"{self._base}/server_info", timeout=timeout_seconds)
        except httpx.HTTPError:
            return False
        return answer.is_success

    async def count_queued(self) -> int:
        """Return how many runs wait in the queue.

        If the webserver or the daemon is not there, the problem (503) says how to start it.
        """
        told = await self._query(_QUEUE)
        statuses = told["instance"]["daemonHealth"]["allDaemonStatuses"]
        if not _is_daemon_alive(statuses, time.time()):
            raise _describe_missing(
                "daemon",
                "Dagster's daemon does not run, so a run would stay in the queue: "
                "start it with `make dev`, or alone with `make scheduler`. Nothing was started",
            )
        return int(told["runsOrError"]["count"])

    async def find_run(self, launch_id: UUID) -> UUID | None:
        """Return the run that a launch came to; None when there is none."""
        told = await self._query(_FIND % LAUNCH_TAG, launch=str(launch_id))
        found = told["runsOrError"].get("results", [])
        return UUID(found[0]["runId"]) if found else None

    async def launch_run(self, request: Mapping[str, Any], launch_id: UUID, trigger: str) -> UUID:
        """Put a run of the ingest job into Dagster's queue and return its id.

        The request has fields of ``IngestionRequest``; those that are missing are the settings'.
        If the webserver is not there, or has not loaded the code location, the problem is 503.
        """
        options = {"resources": {"request": {"config": dict(request)}}}
        names = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY, "jobName": JOB}
        told = {TRIGGER_TAG: trigger, LAUNCH_TAG: str(launch_id)}
        told |= BACKFILL_TAGS if trigger == "backfill" else {}
        metadata = {"tags": [{"key": key, "value": value} for key, value in told.items()]}
        params = {
            "selector": names,
            "runConfigData": options if request else {},
            "executionMetadata": metadata,
        }
        launched = (await self._query(_LAUNCH, params=params))["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            raise _describe_missing(
                "webserver",
                f"Dagster's webserver refused the run ({launched['__typename']}): its page "
                f"Deployment shows whether the code location {LOCATION} is loaded",
            )
        return UUID(launched["run"]["runId"])

    async def read_state(self, run_id: UUID) -> RunState | None:
        """Return how a run stands; None for a run that Dagster does not know."""
        told = (await self._query(_STATUS, run=str(run_id)))["runOrError"]
        if told["__typename"] != "Run":
            return None
        ended = told["endTime"]
        return RunState(told["status"], datetime.fromtimestamp(ended, UTC) if ended else None)

    async def read_schedule(self) -> tuple[str, bool] | None:
        """Return the cron expression of the ingest schedule and whether it is on.

        None when Dagster could not load the project.
        """
        found = (await self._query(_SCHEDULE, **_SCHEDULE_NAMES))["scheduleOrError"]
        if found["__typename"] != "Schedule":
            return None
        return found["cronSchedule"], found["scheduleState"]["status"] == "RUNNING"

    def describe_silence(self, kind: type[ProblemError] = ProblemError) -> ProblemError:
        """Return the problem for a webserver that does not answer."""
        return _describe_missing(
            "webserver",
            f"Dagster's webserver does not answer at {self._base}: start it with `make dev`, "
            "or name it in DAGSTER_UI_URL or DAGSTER_GRAPHQL_URL. Started runs continue",
            kind,
        )

    async def close(self) -> None:
        """Give connections back."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False)
        return self._client

    async def _query(self, query: str, **variables: Any) -> Any:
        body = {"query": query, "variables": variables}
        try:
            answer = await self._open().post(f"{self._base}/graphql", json=body)
            told = answer.json() if answer.status_code == HTTPStatus.OK else {}
        except httpx.ConnectError:
            raise self.describe_silence(WebserverMissingError) from None
        except (httpx.HTTPError, ValueError):
            told = {}
        if not isinstance(told, dict) or not told.get("data"):
            raise self.describe_silence()
        return told["data"]


def _is_daemon_alive(statuses: Sequence[Mapping[str, Any]], now: float) -> bool:
    beats = [status["lastHeartbeatTime"] or 0 for status in statuses if status["required"]]
    return bool(beats) and min(beats) > now - BEATS_WITHIN_SECONDS


def _describe_missing(
    part: str, detail: str, kind: type[ProblemError] = ProblemError
) -> ProblemError:
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return kind(503, "Dagster Unavailable", detail, headers, degraded=[f"dagster {part}"])
