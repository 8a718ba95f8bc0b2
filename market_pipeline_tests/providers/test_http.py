"""The one door to the network, against a server that misbehaves in every known way."""

import gzip
import resource
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from market_pipeline.domain.errors import (
    PermanentProviderError,
    SettingError,
    TransientProviderError,
)
from market_pipeline.providers.http import HttpClient, parse_base_url
from market_pipeline_tests.cache.tls import TlsFront
from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.providers.clocks import QUICK, FakeTime
from market_pipeline_tests.replay import (
    Fault,
    ReplayServer,
    answer_with,
    close_after_answer,
    cut_gzip,
    drip,
    leave_unframed,
    read_recording,
    reset_connection,
    send_chunked,
    send_gzip,
    shorten_body,
    speak_http_1_0,
    throttle,
)

Client = Callable[..., HttpClient]
PING = {"gecko_says": "(V3) To the Moon!"}
ONCE = replace(QUICK, attempts=1)


def test_a_well_behaved_answer_is_returned_parsed(make_client: Client) -> None:
    """A plain answer, sent as gzip, comes back as its JSON value."""
    assert make_client().fetch_json("/ping") == PING


def test_a_request_says_who_asks_and_what_it_takes(
    make_client: Client, server: ReplayServer
) -> None:
    """Each request names its agent and asks for gzip alone, the one encoding that is checked."""
    make_client(key="secret").fetch_json("/ping", {"page": 1})
    (seen,) = server.requests
    assert seen.headers["user-agent"] == "Mozilla/5.0 (compatible; market-pipeline)"
    assert (seen.headers["accept-encoding"], seen.headers["key"]) == ("gzip", "secret")
    assert seen.query == {"page": "1"}


@pytest.mark.parametrize(
    ("name", "is_known", "expected"),
    [("127.0.0.1", True, PING), ("127.0.0.1", False, None), ("api.example", True, None)],
)
def test_s16_a_providers_certificate_is_checked(
    server: ReplayServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, is_known: bool, expected: object,
) -> None:  # fmt: skip
    """Neither an unknown authority nor another one's certificate is believed, nor tried again."""
    front = TlsFront(urlsplit(server.address).port or 0, tmp_path, name)
    if is_known:
        monkeypatch.setenv("SSL_CERT_FILE", str(front.authority))
    client = HttpClient("coingecko", f"https://127.0.0.1:{front.port}/coingecko", {}, QUICK)
    with nullcontext() if expected else pytest.raises(PermanentProviderError, match="CERTIFICATE"):
        assert client.fetch_json("/ping") == expected
    assert len(server.requests) == (1 if expected else 0)
    client.close()
    front.close()


@pytest.mark.parametrize(
    ("retry_after", "waited"),
    [
        ("7", 7.0),
        ("Mon, 15 Jan 2024 09:00:12 GMT", 12.0),
        ("31536000", 30.0),  # a year: believed up to the cap
        ("-5", 0.5),
        ("soon", 0.5),
        (None, 0.5),
    ],
)
def test_d1_a_throttled_request_waits_as_long_as_it_was_told(
    make_client: Client,
    server: ReplayServer,
    fake_time: FakeTime,
    retry_after: str | None,
    waited: float,
) -> None:
    """``Retry-After`` is honoured in both forms up to a cap; nonsense means the usual wait."""
    server.misbehave(throttle(retry_after))
    assert make_client().fetch_json("/ping") == PING
    assert fake_time.slept == [waited]


def test_d1_a_wait_that_does_not_fit_ends_the_call_and_later_ones_stay_away(
    make_client: Client, server: ReplayServer, fake_time: FakeTime
) -> None:
    """A client that cannot wait gives up at once, and asks nothing more until the time is over."""
    client = make_client(replace(QUICK, total_seconds=20.0))
    server.misbehave(throttle("25"))
    for _ in range(3):
        with pytest.raises(TransientProviderError) as failure:
            client.fetch_json("/ping")
        assert failure.value.status == 429
    assert (len(server.requests), fake_time.slept) == (1, [])
    fake_time.sleep(26.0)
    assert client.fetch_json("/ping") == PING


