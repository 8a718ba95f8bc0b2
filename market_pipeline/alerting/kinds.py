"""The kinds of alert, each with its severity and its entry in the runbook."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AlertKind:
    """A kind of alert, with its severity, and its cause as docs/alerts.md lists it.

    Attributes:
        summary: The words before the list of members. Empty: the alert has its own message.
        runbook: The heading of RUNBOOK.md that says what to do.
        lists_ingested: Members are markets or providers; they leave when nobody ingests them.
        is_event: The cause is a moment and not a state. The alert ends when it is acknowledged, or
            after a week in which it was not raised again.
    """

    name: str
    severity: str
    meaning: str
    summary: str
    runbook: str
    lists_ingested: bool = False
    is_event: bool = False

    @property
    def anchor(self) -> str:
        """Return the link to the runbook's entry, within the project."""
        words = "".join(sign for sign in self.runbook.lower() if sign.isalnum() or sign in " -_")
        return f"RUNBOOK.md#{words.replace(' ', '-')}"


RUN_FAILED = AlertKind(
    "run_failed",
    "error",
    "A run of any job failed. There is one alert for each job, step and class of error.",
    "",
    "A run failed",
    is_event=True,
)
CHECK_FAILED = AlertKind(
    "check_failed",
    "critical",
    "A blocking check found wrong bars in the database.",
    "",
    "A run failed",
    is_event=True,
)
PROVIDER_DOWN = AlertKind(
    "provider_down",
    "error",
    "A provider gave nothing for any of its markets.",
    "provider down",
    "A provider is down",
    lists_ingested=True,
)
CREDENTIALS_REFUSED = AlertKind(
    "credentials_refused",
    "error",
    "A provider refused the credentials (401, 403).",
    "credentials refused",
    "A provider is down",
    lists_ingested=True,
)
MARKETS_SHORT = AlertKind(
    "markets_short",
    "warning",
    "Some markets gave no bars, or not all. It is an error if all markets that were due failed.",
    "markets short",
    "Some markets came short (outcome partial)",
    lists_ingested=True,
)
PRICES_MISSING = AlertKind(
    "prices_missing",
    "warning",
    "A run ended with outcome partial because some markets gave no live price.",
    "markets without a price",
    "Some markets came short (outcome partial)",
    lists_ingested=True,
)
QUARANTINE_RATE = AlertKind(
    "quarantine_rate",
    "warning",
    "More than 1 % of the bars that a market sent were impossible.",
    "markets with impossible bars",
    "Rows in quarantine",
    lists_ingested=True,
)
HOLES_STAY = AlertKind(
    "holes_stay",
    "warning",
    "Holes without an explanation were asked for four times, or are a day old.",
    "markets with holes that stay",
    "Holes",
    lists_ingested=True,
)
SPLIT_SUSPECTED = AlertKind(
    "split_suspected",
    "warning",
    "A close jumped as it does after a split, and no split was announced. "
    "Statistics over the jump are NULL.",
    "markets with a suspected split",
    "A split is suspected",
    lists_ingested=True,
)
DATA_STALE = AlertKind(
    "data_stale",
    "error",
    "A market's calendar expects newer final bars than are stored.",
    "markets with stale data",
    "No runs are started",
    lists_ingested=True,
)
NO_RUN = AlertKind(
    "no_run",
    "error",
    "The schedule is on, and no run began for twice its interval.",
    "",
    "No runs are started",
)
CUSTOM = AlertKind(
    "custom",
    "warning",
    "Your own code raised it with `raise_alert`.",
    "",
    "An alert came, or none did",
    is_event=True,
)
TEST = AlertKind(
    "test",
    "info",
    "You sent it with `market-pipeline alerts test`.",
    "",
    "An alert came, or none did",
)

KINDS = {kind.name: kind for kind in list(globals().values()) if isinstance(kind, AlertKind)}
