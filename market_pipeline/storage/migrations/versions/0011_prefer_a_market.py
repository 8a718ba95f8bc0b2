"""Keep the primary market that somebody declared."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.add_column(
        "market",
        sa.Column(
            "preferred_at",
            sa.DateTime(timezone=True),
            comment="When somebody declared it primary; NULL: INGESTION_PROVIDER decides (UTC)",
        ),
        schema="market_data",
    )


def downgrade() -> None:
    """Take the change back."""
    op.drop_column("market", "preferred_at", schema="market_data")
