"""Answers in the requested format, with their age, source and dataset version.

The format is JSON unless ``?format=`` or ``Accept`` asks for another. Tables also come as CSV,
Parquet and Arrow. A table no longer than a page is sent as a whole, with its length. Longer tables
are streamed. Not here: the encoding itself (``readers.encoding``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from market_pipeline.api.problems import ProblemError, describe_problems
from market_pipeline.readers.encoding import ENCODERS, encode_json, list_records

MAX_ROWS = 10_000
"""A page has no more."""
MEDIA_TYPES = {
    "json": "application/json",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.stream",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_TEXT, _WHOLE = {"schema": {"type": "string"}}, {"schema": {"type": "integer"}}
_OTHER_FORMATS: Mapping[str, Any] = {
    MEDIA_TYPES["csv"]: _TEXT,
    MEDIA_TYPES["parquet"]: _BINARY,
    MEDIA_TYPES["arrow"]: _BINARY,
}
_HEADERS: Mapping[str, Any] = {
    "Age": {**_WHOLE, "description": "Seconds since the values were read from the database"},
    "X-Source": {**_TEXT, "description": "cache or database"},
    "X-Dataset-Version": {**_WHOLE, "description": "Missing before the first bar"},
}
_ETAG = {"ETag": {**_TEXT, "description": "Changes with the data, and with nothing else"}}
_CURSOR = {"X-Next-Cursor": {**_TEXT, "description": "Where the next page begins; none at the end"}}


def describe_table(
    *problems: int, is_tagged: bool = False, is_paged: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route that answers with a table, or with these problems too."""
    headers = {**_HEADERS, **(_ETAG if is_tagged else {}), **(_CURSOR if is_paged else {})}
    unchanged = {"description": "The data of If-None-Match still holds", "headers": dict(_ETAG)}
    return {
        200: {"content": dict(_OTHER_FORMATS), "headers": headers},
        **({304: unchanged} if is_tagged else {}),
        **describe_problems(400, 406, 503, *problems),
    }


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of an answer: from ``cache`` or ``database``, and of which version of the data.

    The age counts from when it was read from the database. The ``etag`` changes with every change
    of the data.
    """

    source: str = "database"
    dataset_version: int | None = None
    age_seconds: float = 0.0
    etag: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every format. What is kept must be asked about before it is shown."""
        told = {
            "Age": str(int(self.age_seconds)),
            "X-Source": self.source,
            "X-Dataset-Version": "" if self.dataset_version is None else str(self.dataset_version),
            "ETag": self.etag,
            "Cache-Control": "private, no-cache",
            "Vary": "Accept, Authorization, Cookie",
        }
        return {name: value for name, value in told.items() if value}


def choose_format(request: Request, given: str | None) -> str:
    """Return ``json``, ``csv``, ``parquet`` or ``arrow``: the one given, else by ``Accept``.

    When nothing in ``Accept`` can be had, the problem is 406.
    """
    if given is not None:
        return given
    wanted = _rank_accepted(request.headers.get("accept") or "*/*")
    for media_range in wanted:
        for name, media_type in MEDIA_TYPES.items():
            if media_range in {media_type, "*/*", f"{media_type.partition('/')[0]}/*"}:
                return name
    detail = f"this comes as {', '.join(MEDIA_TYPES.values())}"
    raise ProblemError(406, "Not Acceptable", detail)


def _rank_accepted(accept: str) -> list[str]:
    """Return media ranges, the preferred first; those with q=0 are refused."""
    ranked = []
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        ranked.append((_read_quality(parameters), media_range))
    ranked.sort(key=lambda choice: -choice[0])  # stable: the order given decides between equals
    return [media_range for quality, media_range in ranked if quality > 0]


def _read_quality(parameters: list[str]) -> float:
    values = [parameter.partition("=")[2] for parameter in parameters if parameter.startswith("q=")]
    try:
        return float(values[0]) if values else 1.0
    except ValueError:
        return 0.0


def make_etag(stamp: int | str, kind: str) -> str:
    """Return the tag of data with a stamp, in a format."""
    return f'W/"{stamp}-{kind}"'


def build_table(rows: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> pd.DataFrame:
    """Return rows as a frame with the fields of a model, also when there are none."""
    return pd.DataFrame(rows, columns=list(model.model_fields))


def answer_unchanged(request: Request, origin: Origin) -> Response | None:
    """Return 304 when the asker has the data of this tag already."""
    given = request.headers.get("if-none-match", "")
    known = {tag.strip().removeprefix("W/") for tag in given.split(",")}
    if origin.etag is None or not known & {origin.etag.removeprefix("W/"), "*"}:
        return None
    return Response(status_code=304, headers=origin.headers)


def answer_table(
    kind: str,
    rows: pd.DataFrame,
    origin: Origin,
    name: str,
    next_cursor: str | None = None,
    **members: object,
) -> Response:
    """Return rows in a format of ``choose_format``.

    ``name`` is that of the file that a browser saves. ``next_cursor``, where the next page begins,
    is also a header. ``members`` are what JSON tells beside the rows.
    """
    headers = origin.headers | ({"X-Next-Cursor": next_cursor} if next_cursor else {})
    if kind == "json":
        told = {**members, "dataset_version": origin.dataset_version}
        body = {**told, "next_cursor": next_cursor, "data": list_records(rows)}
        return Response(encode_json(body), headers=headers, media_type=MEDIA_TYPES[kind])
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    headers["Content-Disposition"] = f'attachment; filename="{safe}.{kind}"'
    pieces = ENCODERS[kind](rows)
    if len(rows) <= MAX_ROWS:
        return Response(b"".join(pieces), headers=headers, media_type=MEDIA_TYPES[kind])
    return StreamingResponse(pieces, headers=headers, media_type=MEDIA_TYPES[kind])
