"""The ledgers beside the market tables: coverage, holes, receipts, budgets, events and alerts.

They grow with runs and exceptions, not with bars; each comment says what keeps it small.
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    Date,
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

from market_pipeline.storage.tables import (
    SCHEMA,
    TIME,
    ingestion_run,
    key,
    name_market,
    needed,
    optional,
)
from market_pipeline.storage.tables import metadata as metadata  # noqa: PLC0414 - of all tables

fetch_claim_sequence = Sequence("fetch_claim_seq", metadata=metadata)


def _interval(comment: str = "1h or 1d, as fetched") -> Column[Any]:
    return key("interval", Text, comment)


def _mapping(name: str, comment: str) -> Column[Any]:
    return needed(name, JSONB, comment, server_default="{}")


market_coverage = Table(
    "market_coverage",
    metadata,
    name_market(),
    _interval(),
    needed(
        "settled",
        TSTZMULTIRANGE,
        "Spans asked for and answered for good, closures included (UTC)",
        server_default="{}",
    ),
    optional("watermark", TIME, "Close of the last final bar (UTC)"),
    optional("first_bar_at", TIME, "open_time of the first stored bar (UTC)"),
    optional("last_bar_at", TIME, "open_time of the last stored bar (UTC)"),
    needed("bars", BigInteger, "Bars stored", server_default="0"),
    _mapping(
        "verified", "For each age in days, the spans that were read when older than that (UTC)"
    ),
    _mapping("round", "How far the turn of reading old bars again has come, and when (UTC)"),
    needed(
        "parsing",
        Integer,
        "Version of the provider's parser that new bars are read with",
        server_default="1",
    ),
    _mapping("older_parsings", "For each older parser, the spans whose stored bars it read (UTC)"),
    optional("refreshed_at", TIME, "When the provider last answered (UTC)"),
    optional("refreshed_by", Uuid, "The run that asked"),
    comment="One row per market and interval: what is known to be complete",
)

coverage_hole = Table(
    "coverage_hole",
    metadata,
    name_market(),
    _interval(),
    key("starts_at", TIME, "Start of the half-open span (UTC)"),
    needed("ends_at", TIME, "End of the span (UTC)"),
    needed("reason", Text, "Why bars are missing"),
    optional("detail", Text, "What the provider said"),
    needed("tries", Integer, "How often it was asked for"),
    needed("first_seen_at", TIME, "When it was first missed (UTC)"),
    needed("last_checked_at", TIME, "When it was last asked for (UTC)"),
    optional("next_check_at", TIME, "When it is asked for again; NULL: never (UTC)"),
    optional("run_id", Uuid, "The run that asked last"),
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
    key("row_id", BigInteger, "What the command line takes", Identity()),
    name_market(needed),
    needed("interval", Text, "As the provider gave it"),
    optional("open_time", TIME, "As the provider gave it (UTC); NULL when it gave none"),
    needed("rule", Text, "The rule it broke"),
    needed("detail", Text, "The values that broke it"),
    needed("payload", JSONB, "The whole bar as received"),
    needed("payload_hash", Text, "Tells payloads of one key apart"),
    needed("run_id", Uuid, "The run that received it first"),
    needed("first_seen_at", TIME, "When it first came (UTC)"),
    needed("last_seen_at", TIME, "When it last came (UTC)"),
    needed("times_seen", Integer, "How often it came"),
    needed("status", Text, "What became of it", server_default="open"),
    optional("resolved_at", TIME, "When it was replayed or discarded (UTC)"),
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
    key("event_id", BigInteger, "Surrogate key", Identity()),
    name_market(needed),
    needed("kind", Text, "difference, suspected_split or split"),
    optional("starts_at", TIME, "First bar it touches, by open_time; NULL: all (UTC)"),
    optional("ends_at", TIME, "End of the span it touches; NULL: up to now (UTC)"),
    optional("ratio", Double, "New price over old price, the median"),
    optional("spread", Double, "Largest relative distance of a bar's factor from the median"),
    _mapping(
        "trace", "For each interval, how far the difference was followed, and whether to its end"
    ),
    needed("detail", Text, "What was seen"),
    needed("detected_at", TIME, "When it was seen (UTC)"),
    needed("run_id", Uuid, "The run that saw it"),
    optional("resolved_at", TIME, "When it ended; NULL: it is open (UTC)"),
    optional("resolution", Text, "How it ended, in a word"),
    Index("market_event_open", "market_id", postgresql_where=text("resolved_at IS NULL")),
    CheckConstraint("kind IN ('split', 'difference', 'suspected_split')", name="kind_is_known"),
    comment="One row per event that changes a span of a series; statistics over it wait while open",
)

dataset_version = Table(
    "dataset_version",
    metadata,
    key("version", BigInteger, "Version of the data in commit order", autoincrement=False),
    _interval("1h, 1d or 1w"),
    name_market(),
    needed("first_open_time", TIME, "First bar of the batch (UTC)"),
    needed("last_open_time", TIME, "Last bar of the batch (UTC)"),
    needed("known_at", TIME, "When it was written (UTC)"),
    needed("run_id", Uuid, "The run that wrote it"),
    Index("dataset_version_market", "market_id", "version"),
    comment="One row per version, market and interval whose bars changed: where its changes lie",
)

ingestion_request = Table(
    "ingestion_request",
    metadata,
    key("request_id", BigInteger, "Surrogate key", Identity()),
    needed(
        "run_id", Uuid, "The run that asked", ForeignKey(ingestion_run.c.run_id, ondelete="CASCADE")
    ),
    name_market(needed),
    needed("interval", Text, "1h or 1d"),
    needed("starts_at", TIME, "Start of the span asked for (UTC)"),
    needed("ends_at", TIME, "End of the span asked for (UTC)"),
    needed("purpose", Text, "missing, tail, retry, verify, trace or reload"),
    needed("asked_at", TIME, "When it was asked (UTC)"),
    needed("seconds", Double, "How long the answer took"),
    needed("received", Integer, "Bars in the answer"),
    optional("error", Text, "What came instead of bars"),
    Index("ingestion_request_run", "run_id"),
    CheckConstraint(
        "purpose IN ('missing', 'tail', 'retry', 'verify', 'trace', 'reload')",
        name="purpose_is_known",
    ),
    comment="One row per request of a run; goes with its receipt",
)

ingestion_tick = Table(
    "ingestion_tick",
    metadata,
    key("tick_id", Uuid, "The tick"),
    needed("trigger", Text, "manual, schedule or cron"),
    needed("provider", Text, "Providers to ask, in order"),
    needed("request", JSONB, "Symbols, look-back and window, as resolved once for all its runs"),
    needed("shards", Integer, "INGESTION_SHARDS of that time"),
    needed("filled_shards", ARRAY(Integer), "The shards that markets fell to: one run each"),
    needed("version", Text, "Version of the code that its runs need"),
    needed("started_at", TIME, "When it was asked for (UTC)"),
    optional("ended_at", TIME, "When its last run ended; NULL: it runs (UTC)"),
    Index("ingestion_tick_open", "started_at", postgresql_where=text("ended_at IS NULL")),
    comment="One row per request that several runs carry out: its receipt is made of theirs",
)

fetch_claim = Table(
    "fetch_claim",
    metadata,
    name_market(),
    needed("token", BigInteger, "Grows with every claim"),
    needed("run_id", Uuid, "The run that holds it"),
    needed("claimed_at", TIME, "Since when (UTC)"),
    needed("expires_at", TIME, "Until when, unless renewed (UTC)"),
    comment="One row per market that is being fetched: others wait, then plan again",
)

provider_budget = Table(
    "provider_budget",
    metadata,
    key("provider", Text, "The provider"),
    needed("tokens", Double, "Calls that may be made at once"),
    needed("refilled_at", TIME, "When tokens were last counted (UTC)"),
    optional("blocked_until", TIME, "By the provider's Retry-After, for all (UTC)"),
    needed("day", Date, "The UTC day of the daily counts"),
    needed("calls_today", BigInteger, "Calls made on that day"),
    needed("verifications_today", BigInteger, "Of them, to verify"),
    needed("month", Date, "First day of the month of the monthly count"),
    needed("calls_this_month", BigInteger, "Calls made in that month"),
    comment="One row per provider with a limit: its quota, shared by all processes",
)

trading_session = Table(
    "trading_session",
    metadata,
    key("calendar", Text, "Exchange calendar, such as XNYS"),
    key("session_date", Date, "As the exchange's clocks have it"),
    needed("open_time", TIME, "First trade (UTC)"),
    needed("close_time", TIME, "Last trade; a lunch break counts as open (UTC)"),
    needed("source", Text, "The library that knew it"),
    comment="One row per session of an exchange whose markets are ingested",
)

market_stamp = Table(
    "market_stamp",
    metadata,
    key("scope", Text, "provider:symbol; * is the list of markets, and with it all of them"),
    needed("version", BigInteger, "Version of the last change of any kind, in commit order"),
    comment="One row per market's name: what readers compare a cached value's version with",
)

idempotency_key = Table(
    "idempotency_key",
    metadata,
    key("key", Text, "flight:HASH of requests in flight, key:KEY of a client, cron:MINUTE"),
    needed("request_hash", Text, "What was asked for; another request under the key is refused"),
    needed("launch_id", Uuid, "The launch, also a tag of its run in Dagster"),
    optional("run_id", Uuid, "The run; NULL: not launched, or not known to be"),
    optional(
        "lease_until",
        TIME,
        "Until when one process may launch it alone; NULL: none has tried (UTC)",
    ),
    optional("answer_status", Integer, "HTTP status of the answer; NULL: the run has not ended"),
    optional("answer", JSONB, "The answer, given again to who asks again"),
    needed("created_at", TIME, "When it was first asked for (UTC)"),
    needed("expires_at", TIME, "When it is forgotten (UTC)"),
    Index("idempotency_key_launch", "launch_id"),
    Index("idempotency_key_run", "run_id"),
    Index("idempotency_key_expires", "expires_at"),
    comment="One row per request over HTTP that must not run twice",
)

alert = Table(
    "alert",
    metadata,
    key("alert_id", Uuid, "What the command line takes"),
    needed("fingerprint", Text, "What makes two alerts the same"),
    needed("kind", Text, "What happened, as docs/alerts.md lists it"),
    needed("severity", Text, "The worst so far"),
    needed("message", Text, "The latest, in one line"),
    _mapping("members", "Whom it is about, each with its reason: markets, providers"),
    _mapping("context", "What else is known"),
    optional("run_id", Uuid, "The run that raised it last; NULL: a watch did"),
    needed("raised_at", TIME, "When it was raised first (UTC)"),
    needed("seen_at", TIME, "When it was raised last (UTC)"),
    needed("times", Integer, "How often it was raised"),
    optional("noticed_at", TIME, "When a message about it was last written (UTC)"),
    optional("acknowledged_at", TIME, "When somebody took it on (UTC); ends reminders"),
    optional("cleared_at", TIME, "Since when its cause is gone; NULL: it is not (UTC)"),
    optional("resolved_at", TIME, "When it ended; NULL: it is open (UTC)"),
    Index("alert_open", "fingerprint", unique=True, postgresql_where=text("resolved_at IS NULL")),
    Index("alert_raised", "raised_at"),
    CheckConstraint(
        "severity IN ('info', 'warning', 'error', 'critical')", name="severity_is_known"
    ),
    comment="One row per alert, from the first time it is raised until it is resolved",
)

alert_delivery = Table(
    "alert_delivery",
    metadata,
    key("message_id", Uuid, "The same at every try: the webhook-id"),
    key("receiver", Text, "Scheme and a hash of the address; empty: not addressed yet"),
    needed(
        "alert_id",
        Uuid,
        "What it is about",
        ForeignKey(f"{SCHEMA}.alert.alert_id", ondelete="CASCADE"),
    ),
    needed("body", JSONB, "The message as it is sent"),
    needed("created_at", TIME, "When it was written (UTC)"),
    needed("next_try_at", TIME, "When it is sent next (UTC)"),
    needed("tries", Integer, "How often it was sent", server_default="0"),
    optional("sent_at", TIME, "When the receiver took it (UTC)"),
    optional("given_up_at", TIME, "When it was given up (UTC)"),
    optional("error", Text, "What the last try met"),
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
    key("name", Text, "As docs/metrics.md lists it"),
    key("labels", JSONB, "Names and values"),
    needed("value", Double, "The total; of a histogram the sum, in its unit"),
    needed("count", BigInteger, "Observations of a histogram; 0 for a counter", server_default="0"),
    _mapping("buckets", "Observations up to each bound of a histogram, cumulative"),
    needed("updated_at", TIME, "Last change (UTC)"),
    comment="One row per counter or histogram and label set: totals that outlive runs",
)

action_log = Table(
    "action_log",
    metadata,
    key("action_id", BigInteger, "Surrogate key", Identity()),
    needed("begun_at", TIME, "When it began (UTC)"),
    needed("actor", Text, "Who, as the sign-in or the machine says"),
    needed("address", Text, "The network address it came from"),
    needed("action", Text, "What was done, in a word"),
    needed("target", Text, "To what, such as alert ID"),
    optional("outcome", Text, "done, started, refused or failed; NULL: it has not ended"),
    optional("result", Text, "What came of it, in a sentence"),
    optional("run_id", Uuid, "The run that it started or wrote as"),
    Index("action_log_target", "target"),
    CheckConstraint("outcome IN ('done', 'started', 'refused', 'failed')", name="outcome_is_known"),
    comment="One row per action that a person took on a page: who did what, and its result",
)