def test_d1_a_block_of_one_provider_does_not_touch_another(
    make_client: Client, server: ReplayServer
) -> None:
    """Each client keeps its own account of being blocked."""
    blocked, free = make_client(replace(QUICK, total_seconds=5.0)), make_client()
    server.misbehave(throttle("25"))
    with pytest.raises(TransientProviderError):
        blocked.fetch_json("/ping")
    assert free.fetch_json("/ping") == PING


@pytest.mark.parametrize("status", [408, 425, 500, 502, 503, 504, 520])
def test_d2_a_burst_of_server_errors_is_survived(
    make_client: Client, server: ReplayServer, fake_time: FakeTime, status: int
) -> None:
    """Three failures in a row are retried with doubling waits."""
    server.misbehave(answer_with(status=status), times=3)
    assert make_client().fetch_json("/ping") == PING
    assert fake_time.slept == [0.5, 1.0, 2.0]


def test_d2_retries_are_bounded(make_client: Client, server: ReplayServer) -> None:
    """After the last try the failure is reported as transient, with its status."""
    server.misbehave(answer_with(status=503), times=9)
    with pytest.raises(TransientProviderError, match=r"HTTP 503.*tries: 4") as failure:
        make_client().fetch_json("/ping")
    assert (failure.value.status, len(server.requests)) == (503, 4)


def test_d2_a_long_outage_is_not_answered_by_a_storm(
    make_client: Client, server: ReplayServer
) -> None:
    """Over many calls retries stay near a fifth of the requests, after a small reserve."""
    client = make_client()
    server.misbehave(answer_with(status=503), times=500)
    for _ in range(50):
        with pytest.raises(TransientProviderError):
            client.fetch_json("/ping")
    assert len(server.requests) <= 50 + 10 + 50 * 0.2


def test_d2_waits_end_with_the_total_deadline(
    make_client: Client, server: ReplayServer, fake_time: FakeTime
) -> None:
    """All tries and waits together stay below the total deadline."""
    server.misbehave(throttle("20"), times=9)
    with pytest.raises(TransientProviderError):
        make_client(replace(QUICK, total_seconds=50.0, attempts=99)).fetch_json("/ping")
    assert sum(fake_time.slept) <= 50.0


@pytest.mark.parametrize("status", [301, 304, 400, 401, 403, 404, 422, 451])
def test_d3_a_refusal_is_final(make_client: Client, server: ReplayServer, status: int) -> None:
    """What will fail again is asked once."""
    server.misbehave(answer_with(status=status))
    with pytest.raises(PermanentProviderError) as failure:
        make_client().fetch_json("/ping")
    assert (failure.value.status, len(server.requests)) == (status, 1)


def test_d3_an_error_says_what_the_provider_said(make_client: Client, server: ReplayServer) -> None:
    """The recorded body of a refused key ends up in the message."""
    server.misbehave(answer_with(read_recording("coingecko/ping_demo_bad_key_401.json"), 401))
    with pytest.raises(PermanentProviderError, match="/ping answered HTTP 401: API Key Missing"):
        make_client().fetch_json("/ping")


def test_d4_a_refused_connection_is_transient(fake_time: FakeTime) -> None:
    """Nobody listening may be a restart."""
    address = f"http://127.0.0.1:{choose_port()}"
    client = HttpClient("coingecko", address, limits=QUICK, clocks=fake_time.clocks)
    with pytest.raises(TransientProviderError, match="ConnectError"):
        client.fetch_json("/ping")
    assert len(fake_time.slept) == 3


