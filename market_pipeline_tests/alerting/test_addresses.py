"""Where alerts may go: nowhere private, however the address is spelt or resolved."""

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
import pytest

from market_pipeline.alerting.delivery import check_alert_settings
from market_pipeline.alerting.receivers import RefusedAddressError, read_receivers, resolve
from market_pipeline.domain.errors import SettingError
from market_pipeline_tests.cache.tls import TlsFront
from market_pipeline_tests.receiver import Receiver, serve_receiver

PRIVATE = [
    "127.0.0.1", "127.1", "0x7f.1", "2130706433", "017700000001", "0.0.0.0", "10.1.2.3",  # noqa: S104
    "172.16.0.1",
    "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.8", "198.18.0.1", "240.0.0.1",
    "255.255.255.255", "224.0.0.1", "::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fe80::1",
    "fc00::1", "fd12::1", "ff02::1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001::1", "100::1",
    "::127.0.0.1", "5f00::1", "fec0::1", "localhost",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_a_private_address_is_refused(host: str) -> None:
    """Before anything is sent."""
    with pytest.raises((RefusedAddressError, OSError)):
        resolve(host, 443)


@pytest.mark.parametrize("host", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111"])
def test_a_public_address_is_taken(host: str) -> None:
    """As it is."""
    assert resolve(host, 443) == [host]


def test_one_private_answer_of_several_refuses_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads to both is not asked at the public one either."""
    answers = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))
        for address in ("1.1.1.1", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(RefusedAddressError):
        resolve("rebinding.example", 443)


def test_a_name_is_looked_up_once_and_that_answer_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rebinding, public when checked and private when connected to, finds no second question."""
    asked: list[Any] = []

    def answer(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        address = "192.0.2.1" if len(asked) > 1 else "203.0.113.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr("market_pipeline.alerting.receivers.is_public", lambda _: True)
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "https://rebinding.example/x")
    monkeypatch.setattr("market_pipeline.alerting.receivers.CONNECT_SECONDS", 0.2)
    (receiver,) = read_receivers()
    assert not receiver.send("id", {}).is_ok
    assert [host for host in asked if not host[0].isdigit()] == ["rebinding.example"]


def test_nothing_reaches_a_private_receiver_unless_it_is_allowed(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting is read when it is sent, too."""
    (one,) = read_receivers()
    monkeypatch.setenv("ALERT_ALLOW_PRIVATE", "false")
    assert "private" in one.send("id", {}).error
    assert receiver.posts == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ALERT_WEBHOOK_URL", "hooks.example.com/S3CRET", "expected https://"),
        ("ALERT_WEBHOOK_URL", "http://hooks.example.com/S3CRET", "http:// is refused"),
        ("ALERT_WEBHOOK_URL", "https://127.0.0.1/S3CRET", "private address"),
        ("ALERT_WEBHOOK_URL", "https://[::1]/S3CRET", "private address"),
        ("ALERT_WEBHOOK_URL", "https://ok.example/x https:///S3CRET", "address 2: expected"),
        ("ALERT_WEBHOOK_URL", "https://[::1/S3CRET", "expected an address"),
        ("ALERT_WEBHOOK_URL", "https://a.example:99999/S3CRET", "expected an address"),
        ("ALERT_WEBHOOK_URL", "nowhere://S3CRET", "Apprise cannot read it"),
        ("ALERT_WEBHOOK_URL", "slack://S3CRET", "Apprise cannot read it"),
        ("ALERT_WEBHOOK_SECRET", "S3CRET", "16 to 64 bytes"),
        ("ALERT_WEBHOOK_SECRET", "whsec_S3CRET==", "16 to 64 bytes"),
        ("ALERT_MIN_SEVERITY", "loud", "expected one of info"),
        ("ALERT_COOLDOWN_MINUTES", "-1", "a whole number"),
        ("ALERT_ALLOW_PRIVATE", "perhaps", "expected one of true"),
        ("HEARTBEAT_URL", "ftp://S3CRET", "expected an address"),
    ],
)
def test_a_wrong_setting_is_refused_at_start_by_name(
    name: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its value is repeated only where it is no secret."""
    monkeypatch.setenv(name, value)
    if name == "ALERT_ALLOW_PRIVATE":
        monkeypatch.setenv("ALERT_WEBHOOK_URL", "https://a.example/x")
    with pytest.raises(SettingError) as refused:
        check_alert_settings()
    assert str(refused.value).startswith(name)
    assert expected in str(refused.value)
    assert "S3CRET" not in str(refused.value)


def test_good_addresses_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several, separated by blanks and lines; each is called by scheme and hash."""
    addresses = [
        "https://hooks.example.com/x", "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#ops",
        "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js", "mailto://u:p@gmail.com",
    ]  # fmt: skip
    monkeypatch.setenv("ALERT_WEBHOOK_URL", " \n".join([*addresses, addresses[0]]))
    check_alert_settings()
    schemes = [one.name.partition(":")[0] for one in read_receivers()]
    assert schemes == ["https", "slack", "discord", "mailto"]


@pytest.mark.parametrize("name", ["hooks.example", "others.example"])
def test_a_tls_receiver_must_have_the_names_certificate(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The name's own, although the address was looked up before; another one's hears nothing."""
    with serve_receiver() as plain:
        front = TlsFront(urlsplit(plain.address).port or 0, tmp_path, name)
        monkeypatch.setattr(certifi, "where", lambda: str(front.authority))
        monkeypatch.setattr("market_pipeline.alerting.receivers.resolve", lambda *_: ["127.0.0.1"])
        monkeypatch.setenv("ALERT_WEBHOOK_URL", f"https://hooks.example:{front.port}/x")
        (receiver,) = read_receivers()
        is_own = name == "hooks.example"
        assert (receiver.send("id", {}).is_ok, len(plain.posts)) == (is_own, int(is_own))
        front.close()


def test_a_plain_server_is_no_tls_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind https:// nothing is sent to it."""
    with serve_receiver() as plain:
        monkeypatch.setenv("ALERT_ALLOW_PRIVATE", "true")
        monkeypatch.setenv("ALERT_WEBHOOK_URL", plain.address.replace("http://", "https://"))
        (receiver,) = read_receivers()
        assert not receiver.send("id", {}).is_ok
        assert plain.posts == []
