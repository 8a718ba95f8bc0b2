"""Log what people do on pages."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.create_table(
        "action_log",
        sa.Column(
            "action_id",
            sa.BigInteger(),
            sa.Identity(always=False),
            nullable=False,
            comment="Surrogate key",
        ),
        sa.Column(
            "begun_at", sa.DateTime(timezone=True), nullable=False, comment="When it began (UTC)"
        ),
        sa.Column(
            "actor", sa.Text(), nullable=False, comment="Who, as the sign-in or the machine says"
        ),
        sa.Column("address", sa.Text(), nullable=False, comment="The network address it came from"),
        sa.Column("action", sa.Text(), nullable=False, comment="What was done, in a word"),
        sa.Column("target", sa.Text(), nullable=False, comment="To what, such as alert ID"),
        sa.Column(
            "outcome",
            sa.Text(),
            nullable=True,
            comment="done, started, refused or failed; NULL: it has not ended",
        ),
        sa.Column("result", sa.Text(), nullable=True, comment="What came of it, in a sentence"),
        sa.Column(
            "run_id", sa.Uuid(), nullable=True, comment="The run that it started or wrote as"
        ),
        sa.CheckConstraint(
            "outcome IN ('done', 'started', 'refused', 'failed')", name="outcome_is_known"
        ),
        sa.PrimaryKeyConstraint("action_id"),
        schema="market_data",
        comment="One row per action that a person took on a page: who did what, and its result",
    )
    op.create_index("action_log_target", "action_log", ["target"], schema="market_data")


def downgrade() -> None:
    """Take the change back."""
    op.drop_table("action_log", schema="market_data")
