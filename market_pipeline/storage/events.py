"""Events that change a whole series: while one is open, the market's statistics wait."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, func, insert, select, update

from market_pipeline.storage.ledgers import market_event


def has_open_event(connection: Connection, market_id: int) -> bool:
    """Tell whether a market must be read again as a whole."""
    return market_id in read_open_events(connection, [market_id])


def read_open_events(connection: Connection, market_ids: Sequence[int]) -> dict[int, str]:
    """Return the kind of the open event of each market that has one."""
    is_open = (market_event.c.market_id.in_(list(market_ids)), market_event.c.resolved_at.is_(None))
    query = select(market_event.c.market_id, market_event.c.kind).where(*is_open)
    return {row.market_id: row.kind for row in connection.execute(query)}


def open_split(connection: Connection, market_id: int, ratio: float, run_id: UUID) -> None:
    """Note that a series was rescaled; one that is open already stays."""
    if has_open_event(connection, market_id):
        return
    detail = f"known bars came back at {ratio:.6g} times their price"
    row = {"market_id": market_id, "kind": "split", "ratio": ratio, "detail": detail}
    now = func.clock_timestamp()
    connection.execute(insert(market_event).values(**row, detected_at=now, run_id=run_id))


def resolve_events(connection: Connection, market_id: int) -> None:
    """Close a market's events: the series is whole again."""
    is_open = (market_event.c.market_id == market_id, market_event.c.resolved_at.is_(None))
    statement = update(market_event).where(*is_open)
    connection.execute(statement.values(resolved_at=func.clock_timestamp()))
