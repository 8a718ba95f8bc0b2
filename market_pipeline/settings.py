"""Every environment variable: name, default, meaning, and how its text becomes a value.

An empty variable means unset. Dagster's commands and ``market-pipeline`` alike read ``.env`` in the
current folder over the real environment. Providers read their own variables when constructed; they
are listed here so that one table is the whole truth. A value that cannot be meant is a
``SettingError``, which names the variable, its value unless it is a secret, and what is accepted.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values

from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.symbols import parse_symbols

MAX_LOOKBACK_DAYS = 36_525
MAX_CALLS_PER_MINUTE = 100_000
MAX_CACHE_TTL_SECONDS = 86_400
MAX_SHOWN_CHARACTERS = 60
LEAST_SECRET_CHARACTERS = 16
MAX_FETCH_WORKERS = 64
MAX_SHARDS = 256
LOG_LEVELS = ("debug", "info", "warning", "error")
SEVERITIES = ("info", "warning", "error", "critical")
EXECUTORS = ("in_process", "multiprocess")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable: its name, the default as one would write it, and its meaning."""

    name: str
    default: str
    meaning: str
    is_secret: bool = False


SETTINGS: tuple[Setting, ...] = (
    Setting("DATABASE_URL", "", "PostgreSQL 15+ to use; unset: the embedded one", is_secret=True),
    Setting(
        "REDIS_URL", "", "Redis-compatible server for the cache; unset: in process", is_secret=True
    ),
    Setting("INGESTION_PROVIDER", "mock", "Provider, or an ordered list: coingecko,yahoo"),
    Setting("INGESTION_MARKETS", "BTC-USD,ETH-USD,SPX", "Symbols to ingest, separated by commas"),
    Setting("INGESTION_CRON_EXPRESSION", "*/15 * * * *", "When the schedule runs, in UTC"),
    Setting("INGESTION_SCHEDULE_ENABLED", "false", "Start the schedule with the daemon"),
    Setting("INGESTION_LOOKBACK_DAYS", "30", "Days of history that a run keeps complete"),
    Setting("INGESTION_EXECUTOR", "in_process", "in_process, or multiprocess: one process a step"),
    Setting("INGESTION_SHARDS", "1", "Runs that share the markets of a tick: see docs/scaling.md"),
    Setting(
        "FETCH_WORKERS", "4", "Requests that a run has under way at once, whatever the provider"
    ),
    Setting("CACHE_TTL_SECONDS", "300", "How long a cached value may be served, in seconds"),
    Setting(
        "ALERT_WEBHOOK_URL",
        "",
        "Where alerts are sent: https://, slack://, mailto://, ...; several separated by blanks",
        is_secret=True,
    ),
    Setting(
        "ALERT_WEBHOOK_SECRET",
        "",
        "Signs alerts to https:// by Standard Webhooks: whsec_ and base64; two while it is changed",
        is_secret=True,
    ),
    Setting("ALERT_MIN_SEVERITY", "warning", "Least severity sent: info, warning, error, critical"),
    Setting("ALERT_COOLDOWN_MINUTES", "60", "How long an alert must be gone before it is resolved"),
    Setting("ALERT_ALLOW_PRIVATE", "false", "Let alerts go to http:// and to private addresses"),
    Setting(
        "HEARTBEAT_URL", "", "Called after every good run, for a watcher outside", is_secret=True
    ),
    Setting(
        "DAGSTER_RETENTION_DAYS", "30", "Days that Dagster's own runs and events stay; 0: for good"
    ),
    Setting("DAGSTER_UI_URL", "http://127.0.0.1:3000", "Dagster's webserver, as people reach it"),
    Setting(
        "DAGSTER_GRAPHQL_URL", "", "Where the API reaches it, to start runs; unset: DAGSTER_UI_URL"
    ),
    Setting("LOG_LEVEL", "info", "debug, info, warning or error"),
    Setting("API_HOST", "127.0.0.1", "Address the HTTP API listens on; others need API_TOKEN"),
    Setting("API_PORT", "8000", "Port the HTTP API listens on"),
    Setting("API_TOKEN", "", "Bearer token of the HTTP API, 16 characters or more", is_secret=True),
    Setting("API_ALLOWED_HOSTS", "", "More host names the HTTP API answers to: data.example.com"),
    Setting(
        "API_CORS_ORIGINS", "", "Sites whose pages may use the HTTP API: https://a.example.com"
    ),
    Setting("INGEST_WAIT_SECONDS", "60", "How long POST /api/ingest waits for its run"),
    Setting(
        "CRON_SECRET", "", "Bearer secret of GET /api/cron, 16 characters or more", is_secret=True
    ),
    Setting("ROI_HORIZONS_DAYS", "7,30,90,365", "Spans that statistics look back, in days"),
    Setting(
        "ROI_MIN_RETURNS",
        "",
        "Fewest daily returns of a statistic; unset: 80 % of what its calendar expects, at least 5",
    ),
    Setting("RISK_FREE_RATE", "0", "Annual risk-free rate as a fraction, for Sharpe and Sortino"),
    Setting("COMPARISON_BENCHMARKS", "", "Compare with these symbols only, once over 50 markets"),
    Setting(
        "COINGECKO_API_KEY", "", "CoinGecko key; unset: the keyless public plan", is_secret=True
    ),
    Setting("COINGECKO_PLAN", "", "keyless, demo or pro; unset: detected from the key"),
    Setting("COINGECKO_IDS", "", "More CoinGecko markets: FOO-USD=foo-id,BAR-USD=bar-id"),
    Setting("COINGECKO_BASE_URL", "", "Another address for CoinGecko's API"),
    Setting("YAHOO_BASE_URL", "", "Another address for Yahoo's chart API"),
    Setting("COINBASE_BASE_URL", "", "Another address for Coinbase Exchange's API"),
    Setting("KRAKEN_BASE_URL", "", "Another address for Kraken's API"),
    Setting("BINANCE_BASE_URL", "", "Another address for Binance's API"),
    Setting("FRED_BASE_URL", "", "Another address for FRED's CSV"),
    Setting("PROVIDER_MARKETS", "", "More markets of exchanges: coinbase:ZEC-USD,kraken:SOL-EUR"),
    Setting("CCXT_PAGE_LIMIT", "", "Candles in one answer of a ccxt exchange that declares none"),
    Setting("PROVIDER_CALLS_PER_MINUTE", "", "Other call limits: coingecko=25,yahoo=60"),
    Setting("FILE_PROVIDER_PATH", "", "CSV or Parquet file, or a folder of them"),
    Setting("FILE_PROVIDER_MARKETS", "", "What the files' markets are; unset: markets.csv beside"),
    Setting("FILE_PROVIDER_COLUMNS", "", "Column mapping: open_time=ts,close=last"),
    Setting("MOCK_SEED", "7", "Seed of the mock provider's prices"),
    Setting("MOCK_FAULTS", "", "What the mock provider does wrong: ETH-USD:429 x2,BTC-USD:timeout"),
    Setting("OTEL_EXPORTER_OTLP_ENDPOINT", "", "Where traces go, by OTLP over HTTP; unset: none"),
    Setting("STATE_DIR", "", "Where local state lives; unset: .state in the project folder"),
    Setting("PG_BIN", "", "Folder of another PostgreSQL's programs for the embedded server"),
    Setting("DAGSTER_HOME", "", "Folder of dagster.yaml; written into .env by the setup"),
)
_DEFAULTS = {setting.name: setting.default for setting in SETTINGS}


