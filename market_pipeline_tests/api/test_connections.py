"""Connections: what a stranger may cost before there is a request, and that others are answered."""

import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from market_pipeline.api.connections import ConnectionLimits, bound_connections
from market_pipeline_tests.system.processes import wait_for

SHORT = ConnectionLimits(header_seconds=0.5, body_seconds=1.0, connections=20)
PATIENT = ConnectionLimits()
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
OPEN_HEADER = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
DEADLINE_SECONDS = 60.0
PIECE = b"x" * 65_536
ENDLESS_BYTES = 50_000_000
IDLE_CONNECTIONS = 1_500


class Server:
    """A server in this process whose one route answers, or waits until it is let go."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.let_go = threading.Event()
        self.bodies: list[bytes] = []
        app = Starlette(
            routes=[
                Route("/", self._answer, methods=["GET", "POST"]),
                Route("/read", self._read, methods=["POST"]),
                Route("/wait", self._wait, methods=["GET", "POST"]),
            ]
        )
        config = uvicorn.Config(
            app, port=0, http=bound_connections(limits), ws="none", log_config=None, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def start(self) -> None:
        """Start, and wait until it listens."""
        self._thread.start()
        wait_for(lambda: self._server.started, DEADLINE_SECONDS, "the server")

    def stop(self) -> None:
        """End it."""
        self.let_go.set()
        self._server.should_exit = True
        self._thread.join(DEADLINE_SECONDS)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    def count_connections(self) -> int:
        """Return how many connections are open."""
        return len(self._server.server_state.connections)

    def has_taken(self, count: int) -> bool:
        """Tell whether the server has so many bytes of some unfinished request."""
        connections = [*self._server.server_state.connections]
        return any(getattr(one, "taken_bytes", 0) == count for one in connections)

    def wait_until_taken(self, count: int) -> None:
        """Wait until the server has so many bytes of some unfinished request."""
        wait_for(lambda: self.has_taken(count), DEADLINE_SECONDS, "the first piece to arrive")

    async def _answer(self, request: Request) -> PlainTextResponse:
        del request
        return PlainTextResponse("ok")

    async def _read(self, request: Request) -> PlainTextResponse:
        self.bodies.append(await request.body())
        return PlainTextResponse("read")

    def _wait(self, request: Request) -> PlainTextResponse:
        del request
        self.let_go.wait(DEADLINE_SECONDS)
        return PlainTextResponse("waited")


@contextmanager
def run_server(limits: ConnectionLimits) -> Iterator[Server]:
    """Serve with limits of the test's own."""
    server = Server(limits)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with short limits."""
    with run_server(SHORT) as running:
        yield running


@pytest.fixture(scope="module")
def patient() -> Iterator[Server]:
    """A server with the product's limits, where a test's own pauses are to matter to nobody."""
    with run_server(PATIENT) as running:
        yield running


def connect(port: int) -> socket.socket:
    """Return a connection that fails rather than waits for ever."""
    return socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_SECONDS)


def read_to_end(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes."""
    got = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65_536):
            got += piece
    return got


def read_answer(connection: socket.socket) -> bytes:
    """Return an answer of the route that answers at once."""
    got = b""
    while not got.endswith(b"ok"):
        piece = connection.recv(65_536)
        assert piece, got
        got += piece
    return got


def drip(connections: list[socket.socket], piece: bytes) -> None:
    """Send a piece on each connection again and again, until the server has closed them all."""
    end = time.monotonic() + DEADLINE_SECONDS
    while connections:
        assert time.monotonic() < end, f"{len(connections)} connections are still open"
        connections = [one for one in connections if is_open_after(one, piece)]
        time.sleep(0.05)


def is_open_after(connection: socket.socket, piece: bytes) -> bool:
    """Send a piece and tell whether the connection is open."""
    connection.settimeout(0.001)
    try:
        connection.sendall(piece)
        return connection.recv(65_536)[:12] not in (b"", b"HTTP/1.1 408")
    except TimeoutError:
        return True
    except OSError:
        return False


def ask(port: int, path: str = "/") -> int:
    """Ask as a bystander does, on a connection of its own, and return the status."""
    address = f"http://127.0.0.1:{port}{path}"
    return httpx.get(address, timeout=DEADLINE_SECONDS, trust_env=False).status_code


def send_endlessly(connection: socket.socket, start: bytes) -> int:
    """Send 50 MB after a start, and return how many bytes went before the server closed."""
    sent = 0
    with suppress(ConnectionError):
        connection.sendall(start)
        while sent < ENDLESS_BYTES:
            connection.sendall(PIECE)
            sent += len(PIECE)
    return sent


