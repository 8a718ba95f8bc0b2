"""The log of what people did on pages: who, what, and what came of it.

An action is noted before it is done, so that one that was killed is in the log too.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, insert, select, update

from market_pipeline.storage.ledgers import action_log
from market_pipeline.storage.rows import Row, fetch


def begin_action(connection: Connection, **values: Any) -> int:
    """Note an action that begins: ``actor``, ``address``, ``action``, ``target``, ``begun_at``."""
    statement = insert(action_log).values(values).returning(action_log.c.action_id)
    return int(connection.execute(statement).scalar_one())


def end_action(
    connection: Connection, action_id: int, outcome: str, result: str, run_id: UUID | None = None
) -> None:
    """Note how an action ended: ``done``, ``started`` (a run), ``refused`` or ``failed``."""
    ended = {"outcome": outcome, "result": result, "run_id": run_id}
    connection.execute(update(action_log).where(action_log.c.action_id == action_id).values(ended))


def list_actions(connection: Connection, limit: int, target: str | None = None) -> list[Row]:
    """Return the last actions, the newest first; None: on any target."""
    query = select(action_log).order_by(action_log.c.action_id.desc()).limit(limit)
    return fetch(
        connection, query if target is None else query.where(action_log.c.target == target)
    )
