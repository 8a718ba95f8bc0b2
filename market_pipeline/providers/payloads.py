"""Bytes on the wire as values: whole bodies, strict JSON, and the message within an error's body.

Here: pure functions that refuse what is cut short, too big or not JSON. Bodies are inflated here,
because httpx accepts a gzip body that is cut in half or has no checksum, and inflates any size.
Not here: sockets (``http.py``) and the meaning of the values (each provider's parser).
"""

import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import NoReturn

import numpy as np
import pandas as pd

from market_pipeline.domain.arrays import FloatArray
from market_pipeline.domain.errors import PermanentProviderError, ProviderError
from market_pipeline.observability.redaction import redact

MAX_INTEGER_DIGITS = 40
_NUMBER_TYPES = (int, float, type(None))
_DECIMAL = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?")


class BodyError(Exception):
    """A body is too big, cut short, or in an encoding that was not requested."""

    def __init__(self, message: str, *, is_permanent: bool = False) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


def read_body(chunks: Iterable[bytes], headers: Mapping[str, str], max_bytes: int) -> bytes:
    """Return a body, decompressed, and only when its end was seen.

    Args:
        chunks: The body as it comes from the wire.
        headers: Lower-case names.
        max_bytes: The cap, before and after decompression.

    Raises:
        BodyError: Too big, cut short, or neither gzip nor identity.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        return _gunzip(chunks, max_bytes)
    if encoding not in ("identity", ""):
        raise BodyError(f"in the encoding {encoding[:20]!r} instead of gzip", is_permanent=True)
    if "content-length" not in headers and "transfer-encoding" not in headers:
        raise BodyError("a body that does not say where it ends")
    # A body shorter than its Content-Length or without a last chunk is refused by httpx itself.
    return b"".join(_limit(chunks, max_bytes))


def _limit(chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > max_bytes:
            raise BodyError(f"more than {max_bytes} bytes", is_permanent=True)
        yield chunk


def _gunzip(chunks: Iterable[bytes], max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    body = bytearray()
    try:
        for chunk in _limit(chunks, max_bytes):
            body += inflater.decompress(chunk, max_bytes + 1 - len(body))
            if len(body) > max_bytes:
                raise BodyError(f"more than {max_bytes} bytes unpacked", is_permanent=True)
    except zlib.error as error:
        raise BodyError(f"broken gzip ({error})") from None
    if not inflater.eof or inflater.unused_data:
        raise BodyError("a gzip body without its proper end")
    return bytes(body)


def parse_json(provider: str, body: bytes) -> object:
    """Return what a JSON body says, refusing what JSON does not have.

    Raises:
        PermanentProviderError: Not UTF-8, not JSON, NaN or infinite or absurdly long numbers, a key
            given twice, or nesting too deep to read.
    """
    try:
        return json.loads(
            body.decode("utf-8"),
            parse_float=_parse_float,
            parse_int=_parse_int,
            parse_constant=_refuse_constant,
            object_pairs_hook=_build_object,
        )
    except (ValueError, RecursionError) as error:
        reason = clean_text(str(error))[:100]
        raise PermanentProviderError(
            provider, f"answered {len(body)} bytes that are not JSON: {reason}", 200
        ) from None


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:20]} is out of range")
    return value


def _parse_int(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _build_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    built = dict(pairs)
    if len(built) != len(pairs):
        raise ValueError("a key is given twice")
    return built


def read_error_message(body: bytes) -> str:
    """Return what an error's body says, on one line of at most 200 characters; never a web page."""
    try:
        said = _find_message(parse_json("", body))
    except ProviderError:
        said = body.decode("utf-8", "replace")
    text = clean_text(redact(said))[:200]  # A gateway may quote the key it refuses.
    return "" if text.startswith("<") else text


def _find_message(node: object) -> str:
    """Return the first text under a name that errors use, looking inside what is nested."""
    if isinstance(node, list) and node:
        return _find_message(node[0])
    if not isinstance(node, dict):
        return node if isinstance(node, str) else ""
    for name in (
        "error_message",
        "description",
        "message",
        "msg",
        "error",
        "status",
        "chart",
        "finance",
    ):
        said = _find_message(node.get(name))
        if said:
            return said
    return ""


