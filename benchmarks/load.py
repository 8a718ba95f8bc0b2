"""``python -m benchmarks.load URL CONNECTIONS SECONDS``: ask one address as often as it answers.

A process of its own, on bare sockets, so that it costs less than what it measures. Each connection
asks again as soon as it was answered. Prints requests, seconds, and the 50th and 99th percentile
of the milliseconds that an answer took, as JSON.
"""

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"


async def ask_repeatedly(url: str, until: float, taken: list[float]) -> None:
    """Ask over one connection until a moment of the monotonic clock.

    Raises:
        RuntimeError: An answer was not 200.
    """
    parts = urlsplit(url)
    request = (
        f"GET {parts.path}{'?' if parts.query else ''}{parts.query} HTTP/1.1\r\n"
        f"Host: {parts.netloc}\r\nAccept: */*\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    while time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(_END_OF_HEAD)
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode("latin-1"))
        await reader.readexactly(_read_length(head))
        taken.append(time.perf_counter() - began)
    writer.close()


def _read_length(head: bytes) -> int:
    lower = head.lower()
    begin = lower.index(_LENGTH) + len(_LENGTH)
    return int(lower[begin : lower.index(b"\r", begin)])


async def load(url: str, connections: int, seconds: float) -> dict[str, float]:
    """Ask over many connections at once, and return what it came to."""
    taken: list[float] = []
    began = time.perf_counter()
    await asyncio.gather(*(ask_repeatedly(url, began + seconds, taken) for _ in range(connections)))
    ordered = sorted(taken)
    return {
        "requests": len(ordered),
        "seconds": time.perf_counter() - began,
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
    }


if __name__ == "__main__":
    address, count, duration = sys.argv[1:]
    print(json.dumps(asyncio.run(load(address, int(count), float(duration)))))  # noqa: T201
