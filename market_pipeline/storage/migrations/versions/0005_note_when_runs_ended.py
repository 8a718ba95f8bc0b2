"""Note when runs ended."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.add_column(
        "ingestion_run",
        sa.Column(
            "ended_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When its last step ended; NULL: it runs, or was killed (UTC)",
        ),
        schema="market_data",
    )


def downgrade() -> None:
    """Take the change back."""
    op.drop_column("ingestion_run", "ended_at", schema="market_data")