def clean_text(text: str) -> str:
    """Return the text on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def read_field(provider: str, node: object, *path: str | int) -> object:
    """Return the value at a path of keys and positions inside parsed JSON.

    Raises:
        PermanentProviderError: There is no such place; the message names it.
    """
    for depth, step in enumerate(path, start=1):
        found = isinstance(node, dict) and step in node
        if isinstance(node, list) and isinstance(step, int):
            found = step < len(node)
        if not found:
            place = ".".join(str(part) for part in path[:depth])
            raise PermanentProviderError(provider, f"answer has no {place}: did its shape change?")
        node = node[step]  # type: ignore[index]
    return node


def parse_rows(provider: str, place: str, node: object, width: int) -> list[list[object]]:
    """Return a JSON list of rows as its first columns.

    Raises:
        PermanentProviderError: No list, or a row in it is no list or too short.
    """
    if not isinstance(node, list) or not all(isinstance(r, list) and len(r) >= width for r in node):
        raise PermanentProviderError(provider, f"{place} is not a list of rows of {width} cells")
    return [[row[at] for row in node] for at in range(width)]


def parse_columns(provider: str, place: str, node: object, width: int) -> list[FloatArray]:
    """Return a JSON list of rows of numbers as its first columns, null as NaN.

    Raises:
        PermanentProviderError: Another shape, or something in it is neither a number nor null.
    """
    columns = parse_rows(provider, place, node, width)
    return [parse_numbers(provider, place, column) for column in columns]


def parse_decimals(provider: str, place: str, node: object) -> FloatArray:
    """Return a JSON list of numbers, each in quotes, as an array.

    Raises:
        PermanentProviderError: No list, or something in it is no number in quotes.
    """
    if not isinstance(node, list) or not all(map(_is_decimal, node)):
        raise PermanentProviderError(provider, f"{place} is not a list of numbers in quotes")
    return np.array([float(text) for text in node], dtype=np.float64)


def _is_decimal(text: object) -> bool:
    return isinstance(text, str) and _DECIMAL.fullmatch(text) is not None


def parse_numbers(provider: str, place: str, node: object) -> FloatArray:
    """Return a JSON list of numbers as an array, null as NaN.

    Raises:
        PermanentProviderError: No list, or something in it is neither a number nor null.
    """
    if not isinstance(node, list) or not all(type(value) in _NUMBER_TYPES for value in node):
        raise PermanentProviderError(provider, f"{place} is not a list of numbers")
    return np.array([np.nan if value is None else value for value in node], dtype=np.float64)


def parse_time(provider: str, place: str, node: object) -> datetime:
    """Return an ISO 8601 time in UTC.

    Raises:
        PermanentProviderError: It is something else, or names no zone.
    """
    try:
        moment = datetime.fromisoformat(str(node))
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise PermanentProviderError(
            provider, f"{place} is {str(node)[:40]!r}, expected ISO 8601 and Z"
        )
    return moment.astimezone(UTC)


def parse_stamps(
    provider: str, place: str, seconds: FloatArray, earliest: float = -6e9
) -> pd.DatetimeIndex:
    """Return epoch seconds as UTC times, refusing what another unit would look like.

    Args:
        provider: For the message.
        place: For the message.
        seconds: Epoch seconds, fractions to the microsecond.
        earliest: The least second that is plausible; the greatest is the year 2100.

    Raises:
        PermanentProviderError: A stamp is missing or outside the plausible years.
    """
    if not np.all((seconds >= earliest) & (seconds <= 4.2e9)):
        raise PermanentProviderError(
            provider, f"{place} holds stamps outside the plausible years: another unit?"
        )
    micros = np.round(seconds * 1e6).astype(np.int64)
    return pd.DatetimeIndex(micros.view("M8[us]"), tz="UTC")
