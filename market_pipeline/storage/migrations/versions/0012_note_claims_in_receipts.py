"""Note claims in receipts."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None
_TABLE, _SCHEMA = "ingestion_run_market", "market_data"


def upgrade() -> None:
    """Apply the change."""
    said = "Token of the claim it was written under; NULL: nothing was asked of the provider"
    column = sa.Column("claim_token", sa.BigInteger(), nullable=True, comment=said)
    op.add_column(_TABLE, column, schema=_SCHEMA)


def downgrade() -> None:
    """Take the change back."""
    op.drop_column(_TABLE, "claim_token", schema=_SCHEMA)
