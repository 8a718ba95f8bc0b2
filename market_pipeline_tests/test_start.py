"""Starting is fast: what is heavy loads when it is needed, not with the definitions."""

import json
import subprocess
import sys

import pytest

# Dagster and pandas load some of these themselves (pandas loads pyarrow): that is paid already.
HEAVY = {
    "alembic",
    "apprise",
    "exchange_calendars",
    "fastapi",
    "httpx",
    "jinja2",
    "market_pipeline.api",
    "market_pipeline.cache.redis_store",
    "market_pipeline.providers.coingecko",
    "market_pipeline.providers.file",
    "market_pipeline.providers.http",
    "market_pipeline.providers.mock",
    "market_pipeline.providers.yahoo",
    "matplotlib",
    "opentelemetry",
    "prometheus_client",
    "pyarrow",
    "redis",
    "rich",
    "scipy",
    "starlette",
    "structlog",
    "tqdm",
    "watchdog",
}


def list_loaded(statement: str) -> set[str]:
    """Return the modules of a new interpreter after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def paid() -> set[str]:
    """What Dagster and pandas load."""
    return list_loaded("import dagster, pandas")


def test_definitions_load_nothing_heavy(paid: set[str]) -> None:
    """Every command of Dagster and every subprocess of its daemon waits for these modules."""
    loaded = list_loaded("import market_pipeline.definitions")
    assert "market_pipeline.orchestration.assets" in loaded
    assert sorted((loaded - paid) & HEAVY) == []


def test_dagsters_modules_are_left_out_of_garbage_collection() -> None:
    """Walking them again and again took longer than loading the definitions themselves."""
    code = "import gc, market_pipeline.definitions; print(gc.get_freeze_count() > 50_000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_garbage_is_collected_less_often_than_by_default() -> None:
    """Half of a run's collections looked at what it had just loaded."""
    code = "import gc, market_pipeline.definitions; print(gc.isenabled(), gc.get_threshold()[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "10000"]


def test_the_command_starts_without_dagster_and_pandas() -> None:
    """`market-pipeline --help` and refused options answer before any of it is loaded."""
    loaded = list_loaded("import market_pipeline.cli.main")
    assert sorted(loaded & {*HEAVY, "dagster", "pandas", "sqlalchemy"}) == []


@pytest.mark.parametrize("name", sorted(HEAVY))
def test_what_must_not_load_exists(name: str) -> None:
    """A name that cannot be found would be missing from every list."""
    from importlib.util import find_spec

    assert find_spec(name) is not None
