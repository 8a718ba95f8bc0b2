"""Keep trading sessions."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.create_table(
        "trading_session",
        sa.Column("calendar", sa.Text(), nullable=False, comment="Exchange calendar, such as XNYS"),
        sa.Column(
            "session_date", sa.Date(), nullable=False, comment="As the exchange's clocks have it"
        ),
        sa.Column(
            "open_time", sa.DateTime(timezone=True), nullable=False, comment="First trade (UTC)"
        ),
        sa.Column(
            "close_time",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Last trade; a lunch break counts as open (UTC)",
        ),
        sa.Column("source", sa.Text(), nullable=False, comment="The library that knew it"),
        sa.PrimaryKeyConstraint("calendar", "session_date"),
        schema="market_data",
        comment="One row per session of an exchange whose markets are ingested",
    )


def downgrade() -> None:
    """Take the change back."""
    op.drop_table("trading_session", schema="market_data")