def read_variable(name: str, environ: Mapping[str, str] | None = None) -> str:
    """Return a variable's text, or its default when unset or empty."""
    source = os.environ if environ is None else environ
    return source.get(name, "").strip() or _DEFAULTS[name]


def load_dotenv(folder: Path | None = None) -> None:
    """Put the variables of ``.env`` in a folder over the environment, as Dagster's commands do."""
    values = dotenv_values((folder or Path.cwd()) / ".env")
    os.environ.update({name: value for name, value in values.items() if value is not None})


def find_project_dir() -> Path:
    """Return the folder that holds ``dagster.yaml``: the checkout, else DAGSTER_HOME, else here."""
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "dagster.yaml").is_file():
        return checkout
    home = read_variable("DAGSTER_HOME")
    return Path(home) if home else Path.cwd()


def find_state_dir() -> Path:
    """Return the absolute folder of the embedded database and other local state."""
    chosen = read_variable("STATE_DIR")
    return (find_project_dir() / (chosen or ".state")).absolute()


@dataclass(frozen=True, slots=True)
class IngestionDefaults:
    """What a run ingests when it is not told otherwise."""

    providers: tuple[str, ...]
    symbols: tuple[str, ...]
    lookback_days: int


def read_ingestion_defaults(environ: Mapping[str, str] | None = None) -> IngestionDefaults:
    """Read provider list, symbols and look-back."""
    return IngestionDefaults(
        providers=_parse("INGESTION_PROVIDER", parse_provider_names, environ),
        symbols=_parse("INGESTION_MARKETS", lambda text: parse_symbols(split_list(text)), environ),
        lookback_days=_parse("INGESTION_LOOKBACK_DAYS", parse_lookback_days, environ),
    )


