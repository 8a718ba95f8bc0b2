"""Add alerts and totals."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.create_table(
        "alert",
        sa.Column("alert_id", sa.Uuid(), nullable=False, comment="What the command line takes"),
        sa.Column(
            "fingerprint", sa.Text(), nullable=False, comment="What makes two alerts the same"
        ),
        sa.Column(
            "kind", sa.Text(), nullable=False, comment="What happened, as docs/alerts.md lists it"
        ),
        sa.Column("severity", sa.Text(), nullable=False, comment="The worst so far"),
        sa.Column("message", sa.Text(), nullable=False, comment="The latest, in one line"),
        sa.Column(
            "members",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
            comment="Whom it is about, each with its reason: markets, providers",
        ),
        sa.Column(
            "context",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
            comment="What else is known",
        ),
        sa.Column(
            "run_id",
            sa.Uuid(),
            nullable=True,
            comment="The run that raised it last; NULL: a watch did",
        ),
        sa.Column(
            "raised_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was raised first (UTC)",
        ),
        sa.Column(
            "seen_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was raised last (UTC)",
        ),
        sa.Column("times", sa.Integer(), nullable=False, comment="How often it was raised"),
        sa.Column(
            "noticed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When a message about it was last written (UTC)",
        ),
        sa.Column(
            "acknowledged_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When somebody took it on (UTC); ends reminders",
        ),
        sa.Column(
            "cleared_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Since when its cause is gone; NULL: it is not (UTC)",
        ),
        sa.Column(
            "resolved_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When it ended; NULL: it is open (UTC)",
        ),
        sa.CheckConstraint(
            "severity IN ('info', 'warning', 'error', 'critical')", name="severity_is_known"
        ),
        sa.PrimaryKeyConstraint("alert_id"),
        schema="market_data",
        comment="One row per alert, from the first time it is raised until it is resolved",
    )
    op.create_index(
        "alert_open",
        "alert",
        ["fingerprint"],
        unique=True,
        schema="market_data",
        postgresql_where=sa.text("resolved_at IS NULL"),
    )
    op.create_index("alert_raised", "alert", ["raised_at"], unique=False, schema="market_data")
    op.create_table(
        "metric_total",
        sa.Column("name", sa.Text(), nullable=False, comment="As docs/metrics.md lists it"),
        sa.Column(
            "labels",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="Names and values",
        ),
        sa.Column(
            "value",
            sa.Double(),
            nullable=False,
            comment="The total; of a histogram the sum, in its unit",
        ),
        sa.Column(
            "count",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="Observations of a histogram; 0 for a counter",
        ),
        sa.Column(
            "buckets",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
            comment="Observations up to each bound of a histogram, cumulative",
        ),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), nullable=False, comment="Last change (UTC)"
        ),
        sa.PrimaryKeyConstraint("name", "labels"),
        schema="market_data",
        comment="One row per counter or histogram and label set: totals that outlive runs",
    )
    op.create_table(
        "alert_delivery",
        sa.Column(
            "message_id", sa.Uuid(), nullable=False, comment="The same at every try: the webhook-id"
        ),
        sa.Column(
            "receiver",
            sa.Text(),
            nullable=False,
            comment="Scheme and a hash of the address; empty: not addressed yet",
        ),
        sa.Column("alert_id", sa.Uuid(), nullable=False, comment="What it is about"),
        sa.Column(
            "body",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="The message as it is sent",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was written (UTC)",
        ),
        sa.Column(
            "next_try_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it is sent next (UTC)",
        ),
        sa.Column(
            "tries",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="How often it was sent",
        ),
        sa.Column(
            "sent_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When the receiver took it (UTC)",
        ),
        sa.Column(
            "given_up_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When it was given up (UTC)",
        ),
        sa.Column("error", sa.Text(), nullable=True, comment="What the last try met"),
        sa.ForeignKeyConstraint(["alert_id"], ["market_data.alert.alert_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("message_id", "receiver"),
        schema="market_data",
        comment="One row per message and receiver: the outbox, emptied by the sensor alert_delivery",
    )
    op.create_index(
        "alert_delivery_alert", "alert_delivery", ["alert_id"], unique=False, schema="market_data"
    )
    op.create_index(
        "alert_delivery_due",
        "alert_delivery",
        ["next_try_at"],
        unique=False,
        schema="market_data",
        postgresql_where=sa.text("sent_at IS NULL AND given_up_at IS NULL"),
    )


def downgrade() -> None:
    """Take the change back."""
    for name in ("alert_delivery", "metric_total", "alert"):
        op.drop_table(name, schema="market_data")
