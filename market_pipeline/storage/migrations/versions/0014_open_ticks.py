"""Open ticks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None
_RUN, _SCHEMA = "ingestion_run", "market_data"
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply the change."""
    op.create_table(
        "ingestion_tick",
        sa.Column("tick_id", sa.Uuid(), nullable=False, comment="The tick"),
        sa.Column("trigger", sa.Text(), nullable=False, comment="manual, schedule or cron"),
        sa.Column("provider", sa.Text(), nullable=False, comment="Providers to ask, in order"),
        sa.Column(
            "request",
            postgresql.JSONB(),
            nullable=False,
            comment="Symbols, look-back and window, as resolved once for all its runs",
        ),
        sa.Column("shards", sa.Integer(), nullable=False, comment="INGESTION_SHARDS of that time"),
        sa.Column(
            "filled_shards",
            sa.ARRAY(sa.Integer()),
            nullable=False,
            comment="The shards that markets fell to: one run each",
        ),
        sa.Column(
            "version", sa.Text(), nullable=False, comment="Version of the code that its runs need"
        ),
        sa.Column("started_at", _TIME, nullable=False, comment="When it was asked for (UTC)"),
        sa.Column(
            "ended_at", _TIME, nullable=True, comment="When its last run ended; NULL: it runs (UTC)"
        ),
        sa.PrimaryKeyConstraint("tick_id"),
        schema=_SCHEMA,
        comment="One row per request that several runs carry out: its receipt is made of theirs",
    )
    op.create_index(
        "ingestion_tick_open",
        "ingestion_tick",
        ["started_at"],
        schema=_SCHEMA,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.add_column(
        _RUN,
        sa.Column("tick_id", sa.Uuid(), nullable=True, comment="The tick that it is a part of"),
        schema=_SCHEMA,
    )
    op.add_column(
        _RUN,
        sa.Column(
            "shard", sa.Integer(), nullable=True, comment="Its shard of the tick; 0: it derives"
        ),
        schema=_SCHEMA,
    )
    op.create_index(
        "ingestion_run_tick",
        _RUN,
        ["tick_id"],
        schema=_SCHEMA,
        postgresql_where=sa.text("tick_id IS NOT NULL"),
    )


def downgrade() -> None:
    """Take the change back."""
    op.drop_index("ingestion_run_tick", _RUN, schema=_SCHEMA)
    op.drop_column(_RUN, "shard", schema=_SCHEMA)
    op.drop_column(_RUN, "tick_id", schema=_SCHEMA)
    op.drop_table("ingestion_tick", schema=_SCHEMA)
