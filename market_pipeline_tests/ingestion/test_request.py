"""The request of a run: defaults from the environment, every field checked and named."""

from datetime import UTC, datetime

import pytest

from market_pipeline.domain.errors import SettingError
from market_pipeline.ingestion.request import build_request

WALL_CLOCK = datetime(2024, 3, 15, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set."""
    for name in ("INGESTION_PROVIDER", "INGESTION_MARKETS", "INGESTION_LOOKBACK_DAYS"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_given_is_the_configured_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock is the run's; the window begins on a Monday before the look-back."""
    monkeypatch.setenv("INGESTION_MARKETS", "eth-usd, ETH-USD")
    request = build_request(WALL_CLOCK)
    assert request.symbols == ("ETH-USD",)
    assert request.providers == ("mock",)
    assert request.now == request.window.end == WALL_CLOCK
    assert request.window.start == datetime(2024, 2, 5, tzinfo=UTC)
    assert request.is_default_routing


def test_what_is_given_wins_over_the_environment() -> None:
    """Another provider's markets do not become primary."""
    request = build_request(WALL_CLOCK, ["spx"], "yahoo,mock", 7, "2024-01-10")
    assert (request.symbols, request.providers) == (("SPX",), ("yahoo", "mock"))
    assert request.now == datetime(2024, 1, 10, tzinfo=UTC)
    assert request.window.start == datetime(2023, 12, 25, tzinfo=UTC)
    assert not request.is_default_routing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-10T05:00+05:00", datetime(2024, 1, 10, tzinfo=UTC)),
        ("2024-01-10T00:00Z", datetime(2024, 1, 10, tzinfo=UTC)),
        ("20240110", datetime(2024, 1, 10, tzinfo=UTC)),
    ],
)
def test_a_window_end_is_read_in_utc(text: str, expected: datetime) -> None:
    """A zone is converted, none is UTC."""
    assert build_request(WALL_CLOCK, window_end=text).now == expected


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"lookback_days": -4}, "lookback_days=-4: expected a whole number"),
        ({"lookback_days": 10**9}, "lookback_days=1000000000: expected a whole number"),
        ({"window_end": "tomorrow"}, "window_end='tomorrow': expected an ISO 8601 time"),
        ({"window_end": "2024-03-15T12:00:01Z"}, "window_end=.*between 1970 and now"),
        ({"window_end": "9999-12-31T23:59-12:00"}, "window_end=.*expected an ISO 8601 time"),
        ({"symbols": ["BTC USD"]}, "symbols: symbol 'BTC USD' is malformed"),
        ({"symbols": [""]}, "symbols: symbol '' is malformed"),
        ({"provider": ","}, "provider=',': expected a provider's name"),
    ],
)
def test_a_bad_field_is_named_with_its_value(fields: dict[str, object], named: str) -> None:
    """Dagster checks no bounds at launch, so the request does."""
    with pytest.raises(SettingError, match=f"^{named}"):
        build_request(WALL_CLOCK, **fields)  # type: ignore[arg-type]
