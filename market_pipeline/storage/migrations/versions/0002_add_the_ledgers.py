"""Add the ledgers: coverage, holes, quarantine, versions, revisions, claims, budgets, requests."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.execute(sa.schema.CreateSequence(sa.Sequence("fetch_claim_seq", schema="market_data")))
    op.create_table(
        "market_aggregate_revision",
        sa.Column("market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column("interval", sa.Text(), nullable=False, comment="1h, 1d or 1w"),
        sa.Column(
            "open_time",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Start of the half-open span (UTC)",
        ),
        sa.Column(
            "close_time",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="End of the span (UTC)",
        ),
        sa.Column("open", sa.Double(), nullable=False, comment="First price in the quote currency"),
        sa.Column("high", sa.Double(), nullable=False, comment="Highest price"),
        sa.Column("low", sa.Double(), nullable=False, comment="Lowest price"),
        sa.Column("close", sa.Double(), nullable=False, comment="Last price"),
        sa.Column(
            "volume",
            sa.Double(),
            nullable=True,
            comment="Traded volume, NULL where the provider gives none",
        ),
        sa.Column(
            "volume_kind",
            sa.Text(),
            nullable=False,
            comment="base, quote, shares, rolling_24h or none",
        ),
        sa.Column("trades", sa.BigInteger(), nullable=True, comment="Number of trades"),
        sa.Column(
            "source_kind",
            sa.Text(),
            nullable=False,
            comment="traded bars, or built from price points",
        ),
        sa.Column(
            "is_final",
            sa.Boolean(),
            nullable=False,
            comment="By the provider's own rule; never goes back",
        ),
        sa.Column(
            "known_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When these values became ours (UTC)",
        ),
        sa.Column(
            "dataset_version",
            sa.BigInteger(),
            nullable=False,
            comment="Version of the data in commit order",
        ),
        sa.Column(
            "run_id", sa.Uuid(), nullable=True, comment="The Dagster run that last changed the row"
        ),
        sa.Column(
            "known_until",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was replaced (UTC)",
        ),
        sa.Column(
            "replaced_by_version",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="Version of the data that replaced it",
        ),
        sa.Column(
            "replaced_by_run", sa.Uuid(), nullable=True, comment="The Dagster run that replaced it"
        ),
        sa.PrimaryKeyConstraint("market_id", "interval", "open_time", "replaced_by_version"),
        schema="market_data",
        comment="One row per final bar that was replaced: its old values, kept for good",
    )
    op.create_table(
        "provider_budget",
        sa.Column("provider", sa.Text(), nullable=False, comment="The provider"),
        sa.Column("tokens", sa.Double(), nullable=False, comment="Calls that may be made at once"),
        sa.Column(
            "refilled_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When tokens were last counted (UTC)",
        ),
        sa.Column(
            "blocked_until",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="By the provider's Retry-After, for all (UTC)",
        ),
        sa.Column("day", sa.Date(), nullable=False, comment="The UTC day of the daily counts"),
        sa.Column("calls_today", sa.BigInteger(), nullable=False, comment="Calls made on that day"),
        sa.Column(
            "verifications_today", sa.BigInteger(), nullable=False, comment="Of them, to verify"
        ),
        sa.Column(
            "month",
            sa.Date(),
            nullable=False,
            comment="First day of the month of the monthly count",
        ),
        sa.Column(
            "calls_this_month", sa.BigInteger(), nullable=False, comment="Calls made in that month"
        ),
        sa.PrimaryKeyConstraint("provider"),
        schema="market_data",
        comment="One row per provider with a limit: its quota, shared by all processes",
    )
    op.create_table(
        "coverage_hole",
        sa.Column("market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column("interval", sa.Text(), nullable=False, comment="1h or 1d, as fetched"),
        sa.Column(
            "starts_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Start of the half-open span (UTC)",
        ),
        sa.Column(
            "ends_at", sa.DateTime(timezone=True), nullable=False, comment="End of the span (UTC)"
        ),
        sa.Column("reason", sa.Text(), nullable=False, comment="Why bars are missing"),
        sa.Column("detail", sa.Text(), nullable=True, comment="What the provider said"),
        sa.Column("tries", sa.Integer(), nullable=False, comment="How often it was asked for"),
        sa.Column(
            "first_seen_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was first missed (UTC)",
        ),
        sa.Column(
            "last_checked_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was last asked for (UTC)",
        ),
        sa.Column(
            "next_check_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When it is asked for again; NULL: never (UTC)",
        ),
        sa.Column("run_id", sa.Uuid(), nullable=True, comment="The run that asked last"),
        sa.CheckConstraint(
            "reason IN ('fetch_failed', 'provider_empty', 'no_trades', 'quarantined', 'before_first', 'after_last')",
            name="reason_is_known",
        ),
        sa.CheckConstraint("starts_at < ends_at", name="span_is_positive"),
        sa.ForeignKeyConstraint(
            ["market_id"],
            ["market_data.market.market_id"],
        ),
        sa.PrimaryKeyConstraint("market_id", "interval", "starts_at"),
        schema="market_data",
        comment="One row per missing span of a market and interval: exceptions only; healed rows go",
    )
    op.create_table(
        "dataset_version",
        sa.Column(
            "version",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="Version of the data in commit order",
        ),
        sa.Column("interval", sa.Text(), nullable=False, comment="1h, 1d or 1w"),
        sa.Column("market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column(
            "first_open_time",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="First bar of the batch (UTC)",
        ),
        sa.Column(
            "last_open_time",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Last bar of the batch (UTC)",
        ),
        sa.Column(
            "known_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was written (UTC)",
        ),
        sa.Column("run_id", sa.Uuid(), nullable=False, comment="The run that wrote it"),
        sa.ForeignKeyConstraint(
            ["market_id"],
            ["market_data.market.market_id"],
        ),
        sa.PrimaryKeyConstraint("version", "interval"),
        schema="market_data",
        comment="One row per batch that changed bars, and interval: where to look for its changes",
    )
    op.create_index(
        "dataset_version_market",
        "dataset_version",
        ["market_id", "version"],
        unique=False,
        schema="market_data",
    )
    op.create_table(
        "fetch_claim",
        sa.Column("market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column("token", sa.BigInteger(), nullable=False, comment="Grows with every claim"),
        sa.Column("run_id", sa.Uuid(), nullable=False, comment="The run that holds it"),
        sa.Column(
            "claimed_at", sa.DateTime(timezone=True), nullable=False, comment="Since when (UTC)"
        ),
        sa.Column(
            "expires_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Until when, unless renewed (UTC)",
        ),
        sa.ForeignKeyConstraint(
            ["market_id"],
            ["market_data.market.market_id"],
        ),
        sa.PrimaryKeyConstraint("market_id"),
        schema="market_data",
        comment="One row per market that is being fetched: others wait, then plan again",
    )
    op.create_table(
        "ingestion_request",
        sa.Column(
            "request_id",
            sa.BigInteger(),
            sa.Identity(always=False),
            nullable=False,
            comment="Surrogate key",
        ),
        sa.Column("run_id", sa.Uuid(), nullable=False, comment="The run that asked"),
        sa.Column("market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column("interval", sa.Text(), nullable=False, comment="1h or 1d"),
        sa.Column(
            "starts_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Start of the span asked for (UTC)",
        ),
        sa.Column(
            "ends_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="End of the span asked for (UTC)",
        ),
        sa.Column(
            "purpose", sa.Text(), nullable=False, comment="missing, tail, retry, verify or reload"
        ),
        sa.Column(
            "asked_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was asked (UTC)",
        ),
        sa.Column("seconds", sa.Double(), nullable=False, comment="How long the answer took"),
        sa.Column("received", sa.Integer(), nullable=False, comment="Bars in the answer"),
        sa.Column("error", sa.Text(), nullable=True, comment="What came instead of bars"),
        sa.CheckConstraint(
            "purpose IN ('missing', 'tail', 'retry', 'verify', 'reload')", name="purpose_is_known"
        ),
        sa.ForeignKeyConstraint(
            ["market_id"],
            ["market_data.market.market_id"],
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["market_data.ingestion_run.run_id"], ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("request_id"),
        schema="market_data",
        comment="One row per request of a run; goes with its receipt",
    )
    op.create_index(
        "ingestion_request_run", "ingestion_request", ["run_id"], unique=False, schema="market_data"
    )
    op.create_table(
        "market_coverage",
        sa.Column("market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column("interval", sa.Text(), nullable=False, comment="1h or 1d, as fetched"),
        sa.Column(
            "settled",
            postgresql.TSTZMULTIRANGE(),
            server_default="{}",
            nullable=False,
            comment="Spans asked for and answered for good, closures included (UTC)",
        ),
        sa.Column(
            "watermark",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Close of the last final bar (UTC)",
        ),
        sa.Column(
            "first_bar_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="open_time of the first stored bar (UTC)",
        ),
        sa.Column(
            "last_bar_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="open_time of the last stored bar (UTC)",
        ),
        sa.Column(
            "bars", sa.BigInteger(), server_default="0", nullable=False, comment="Bars stored"
        ),
        sa.Column(
            "verified",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
            comment="For each age in days, the spans that were read when older than that (UTC)",
        ),
        sa.Column(
            "refreshed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When the provider last answered (UTC)",
        ),
        sa.Column("refreshed_by", sa.Uuid(), nullable=True, comment="The run that asked"),
        sa.ForeignKeyConstraint(
            ["market_id"],
            ["market_data.market.market_id"],
        ),
        sa.PrimaryKeyConstraint("market_id", "interval"),
        schema="market_data",
        comment="One row per market and interval: what is known to be complete",
    )
    op.create_table(
        "market_event",
        sa.Column(
            "event_id",
            sa.BigInteger(),
            sa.Identity(always=False),
            nullable=False,
            comment="Surrogate key",
        ),
        sa.Column("market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column("kind", sa.Text(), nullable=False, comment="split"),
        sa.Column("ratio", sa.Double(), nullable=True, comment="New price over old price"),
        sa.Column("detail", sa.Text(), nullable=False, comment="What was seen"),
        sa.Column(
            "detected_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was seen (UTC)",
        ),
        sa.Column("run_id", sa.Uuid(), nullable=False, comment="The run that saw it"),
        sa.Column(
            "resolved_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When the market was reloaded; NULL: not yet (UTC)",
        ),
        sa.CheckConstraint("kind IN ('split')", name="kind_is_known"),
        sa.ForeignKeyConstraint(
            ["market_id"],
            ["market_data.market.market_id"],
        ),
        sa.PrimaryKeyConstraint("event_id"),
        schema="market_data",
        comment="One row per event that changes a whole series; statistics wait while it is open",
    )
    op.create_table(
        "quarantined_row",
        sa.Column(
            "row_id",
            sa.BigInteger(),
            sa.Identity(always=False),
            nullable=False,
            comment="What the command line takes",
        ),
        sa.Column("market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column("interval", sa.Text(), nullable=False, comment="As the provider gave it"),
        sa.Column(
            "open_time",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="As the provider gave it (UTC); NULL when it gave none",
        ),
        sa.Column("rule", sa.Text(), nullable=False, comment="The rule it broke"),
        sa.Column("detail", sa.Text(), nullable=False, comment="The values that broke it"),
        sa.Column(
            "payload",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="The whole bar as received",
        ),
        sa.Column(
            "payload_hash", sa.Text(), nullable=False, comment="Tells payloads of one key apart"
        ),
        sa.Column("run_id", sa.Uuid(), nullable=False, comment="The run that received it first"),
        sa.Column(
            "first_seen_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it first came (UTC)",
        ),
        sa.Column(
            "last_seen_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it last came (UTC)",
        ),
        sa.Column("times_seen", sa.Integer(), nullable=False, comment="How often it came"),
        sa.Column(
            "status", sa.Text(), server_default="open", nullable=False, comment="What became of it"
        ),
        sa.Column(
            "resolved_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When it was replayed or discarded (UTC)",
        ),
        sa.CheckConstraint("status IN ('open', 'replayed', 'discarded')", name="status_is_known"),
        sa.ForeignKeyConstraint(
            ["market_id"],
            ["market_data.market.market_id"],
        ),
        sa.PrimaryKeyConstraint("row_id"),
        schema="market_data",
        comment="One row per impossible bar, kept once with its reason",
    )
    op.create_index(
        "quarantined_row_key",
        "quarantined_row",
        ["market_id", "interval", "open_time", "rule", "payload_hash"],
        unique=True,
        schema="market_data",
        postgresql_nulls_not_distinct=True,
    )
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "requested",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Bars that the plan expected",
        ),
        schema="market_data",
    )
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "revised",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Of the updated, final bars whose old values were kept",
        ),
        schema="market_data",
    )
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "quarantined",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Bars that were impossible",
        ),
        schema="market_data",
    )
    op.execute("UPDATE market_data.ingestion_run_market SET quarantined = rejected")
    op.drop_column("ingestion_run_market", "rejected", schema="market_data")
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "spikes",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Bars stored though they jump",
        ),
        schema="market_data",
    )
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "holes_left",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Spans still missing that should be there",
        ),
        schema="market_data",
    )
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "calls",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Requests made to the provider",
        ),
        schema="market_data",
    )
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "throttled_calls",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Of them, refused for coming too often",
        ),
        schema="market_data",
    )
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "seconds",
            sa.Double(),
            server_default="0",
            nullable=False,
            comment="From claim to commit",
        ),
        schema="market_data",
    )
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "watermark_before",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Close of the last final bar before (UTC)",
        ),
        schema="market_data",
    )
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "watermark_after",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Close of the last final bar after (UTC)",
        ),
        schema="market_data",
    )
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "first_version",
            sa.BigInteger(),
            nullable=True,
            comment="First dataset version written; NULL: none",
        ),
        schema="market_data",
    )
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "last_version",
            sa.BigInteger(),
            nullable=True,
            comment="Last dataset version written; NULL: none",
        ),
        schema="market_data",
    )
    op.add_column(
        "market_comparison",
        sa.Column(
            "dataset_version",
            sa.BigInteger(),
            nullable=True,
            comment="Newest version of the bars it was made of",
        ),
        schema="market_data",
    )
    op.add_column(
        "market_roi_statistic",
        sa.Column(
            "dataset_version",
            sa.BigInteger(),
            nullable=True,
            comment="Newest version of the bars it was made of",
        ),
        schema="market_data",
    )


def downgrade() -> None:
    """Take the change back."""
    op.drop_column("market_roi_statistic", "dataset_version", schema="market_data")
    op.drop_column("market_comparison", "dataset_version", schema="market_data")
    op.drop_column("ingestion_run_market", "last_version", schema="market_data")
    op.drop_column("ingestion_run_market", "first_version", schema="market_data")
    op.drop_column("ingestion_run_market", "watermark_after", schema="market_data")
    op.drop_column("ingestion_run_market", "watermark_before", schema="market_data")
    op.drop_column("ingestion_run_market", "seconds", schema="market_data")
    op.drop_column("ingestion_run_market", "throttled_calls", schema="market_data")
    op.drop_column("ingestion_run_market", "calls", schema="market_data")
    op.drop_column("ingestion_run_market", "holes_left", schema="market_data")
    op.drop_column("ingestion_run_market", "spikes", schema="market_data")
    op.add_column(
        "ingestion_run_market",
        sa.Column(
            "rejected",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Bars that were impossible",
        ),
        schema="market_data",
    )
    op.execute("UPDATE market_data.ingestion_run_market SET rejected = quarantined")
    op.drop_column("ingestion_run_market", "quarantined", schema="market_data")
    op.drop_column("ingestion_run_market", "revised", schema="market_data")
    op.drop_column("ingestion_run_market", "requested", schema="market_data")
    op.drop_index(
        "quarantined_row_key",
        table_name="quarantined_row",
        schema="market_data",
        postgresql_nulls_not_distinct=True,
    )
    op.drop_table("quarantined_row", schema="market_data")
    op.drop_table("market_event", schema="market_data")
    op.drop_table("market_coverage", schema="market_data")
    op.drop_index("ingestion_request_run", table_name="ingestion_request", schema="market_data")
    op.drop_table("ingestion_request", schema="market_data")
    op.drop_table("fetch_claim", schema="market_data")
    op.drop_index("dataset_version_market", table_name="dataset_version", schema="market_data")
    op.drop_table("dataset_version", schema="market_data")
    op.drop_table("coverage_hole", schema="market_data")
    op.drop_table("provider_budget", schema="market_data")
    op.drop_table("market_aggregate_revision", schema="market_data")
    op.execute("DROP SEQUENCE market_data.fetch_claim_seq")
