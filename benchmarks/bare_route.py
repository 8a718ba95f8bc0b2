"""A bare Starlette route that answers the bytes of a file: what a served value is compared with."""

import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def build_app(body: bytes, headers: dict[str, str]) -> Starlette:
    """Return an app whose only route answers a body with headers."""

    async def answer(request: Request) -> Response:
        del request
        return Response(body, headers=headers, media_type="application/json")

    return Starlette(routes=[Route("/latest", answer)])


if __name__ == "__main__":
    file, port = sys.argv[1:]
    uvicorn.run(
        build_app(Path(file).read_bytes(), {"ETag": 'W/"1-json"', "Age": "1"}),
        port=int(port), access_log=False, log_level="warning", server_header=False,
    )  # fmt: skip
