"""What raises an alert: every kind, its severity, and the runbook's entry for it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AlertKind:
    """A kind of alert.

    Attributes:
        name: As stored and sent. severity: info, warning, error or critical.
        meaning: What it says, in one sentence.
        summary: What is said of its members, before they are listed. Empty: there is one message.
        runbook: The heading of RUNBOOK.md that says what to do.
        lists_markets: Members are markets; those that are deactivated leave it.
        is_event: Its cause is a moment, not a state: it ends when it is acknowledged, or after a
            week in which it did not come again.
    """

    name: str
    severity: str
    meaning: str
    summary: str
    runbook: str
    lists_markets: bool = False
    is_event: bool = False

    @property
    def anchor(self) -> str:
        """Return where the runbook's entry is, as a link within the project."""
        words = "".join(sign for sign in self.runbook.lower() if sign.isalnum() or sign in " -_")
        return f"RUNBOOK.md#{words.replace(' ', '-')}"


RUN_FAILED = AlertKind(
    "run_failed",
    "error",
    "A run failed, of any job; one alert a job, step and class of error.",
    "",
    "A run failed",
    is_event=True,
)
CHECK_FAILED = AlertKind(
    "check_failed",
    "critical",
    "A blocking check found what no constraint should have let in: stored bars are wrong.",
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
)
CREDENTIALS_REFUSED = AlertKind(
    "credentials_refused",
    "error",
    "A provider refused the credentials (401, 403).",
    "credentials refused",
    "A provider is down",
)
MARKETS_SHORT = AlertKind(
    "markets_short",
    "warning",
    "Markets gave no bars, or not all; an error when all that were due failed.",
    "markets short",
    "Some markets came short (outcome partial)",
    lists_markets=True,
)
PRICES_MISSING = AlertKind(
    "prices_missing",
    "warning",
    "A run ended partial: markets gave no live price.",
    "markets without a price",
    "Some markets came short (outcome partial)",
    lists_markets=True,
)
QUARANTINE_RATE = AlertKind(
    "quarantine_rate",
    "warning",
    "More than 1 % of the bars that a market sent were impossible.",
    "markets with impossible bars",
    "Rows in quarantine",
    lists_markets=True,
)
HOLES_STAY = AlertKind(
    "holes_stay",
    "warning",
    "Holes that nobody explained were asked for four times, or are a day old.",
    "markets with holes that do not heal",
    "Holes",
    lists_markets=True,
)
SPLIT_SUSPECTED = AlertKind(
    "split_suspected",
    "warning",
    "A close jumped as after a split that nobody announced; statistics over it wait.",
    "markets with a suspected split",
    "A split is suspected",
    lists_markets=True,
)
DATA_STALE = AlertKind(
    "data_stale",
    "error",
    "By a market's own calendar newer final bars should be stored.",
    "markets with stale data",
    "No runs are started",
    lists_markets=True,
)
NO_RUN = AlertKind(
    "no_run",
    "error",
    "The schedule is on, and no run began for twice its distance.",
    "",
    "No runs are started",
)
CUSTOM = AlertKind(
    "custom",
    "warning",
    "Raised by code of yours: `raise_alert`.",
    "",
    "An alert came, or none did",
    is_event=True,
)
TEST = AlertKind("test", "info", "`market-pipeline alerts test`.", "", "An alert came, or none did")

KINDS = {
    kind.name: kind
    for kind in (
        RUN_FAILED, CHECK_FAILED, PROVIDER_DOWN, CREDENTIALS_REFUSED, MARKETS_SHORT, PRICES_MISSING,
        QUARANTINE_RATE, HOLES_STAY, SPLIT_SUSPECTED, DATA_STALE, NO_RUN, CUSTOM, TEST,
    )
}  # fmt: skip
