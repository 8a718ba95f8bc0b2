"""Note events over spans, parsers, rounds of verification, methods of comparisons, inputs."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_SCHEMA = "market_data"
_TIME = sa.DateTime(timezone=True)
_REASONS = (
    "'fetch_failed', 'provider_empty', 'no_trades', 'quarantined', 'before_first', 'after_last'"
)
_CHECKS = {
    ("coverage_hole", "reason_is_known"): (
        f"reason IN ({_REASONS})",
        f"reason IN ({_REASONS}, 'out_of_reach')",
    ),
    ("market_event", "kind_is_known"): (
        "kind IN ('split')",
        "kind IN ('split', 'difference', 'suspected_split')",
    ),
    ("ingestion_request", "purpose_is_known"): (
        "purpose IN ('missing', 'tail', 'retry', 'verify', 'reload')",
        "purpose IN ('missing', 'tail', 'retry', 'verify', 'trace', 'reload')",
    ),
}
_COMMENTS = {
    ("ingestion_run_market", "inserted"): (
        "Bars new, weekly ones included",
        "Fetched bars that are new",
    ),
    ("ingestion_run_market", "updated"): ("Bars changed", "Fetched bars that changed"),
    ("ingestion_run_market", "unchanged"): ("Bars as they were", "Fetched bars as they were"),
    ("market_event", "kind"): ("split", "difference, suspected_split or split"),
    ("market_event", "ratio"): ("New price over old price", "New price over old price, the median"),
    ("market_event", "resolved_at"): (
        "When the market was reloaded; NULL: not yet (UTC)",
        "When it ended; NULL: it is open (UTC)",
    ),
    ("ingestion_request", "purpose"): (
        "missing, tail, retry, verify or reload",
        "missing, tail, retry, verify, trace or reload",
    ),
}
_COMMENTS |= {
    (table, "source_kind"): (
        "traded bars, or built from price points",
        "traded bars, points (built from price points), or rescaled here",
    )
    for table in ("market_aggregate", "market_aggregate_revision")
}
_TABLE_COMMENTS = {
    "market_comparison": (
        "One row per pair of markets, interval, horizon and as_of",
        "One row per pair of markets, interval, horizon, as_of and method",
    ),
    "market_event": (
        "One row per event that changes a whole series; statistics wait while it is open",
        "One row per event that changes a span of a series; statistics over it wait while open",
    ),
}
_PAIR = ["base_market_id", "quote_market_id", "interval", "horizon", "as_of"]
# What rows were computed with until now: closes up to six hours apart.
_FIRST_METHOD = "simple;skew=21600"


def upgrade() -> None:
    """Apply the change."""
    for table, columns in _list_columns().items():
        for column in columns:
            op.add_column(table, column, schema=_SCHEMA)
    _tell(new=1)
    op.create_index(
        "market_event_open",
        "market_event",
        ["market_id"],
        schema=_SCHEMA,
        postgresql_where=sa.text("resolved_at IS NULL"),
    )
    _name_methods()
    op.create_table(
        "computed_input",
        sa.Column("table_name", sa.Text(), nullable=False, comment="The table that was computed"),
        sa.Column(
            "scope", sa.Text(), nullable=False, comment="Which markets: a key, or a digest of many"
        ),
        sa.Column(
            "fingerprint",
            sa.Text(),
            nullable=False,
            comment="Digest of bars' version, holes, events and settings that it was computed from",
        ),
        sa.Column("computed_at", _TIME, nullable=False, comment="When (UTC)"),
        sa.Column("run_id", sa.Uuid(), comment="The Dagster run that last changed the row"),
        sa.PrimaryKeyConstraint("table_name", "scope"),
        schema=_SCHEMA,
        comment=(
            "One row per computed table and set of markets: the same inputs are not computed again"
        ),
    )


def downgrade() -> None:
    """Take the change back."""
    op.drop_table("computed_input", schema=_SCHEMA)
    op.drop_constraint("market_comparison_pkey", "market_comparison", schema=_SCHEMA)
    op.execute("DELETE FROM market_data.market_comparison WHERE method <> 'simple;skew=21600'")
    op.drop_column("market_comparison", "method", schema=_SCHEMA)
    op.create_primary_key("market_comparison_pkey", "market_comparison", _PAIR, schema=_SCHEMA)
    op.drop_index("market_event_open", "market_event", schema=_SCHEMA)
    op.execute("DELETE FROM market_data.market_event WHERE kind <> 'split'")
    op.execute("DELETE FROM market_data.ingestion_request WHERE purpose = 'trace'")
    op.execute(
        "UPDATE market_data.coverage_hole SET reason = 'fetch_failed' WHERE reason = 'out_of_reach'"
    )
    _tell(new=0)
    for table, columns in _list_columns().items():
        for column in columns:
            op.drop_column(table, column.name, schema=_SCHEMA)


def _tell(new: int) -> None:
    """Put checks and comments as they were before (0) or are from now on (1)."""
    for (table, name), texts in _CHECKS.items():
        op.drop_constraint(name, table, schema=_SCHEMA)
        op.create_check_constraint(name, table, texts[new], schema=_SCHEMA)
    for (table, column), texts in _COMMENTS.items():
        op.execute(f"COMMENT ON COLUMN {_SCHEMA}.{table}.{column} IS $${texts[new]}$$")
    for table, texts in _TABLE_COMMENTS.items():
        op.execute(f"COMMENT ON TABLE {_SCHEMA}.{table} IS $${texts[new]}$$")


def _name_methods() -> None:
    op.add_column(
        "market_comparison",
        sa.Column(
            "method",
            sa.Text(),
            server_default=_FIRST_METHOD,
            nullable=False,
            comment="Formula and limits the row was computed with",
        ),
        schema=_SCHEMA,
    )
    op.alter_column("market_comparison", "method", server_default=None, schema=_SCHEMA)
    op.drop_constraint("market_comparison_pkey", "market_comparison", schema=_SCHEMA)
    op.create_primary_key(
        "market_comparison_pkey", "market_comparison", [*_PAIR, "method"], schema=_SCHEMA
    )


def _list_columns() -> dict[str, list[sa.Column[Any]]]:
    """Return new columns each time: SQLAlchemy lets a column be used once."""
    return {
        "market_snapshot": [
            sa.Column(
                "dataset_version",
                sa.BigInteger(),
                comment="Newest version of the bars it was made of",
            ),
        ],
        "ingestion_run": [
            sa.Column(
                "error", sa.Text(), comment="What ended it, in one line; NULL: no step failed"
            ),
        ],
        "ingestion_run_market": [
            sa.Column(
                f"derived_{name}",
                sa.Integer(),
                server_default="0",
                nullable=False,
                comment=f"Days and weeks built from them {what}",
            )
            for name, what in {
                "inserted": "that are new",
                "updated": "that changed",
                "unchanged": "as they were",
            }.items()
        ]
        + [
            sa.Column(
                "assumed", sa.Text(), comment="What the provider had to assume about the market"
            ),
        ],
        "market_coverage": [
            sa.Column(
                "round",
                postgresql.JSONB(),
                server_default="{}",
                nullable=False,
                comment="How far the turn of reading old bars again has come, and when (UTC)",
            ),
            sa.Column(
                "parsing",
                sa.Integer(),
                server_default="1",
                nullable=False,
                comment="Version of the provider's parser that new bars are read with",
            ),
            sa.Column(
                "older_parsings",
                postgresql.JSONB(),
                server_default="{}",
                nullable=False,
                comment="For each older parser, the spans whose stored bars it read (UTC)",
            ),
        ],
        "market_event": [
            sa.Column(
                "starts_at", _TIME, comment="First bar it touches, by open_time; NULL: all (UTC)"
            ),
            sa.Column(
                "ends_at", _TIME, comment="End of the span it touches; NULL: up to now (UTC)"
            ),
            sa.Column(
                "spread",
                sa.Double(),
                comment="Largest relative distance of a bar's factor from the median",
            ),
            sa.Column(
                "trace",
                postgresql.JSONB(),
                server_default="{}",
                nullable=False,
                comment="For each interval, how far the difference was followed, and whether to its end",
            ),
            sa.Column("resolution", sa.Text(), comment="How it ended, in a word"),
        ],
    }
