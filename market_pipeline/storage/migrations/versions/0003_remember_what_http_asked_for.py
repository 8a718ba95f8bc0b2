"""Remember what HTTP asked for."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.create_table(
        "idempotency_key",
        sa.Column(
            "key",
            sa.Text(),
            nullable=False,
            comment="flight:HASH of requests in flight, key:KEY of a client, cron:MINUTE",
        ),
        sa.Column(
            "request_hash",
            sa.Text(),
            nullable=False,
            comment="What was asked for; another request under the key is refused",
        ),
        sa.Column(
            "launch_id",
            sa.Uuid(),
            nullable=False,
            comment="The launch, also a tag of its run in Dagster",
        ),
        sa.Column(
            "run_id",
            sa.Uuid(),
            nullable=True,
            comment="The run; NULL: not launched, or not known to be",
        ),
        sa.Column(
            "lease_until",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Until when one process may launch it alone; NULL: none has tried (UTC)",
        ),
        sa.Column(
            "answer_status",
            sa.Integer(),
            nullable=True,
            comment="HTTP status of the answer; NULL: the run has not ended",
        ),
        sa.Column(
            "answer",
            postgresql.JSONB(),
            nullable=True,
            comment="The answer, given again to who asks again",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was first asked for (UTC)",
        ),
        sa.Column(
            "expires_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it is forgotten (UTC)",
        ),
        sa.PrimaryKeyConstraint("key"),
        schema="market_data",
        comment="One row per request over HTTP that must not run twice",
    )
    op.create_index(
        "idempotency_key_launch", "idempotency_key", ["launch_id"], schema="market_data"
    )
    op.create_index("idempotency_key_run", "idempotency_key", ["run_id"], schema="market_data")
    op.create_index(
        "idempotency_key_expires", "idempotency_key", ["expires_at"], schema="market_data"
    )


def downgrade() -> None:
    """Take the change back."""
    op.drop_table("idempotency_key", schema="market_data")
