"""Rows by binary COPY: every type comes back as it was, also where text is not as wide as usual."""

from uuid import UUID

import pandas as pd
import pytest
from sqlalchemy import Engine

from market_pipeline.domain.errors import StorageError
from market_pipeline.storage.bulk.copy_out import (
    IDENTITY,
    INTEGER,
    NUMBER,
    TIME,
    WORD,
    WORDS,
    read_copied,
)

COLUMNS = {
    "n": INTEGER, "word": WORDS, "same": WORD, "x": NUMBER, "run": IDENTITY, "at": TIME,
}  # fmt: skip
RUN = "8c2d6a3e-6a0f-4f0e-9d3d-0d6f0d1f2a3b"


def read(engine: Engine, *words: str | None) -> pd.DataFrame:
    """Return a row for each word, numbered, every second one with number and run."""
    named = ", ".join(f"(CAST(:word{at} AS text))" for at in range(len(words))) or "(NULL)"

    def build(selected: str) -> str:
        return f"""SELECT {selected} FROM (SELECT row_number() OVER () AS n, word, word AS same,
            CASE WHEN row_number() OVER () % 2 = 1 THEN 0.5::float8 END AS x,
            CASE WHEN row_number() OVER () % 2 = 1 THEN '{RUN}'::uuid END AS run,
            timestamptz '2024-02-29 23:59:59.999999Z' AS at
            FROM (VALUES {named}) given (word)) row ORDER BY n LIMIT {len(words)}"""

    parameters = {f"word{at}": word for at, word in enumerate(words)}
    with engine.connect() as connection:
        return read_copied(connection, build, COLUMNS, parameters)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("base",),
        ("base", "none", "base"),
        ("base", "base", "quote", "base"),
        ("é", "base", "₿🙂"),
        ("é", "ab"),
        ("", ""),
        ("", "a b", "x" * 32),
    ],
)
def test_words_come_back_as_they_were(engine: Engine, words: tuple[str, ...]) -> None:
    """Of one width or not, in letters of several bytes, in runs or not."""
    rows = read(engine, *words)
    assert list(rows["word"]) == list(rows["same"]) == list(words)
    assert list(rows["n"]) == list(range(1, len(words) + 1))
    assert list(rows["x"].dropna()) == [0.5] * ((len(words) + 1) // 2)
    assert set(rows["run"].dropna()) <= {str(UUID(RUN))}
    assert (rows["at"] == pd.Timestamp("2024-02-29 23:59:59.999999Z")).all()
    assert [str(kind) for kind in rows.dtypes] == [
        "int64", "str", "str", "float64", "str", "datetime64[us, UTC]",
    ]  # fmt: skip


def test_text_that_is_too_long_is_cut(engine: Engine) -> None:
    """At the same place, whether all of it is as long or not."""
    for words in (("x" * 40, "y" * 40), ("x" * 40, "y")):
        rows = read(engine, *words)
        assert list(rows["word"]) == list(rows["same"]) == [word[:32] for word in words]


def test_a_null_where_there_can_be_none_is_an_error(engine: Engine) -> None:
    """Rather than rows that are shifted."""
    with pytest.raises(StorageError, match="NULL"):
        read(engine, "base", None)


@pytest.mark.parametrize("last", ["base", "other"])
def test_many_rows_come_in_pieces(engine: Engine, last: str) -> None:
    """Rows that lie in two pieces are whole, also where the last one has text of another width."""
    count = 30_000
    query = f"""SELECT n, CASE n WHEN {count} THEN '{last}' ELSE 'base' END AS word,
        n / 2.0::float8 AS x, timestamptz '2024-01-01Z' + n * interval '1 hour' AS at
        FROM generate_series(1::bigint, {count}) n"""
    columns = {"n": INTEGER, "word": WORD, "x": NUMBER, "at": TIME}
    with engine.connect() as connection:
        rows = read_copied(connection, lambda sent: f"SELECT {sent} FROM ({query}) t", columns, {})
    assert rows["n"].tolist() == list(range(1, count + 1))
    assert rows["x"].sum() == count * (count + 1) / 4
    assert rows["at"].iloc[-1] == pd.Timestamp("2024-01-01", tz="UTC") + pd.Timedelta(hours=count)
    assert rows["word"].tolist() == ["base"] * (count - 1) + [last]
