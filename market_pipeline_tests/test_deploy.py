"""The files of ``deploy/`` fit together, and name nothing that the project does not have."""

import re
from typing import Any

import pytest
import yaml

from market_pipeline.settings import SETTINGS
from market_pipeline_tests.commands import ROOT

DEPLOY = ROOT / "deploy"
NAMES = {setting.name for setting in SETTINGS}
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
PARTS = ("web", "daemon", "api", "migrate")


def test_compose_mounts_what_exists() -> None:
    """Paths are relative to deploy/; secrets are what deploy/README.md says to make."""
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), source
    readme = (DEPLOY / "README.md").read_text()
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].removeprefix("./") in readme


@pytest.mark.parametrize("part", PARTS)
def test_our_parts_are_set_by_settings_that_exist(part: str) -> None:
    """A variable with a slip in its name would be unset without a word."""
    service = COMPOSE["services"][part]
    assert set(service["environment"]) <= NAMES
    example = (DEPLOY / "pipeline.env.example").read_text()
    assert set(re.findall(r"^#? ?([A-Z_]+)=", example, re.MULTILINE)) <= NAMES


def test_only_the_proxy_and_grafana_are_published_and_on_loopback() -> None:
    """Dagster's webserver has no authentication, the databases need no visitors."""
    published = {
        name: service["ports"]
        for name, service in COMPOSE["services"].items()
        if "ports" in service
    }
    assert set(published) == {"proxy", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_compose_gives_the_proxy_every_variable_of_its_template() -> None:
    """Nginx's image leaves a variable that is unset as it is, and nginx then does not start."""
    template = (DEPLOY / "proxy/market-pipeline.conf.template").read_text()
    named = set(re.findall(r"\$\{(\w+)\}", template))
    assert named == set(COMPOSE["services"]["proxy"]["environment"])


def test_units_and_services_start_the_same_commands() -> None:
    """Under systemd and compose the three parts are run alike, but for the address."""
    for part in ("web", "daemon", "api"):
        unit = (DEPLOY / f"systemd/market-pipeline-{part}.service").read_text()
        [line] = re.findall(r"^ExecStart=\S*/bin/(.*)$", unit, re.MULTILINE)
        command = " ".join(COMPOSE["services"][part]["command"]).replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - what compose says
        assert line == command
