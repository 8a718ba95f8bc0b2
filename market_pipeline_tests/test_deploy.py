"""The files of ``deploy/`` fit together, and name nothing that the project does not have."""

import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import promql_parser
import pytest
import yaml
from sqlalchemy import Engine

from market_pipeline.api.app import build_app
from market_pipeline.observability.metrics import Metric
from market_pipeline.settings import SETTINGS, SEVERITIES
from market_pipeline.storage.server.roles import Roles, create_roles, name_roles
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


def test_every_image_can_be_named_by_its_digest() -> None:
    """Others' images and the base of ours are variables whose default is a tag."""
    images = {name: one["image"] for name, one in COMPOSE["services"].items() if name not in PARTS}
    assert len(images) == 5
    for name, image in images.items():
        assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[a-z/]+:[^:}]+\}", image), name
    assert COMPOSE["x-pipeline"]["build"]["args"]["BASE"].startswith("${PYTHON_IMAGE:-python:")
    stages = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert stages == ["$BASE", "$BASE"]


def test_compose_gives_the_proxy_every_variable_of_its_template() -> None:
    """Nginx's image leaves a variable that is unset as it is, and nginx then does not start."""
    template = (DEPLOY / "proxy/market-pipeline.conf.template").read_text()
    named = set(re.findall(r"\$\{(\w+)\}", template))
    assert named == set(COMPOSE["services"]["proxy"]["environment"])


def test_the_instance_of_several_machines_differs_only_where_it_says_so() -> None:
    """What is improved in one dagster.yaml must not be forgotten in the other."""
    one = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    many = yaml.safe_load((DEPLOY / "celery/dagster.yaml").read_text())
    assert many["storage"]["custom"].pop("class") == "SharedStorage"
    assert one["storage"]["custom"].pop("class") == "PipelineStorage"
    del many["run_launcher"], many["compute_logs"], one["compute_logs"]
    for name in ("start_timeout_seconds", "max_resume_run_attempts"):
        one["run_monitoring"].pop(name, None)
        del many["run_monitoring"][name]
    runs, pools = many["concurrency"]["runs"], many["concurrency"]["pools"]
    assert pools["default_limit"] == runs["max_concurrent_runs"], "all shards may fetch at once"
    for part in (one["concurrency"]["pools"], pools):
        del part["default_limit"]
    del one["concurrency"]["runs"], many["concurrency"]["runs"]
    assert many == one


def test_workers_are_set_by_settings_that_exist_and_agree_with_the_instance() -> None:
    """The broker's time-out must be the same for who hands over and who takes."""
    celery: dict[str, Any] = yaml.safe_load((DEPLOY / "celery/compose.yaml").read_text())
    own = {"CELERY_BROKER_URL", "CELERY_RESULT_URL", "PYTHONPATH"}
    assert set(celery["services"]["worker"]["environment"]) <= NAMES | own
    assert set(celery["services"]["web"]["environment"]) <= NAMES | own
    assert "noeviction" in celery["services"]["broker"]["command"]
    instance = yaml.safe_load((DEPLOY / "celery/dagster.yaml").read_text())
    options = instance["run_launcher"]["config"]["config_source"]["broker_transport_options"]
    told = (DEPLOY / "celery/dagster_celery_config.py").read_text()
    assert f"broker_transport_options = {json.dumps(options)}" in told
    assert options["visibility_timeout"] > instance["run_monitoring"]["max_runtime_seconds"]


KUBERNETES = [
    document
    for name in ("api", "migrate")
    for document in yaml.safe_load_all((DEPLOY / f"kubernetes/{name}.yaml").read_text())
]
VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes/values.yaml").read_text())


