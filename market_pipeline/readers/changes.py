"""The bars that changed between two dataset versions."""

import re
from collections.abc import Sequence

from sqlalchemy import Connection, Engine

from market_pipeline.domain.errors import HistoryRequestError
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.resolve import check_version, find_markets
from market_pipeline.storage.bars.changes import Changes, read_changed_bars
from market_pipeline.storage.bars.history import read_newest_version

_VERSIONS = re.compile(r"(\d{1,18})\.\.(\d{1,18})", re.ASCII)


def parse_versions(text: str) -> tuple[int, int]:
    """Return the two versions of ``VERSION..VERSION``.

    Raises:
        HistoryRequestError: It is malformed, or the first is above the second.
    """
    found = _VERSIONS.fullmatch(text)
    if found is None:
        raise HistoryRequestError(f"versions {text[:40]!r}: expected two numbers, such as 12..15")
    older, newer = int(found[1]), int(found[2])
    if older > newer:
        raise HistoryRequestError(
            f"versions {text!r}: the first is newer than the second: try {newer}..{older}"
        )
    return older, newer


def read_changes(
    older: int,
    newer: int,
    symbols: str | Sequence[str] | None = None,
    limit: int | None = None,
    engine: Engine | Connection | None = None,
) -> Changes:
    """Return the final bars that differ between two dataset versions, each once.

    Args:
        older: A dataset version; 0 is the empty one before the first.
        newer: A later one.
        symbols: Of these markets only, named as for ``read_aggregates``; None: of all.
        limit: Return so many rows at most; the total counts all.
        engine: Of ``open_database``; None opens the database for this question.

    Raises:
        UnknownMarketError: Names every symbol that is not stored.
        HistoryRequestError: A version does not exist, or ``older`` is above ``newer``.
        StorageError: The database cannot be opened; one handed in raises SQLAlchemy's own errors.
    """
    parse_versions(f"{older}..{newer}")
    with open_snapshot(engine) as connection:
        newest = read_newest_version(connection)
        for version in (older, newer):
            check_version(version, newest)
        chosen = None if symbols is None else list(find_markets(connection, symbols))
        return read_changed_bars(connection, older, newer, chosen, limit)
