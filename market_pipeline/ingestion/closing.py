"""The end of a run: closes its receipt once, and adds its counts to the totals.

The executor calls it, however the steps ended. For a dead run, the process that finds it does.
"""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from market_pipeline.observability.metrics import Sample
from market_pipeline.observability.run_metrics import (
    BARS,
    CALLS,
    CHANGES,
    DURATION,
    ERRORS,
    FAILURE,
    FATES,
    PARTIAL,
    REQUESTS,
    ROWS,
    SUCCESS,
    THROTTLED,
    UNKNOWN,
)
from market_pipeline.providers.registry import is_provider_name
from market_pipeline.storage.alerts.metrics import add_totals
from market_pipeline.storage.runs.closing import (
    close_receipt,
    count_bars_by_provider,
    read_request_times,
)
from market_pipeline.storage.runs.receipts import read_run_tables

_OUTCOMES = {"ok": SUCCESS, "partial": PARTIAL, "failed": FAILURE}
INTERRUPTED = (
    "interrupted: the run's process is gone. It was killed, ran out of memory, or its machine "
    "stopped. What it had committed stays, and the next run continues from there"
)
_MAX_ERROR = 2_000


def close_run(connection: Connection, run_id: UUID, error: str | None) -> None:
    """Close a run's receipt and count the run; done again it changes nothing.

    Args:
        connection: In a transaction.
        run_id: The run; without a receipt nothing happens.
        error: What a step failed of, or what ended the run; None: no step failed.
    """
    told = None if error is None else error[:_MAX_ERROR]
    closed = close_receipt(connection, run_id, told)
    if closed is not None:
        add_totals(connection, list(_count(connection, run_id, closed)))


def _count(connection: Connection, run_id: UUID, closed: Row[Any]) -> Iterator[Sample]:
    # What was asked for may be no provider at all: metrics do not repeat just any word.
    is_known = all(map(is_provider_name, closed.provider.split(",")))
    provider = closed.provider if is_known else UNKNOWN
    yield _OUTCOMES[closed.outcome].sample(1, trigger=closed.trigger, provider=provider)
    yield DURATION.observe_all([closed.seconds], trigger=closed.trigger)
    for table in read_run_tables(connection, run_id):
        for change in CHANGES:
            yield ROWS.sample(table[change], table=table["table_name"], change=change)
    for row in count_bars_by_provider(connection, run_id):
        for fate in FATES:
            yield BARS.sample(float(getattr(row, fate)), provider=row.provider, fate=fate)
        yield CALLS.sample(float(row.calls), provider=row.provider)
        yield THROTTLED.sample(float(row.throttled), provider=row.provider)
    for row in read_request_times(connection, run_id):
        yield REQUESTS.observe_all(row.seconds, provider=row.provider)
        yield ERRORS.sample(row.errors, provider=row.provider)