@pytest.mark.parametrize("after_bytes", [0, 5])
def test_d4_a_reset_connection_is_tried_again(
    make_client: Client, server: ReplayServer, after_bytes: int
) -> None:
    """RST before the answer or inside its body costs one try."""
    server.misbehave(reset_connection(after_bytes))
    assert make_client().fetch_json("/ping") == PING
    assert len(server.requests) == 2


@pytest.mark.parametrize("in_headers", [True, False])
def test_d5_a_slow_loris_is_cut_off_at_the_total_deadline(
    server: ReplayServer, *, in_headers: bool
) -> None:
    """A byte now and then does not keep a request alive beyond its deadline, by the real clock."""
    server.misbehave(drip(0.3, in_headers=in_headers))
    limits = replace(ONCE, request_seconds=0.4)
    client = HttpClient("coingecko", f"{server.address}/coingecko", limits=limits)
    # Each byte comes within the time; the whole answer, which would come otherwise, does not.
    with pytest.raises(TransientProviderError, match="not answered in time"):
        client.fetch_json("/ping")


@pytest.mark.parametrize(
    "fault",
    [cut_gzip(9), cut_gzip(8), cut_gzip(4), shorten_body(), leave_unframed()],
    ids=["inside", "crc_and_size", "size", "content_length", "no_length"],
)
def test_d6_a_body_without_its_end_is_refused_and_asked_again(
    make_client: Client, server: ReplayServer, fault: Fault
) -> None:
    """A body that was cut short never counts; a second try gets the whole one."""
    server.misbehave(fault)
    with pytest.raises(TransientProviderError):
        make_client(ONCE).fetch_json("/ping")
    server.misbehave(fault)
    assert make_client().fetch_json("/ping") == PING


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(b"{}") + b"more",
        gzip.compress(b"{}")[:-8] + b"\0" * 8,
        b"not gzip",
        b"",
    ],
    ids=["trailing_bytes", "wrong_crc", "no_gzip", "nothing"],
)
def test_d6_a_broken_gzip_body_is_refused(
    make_client: Client, server: ReplayServer, body: bytes
) -> None:
    """Checksum, size and end of a gzip body are checked."""
    server.misbehave(send_gzip(body))
    with pytest.raises(TransientProviderError, match="gzip"):
        make_client(ONCE).fetch_json("/ping")