def test_g8_an_endless_header_is_cut_off_while_others_are_answered(served: httpx.Client) -> None:
    """The real command takes no more of it than the limit, and what buffers of the kernel hold."""
    port = served.base_url.port
    assert port is not None
    with connect(port) as attacker:
        sent: list[int] = []
        sender = threading.Thread(target=lambda: sent.append(send_endlessly(attacker, OPEN_HEADER)))
        sender.start()
        assert ask(port, "/healthz") == 200
        sender.join(DEADLINE_SECONDS)
    assert sent[0] < ENDLESS_BYTES / 2
    assert ask(port, "/healthz") == 200


@contextmanager
def raise_file_limit(wanted: int) -> Iterator[None]:
    """Let this process have as many sockets as a test needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_idle_connections_give_way_to_those_who_ask(served: httpx.Client) -> None:
    """Of 1,500 that say nothing the real command keeps a part, and a newcomer is answered."""
    port = served.base_url.port
    assert port is not None
    with raise_file_limit(2 * IDLE_CONNECTIONS), ExitStack() as stack:
        idle = [stack.enter_context(connect(port)) for _ in range(IDLE_CONNECTIONS)]
        assert ask(port, "/healthz") == 200
        for one in idle:
            one.setblocking(False)
        wait_for(lambda: sum(map(has_ended, idle)) >= 1_000, DEADLINE_SECONDS, "them to be closed")


def has_ended(connection: socket.socket) -> bool:
    """Tell whether the server closed a connection of which all that it sent was read."""
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_a_header_too_long_is_told_so(patient: Server) -> None:
    """431, whether it is one long line or many short ones; then the connection is closed."""
    for filler in (b"x" * 40_000, b"1\r\nX: " * 8_000):
        with connect(patient.port) as connection:
            connection.sendall(OPEN_HEADER + filler)
            assert read_to_end(connection).startswith(b"HTTP/1.1 431 ")


def test_a_header_just_under_the_limit_is_taken(patient: Server) -> None:
    """The limit is one on the header: a body in the same packet does not count."""
    filler = b"x" * (PATIENT.header_bytes - len(OPEN_HEADER) - 200)
    length = b"\r\nContent-Length: 60000\r\nConnection: close\r\n\r\n"
    with connect(patient.port) as connection:
        connection.sendall(OPEN_HEADER.replace(b"GET / ", b"POST /read ") + filler + length)
        connection.sendall(b"b" * 60_000)
        assert read_to_end(connection).startswith(b"HTTP/1.1 200 ")
    assert patient.bodies[-1] == b"b" * 60_000


def test_dripping_headers_are_closed_while_others_are_answered(server: Server) -> None:
    """A byte now and then buys no more time than silence does."""
    with ExitStack() as stack:
        dripping = [stack.enter_context(connect(server.port)) for _ in range(50)]
        for one in dripping[-SHORT.connections // 2 :]:
            one.sendall(OPEN_HEADER)
        assert ask(server.port) == 200
        drip(dripping, b"x")


@pytest.mark.parametrize(("start", "piece"), [(OPEN_HEADER, b"x"), (b"", b"\r\n")])
def test_the_next_header_on_a_connection_is_bounded_too(
    server: Server, start: bytes, piece: bytes
) -> None:
    """After an answer the same time counts, and empty lines before a header are part of it."""
    began = time.monotonic()
    with connect(server.port) as connection:
        connection.sendall(REQUEST)
        if has_passed(SHORT.header_seconds, began):
            return  # A busy machine took too long over the first header already.
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(start)
        drip([connection], piece)


def test_the_next_header_on_a_connection_has_its_own_limit(patient: Server) -> None:
    """Many requests on one connection add up to nothing."""
    wait_for(lambda: patient.count_connections() == 0, DEADLINE_SECONDS, "other tests' to end")
    with httpx.Client(base_url=f"http://127.0.0.1:{patient.port}", trust_env=False) as client:
        for _ in range(5):
            answer = client.post("/read", content=b"b" * 30_000, headers={"X": "x" * 10_000})
            assert answer.status_code == 200
        assert patient.count_connections() == 1


def test_headers_in_pieces_add_up_to_nothing_either(patient: Server) -> None:
    """What is counted of a header is counted from the end of the message before."""
    with connect(patient.port) as connection:
        for _ in range(5):
            connection.sendall(OPEN_HEADER + b"x" * 10_000)
            patient.wait_until_taken(len(OPEN_HEADER) + 10_000)
            connection.sendall(b"\r\n\r\n")
            assert read_answer(connection).startswith(b"HTTP/1.1 200 ")


def test_each_header_of_a_busy_connection_has_its_own_time(server: Server) -> None:
    """Also where the end of one comes with the start of the next, as in a steady pipeline."""
    start, rest = REQUEST[:20], REQUEST[20:]
    began = opened = time.monotonic()
    with connect(server.port) as connection:
        connection.sendall(start)
        while time.monotonic() < began + 2 * SHORT.header_seconds:
            time.sleep(0.05)
            last, opened = opened, time.monotonic()
            if not is_open_after(connection, rest + start):
                # Then only because a busy machine really took that long over one header.
                assert time.monotonic() - last > SHORT.header_seconds
                break


@pytest.mark.parametrize("path", [b"/", b"/read"])
def test_g8_a_dripping_body_is_closed(server: Server, path: bytes) -> None:
    """Whether the route reads it or has answered already."""
    with connect(server.port) as connection:
        connection.sendall(
            b"POST " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n"
        )
        drip([connection], b"x")


def test_endless_trailers_are_cut_off(patient: Server) -> None:
    """What follows a chunked body is a header as well."""
    start = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
    with connect(patient.port) as connection:
        assert send_endlessly(connection, start) < ENDLESS_BYTES / 2


def test_a_flood_of_requests_on_one_connection_is_cut_off(patient: Server) -> None:
    """Requests sent before the answers to those before them wait in no endless queue."""
    with connect(patient.port) as connection:
        with suppress(ConnectionError):
            connection.sendall(REQUEST.replace(b" / ", b" /wait ") + REQUEST * 50_000)
        patient.let_go.set()
        answers = read_to_end(connection)
    assert answers.count(b"HTTP/1.1 200 ") < 1_000
    patient.let_go.clear()


def test_a_few_requests_ahead_are_answered_in_order(patient: Server) -> None:
    """Pipelining as such is allowed."""
    with connect(patient.port) as connection:
        connection.sendall(
            REQUEST * 9 + REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        assert read_to_end(connection).count(b"HTTP/1.1 200 ") == 10


def test_connections_at_work_are_not_given_up_for_new_ones() -> None:
    """When all are at work the newcomer hears 503; none at work is closed."""
    with run_server(ConnectionLimits(connections=3)) as server, ExitStack() as stack:
        busy = [stack.enter_context(connect(server.port)) for _ in range(3)]
        for one in busy:
            one.sendall(b"GET /wait HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        wait_for(lambda: server.count_connections() == 3, DEADLINE_SECONDS, "the connections")
        newcomer = stack.enter_context(connect(server.port))
        answer = read_to_end(newcomer)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in answer
        server.let_go.set()
        for one in busy:
            assert read_to_end(one).endswith(b"waited")


def test_of_those_that_were_answered_the_one_longest_idle_gives_way() -> None:
    """Not the one that connected first: that one has asked again since."""
    with run_server(ConnectionLimits(connections=3)) as server, ExitStack() as stack:
        first, second, third = (stack.enter_context(connect(server.port)) for _ in range(3))
        for one in (first, second, third, first):
            one.sendall(REQUEST)
            read_answer(one)
        assert ask(server.port) == 200
        assert read_to_end(second) == b""
        for one in (first, third):
            one.setblocking(False)
            assert not has_ended(one)


def has_passed(seconds: float, began: float) -> bool:
    """Tell whether a limit has passed since then, as on a busy machine."""
    return time.monotonic() - began > seconds


def ask_in_pieces(server: Server, connection: socket.socket, method: bytes, began: float) -> bool:
    """Ask for what waits, with a body in two pieces if it is a POST; tell whether it was in time.

    A header's time counts from the connection, so that it began before there was one.
    """
    header = method + b" /wait HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    first = header + (b"Content-Length: 4\r\n\r\nbo" if method == b"POST" else b"\r\n")
    connection.sendall(first)
    if has_passed(SHORT.header_seconds, began):
        return False
    if method == b"GET":
        return True
    # One that is late is closed, and then nothing of it is left to wait for.
    wait_for(
        lambda: server.has_taken(len(first)) or has_passed(SHORT.body_seconds, began),
        DEADLINE_SECONDS,
        "the first piece to arrive",
    )
    connection.sendall(b"dy")
    return not has_passed(SHORT.body_seconds, began)


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_an_answer_may_take_longer_than_its_request(server: Server, method: bytes) -> None:
    """Only the asker's part is timed, also where a body came in pieces."""
    dripping = OPEN_HEADER.replace(b"GET", b"POST") + b"1\r\nContent-Length: 1000\r\n\r\n"
    began = time.monotonic()
    with connect(server.port) as connection, connect(server.port) as other:
        is_in_time = ask_in_pieces(server, connection, method, began)
        other.sendall(dripping)
        drip([other], b"x")
        server.let_go.set()
        assert not is_in_time or connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
    server.let_go.clear()


def test_an_upgrade_is_answered_as_a_plain_request(patient: Server) -> None:
    """There is no websocket and no HTTP/2 here; who offers them gets the page."""
    for upgrade in (b"websocket", b"h2c"):
        with connect(patient.port) as connection:
            connection.sendall(
                b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: "
                + upgrade
                + b"\r\nSec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\n"
                b"Sec-WebSocket-Version: 13\r\n\r\n"
            )
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
