"""The rows that a statement returns, as mappings or as a frame."""

from typing import Any

import pandas as pd
from sqlalchemy import Connection, Select, TextClause

Row = dict[str, Any]


def fetch(connection: Connection, query: "TextClause | Select[Any]", **values: Any) -> list[Row]:
    """Return a query's rows as mappings; ``values`` are what it calls ``:name``."""
    return [dict(row) for row in connection.execute(query, values).mappings()]


def read_frame(
    connection: Connection, query: "TextClause | Select[Any]", **values: Any
) -> pd.DataFrame:
    """Return a query's rows as a frame with its column names, also when there are none."""
    result = connection.execute(query, values)
    # Plain tuples: of a row with names pandas asks each for its fields.
    return pd.DataFrame(list(map(tuple, result)), columns=list(result.keys()))