def test_no_pod_runs_as_root_or_without_bounds() -> None:
    """Ours and the chart's: not root, no more rights than at the start, a bound on memory."""
    pods = [one["spec"]["template"]["spec"] for one in KUBERNETES if one["kind"] != "Service"]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["limits"]["memory"]
    (code,) = VALUES["dagster-user-deployments"]["deployments"]
    for part in (code, VALUES["dagsterWebserver"], VALUES["dagsterDaemon"]):
        assert part["podSecurityContext"]["runAsNonRoot"] is True
        assert part["securityContext"]["allowPrivilegeEscalation"] is False
        assert part["resources"]["limits"]["memory"]
    launched = VALUES["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    assert launched["podSpecConfig"]["securityContext"]["runAsNonRoot"] is True
    assert launched["containerConfig"]["resources"]["limits"]["memory"]


def test_the_chart_is_set_by_settings_that_exist_and_one_image() -> None:
    """All processes have the same code; a variable with a slip in its name would be unset."""
    (code,) = VALUES["dagster-user-deployments"]["deployments"]
    assert set(code["env"]) <= NAMES
    image = f"{code['image']['repository']}:{code['image']['tag']}"
    assert VALUES["dagsterWebserver"]["image"] == VALUES["dagsterDaemon"]["image"] == code["image"]
    pods = [one["spec"]["template"]["spec"] for one in KUBERNETES if one["kind"] != "Service"]
    for pod in pods:
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["image"] == image
            assert {one["name"] for one in container.get("env", ())} <= NAMES


def test_units_and_services_start_the_same_commands() -> None:
    """Under systemd and compose the three parts are run alike, but for the address."""
    for part in ("web", "daemon", "api"):
        unit = (DEPLOY / f"systemd/market-pipeline-{part}.service").read_text()
        [line] = re.findall(r"^ExecStart=\S*/bin/(.*)$", unit, re.MULTILINE)
        command = " ".join(COMPOSE["services"][part]["command"]).replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - what compose says
        assert line == command


DASHBOARD: dict[str, Any] = json.loads(
    (DEPLOY / "grafana/dashboards/market-pipeline.json").read_text()
)
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
# Prometheus' own, beside what this project emits.
FOREIGN_METRICS = {"up"}
assert build_app


def list_targets(kind: str) -> list[tuple[str, str]]:
    """Return title and query of each panel's targets of one kind."""
    return [
        (panel["title"], target[kind])
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
        if kind in target
    ]


def list_metrics(expression: str) -> set[str]:
    """Return the metrics that a PromQL expression names; the parser refuses what is none."""
    return {
        found.name
        for found in walk(promql_parser.parse(expression))
        if isinstance(found, promql_parser.VectorSelector)
    }


def walk(expression: Any) -> Iterator[Any]:
    """Yield an expression and all its parts."""
    yield expression
    for name in ("expr", "lhs", "rhs", "vs", "vector_selector"):
        part = getattr(expression, name, None)
        if part is not None:
            yield from walk(part)
    for part in getattr(expression, "args", None) or []:
        yield from walk(part)


def test_every_panels_query_runs_as_the_reader(engine: Engine) -> None:
    """PostgreSQL itself checks them, with the rights of `market-pipeline db roles`."""
    prefix = f"test{uuid4().hex[:10]}"
    roles = name_roles(prefix)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA dagster")
        connection.exec_driver_sql("CREATE TABLE dagster.alembic_version (version_num text)")
    create_roles(engine, roles)
    queries = list_targets("rawSql")
    assert len(queries) > 10
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SET ROLE {roles.reader}")
        for title, query in queries:
            # As Grafana fills it in.
            filled = re.sub(
                r"\$__timeFilter\((\w+)\)", r"\1 BETWEEN now() - '1 day'::interval AND now()", query
            )
            assert "$__" not in filled, title
            connection.exec_driver_sql(filled.replace("%", "%%"))
        connection.rollback()
    drop_roles(engine, roles)


def drop_roles(engine: Engine, roles: Roles) -> None:
    """Remove the roles: they belong to the whole server."""
    with engine.begin() as connection:
        for name in (roles.owner, roles.writer, roles.reader):
            connection.exec_driver_sql(f"REASSIGN OWNED BY {name} TO CURRENT_USER")
            connection.exec_driver_sql(f"DROP OWNED BY {name}")
            connection.exec_driver_sql(f"DROP ROLE {name}")


def test_every_expression_parses_and_names_what_is_emitted() -> None:
    """Panels and alert rules alike."""
    nested = "sum by (a) (rate(x_total{b='c'}[5m])) / (1 + max_over_time(y[1h:5m])) > abs(z)"
    assert list_metrics(nested) == {"x_total", "y", "z"}
    expressions = [*list_targets("expr"), *((rule["alert"], rule["expr"]) for rule in RULES)]
    assert expressions
    for title, expression in expressions:
        assert list_metrics(expression) <= FOREIGN_METRICS | list_emitted(), title


def list_emitted() -> set[str]:
    """Return the names under which declared metrics come out of /metrics."""
    parts = ("_bucket", "_sum", "_count")
    return {
        f"{metric.name}{part}"
        for metric in Metric.DECLARED.values()
        for part in (parts if metric.kind == "histogram" else ("",))
    }


def test_alert_rules_lead_to_an_entry_of_the_runbook() -> None:
    """Each says how bad it is, and where to read on."""
    titles = re.findall(r"^## (.*)$", (ROOT / "RUNBOOK.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    for rule in RULES:
        assert rule["labels"]["severity"] in SEVERITIES
        assert rule["annotations"]["runbook"].removeprefix("RUNBOOK.md#") in anchors


def test_every_alert_rule_has_a_case_in_which_it_fires() -> None:
    """What was never seen to fire may never do so."""
    cases = yaml.safe_load((DEPLOY / "prometheus/alerts.test.yml").read_text())["tests"]
    fired = {
        one["alertname"]
        for case in cases
        for one in case["alert_rule_test"]
        if one.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in RULES}


def test_panels_fit_on_the_page_and_use_the_provisioned_sources() -> None:
    """No two overlap, ids differ, and each source is one that provisioning makes."""
    sources = {
        source["uid"]
        for file in (DEPLOY / "grafana/provisioning/datasources").iterdir()
        for source in yaml.safe_load(file.read_text())["datasources"]
    }
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"]["uid"] in sources
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
