"""``market-pipeline alerts``: test receivers, list and acknowledge alerts, check the delivery."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from market_pipeline.cli.database import open_database
from market_pipeline.cli.options import choose_id, make_id_argument
from market_pipeline.cli.show import AS_JSON, print_json, print_rows
from market_pipeline.domain.errors import PipelineError

if TYPE_CHECKING:
    from sqlalchemy import Row

_EPILOG = """\b
Examples:
  market-pipeline alerts test
  market-pipeline alerts list --all
  market-pipeline alerts ack 1f0e7c3a-...
  market-pipeline alerts status && echo "alerting works"

Receivers are those of ALERT_WEBHOOK_URL. The sensor alert_delivery sends what is raised; where no
daemon runs, `market-pipeline alerts deliver` does.
"""


@click.group(epilog=_EPILOG, short_help="Test, list and acknowledge alerts.")
def alerts() -> None:
    """Alerts: what was raised, who was told, and whether telling works."""


@alerts.command()
def test() -> None:
    """Send a message to every receiver now, and say what each answered."""
    from market_pipeline.alerting.delivery import send_test

    with open_database() as engine:
        results = send_test(engine)
    if not results:
        raise PipelineError("ALERT_WEBHOOK_URL is not set: alerts are recorded and not sent")
    for name, sent in results.items():
        click.echo(f"{name}: {'delivered' if sent.is_ok else sent.error}")
    if not all(sent.is_ok for sent in results.values()):
        raise PipelineError("not every receiver accepted the message")


@alerts.command("list")
@click.option("--all", "with_resolved", is_flag=True, help="List resolved alerts too.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000))
@AS_JSON
def list_alerts(with_resolved: bool, limit: int, as_json: bool) -> None:
    """List open alerts, the newest first."""
    from market_pipeline.storage.alerts.outbox import read_alerts

    with open_database() as engine, engine.connect() as connection:
        rows = [_describe_alert(row) for row in read_alerts(connection, limit, with_resolved)]
    print_rows("Alerts", rows, as_json, if_none="No alert is open")


@alerts.command()
@make_id_argument("ALERT_ID")
def ack(beginning: str) -> None:
    """Take ALERT_ID on: no more reminders of it, and one that is no state ends.

    The beginning of an id is enough.
    """
    from market_pipeline.alerting.raising import acknowledge
    from market_pipeline.storage.ledgers import alert

    listing = "market-pipeline alerts list"
    with open_database() as engine, engine.begin() as connection:
        alert_id = choose_id(connection, alert.c.alert_id, beginning, "alert", listing)
        if not acknowledge(connection, alert_id, datetime.now(UTC)):
            raise PipelineError(f"no alert {alert_id} is open: `{listing}` shows them")
    click.echo(f"Alert {alert_id} is acknowledged")


@alerts.command()
def deliver() -> None:
    """End alerts whose cause is gone and send what waits, for where no daemon runs."""
    from market_pipeline.alerting.delivery import deliver as empty
    from market_pipeline.alerting.raising import forget_inactive, resolve_cleared

    with open_database() as engine:
        with engine.begin() as connection:
            forget_inactive(connection, datetime.now(UTC))
            resolve_cleared(connection, datetime.now(UTC))
        click.echo(f"{empty(engine, seconds=60.0)} messages delivered")


@alerts.command()
@AS_JSON
def status(as_json: bool) -> None:
    """Say whether alerting works; exit 1 when messages wait for an hour, or are lost."""
    from market_pipeline.alerting.delivery import read_outbox

    with open_database() as engine, engine.connect() as connection:
        outbox = read_outbox(connection, datetime.now(UTC))
    row: dict[str, Any] = {
        "receivers": ", ".join(outbox.receivers) or "none: this process sends nothing",
        "pending": outbox.pending,
        "oldest pending": outbox.oldest_pending,
        "last sent": outbox.last_sent,
        "given up today": outbox.given_up,
        "trouble": outbox.trouble or "none",
    }
    if as_json:
        print_json(row)
    else:
        print_rows("Alerting", [row])
    if outbox.trouble:
        raise PipelineError(f"alerting is in trouble: {outbox.trouble}")


def _describe_alert(row: "Row[Any]") -> dict[str, Any]:
    from market_pipeline.storage.alerts.outbox import name_state

    return {
        "alert": str(row.alert_id),
        "severity": row.severity,
        "kind": row.kind,
        "state": name_state(row),
        "times": row.times,
        "raised": row.raised_at,
        "seen": row.seen_at,
        "message": row.message,
    }