@dataclass(frozen=True, slots=True)
class StatisticsSettings:
    """How statistics are computed; rates are annual fractions, horizons days.

    ``min_returns`` is None where it is not set: what the calendar expects counts then.
    """

    horizons_days: tuple[int, ...]
    min_returns: int | None
    risk_free_annual: float
    benchmarks: tuple[str, ...]


def read_statistics_settings(environ: Mapping[str, str] | None = None) -> StatisticsSettings:
    """Read horizons, fewest returns, risk-free rate and benchmarks."""
    return StatisticsSettings(
        horizons_days=_parse("ROI_HORIZONS_DAYS", _parse_horizons, environ),
        min_returns=_parse(
            "ROI_MIN_RETURNS", lambda text: _parse_int(text, 2, 100_000) if text else None, environ
        ),
        risk_free_annual=_parse("RISK_FREE_RATE", _parse_rate, environ),
        benchmarks=_parse(
            "COMPARISON_BENCHMARKS",
            lambda text: parse_symbols(split_list(text)) if text else (),
            environ,
        ),
    )


def read_choice(
    name: str, choices: tuple[str, ...], environ: Mapping[str, str] | None = None
) -> str:
    """Return a variable that must be one of a few words, in lower case."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise SettingError(f"expected one of {', '.join(choices)}")
        return text.lower()

    return _parse(name, parse, environ)


def read_flag(name: str, environ: Mapping[str, str] | None = None) -> bool:
    """Return a yes-or-no variable (true/false, yes/no, on/off, 1/0)."""
    yes, no = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
    return read_choice(name, yes + no, environ) in yes


def read_log_level(environ: Mapping[str, str] | None = None) -> str:
    """Return ``debug``, ``info``, ``warning`` or ``error``."""
    return read_choice("LOG_LEVEL", LOG_LEVELS, environ)


def read_redis_url(environ: Mapping[str, str] | None = None) -> str:
    """Return the cache server's address; empty: the cache is in process."""
    text = read_variable("REDIS_URL", environ)
    # The message never repeats the address: it may hold a password.
    if text and not _is_redis_url(text):
        raise SettingError(
            "REDIS_URL cannot be read as an address: expected redis://user:password@host:6379/0, "
            "rediss:// for TLS, or unix:///path, with special characters percent-encoded"
        )
    return text


def read_cache_ttl_seconds(environ: Mapping[str, str] | None = None) -> int:
    """Return how long a cached value may be served: from a second to a day."""
    return read_whole_number("CACHE_TTL_SECONDS", 1, MAX_CACHE_TTL_SECONDS, environ)


def read_fetch_workers(environ: Mapping[str, str] | None = None) -> int:
    """Return how many requests to providers a run has under way at once.

    Raises:
        SettingError: FETCH_WORKERS is no whole number from 1 to 64.
    """
    return read_whole_number("FETCH_WORKERS", 1, MAX_FETCH_WORKERS, environ)


def read_shards(environ: Mapping[str, str] | None = None) -> int:
    """Return how many runs share the markets of a tick: 1 to 256.

    Raises:
        SettingError: INGESTION_SHARDS is no such number.
    """
    return read_whole_number("INGESTION_SHARDS", 1, MAX_SHARDS, environ)


def read_dagster_retention_days(environ: Mapping[str, str] | None = None) -> int:
    """Return how many days Dagster's own runs and events stay; 0: for good."""
    return read_whole_number("DAGSTER_RETENTION_DAYS", 0, MAX_LOOKBACK_DAYS, environ)


def read_whole_number(
    name: str, least: int, most: int, environ: Mapping[str, str] | None = None
) -> int:
    """Return a variable that is a whole number in a range, both ends included."""
    return _parse(name, lambda text: _parse_int(text, least, most), environ)


def read_secret(name: str, environ: Mapping[str, str] | None = None) -> str:
    """Return a secret that opens a door, long enough and fit to be sent; empty: none is set."""
    secret = read_variable(name, environ)
    if secret and len(secret) < LEAST_SECRET_CHARACTERS:
        raise SettingError(
            f"{name} has {len(secret)} characters: expected {LEAST_SECRET_CHARACTERS} or more, "
            "such as `openssl rand -hex 32` prints"
        )
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise SettingError(f"{name}: expected printable ASCII without blanks")
    return secret


