"""Logs: one valid line each, with the run's fields, without secrets, at the level that is set."""

import json
import logging
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from market_pipeline.domain.errors import SettingError
from market_pipeline.observability.logs import (
    LineFormatter,
    configure_logs,
    get_logger,
    log_context,
)
from market_pipeline.observability.redaction import HIDDEN, redact
from market_pipeline_tests.commands import SCRIPTS, run_command
from market_pipeline_tests.databases import read_column

EXECUTE = ("dagster", "job", "execute", "-m", "market_pipeline.definitions", "-j", "ingest")
QUICK = {"INGESTION_MARKETS": "BTC-USD,ETH-USD", "INGESTION_LOOKBACK_DAYS": "2"}
FORGED = ['a\n{"level": "error"}', "\x1b[2J\x1b]0;title\x07", "\r\x00\u2028\u202e", "%s %d %(x)s"]


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What is written at any level."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[method-assign]
    logger = logging.getLogger("market_pipeline")
    level, factory = logger.level, logging.getLogRecordFactory()
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)
    logging.setLogRecordFactory(factory)


def read_lines(stderr: str) -> list[dict[str, str]]:
    """Return the JSON lines of an output; Dagster's own are text."""
    return [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]


def test_a_line_has_event_fields_and_context(records: list[logging.LogRecord]) -> None:
    """The example of the docs."""
    logger = get_logger("market_pipeline.example")
    with log_context(market="BTC-USD"):
        logger.warning("the provider sent nothing", interval="1h", bars=0)
    logger.info("outside")
    first, second = (json.loads(LineFormatter(for_people=False).format(one)) for one in records)
    assert first.pop("timestamp").endswith("+00:00")
    assert first == {
        "level": "warning", "logger": "market_pipeline.example", "interval": "1h", "bars": 0,
        "event": "the provider sent nothing",
    }  # fmt: skip
    assert records[0].getMessage() == "the provider sent nothing market=BTC-USD interval=1h bars=0"
    assert "market" not in second


@pytest.mark.parametrize("text", FORGED)
def test_no_text_forges_a_line(text: str, records: list[logging.LogRecord]) -> None:
    """Neither as an event nor as a field, for machines nor for people, here nor in Dagster."""
    logger = get_logger("market_pipeline.example")
    logger.warning(text, symbol=text)
    logging.getLogger("market_pipeline.other").warning("%s", text)
    for record in records:
        line = LineFormatter(for_people=False).format(record)
        assert line.count("\n") == 0
        assert json.loads(line)["level"] == "warning"
        assert LineFormatter(for_people=True).format(record).isprintable()
    assert records[0].getMessage().isprintable()
    assert json.loads(LineFormatter(for_people=False).format(records[0]))["symbol"] == text


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("DATABASE_URL", "postgresql://me:pa%20ss%2Fw0rd@db:5432/x", "pa ss/w0rd"),
        ("DATABASE_URL", "postgresql://me:unexp SECRETPW@db/x", "unexp SECRETPW"),
        ("REDIS_URL", "redis://:hunter22@cache:6379/0", "hunter22"),
        ("API_TOKEN", "t0ken-t0ken-t0ken", "t0ken-t0ken-t0ken"),
        ("COINGECKO_API_KEY", "CG-abcdef", "CG-abcdef"),
        ("ALERT_WEBHOOK_URL", "slack://AAAAtoken/BBBBtoken/CCCC12345", "CCCC12345"),
        ("ALERT_WEBHOOK_URL", "https://a.example/one https://b.example/two2", "b.example/two2"),
        ("PGPASSWORD", "pgsecret", "pgsecret"),
    ],
)
def test_a_secret_is_taken_out_however_it_is_written(
    name: str, value: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As set, decoded, within a traceback; what is no secret stays."""
    monkeypatch.setenv(name, value)
    for text in (secret, value, f"could not connect with {secret!r} to x"):
        assert secret not in redact(text)
        assert HIDDEN in redact(text)
    assert redact("nothing to hide: me@db:5432") == "nothing to hide: me@db:5432"


def test_a_traceback_tells_no_secret(
    records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the record that Dagster would store."""
    monkeypatch.setenv("API_TOKEN", "t0ken-t0ken-t0ken")
    configure_logs()
    try:
        int("refused t0ken-t0ken-t0ken")
    except ValueError:
        logging.getLogger("market_pipeline.example").exception("it failed: %s", "t0ken-t0ken-t0ken")
    line = LineFormatter(for_people=False).format(records[0])
    assert (
        "ValueError: invalid literal for int() with base 10: 'refused ***'"
        in json.loads(line)["exception"]
    )
    assert records[0].getMessage() == "it failed: ***"


def test_a_level_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable's name."""
    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(SettingError, match="LOG_LEVEL='loud'"):
        configure_logs()


def test_a_runs_lines_are_in_its_output_and_in_dagsters_log(
    project_environment: dict[str, str], engine: Engine, tmp_path: Path
) -> None:
    """With run id, job, step, trigger, provider and market; every line once."""
    environment = {**project_environment, **QUICK, "MOCK_FAULTS": "ETH-USD:timeout"}
    done = run_command(*EXECUTE, environment=environment, folder=tmp_path)
    lines = read_lines(done.stderr)
    (run_id,) = read_column(engine, "SELECT run_id::text FROM market_data.ingestion_run")
    failed = [line for line in lines if line["event"] == "the provider failed"]
    assert len(failed) == 2
    assert {name: failed[0][name] for name in ("run_id", "job", "step", "trigger")} == {
        "run_id": run_id, "job": "ingest", "step": "market_aggregates", "trigger": "manual",
    }  # fmt: skip
    assert {(line["provider"], line["market"]) for line in failed} == {("mock", "ETH-USD")}
    stored = read_column(engine, "SELECT event FROM dagster.event_logs")
    assert (
        sum("the provider failed provider=mock market=ETH-USD" in str(one) for one in stored) == 2
    )


@pytest.mark.parametrize(("level", "is_told"), [("warning", False), ("info", True)])
def test_the_level_rules_runs(
    level: str, is_told: bool, project_environment: dict[str, str], tmp_path: Path
) -> None:
    """What is less than LOG_LEVEL is not written."""
    environment = {**project_environment, **QUICK, "LOG_LEVEL": level}
    done = run_command(*EXECUTE, environment=environment, folder=tmp_path)
    assert done.returncode == 0
    assert any("inserted" in line["event"] for line in read_lines(done.stderr)) is is_told


def test_a_terminal_gets_words(project_environment: dict[str, str], tmp_path: Path) -> None:
    """Progress as people read it, no JSON."""
    terminal, end = pty.openpty()
    child = subprocess.Popen(
        [SCRIPTS / "market-pipeline", "ingest"],
        env={**project_environment, **QUICK}, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=end,
    )  # fmt: skip
    os.close(end)
    said = b""
    try:
        while part := os.read(terminal, 4_096):
            said += part
    except OSError:  # Linux' way to say that the other side is closed.
        pass
    assert child.wait() == 0
    assert b"BTC-USD from mock: " in said
    assert b"{" not in said
