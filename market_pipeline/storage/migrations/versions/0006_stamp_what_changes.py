"""Stamp what changes, so that a cached value can be told from an old one."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.create_table(
        "market_stamp",
        sa.Column(
            "scope",
            sa.Text(),
            nullable=False,
            comment="provider:symbol; * is the list of markets, and with it all of them",
        ),
        sa.Column(
            "version",
            sa.BigInteger(),
            nullable=False,
            comment="Version of the last change of any kind, in commit order",
        ),
        sa.PrimaryKeyConstraint("scope"),
        schema="market_data",
        comment="One row per market's name: what readers compare a cached value's version with",
    )


def downgrade() -> None:
    """Take the change back."""
    op.drop_table("market_stamp", schema="market_data")
