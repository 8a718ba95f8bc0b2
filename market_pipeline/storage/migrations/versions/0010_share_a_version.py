"""Let the markets of one transaction share a dataset version."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_SCHEMA, _TABLE = "market_data", "dataset_version"
_OLD = "One row per batch that changed bars, and interval: where to look for its changes"
_NEW = "One row per version, market and interval whose bars changed: where its changes lie"


def upgrade() -> None:
    """Put the market into the key."""
    op.drop_constraint("dataset_version_pkey", _TABLE, schema=_SCHEMA)
    op.create_primary_key(
        "dataset_version_pkey", _TABLE, ["version", "interval", "market_id"], schema=_SCHEMA
    )
    op.create_table_comment(_TABLE, _NEW, existing_comment=_OLD, schema=_SCHEMA)


def downgrade() -> None:
    """Take it out again; where markets share a version, that is refused."""
    op.drop_constraint("dataset_version_pkey", _TABLE, schema=_SCHEMA)
    op.create_primary_key("dataset_version_pkey", _TABLE, ["version", "interval"], schema=_SCHEMA)
    op.create_table_comment(_TABLE, _OLD, existing_comment=_NEW, schema=_SCHEMA)
