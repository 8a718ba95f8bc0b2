"""Remember the symbols that renamed markets had."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.add_column(
        "market",
        sa.Column(
            "former_symbols",
            sa.ARRAY(sa.Text()),
            server_default="{}",
            nullable=False,
            comment="What it was called before it was renamed, the oldest first",
        ),
        schema="market_data",
    )


def downgrade() -> None:
    """Take the change back."""
    op.drop_column("market", "former_symbols", schema="market_data")
