"""Decisions of people about a suspected split: dismiss or confirm it.

A dismissed jump is a price like any other. If a split is confirmed, all bars before it are
multiplied by its ratio and marked, and their old values stay as revisions. The provider's own
values for these bars are in the old scale, so they are not compared with it any more.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pandas as pd
from sqlalchemy import Connection, Engine

from market_pipeline.domain.columns import read_frame_columns
from market_pipeline.domain.differences import multiply_bars
from market_pipeline.domain.errors import PipelineError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.sessions import EPOCH
from market_pipeline.ingestion.bar_writing import BarWriteResult, write_market_bars
from market_pipeline.ingestion.quarantine import add_written, describe_run
from market_pipeline.ingestion.receipts import begin_receipt
from market_pipeline.ingestion.suspecting import report_suspicions
from market_pipeline.storage.bars.events import SUSPECTED_SPLIT, is_seam, read_event, resolve_event
from market_pipeline.storage.bars.stored import read_bars
from market_pipeline.storage.markets.lookup import read_market
from market_pipeline.storage.runs.claims import hold_claim, hold_market

TRIGGER = "confirm"
DISMISSED, CONFIRMED = "dismissed", "confirmed"
CLAIM_TIME = timedelta(minutes=2)
CLAIM_PATIENCE = timedelta(minutes=1)
_SHARES = "shares"


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What a confirmed split comes to.

    Attributes:
        name: The market, as ``provider:symbol``. detail: What was seen. ratio: By which prices are
            multiplied. bars: How many final bars lie before the jump.
        run_id: The run that wrote them; None: nothing was written.
    """

    name: str
    detail: str
    ratio: float
    bars: int
    run_id: UUID | None = None


def dismiss_event(engine: Engine, event_id: int) -> str:
    """Let statistics go on over an event, and return its market's name.

    Raises:
        PipelineError: There is no such event, it is closed, or runs still work on it.
    """
    with engine.begin() as connection:
        event = _read_open(connection, event_id)
        if event["kind"] != SUSPECTED_SPLIT and not is_seam(event):
            raise PipelineError(
                f"event {event_id} is a {event['kind']} that runs still follow: "
                "`market-pipeline ingest` continues it. Nothing was changed"
            )
        resolve_event(connection, event_id, DISMISSED)
        name = f"{event['provider']}:{event['symbol']}"
        report_suspicions(connection, name, event["market_id"])
    return name


def preview_split(connection: Connection, event_id: int) -> Confirmation:
    """Return what :func:`confirm_split` would do.

    Raises:
        PipelineError: There is no such event, it is closed, or it is no suspected split.
    """
    event = _read_suspicion(connection, event_id)
    return _describe_event(event, len(_read_earlier(connection, event)))


def confirm_split(engine: Engine, event_id: int, now: datetime) -> Confirmation:
    """Multiply all bars before a suspected split by its ratio, in one transaction.

    Raises:
        PipelineError: There is no such event, it is closed, or it is no suspected split.
        ClaimTimeoutError: The market is being ingested and stays so; nothing was written.
    """
    run_id = uuid4()
    with engine.connect() as connection:
        market_id = _read_suspicion(connection, event_id)["market_id"]
    with (
        hold_market(engine, market_id, run_id, CLAIM_TIME, CLAIM_PATIENCE) as token,
        engine.begin() as connection,
    ):
        hold_claim(connection, market_id, token)
        return _confirm(connection, event_id, run_id, now)


def _confirm(connection: Connection, event_id: int, run_id: UUID, now: datetime) -> Confirmation:
    event = _read_suspicion(connection, event_id)
    market_id, ratio = event["market_id"], event["ratio"]
    bars = _read_earlier(connection, event)
    volume_ratio = 1 / ratio if (bars["volume_kind"] == _SHARES).all() else None
    one = read_market(connection, market_id).record
    run = describe_run(run_id, TRIGGER, one, read_frame_columns(bars), now)
    begin_receipt(connection, run)
    rows = multiply_bars(bars, ratio, volume_ratio)
    written: BarWriteResult = write_market_bars(connection, run, one, market_id, rows)
    add_written(connection, run, market_id, 0, written)
    resolve_event(connection, event_id, CONFIRMED)
    told = _describe_event(event, len(bars), run_id)
    report_suspicions(connection, told.name, market_id, run_id)
    return told


def _read_earlier(connection: Connection, event: dict[str, Any]) -> pd.DataFrame:
    """Return the final bars that closed before the jump."""
    end = event["starts_at"]
    frames = [
        read_bars(connection, event["market_id"], interval, EPOCH, end)
        for interval in (Interval.HOUR, Interval.DAY)
    ]
    bars = pd.concat(frames, ignore_index=True)
    earlier: pd.DataFrame = bars[bars["is_final"] & (bars["close_time"] <= end)]
    return earlier.reset_index(drop=True)


def _describe_event(event: dict[str, Any], bars: int, run_id: UUID | None = None) -> Confirmation:
    name = f"{event['provider']}:{event['symbol']}"
    return Confirmation(name, event["detail"], event["ratio"], bars, run_id)


def _read_suspicion(connection: Connection, event_id: int) -> dict[str, Any]:
    event = _read_open(connection, event_id)
    if event["kind"] != SUSPECTED_SPLIT:
        raise PipelineError(
            f"event {event_id} is a {event['kind']}: only a suspected split can be confirmed. "
            "Nothing was changed"
        )
    return event


def _read_open(connection: Connection, event_id: int) -> dict[str, Any]:
    event = read_event(connection, event_id)
    if event is None:
        raise PipelineError(
            f"event {event_id} does not exist: `market-pipeline events list` shows what is open"
        )
    if event["resolved_at"] is not None:
        raise PipelineError(
            f"event {event_id} was {event['resolution']} at "
            f"{event['resolved_at']:%Y-%m-%d %H:%M} UTC. Nothing was changed"
        )
    return event
