"""Fixtures of the alerts' tests: a receiver on loopback that ALERT_WEBHOOK_URL points to."""

from collections.abc import Iterator

import pytest

from market_pipeline_tests.receiver import Receiver, serve_receiver


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver on loopback, which is allowed."""
    with serve_receiver() as running:
        monkeypatch.setenv("ALERT_WEBHOOK_URL", running.address)
        monkeypatch.setenv("ALERT_ALLOW_PRIVATE", "true")
        yield running
