"""The ledgers beside the market tables: coverage, holes, receipts, budgets, events and alerts.

They grow with runs and exceptions, not with bars; each comment says what keeps it small.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Sequence,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSTZMULTIRANGE

from market_pipeline.storage.tables import SCHEMA, ingestion_run
from market_pipeline.storage.tables import metadata as metadata  # noqa: PLC0414 - of all tables

_TIME = DateTime(timezone=True)
fetch_claim_sequence = Sequence("fetch_claim_seq", metadata=metadata)


def _market(is_key: bool = True) -> Column[int]:
    target = ForeignKey(f"{SCHEMA}.market.market_id")
    return Column(
        "market_id",
        BigInteger,
        target,
        primary_key=is_key,
        nullable=False,
        comment="The market",
    )


def _interval(comment: str = "1h or 1d, as fetched") -> Column[str]:
    return Column("interval", Text, primary_key=True, comment=comment)


market_coverage = Table(
    "market_coverage",
    metadata,
    _market(),
    _interval(),
    Column(
        "settled",
        TSTZMULTIRANGE,
        nullable=False,
        server_default="{}",
        comment="Spans asked for and answered for good, closures included (UTC)",
    ),
    Column("watermark", _TIME, comment="Close of the last final bar (UTC)"),
    Column("first_bar_at", _TIME, comment="open_time of the first stored bar (UTC)"),
    Column("last_bar_at", _TIME, comment="open_time of the last stored bar (UTC)"),
    Column("bars", BigInteger, nullable=False, server_default="0", comment="Bars stored"),
    Column(
        "verified",
        JSONB,
        nullable=False,
        server_default="{}",
        comment="For each age in days, the spans that were read when older than that (UTC)",
    ),
    Column(
        "round",
        JSONB,
        nullable=False,
        server_default="{}",
        comment="How far the turn of reading old bars again has come, and when (UTC)",
    ),
    Column(
        "parsing",
        Integer,
        nullable=False,
        server_default="1",
        comment="Version of the provider's parser that new bars are read with",
    ),
    Column(
        "older_parsings",
        JSONB,
        nullable=False,
        server_default="{}",
        comment="For each older parser, the spans whose stored bars it read (UTC)",
    ),
    Column("refreshed_at", _TIME, comment="When the provider last answered (UTC)"),
    Column("refreshed_by", Uuid, comment="The run that asked"),
    comment="One row per market and interval: what is known to be complete",
)

coverage_hole = Table(
    "coverage_hole",
    metadata,
    _market(),
    _interval(),
    Column("starts_at", _TIME, primary_key=True, comment="Start of the half-open span (UTC)"),
    Column("ends_at", _TIME, nullable=False, comment="End of the span (UTC)"),
    Column("reason", Text, nullable=False, comment="Why bars are missing"),
    Column("detail", Text, comment="What the provider said"),
    Column("tries", Integer, nullable=False, comment="How often it was asked for"),
    Column("first_seen_at", _TIME, nullable=False, comment="When it was first missed (UTC)"),
    Column("last_checked_at", _TIME, nullable=False, comment="When it was last asked for (UTC)"),
    Column("next_check_at", _TIME, comment="When it is asked for again; NULL: never (UTC)"),
    Column("run_id", Uuid, comment="The run that asked last"),
    CheckConstraint("starts_at < ends_at", name="span_is_positive"),
    CheckConstraint(
        "reason IN ('fetch_failed', 'provider_empty', 'no_trades', 'quarantined', "
        "'before_first', 'after_last', 'out_of_reach')",
        name="reason_is_known",
    ),
    comment="One row per missing span of a market and interval: exceptions only; healed rows go",
)

quarantined_row = Table(
    "quarantined_row",
    metadata,
    Column(
        "row_id", BigInteger, Identity(), primary_key=True, comment="What the command line takes"
    ),
    _market(is_key=False),
    Column("interval", Text, nullable=False, comment="As the provider gave it"),
    Column("open_time", _TIME, comment="As the provider gave it (UTC); NULL when it gave none"),
    Column("rule", Text, nullable=False, comment="The rule it broke"),
    Column("detail", Text, nullable=False, comment="The values that broke it"),
    Column("payload", JSONB, nullable=False, comment="The whole bar as received"),
    Column("payload_hash", Text, nullable=False, comment="Tells payloads of one key apart"),
    Column("run_id", Uuid, nullable=False, comment="The run that received it first"),
    Column("first_seen_at", _TIME, nullable=False, comment="When it first came (UTC)"),
    Column("last_seen_at", _TIME, nullable=False, comment="When it last came (UTC)"),
    Column("times_seen", Integer, nullable=False, comment="How often it came"),
    Column("status", Text, nullable=False, server_default="open", comment="What became of it"),
    Column("resolved_at", _TIME, comment="When it was replayed or discarded (UTC)"),
    Index(
        "quarantined_row_key",
        "market_id",
        "interval",
        "open_time",
        "rule",
        "payload_hash",
        unique=True,
        postgresql_nulls_not_distinct=True,
    ),
    CheckConstraint("status IN ('open', 'replayed', 'discarded')", name="status_is_known"),
    comment="One row per impossible bar, kept once with its reason",
)

market_event = Table(
    "market_event",
    metadata,
    Column("event_id", BigInteger, Identity(), primary_key=True, comment="Surrogate key"),
    _market(is_key=False),
    Column("kind", Text, nullable=False, comment="difference, suspected_split or split"),
    Column("starts_at", _TIME, comment="First bar it touches, by open_time; NULL: all (UTC)"),
    Column("ends_at", _TIME, comment="End of the span it touches; NULL: up to now (UTC)"),
    Column("ratio", Double, comment="New price over old price, the median"),
    Column("spread", Double, comment="Largest relative distance of a bar's factor from the median"),
    Column(
        "trace",
        JSONB,
        nullable=False,
        server_default="{}",
        comment="For each interval, how far the difference was followed, and whether to its end",
    ),
    Column("detail", Text, nullable=False, comment="What was seen"),
    Column("detected_at", _TIME, nullable=False, comment="When it was seen (UTC)"),
    Column("run_id", Uuid, nullable=False, comment="The run that saw it"),
    Column("resolved_at", _TIME, comment="When it ended; NULL: it is open (UTC)"),
    Column("resolution", Text, comment="How it ended, in a word"),
    Index("market_event_open", "market_id", postgresql_where=text("resolved_at IS NULL")),
    CheckConstraint("kind IN ('split', 'difference', 'suspected_split')", name="kind_is_known"),
    comment="One row per event that changes a span of a series; statistics over it wait while open",
)

dataset_version = Table(
    "dataset_version",
    metadata,
    Column(
        "version",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="Version of the data in commit order",
    ),
    _interval("1h, 1d or 1w"),
    _market(),
    Column("first_open_time", _TIME, nullable=False, comment="First bar of the batch (UTC)"),
    Column("last_open_time", _TIME, nullable=False, comment="Last bar of the batch (UTC)"),
    Column("known_at", _TIME, nullable=False, comment="When it was written (UTC)"),
    Column("run_id", Uuid, nullable=False, comment="The run that wrote it"),
    Index("dataset_version_market", "market_id", "version"),
    comment="One row per version, market and interval whose bars changed: where its changes lie",
)

ingestion_request = Table(
    "ingestion_request",
    metadata,
    Column("request_id", BigInteger, Identity(), primary_key=True, comment="Surrogate key"),
    Column(
        "run_id",
        Uuid,
        ForeignKey(ingestion_run.c.run_id, ondelete="CASCADE"),
        nullable=False,
        comment="The run that asked",
    ),
    _market(is_key=False),
    Column("interval", Text, nullable=False, comment="1h or 1d"),
    Column("starts_at", _TIME, nullable=False, comment="Start of the span asked for (UTC)"),
    Column("ends_at", _TIME, nullable=False, comment="End of the span asked for (UTC)"),
    Column(
        "purpose",
        Text,
        nullable=False,
        comment="missing, tail, retry, verify, trace or reload",
    ),
    Column("asked_at", _TIME, nullable=False, comment="When it was asked (UTC)"),
    Column("seconds", Double, nullable=False, comment="How long the answer took"),
    Column("received", Integer, nullable=False, comment="Bars in the answer"),
    Column("error", Text, comment="What came instead of bars"),
    Index("ingestion_request_run", "run_id"),
    CheckConstraint(
        "purpose IN ('missing', 'tail', 'retry', 'verify', 'trace', 'reload')",
        name="purpose_is_known",
    ),
    comment="One row per request of a run; goes with its receipt",
)

fetch_claim = Table(
    "fetch_claim",
    metadata,
    _market(),
    Column("token", BigInteger, nullable=False, comment="Grows with every claim"),
    Column("run_id", Uuid, nullable=False, comment="The run that holds it"),
    Column("claimed_at", _TIME, nullable=False, comment="Since when (UTC)"),
    Column("expires_at", _TIME, nullable=False, comment="Until when, unless renewed (UTC)"),
    comment="One row per market that is being fetched: others wait, then plan again",
)

provider_budget = Table(
    "provider_budget",
    metadata,
    Column("provider", Text, primary_key=True, comment="The provider"),
    Column("tokens", Double, nullable=False, comment="Calls that may be made at once"),
    Column("refilled_at", _TIME, nullable=False, comment="When tokens were last counted (UTC)"),
    Column("blocked_until", _TIME, comment="By the provider's Retry-After, for all (UTC)"),
    Column("day", Date, nullable=False, comment="The UTC day of the daily counts"),
    Column("calls_today", BigInteger, nullable=False, comment="Calls made on that day"),
    Column("verifications_today", BigInteger, nullable=False, comment="Of them, to verify"),
    Column("month", Date, nullable=False, comment="First day of the month of the monthly count"),
    Column("calls_this_month", BigInteger, nullable=False, comment="Calls made in that month"),
    comment="One row per provider with a limit: its quota, shared by all processes",
)

trading_session = Table(
    "trading_session",
    metadata,
    Column("calendar", Text, primary_key=True, comment="Exchange calendar, such as XNYS"),
    Column("session_date", Date, primary_key=True, comment="As the exchange's clocks have it"),
    Column("open_time", _TIME, nullable=False, comment="First trade (UTC)"),
    Column(
        "close_time",
        _TIME,
        nullable=False,
        comment="Last trade; a lunch break counts as open (UTC)",
    ),
    Column("source", Text, nullable=False, comment="The library that knew it"),
    comment="One row per session of an exchange whose markets are ingested",
)

market_stamp = Table(
    "market_stamp",
    metadata,
    Column(
        "scope",
        Text,
        primary_key=True,
        comment="provider:symbol; * is the list of markets, and with it all of them",
    ),
    Column(
        "version",
        BigInteger,
        nullable=False,
        comment="Version of the last change of any kind, in commit order",
    ),
    comment="One row per market's name: what readers compare a cached value's version with",
)

idempotency_key = Table(
    "idempotency_key",
    metadata,
    Column(
        "key",
        Text,
        primary_key=True,
        comment="flight:HASH of requests in flight, key:KEY of a client, cron:MINUTE",
    ),
    Column(
        "request_hash",
        Text,
        nullable=False,
        comment="What was asked for; another request under the key is refused",
    ),
    Column(
        "launch_id", Uuid, nullable=False, comment="The launch, also a tag of its run in Dagster"
    ),
    Column("run_id", Uuid, comment="The run; NULL: not launched, or not known to be"),
    Column(
        "lease_until",
        _TIME,
        comment="Until when one process may launch it alone; NULL: none has tried (UTC)",
    ),
    Column(
        "answer_status", Integer, comment="HTTP status of the answer; NULL: the run has not ended"
    ),
    Column("answer", JSONB, comment="The answer, given again to who asks again"),
    Column("created_at", _TIME, nullable=False, comment="When it was first asked for (UTC)"),
    Column("expires_at", _TIME, nullable=False, comment="When it is forgotten (UTC)"),
    Index("idempotency_key_launch", "launch_id"),
    Index("idempotency_key_run", "run_id"),
    Index("idempotency_key_expires", "expires_at"),
    comment="One row per request over HTTP that must not run twice",
)

alert = Table(
    "alert",
    metadata,
    Column("alert_id", Uuid, primary_key=True, comment="What the command line takes"),
    Column("fingerprint", Text, nullable=False, comment="What makes two alerts the same"),
    Column("kind", Text, nullable=False, comment="What happened, as docs/alerts.md lists it"),
    Column("severity", Text, nullable=False, comment="The worst so far"),
    Column("message", Text, nullable=False, comment="The latest, in one line"),
    Column(
        "members",
        JSONB,
        nullable=False,
        server_default="{}",
        comment="Whom it is about, each with its reason: markets, providers",
    ),
    Column("context", JSONB, nullable=False, server_default="{}", comment="What else is known"),
    Column("run_id", Uuid, comment="The run that raised it last; NULL: a watch did"),
    Column("raised_at", _TIME, nullable=False, comment="When it was raised first (UTC)"),
    Column("seen_at", _TIME, nullable=False, comment="When it was raised last (UTC)"),
    Column("times", Integer, nullable=False, comment="How often it was raised"),
    Column("noticed_at", _TIME, comment="When a message about it was last written (UTC)"),
    Column("acknowledged_at", _TIME, comment="When somebody took it on (UTC); ends reminders"),
    Column("cleared_at", _TIME, comment="Since when its cause is gone; NULL: it is not (UTC)"),
    Column("resolved_at", _TIME, comment="When it ended; NULL: it is open (UTC)"),
    Index(
        "alert_open",
        "fingerprint",
        unique=True,
        postgresql_where=text("resolved_at IS NULL"),
    ),
    Index("alert_raised", "raised_at"),
    CheckConstraint(
        "severity IN ('info', 'warning', 'error', 'critical')", name="severity_is_known"
    ),
    comment="One row per alert, from the first time it is raised until it is resolved",
)

alert_delivery = Table(
    "alert_delivery",
    metadata,
    Column("message_id", Uuid, primary_key=True, comment="The same at every try: the webhook-id"),
    Column(
        "receiver",
        Text,
        primary_key=True,
        comment="Scheme and a hash of the address; empty: not addressed yet",
    ),
    Column(
        "alert_id",
        Uuid,
        ForeignKey(f"{SCHEMA}.alert.alert_id", ondelete="CASCADE"),
        nullable=False,
        comment="What it is about",
    ),
    Column("body", JSONB, nullable=False, comment="The message as it is sent"),
    Column("created_at", _TIME, nullable=False, comment="When it was written (UTC)"),
    Column("next_try_at", _TIME, nullable=False, comment="When it is sent next (UTC)"),
    Column("tries", Integer, nullable=False, server_default="0", comment="How often it was sent"),
    Column("sent_at", _TIME, comment="When the receiver took it (UTC)"),
    Column("given_up_at", _TIME, comment="When it was given up (UTC)"),
    Column("error", Text, comment="What the last try met"),
    Index(
        "alert_delivery_due",
        "next_try_at",
        postgresql_where=text("sent_at IS NULL AND given_up_at IS NULL"),
    ),
    Index("alert_delivery_alert", "alert_id"),
    comment="One row per message and receiver: the outbox, emptied by the sensor alert_delivery",
)

metric_total = Table(
    "metric_total",
    metadata,
    Column("name", Text, primary_key=True, comment="As docs/metrics.md lists it"),
    Column("labels", JSONB, primary_key=True, comment="Names and values"),
    Column(
        "value", Double, nullable=False, comment="The total; of a histogram the sum, in its unit"
    ),
    Column(
        "count",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="Observations of a histogram; 0 for a counter",
    ),
    Column(
        "buckets",
        JSONB,
        nullable=False,
        server_default="{}",
        comment="Observations up to each bound of a histogram, cumulative",
    ),
    Column("updated_at", _TIME, nullable=False, comment="Last change (UTC)"),
    comment="One row per counter or histogram and label set: totals that outlive runs",
)
