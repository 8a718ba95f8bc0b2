"""Scripts and style sheets from this server; an address changes with its content."""

import gzip
import hashlib
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from market_pipeline.api.problems import ProblemError

router = APIRouter(include_in_schema=False)
_FOREVER = "private, max-age=31536000, immutable"
_STATIC = Path(__file__).resolve().parent.parent / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@router.get("/assets/{digest}/{name}")
def send_asset(digest: str, name: str, request: Request) -> Response:
    """Send a file that never changes under its address."""
    if name not in list_assets() or digest != find_digest(name):
        raise ProblemError(404, "Not Found", "no such script or style sheet: load the page again")
    headers = {"Cache-Control": _FOREVER, "Vary": "Accept-Encoding"}
    media_type = _TYPES[Path(name).suffix]
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(compress(name), headers=headers, media_type=media_type)
    return Response(read_asset(name), headers=headers, media_type=media_type)


def find_asset_path(name: str) -> str:
    """Return the address of a file, which holds a digest of it."""
    return f"/assets/{find_digest(name)}/{name}"


@lru_cache(maxsize=1)
def list_assets() -> dict[str, Path]:
    """Return every served file by its name."""
    return {path.name: path for path in _STATIC.iterdir() if path.suffix in _TYPES}


@lru_cache(maxsize=32)
def find_digest(name: str) -> str:
    """Return the first digits of a file's SHA-256."""
    return hashlib.sha256(read_asset(name)).hexdigest()[:16]


@lru_cache(maxsize=32)
def read_asset(name: str) -> bytes:
    """Return a file, read once."""
    return list_assets()[name].read_bytes()


@lru_cache(maxsize=32)
def compress(name: str) -> bytes:
    """Return a file compressed, once."""
    return gzip.compress(read_asset(name), 6, mtime=0)
