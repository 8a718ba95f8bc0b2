"""The files of ``deploy/``, each checked by the tool that reads it in production, or its linter."""

import shutil
import subprocess
from pathlib import Path

import pytest

from market_pipeline_tests.system.project import ROOT, SCRIPTS

pytestmark = pytest.mark.system

DEPLOY = ROOT / "deploy"
UNITS = [*sorted((DEPLOY / "systemd").iterdir()), *(DEPLOY / "celery").glob("*.service")]


def run(*command: str | Path) -> tuple[int, str]:
    """Return a tool's exit code and all that it printed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return done.returncode, done.stdout + done.stderr


def test_hadolint_has_no_word_against_the_dockerfile() -> None:
    """Every rule of it, with no exceptions."""
    assert run(SCRIPTS / "hadolint", DEPLOY / "Dockerfile") == (0, "")


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.compose-spec", "compose.yaml"),
        ("vendor.compose-spec", "celery/compose.yaml"),
        ("vendor.github-workflows", "cron/github-actions.yml"),
    ],
)
def test_yaml_files_follow_the_published_schema(schema: str, file: str) -> None:
    """Compose's own, and that of GitHub's workflows."""
    code, said = run(SCRIPTS / "check-jsonschema", "--builtin-schema", schema, DEPLOY / file)
    assert code == 0, said


@pytest.mark.parametrize("file", ["api.yaml", "migrate.yaml"])
def test_kubernetes_accepts_every_manifest(file: str) -> None:
    """By the schemas of its API, with no field that it does not know."""
    code, said = run(SCRIPTS / "kubernetes-validate", "--strict", DEPLOY / "kubernetes" / file)
    assert code == 0, said


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_every_unit(unit: Path, tmp_path: Path) -> None:
    """Its own verifier prints nothing once the programs are where they are looked for."""
    for one in UNITS:
        text = one.read_text().replace("/opt/market-pipeline/.venv/bin", str(SCRIPTS))
        (tmp_path / one.name).write_text(text)
    # A template is verified as one of its instances.
    name = unit.name.replace("@.", "@one.")
    assert run("systemd-analyze", "verify", "--man=no", tmp_path / name) == (0, "")


def test_the_crontab_is_one_that_cron_would_take() -> None:
    """Five fields Dagster's parser accepts, then a command that a shell parses."""
    from dagster._utils.schedules import is_valid_cron_string

    lines = [line for line in (DEPLOY / "cron/crontab").read_text().splitlines() if line[:1] != "#"]
    for line in lines:
        fields = line.split(maxsplit=5)
        assert is_valid_cron_string(" ".join(fields[:5]))
        assert "%" not in fields[5]  # cron would end the command there
        assert subprocess.run(["sh", "-n", "-c", fields[5]], check=False).returncode == 0
    assert len(lines) == 1


def test_the_timers_command_keeps_the_secret_from_the_process_list(tmp_path: Path) -> None:
    """What systemd would run, with a curl that shows how it was called and what it was told."""
    told = tmp_path / "curl"
    told.write_text('#!/bin/sh\necho "$@"\ncat\n')
    told.chmod(0o755)
    unit = (DEPLOY / "systemd/market-pipeline-cron.service").read_text()
    [line] = [one for one in unit.splitlines() if one.startswith("ExecStart=")]
    script = line.removeprefix("ExecStart=/bin/sh -c '").removesuffix("'")
    script = script.replace("%%", "%").replace("\\\\", "\\")
    done = subprocess.run(
        [shutil.which("sh") or "/bin/sh", "-c", script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "CRON_SECRET": "a-secret-of-the-test"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    arguments, _, read = done.stdout.partition("\n")
    assert "a-secret-of-the-test" not in arguments
    assert arguments.endswith("/api/cron")
    assert read == 'header = "Authorization: Bearer a-secret-of-the-test"\n'


def test_prometheus_raises_each_alert_when_it_should() -> None:
    """Its own tool runs the cases of every rule: absent series, replicas, one dead of two."""
    code, said = run("promtool", "test", "rules", DEPLOY / "prometheus/alerts.test.yml")
    assert code == 0, said
    code, said = run("promtool", "check", "rules", DEPLOY / "prometheus/alerts.yml")
    assert code == 0, said
