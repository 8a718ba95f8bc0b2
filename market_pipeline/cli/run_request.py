"""The request of a run, checked before anything is opened."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from market_pipeline.alerting.delivery import check_alert_settings
from market_pipeline.domain.errors import SettingError
from market_pipeline.ingestion.request import Request, build_request
from market_pipeline.providers.registry import Routing, check_provider_name, route_served
from market_pipeline.settings import check_run_settings, name_errors


def check_options(options: Mapping[str, Any]) -> Request:
    """Return a request, checked with every setting that its run will read; nothing is opened.

    An error names the option or variable, its value, and what is expected.
    """
    request, _ = route_request(options)
    _check_home(os.environ["DAGSTER_HOME"])
    check_run_settings()
    check_alert_settings()
    # Dagster checks this one and takes long to load, so it comes last.
    from market_pipeline.orchestration.automation import read_cron_expression

    read_cron_expression()
    return request


def route_request(options: Mapping[str, Any]) -> tuple[Request, Routing]:
    """Return what options ask for, with a provider for each market that has one."""
    request = build_request(datetime.now(UTC), **options)
    _check_providers(request, "--provider " if "provider" in options else "INGESTION_PROVIDER=")
    return request, route_served(request.symbols, request.providers, os.environ)


def _check_providers(request: Request, source: str) -> None:
    for name in request.providers:
        with name_errors(f"{source}{','.join(request.providers)!r}"):
            check_provider_name(name)


def _check_home(home: str) -> None:
    if not Path(home).is_absolute() or not Path(home).is_dir():
        raise SettingError(
            f"DAGSTER_HOME={home!r}: expected the absolute path of the folder of dagster.yaml: "
            "run `market-pipeline init`"
        )
