"""The rows that a statement returns, as mappings or as a frame."""

from typing import Any
from uuid import UUID

import pandas as pd
from sqlalchemy import Column, Connection, Select, Text, TextClause, cast, select

Row = dict[str, Any]


def fetch(connection: Connection, query: "TextClause | Select[Any]", **values: Any) -> list[Row]:
    """Return a query's rows as mappings; ``values`` are what it calls ``:name``."""
    return [dict(row) for row in connection.execute(query, values).mappings()]


def find_ids(connection: Connection, column: "Column[Any]", beginning: str) -> list[UUID]:
    """Return the ids in a column that begin so, the first twenty."""
    text = cast(column, Text)
    query = select(column).where(text.startswith(beginning, autoescape=True))
    return list(connection.execute(query.order_by(text).limit(20)).scalars())


def read_frame(
    connection: Connection, query: "TextClause | Select[Any]", **values: Any
) -> pd.DataFrame:
    """Return a query's rows as a frame with its column names, also when there are none."""
    result = connection.execute(query, values)
    # Plain tuples: of a row with names pandas asks each for its fields.
    return pd.DataFrame(list(map(tuple, result)), columns=list(result.keys()))