def check_run_settings(environ: Mapping[str, str] | None = None) -> None:
    """Read every setting that a run will read, so that a wrong one ends it before it begins."""
    read_ingestion_defaults(environ)
    read_statistics_settings(environ)
    read_flag("INGESTION_SCHEDULE_ENABLED", environ)
    read_choice("INGESTION_EXECUTOR", EXECUTORS, environ)
    read_choice("ALERT_MIN_SEVERITY", SEVERITIES, environ)
    read_provider_call_limits(environ)
    read_fetch_workers(environ)
    read_shards(environ)
    read_redis_url(environ)
    read_cache_ttl_seconds(environ)
    read_dagster_retention_days(environ)


def read_provider_call_limits(environ: Mapping[str, str] | None = None) -> dict[str, float]:
    """Return the calls a minute that replace providers' own limits, by provider's name."""
    return _parse("PROVIDER_CALLS_PER_MINUTE", _parse_call_limits, environ)


def read_page_limit(environ: Mapping[str, str] | None = None) -> int | None:
    """Return the candles in one answer of an exchange that declares no limit; None: not set.

    Raises:
        SettingError: CCXT_PAGE_LIMIT is not a whole number from 1 to 5,000.
    """
    text = read_variable("CCXT_PAGE_LIMIT", environ)
    return _parse("CCXT_PAGE_LIMIT", lambda _: _parse_int(text, 1, 5000), environ) if text else None


def split_list(text: str) -> list[str]:
    """Split a comma-separated list; blanks between commas are dropped."""
    return [part.strip() for part in text.split(",") if part.strip()]


def spell_provider(name: str) -> str:
    """Return a provider's name as it is stored: ``ccxt:bitstamp`` is ``ccxt-bitstamp``.

    A colon stands between a provider and a symbol, as in ``ccxt-bitstamp:BTC-USD``.
    """
    return name.lower().replace(":", "-")


def parse_provider_names(text: str) -> tuple[str, ...]:
    """Return provider names in order, at least one, each once, in lower case."""
    names = tuple(dict.fromkeys(map(spell_provider, split_list(text))))
    if not names:
        raise SettingError("expected a provider's name, or several separated by commas")
    return names


def parse_lookback_days(text: str) -> int:
    """Return a look-back of 1 to 36,525 days (a century)."""
    return _parse_int(text, 1, MAX_LOOKBACK_DAYS)


@contextmanager
def name_errors(label: str) -> Iterator[None]:
    """Put what is being set, and to what, before the message of a setting that is refused."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"{label}: {error}") from None


def shorten(text: str) -> str:
    """Return a value as it is shown in a message: its beginning, when it is long."""
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def _parse(name: str, parse: Callable[[str], Value], environ: Mapping[str, str] | None) -> Value:
    text = read_variable(name, environ)
    with name_errors(f"{name}={shorten(text)!r}"):
        return parse(text)


def _is_redis_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return False
    if any(sign.isspace() for sign in text) or port == 0:
        return False
    if url.scheme == "unix":
        return bool(url.path)
    database = url.path.removeprefix("/")
    is_number = not database or (database.isascii() and database.isdigit())
    return url.scheme in {"redis", "rediss"} and bool(url.hostname) and is_number


def _parse_int(text: str, least: int, most: int) -> int:
    with suppress(ValueError):
        if least <= (value := int(text)) <= most:
            return value
    raise SettingError(f"expected a whole number from {least} to {most}")


def _parse_horizons(text: str) -> tuple[int, ...]:
    horizons = {_parse_int(part, 1, MAX_LOOKBACK_DAYS) for part in split_list(text)}
    if not horizons:
        raise SettingError("expected days separated by commas, such as 7,30,90,365")
    return tuple(sorted(horizons))


def _parse_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        raise SettingError("expected an annual fraction, such as 0.04") from None
    if not -0.5 < rate < 1:
        raise SettingError("expected an annual fraction between -0.5 and 1, such as 0.04")
    return rate


def _parse_call_limits(text: str) -> dict[str, float]:
    limits: dict[str, float] = {}
    for part in split_list(text):
        name, _, calls = (piece.strip() for piece in part.partition("="))
        name = spell_provider(name)
        if not name or name in limits:
            raise SettingError(f"{part!r}: expected each provider once: coingecko=25,yahoo=60")
        limits[name] = _parse_calls(part, calls)
    return limits


def _parse_calls(part: str, text: str) -> float:
    with suppress(ValueError):
        if 0 < (calls := float(text)) <= MAX_CALLS_PER_MINUTE:
            return calls
    raise SettingError(
        f"{part!r}: expected name=calls, calls a number above 0 up to {MAX_CALLS_PER_MINUTE}"
    )