def test_d7_a_gzip_bomb_is_stopped_at_the_cap(make_client: Client, server: ReplayServer) -> None:
    """300 MB in a small body are not unpacked."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    server.misbehave(send_gzip(bomb))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PermanentProviderError, match="more than 16777216 bytes unpacked"):
        make_client().fetch_json("/ping")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_d7_a_plain_flood_is_stopped_at_the_cap(make_client: Client, server: ReplayServer) -> None:
    """A plain body beyond the cap is not read to its end."""
    server.misbehave(
        lambda handler, reply: handler.send_head(replace(reply), {}, b"[" + b" " * 30_000)
    )
    with pytest.raises(PermanentProviderError, match="more than 10000 bytes"):
        make_client(replace(QUICK, max_bytes=10_000)).fetch_json("/ping")


def test_d7_giant_headers_are_refused(make_client: Client, server: ReplayServer) -> None:
    """A header of megabytes ends in a provider error."""
    server.misbehave(answer_with(b"{}", headers={"X-Big": "a" * 3_000_000}))
    with pytest.raises(TransientProviderError):
        make_client(ONCE).fetch_json("/ping")


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest", "file:///etc/passwd", "/coingecko/key"]
)
def test_d7_redirects_are_not_followed(
    make_client: Client, server: ReplayServer, target: str
) -> None:
    """A redirect is a refusal wherever it leads, to the same host too."""
    server.misbehave(answer_with(status=302, headers={"Location": target}))
    with pytest.raises(PermanentProviderError, match="HTTP 302"):
        make_client().fetch_json("/ping")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        answer_with(b"<html>Just a moment...</html>", content_type="text/html; charset=UTF-8"),
        answer_with(b"<html>Just a moment...</html>"),
        answer_with(b""),
        answer_with(b"", 204),
        answer_with(b"{}", content_type="text/csv"),
        answer_with('{"a":1}'.encode("utf-16")),
        answer_with(b'\xef\xbb\xbf{"a":1}'),
        answer_with(b'{"a":"\xff"}'),
        lambda handler, reply: handler.send_head(reply, {"Content-Encoding": "br"}, b"{}"),
    ],
    ids=["html", "html_as_json", "empty", "204", "csv", "utf16", "bom", "utf8", "brotli"],
)
def test_d8_a_success_that_is_none_is_refused(
    make_client: Client, server: ReplayServer, fault: Fault
) -> None:
    """Status 200 alone proves nothing."""
    server.misbehave(fault)
    with pytest.raises(PermanentProviderError):
        make_client().fetch_json("/ping")


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"9" * 41 + b"}",
        b'{"a":1,"a":2}',
        b"[" * 200_000,
        b'{"a":1,5}',
        b'{"a":1} {}',
    ],
    ids=["nan", "inf", "1e999", "5000_digits", "41_digits", "twice", "deep", "comma", "two"],
)
def test_d9_what_json_does_not_have_is_refused(
    make_client: Client, server: ReplayServer, body: bytes
) -> None:
    """One error class for all that is malformed."""
    server.misbehave(answer_with(body))
    with pytest.raises(PermanentProviderError, match="not JSON"):
        make_client().fetch_json("/ping")


@pytest.mark.parametrize(
    "fault",
    [close_after_answer(), speak_http_1_0(), send_chunked()],
    ids=["keep_alive_closed", "http_1_0", "interim_chunks_trailer"],
)
def test_d12_unusual_but_right_answers_work(
    make_client: Client, server: ReplayServer, fault: Fault
) -> None:
    """A closed keep-alive connection, HTTP/1.0, 1xx, chunks and trailers are all read."""
    client = make_client()
    server.misbehave(fault)
    assert [client.fetch_json("/ping"), client.fetch_json("/ping")] == [PING, PING]


def test_s1_a_key_never_enters_a_message(make_client: Client, server: ReplayServer) -> None:
    """A provider that echoes the key does not put it into our log."""
    server.misbehave(answer_with(b'{"error":"key CG-canary-1 is bad"}', 401))
    with pytest.raises(PermanentProviderError) as failure:
        make_client(**{"x-cg-pro-api-key": "CG-canary-1"}).fetch_json("/ping")
    assert "canary" not in f"{failure.value!r} {failure.value} {failure.value.__dict__}"
    assert "key *** is bad" in str(failure.value)


def test_a_message_is_one_line_without_control_characters(
    make_client: Client, server: ReplayServer
) -> None:
    """S9: what a provider says cannot forge a log line."""
    server.misbehave(answer_with(b'{"error":"a\\n{\\"level\\":1}\\u001b[2J\\u2028b"}', 400))
    with pytest.raises(PermanentProviderError) as failure:
        make_client().fetch_json("/ping")
    assert str(failure.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "api.x.io",
        "ftp://x.io",
        "https://",
        "https://a b",
        "https://u:p@x.io",
        "http://x?k=1",
        "//x",
    ],
)
def test_a_base_address_must_be_one(text: str) -> None:
    """A malformed address is a wrong setting, named without its value: it may hold a password."""
    with pytest.raises(SettingError, match="YAHOO_BASE_URL is not an address") as failure:
        parse_base_url("YAHOO_BASE_URL", text)
    assert "u:p" not in str(failure.value)


def test_a_base_address_may_end_in_a_slash() -> None:
    """Paths are put behind it, so one slash too many is dropped."""
    assert parse_base_url("YAHOO_BASE_URL", "http://127.0.0.1:8/x/") == "http://127.0.0.1:8/x"
