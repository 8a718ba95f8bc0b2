"""Opening a tick: the request is resolved once, and its runs are launched by the sensor.

A row is all it takes: whoever dies afterwards, `tick_watch` (``orchestration.ticks``) goes on.
"""

import hashlib
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

from sqlalchemy import Engine

from market_pipeline.domain.errors import PipelineError
from market_pipeline.domain.ticks import split_symbols
from market_pipeline.ingestion.receipts import describe_request
from market_pipeline.ingestion.request import Request
from market_pipeline.settings import read_variable
from market_pipeline.storage.runs.ticks import Tick, has_tick, insert_tick

ASSETS = (
    "markets", "market_aggregates", "market_snapshots", "market_comparisons",
    "market_roi_statistics", "latest_market_cache",
)  # fmt: skip
DERIVED = ("market_comparisons", "latest_market_cache")
"""What needs all markets of a tick; the other assets are computed market by market."""


def open_tick(engine: Engine, tick_id: UUID, request: Request, trigger: str, shards: int) -> None:
    """Note a request that several runs are to carry out; under the same id it is noted once.

    Args:
        engine: The database.
        tick_id: What its runs and its receipt are found by.
        request: As it is resolved here: its runs do not read their environment for it.
        trigger: What started it.
        shards: How many runs share its markets.
    """
    told = {
        **describe_request(request),
        "assets": ASSETS,
        "is_live": request.is_live,
        "is_default_routing": request.is_default_routing,
    }
    tick = Tick(
        tick_id=tick_id,
        trigger=trigger,
        provider=",".join(request.providers),
        request=told,
        shards=shards,
        filled_shards=list(split_symbols(request.symbols, shards)),
        version=read_code_version(),
        started_at=datetime.now(UTC),
    )
    with engine.begin() as connection:
        insert_tick(connection, tick)


def check_code_version(wanted: str | None) -> None:
    """Make sure that this process runs the code that a run asks for; None: it asks for none.

    Raises:
        PipelineError: It runs another version.
    """
    if wanted and wanted != (own := read_code_version()):
        raise PipelineError(
            f"this worker has version {own} of market-pipeline, and the run asks for {wanted}: "
            "install one version on all machines and restart the workers. Nothing was fetched"
        )


def check_tick_known(engine: Engine, tick_id: UUID) -> None:
    """Make sure that this process works on the database of a tick.

    Raises:
        PipelineError: The tick is not in it.
    """
    with engine.connect() as connection:
        is_known = has_tick(connection, tick_id)
    if not is_known:
        own = "another one" if read_variable("DATABASE_URL") else "its own: DATABASE_URL is not set"
        raise PipelineError(
            f"tick {tick_id} is not in the database of this worker, which is {own}. Set "
            "DATABASE_URL to the same address on all machines. Nothing was fetched"
        )


@cache
def read_code_version() -> str:
    """Return the version of this code: the package's, and a digest of its files.

    Of the first call in a process, which comes soon after the code is loaded: a worker that keeps
    old code in memory after an upgrade keeps the old version too.
    """
    package, digest = Path(__file__).parent.parent, hashlib.blake2b(digest_size=6)
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return f"{version('market-pipeline')}-{digest.hexdigest()}"
