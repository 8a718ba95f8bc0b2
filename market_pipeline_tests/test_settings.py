"""Settings: parsing, precedence, and that the documents name every one of them."""

import re
from pathlib import Path

import pytest

from market_pipeline.domain.errors import SettingError
from market_pipeline.settings import (
    SETTINGS,
    check_run_settings,
    read_flag,
    read_ingestion_defaults,
    read_redis_url,
    read_statistics_settings,
    read_variable,
)

ROOT = Path(__file__).resolve().parent.parent
SETTINGS_PAGE = ROOT / "docs/settings.md"


def test_the_settings_page_has_each_setting_as_the_code_has_it() -> None:
    """Names, defaults and meanings, in the same order; the page may add signs and links."""
    rows = re.findall(
        r"^\| `([A-Z_]+)` \| (.*) \| (.*) \|$", SETTINGS_PAGE.read_text(), re.MULTILINE
    )
    found = [(name, default.strip("` "), _strip_marks(meaning)) for name, default, meaning in rows]
    assert found == [(setting.name, setting.default, setting.meaning) for setting in SETTINGS]


def _strip_marks(text: str) -> str:
    return re.sub(r" \(\[.*\)$", "", text).replace("`", "")


def test_the_example_has_each_setting_as_the_code_has_it() -> None:
    """Copying the example changes nothing by itself: every line is a comment."""
    told = (ROOT / ".env.example").read_text()
    head, _, rest = told.partition("\n\n")
    assert all(line.startswith("# ") for line in head.splitlines())
    parts = [f"# {setting.meaning}\n# {setting.name}={setting.default}" for setting in SETTINGS]
    assert rest == "\n\n".join(parts) + "\n"


def test_empty_variable_means_unset() -> None:
    """A variable of blanks gives the default."""
    assert read_variable("INGESTION_PROVIDER", {"INGESTION_PROVIDER": " "}) == "mock"


def test_defaults_are_those_promised() -> None:
    """Nothing set: the mock provider, three markets, thirty days."""
    defaults = read_ingestion_defaults({})
    assert defaults.providers == ("mock",)
    assert defaults.symbols == ("BTC-USD", "ETH-USD", "SPX")
    assert defaults.lookback_days == 30


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INGESTION_MARKETS", "BTC USD"),
        ("INGESTION_MARKETS", ","),
        ("INGESTION_PROVIDER", ","),
        ("INGESTION_LOOKBACK_DAYS", "-1"),
        ("INGESTION_LOOKBACK_DAYS", "1000000"),
        ("INGESTION_LOOKBACK_DAYS", "ten"),
    ],
)
def test_bad_default_names_variable_and_value(name: str, value: str) -> None:
    """A wrong variable is refused by name."""
    with pytest.raises(SettingError, match=f"^{name}="):
        read_ingestion_defaults({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("ROI_HORIZONS_DAYS", "0"), ("ROI_MIN_RETURNS", "1"), ("RISK_FREE_RATE", "nan")],
)
def test_bad_statistics_setting_is_refused(name: str, value: str) -> None:
    """Statistics never run on a nonsensical rate or span."""
    with pytest.raises(SettingError, match=f"^{name}="):
        read_statistics_settings({name: value})


def test_flag_takes_the_usual_words_only() -> None:
    """Yes is yes; anything else is an error, not a silent no."""
    assert read_flag("INGESTION_SCHEDULE_ENABLED", {"INGESTION_SCHEDULE_ENABLED": "On"})
    with pytest.raises(SettingError):
        read_flag("INGESTION_SCHEDULE_ENABLED", {"INGESTION_SCHEDULE_ENABLED": "maybe"})


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1",
        "rediss://user:p%40ss@cache.example:6380/1",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_a_cache_servers_address_is_taken_as_it_is(url: str) -> None:
    """TLS and sockets included."""
    assert read_redis_url({"REDIS_URL": url}) == url


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:6379", "http://127.0.0.1", "redis://", "redis://host:port/0", "redis://host/name",
        "redis://:hunter2 @host", "redis://[::1", "redis://host:0", "unix://",
    ],
)  # fmt: skip
def test_a_malformed_cache_address_is_refused_by_name(url: str) -> None:
    """And never repeated: it may hold a password."""
    with pytest.raises(SettingError, match=r"^REDIS_URL cannot be read") as caught:
        check_run_settings({"REDIS_URL": url})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["0", "-1", "ten", "86401", "1.5"])
def test_a_wrong_cache_time_is_refused_by_name(text: str) -> None:
    """A run that would read it ends before it begins."""
    with pytest.raises(SettingError, match=r"^CACHE_TTL_SECONDS="):
        check_run_settings({"CACHE_TTL_SECONDS": text})
