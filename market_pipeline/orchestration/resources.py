"""The configuration of runs: the request, the providers, the database."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cached_property
from uuid import UUID

import dagster as dg
from pydantic import Field, PrivateAttr
from sqlalchemy import Engine

from market_pipeline.domain.triggers import find_trigger
from market_pipeline.ingestion.calendars import load_calendars
from market_pipeline.ingestion.receipts import Run, note_left_out
from market_pipeline.ingestion.request import Request, Route, build_request, filter_active
from market_pipeline.observability.logs import log_context
from market_pipeline.observability.tracing import begin_run, end_run
from market_pipeline.orchestration.dead_runs import mark_as_watched
from market_pipeline.orchestration.months import read_month
from market_pipeline.orchestration.run_connections import keep_connection
from market_pipeline.providers.registry import Routing, route_served
from market_pipeline.storage.runs.claims import hold_liveness_lock
from market_pipeline.storage.server.engine import check_database, find_database, open_engine
from market_pipeline.storage.server.schema import ensure_schema


class IngestionRequest(dg.ConfigurableResource):  # type: ignore[type-arg]
    """What to ingest; everything left at its default comes from the environment."""

    symbols: list[str] = Field(
        default=[], description="Symbols, such as BTC-USD; empty: INGESTION_MARKETS"
    )
    provider: str = Field(
        default="",
        description="Provider or ordered list, such as coingecko,yahoo; empty: INGESTION_PROVIDER",
    )
    lookback_days: int = Field(
        default=0,
        description="Days of history kept complete, 1 to 36525; 0: INGESTION_LOOKBACK_DAYS",
    )
    window_end: str = Field(
        default="",
        description="ISO 8601 time that is the run's clock, such as 2019-01-01T00:00Z; empty: now",
    )

    history_from: str = Field(
        default="",
        description="ISO 8601 time from which history is filled, instead of the look-back",
    )
    history_to: str = Field(
        default="", description="ISO 8601 time up to which history is filled; empty: now"
    )
    is_default_routing: bool = Field(
        default=False, description="Set by tick_watch: the provider is the configured one"
    )
    tick: str = Field(default="", description="Set by tick_watch: which part of a tick this is")

    _runs: dict[str, Run] = PrivateAttr(default_factory=dict)

    def describe_run(self, instance: dg.DagsterInstance, run_id: str) -> Run:
        """Return a run's identity and request; Dagster is asked once in a process.

        Raises:
            SettingError: A value is malformed.
        """
        if run_id not in self._runs:
            record = instance.get_run_record_by_id(run_id)
            began = (record.create_timestamp if record else datetime.now(UTC)).astimezone(UTC)
            tags = record.dagster_run.tags if record else {}
            request = self._build(began, read_month(tags))
            self._runs[run_id] = Run(UUID(run_id), find_trigger(tags), began, request)
        return self._runs[run_id]

    def _build(self, wall_clock: datetime, month: Mapping[str, str]) -> Request:
        """Return the checked request; Dagster itself does not check bounds at launch."""
        span = {"history_from": self.history_from, "history_to": self.history_to}
        return build_request(
            wall_clock,
            self.symbols,
            self.provider,
            self.lookback_days,
            self.window_end,
            **(span if self.history_from else month or span),
            is_default_routing=self.is_default_routing,
        )


class Providers(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The installed providers, found by entry point and configured by the environment."""

    def route(self, request: Request) -> Routing:
        """Return the provider and market of each symbol, and the symbols that have none.

        Raises:
            MarketNotServedError: No symbol has one; lists who was asked and why not.
        """
        return route_served(request.symbols, request.providers, self.read_environment())

    def read_environment(self) -> Mapping[str, str]:
        """Return the variables that providers are configured with."""
        return os.environ


class Database(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The PostgreSQL of DATABASE_URL, or the embedded one; opened when first used.

    Whatever a run does, it does with this database: while it is open, the run shows that it lives.
    """

    _run: tuple[dg.DagsterInstance, str] | None = PrivateAttr(default=None)
    _life: ExitStack = PrivateAttr(default_factory=ExitStack)

    @cached_property
    def engine(self) -> Engine:
        """Return a connected engine on an up-to-date schema.

        Raises:
            StorageError: Unreachable, read-only, or at another schema version.
        """
        address = find_database()
        engine = open_engine(address)
        check_database(engine)
        ensure_schema(engine, address.is_embedded)
        if self._run is not None:
            instance, run_id = self._run
            self._life.enter_context(hold_liveness_lock(engine, UUID(run_id)))
            mark_as_watched(instance, run_id)
        return engine

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Begin the run's trace, and know whose life to show."""
        if context.run is not None:
            begin_run(UUID(context.run.run_id), context.run.job_name)
            about = {"run_id": context.run.run_id, "trigger": find_trigger(context.run.tags)}
            self._life.enter_context(log_context(**about))
            if context.instance is not None:
                # Each step of the multiprocess executor has a process of its own.
                self._life.enter_context(keep_connection(context.instance))
                self._run = (context.instance, context.run.run_id)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Close connections that were opened, and end the run's trace."""
        del context
        end_run()
        self._life.close()
        if "engine" in self.__dict__:
            self.engine.dispose()


def find_routes(providers: Providers, database: Database, run: Run) -> list[Route]:
    """Return the routes of :func:`find_routing`, which raises the same errors."""
    return find_routing(providers, database, run)[0]


def find_routing(
    providers: Providers, database: Database, run: Run
) -> tuple[list[Route], Mapping[str, str]]:
    """Return provider and market of each symbol that is served and not deactivated.

    And the symbols that no provider serves, with the reason. The run's receipt notes what is left
    out. Afterwards the process knows the calendars of the exchanges.

    Raises:
        MarketNotServedError: No symbol is served; lists who was asked and why not.
        NothingIngestedError: Every market is deactivated.
    """
    routing = providers.route(run.request)
    kept = keep_routes(database, routing.routes)
    left = {market.symbol for _, market in routing.routes} - {market.symbol for _, market in kept}
    if routing.unserved or left:
        with database.engine.begin() as connection:
            note_left_out(connection, run, routing.unserved, sorted(left))
    return kept, routing.unserved


def keep_routes(database: Database, routes: Sequence[Route]) -> list[Route]:
    """Return the routes of markets that nobody deactivated, and load their calendars.

    Raises:
        NothingIngestedError: Every market is deactivated.
    """
    with database.engine.connect() as connection:
        kept = filter_active(connection, routes)
    load_calendars(database.engine, [market.calendar for _, market in kept])
    return kept


def describe_run(
    context: dg.OutputContext | dg.InputContext | dg.AssetExecutionContext | dg.OpExecutionContext,
    request: IngestionRequest,
) -> Run:
    """Return the run's identity, its clock set to the moment it began."""
    if isinstance(context, dg.OutputContext | dg.InputContext):
        step = context.step_context
        return request.describe_run(step.instance, step.run_id)
    return request.describe_run(context.instance, context.run.run_id)
