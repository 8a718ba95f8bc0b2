"""Create the market tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.execute(sa.schema.CreateSequence(sa.Sequence("dataset_version_seq", schema="market_data")))
    op.create_table(
        "ingestion_run",
        sa.Column("run_id", sa.Uuid(), nullable=False, comment="The Dagster run"),
        sa.Column(
            "trigger", sa.Text(), nullable=False, comment="manual, schedule, cron or backfill"
        ),
        sa.Column("provider", sa.Text(), nullable=False, comment="Providers asked, in order"),
        sa.Column(
            "request",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="Symbols, look-back and window as asked",
        ),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When the run began (UTC)",
        ),
        sa.Column(
            "completed_at", sa.DateTime(timezone=True), nullable=True, comment="Last write (UTC)"
        ),
        sa.Column(
            "outcome", sa.Text(), nullable=True, comment="ok, partial or failed; NULL while it runs"
        ),
        sa.CheckConstraint("outcome IN ('ok', 'partial', 'failed')", name="outcome_is_known"),
        sa.PrimaryKeyConstraint("run_id"),
        schema="market_data",
        comment="One row per run: its receipt",
    )
    op.create_table(
        "market",
        sa.Column(
            "market_id",
            sa.BigInteger(),
            sa.Identity(always=False),
            nullable=False,
            comment="Surrogate key",
        ),
        sa.Column("provider", sa.Text(), nullable=False, comment="The provider that serves it"),
        sa.Column("provider_market_id", sa.Text(), nullable=False, comment="The provider's own id"),
        sa.Column(
            "listed_from",
            sa.Date(),
            server_default="1970-01-01",
            nullable=False,
            comment="A re-used ticker starts a new row",
        ),
        sa.Column(
            "symbol", sa.Text(), nullable=False, comment="This project's name, such as BTC-USD"
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="Readable name"),
        sa.Column("base", sa.Text(), nullable=False, comment="What is priced"),
        sa.Column("quote", sa.Text(), nullable=False, comment="The currency it is priced in"),
        sa.Column("venue", sa.Text(), nullable=False, comment="Exchange or aggregator"),
        sa.Column("calendar", sa.Text(), nullable=False, comment="24/7 or an exchange calendar"),
        sa.Column(
            "intervals",
            sa.ARRAY(sa.Text()),
            nullable=False,
            comment="Bar lengths the provider serves",
        ),
        sa.Column(
            "price_basis",
            sa.Text(),
            nullable=False,
            comment="unadjusted, split_adjusted or adjusted",
        ),
        sa.Column(
            "is_active",
            sa.Boolean(),
            server_default="true",
            nullable=False,
            comment="Still ingested",
        ),
        sa.Column(
            "is_primary",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="Read when only the symbol is named",
        ),
        sa.PrimaryKeyConstraint("market_id"),
        schema="market_data",
        comment="One row per market: an instrument as one provider names it",
    )
    op.create_index(
        "market_primary_key",
        "market",
        ["symbol"],
        unique=True,
        schema="market_data",
        postgresql_where=sa.text("is_primary"),
    )
    op.create_index(
        "market_provider_id_key",
        "market",
        ["provider", "provider_market_id", "listed_from"],
        unique=True,
        schema="market_data",
    )
    op.create_index(
        "market_provider_symbol_key",
        "market",
        ["provider", "symbol"],
        unique=True,
        schema="market_data",
        postgresql_where=sa.text("is_active"),
    )
    op.create_table(
        "ingestion_run_market",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column("received", sa.Integer(), nullable=False, comment="Bars the provider sent"),
        sa.Column("rejected", sa.Integer(), nullable=False, comment="Bars that were impossible"),
        sa.Column(
            "inserted", sa.Integer(), nullable=False, comment="Bars new, weekly ones included"
        ),
        sa.Column("updated", sa.Integer(), nullable=False, comment="Bars changed"),
        sa.Column("unchanged", sa.Integer(), nullable=False, comment="Bars as they were"),
        sa.Column("outcome", sa.Text(), nullable=False, comment="ok, partial or failed"),
        sa.Column("reason", sa.Text(), nullable=True, comment="What went wrong"),
        sa.ForeignKeyConstraint(
            ["market_id"],
            ["market_data.market.market_id"],
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["market_data.ingestion_run.run_id"], ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "market_id"),
        schema="market_data",
        comment="One row per run and market: the bars' part of the receipt",
    )
    op.create_table(
        "ingestion_run_table",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False, comment="The table written"),
        sa.Column("inserted", sa.Integer(), nullable=False, comment="Rows new"),
        sa.Column("updated", sa.Integer(), nullable=False, comment="Rows changed"),
        sa.Column("unchanged", sa.Integer(), nullable=False, comment="Rows as they were"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["market_data.ingestion_run.run_id"], ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "table_name"),
        schema="market_data",
        comment="One row per run and table: what was written",
    )
    op.create_table(
        "market_aggregate",
        sa.Column("market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column("interval", sa.Text(), nullable=False, comment="1h, 1d or 1w"),
        sa.Column(
            "open_time",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Start of the half-open span (UTC)",
        ),
        sa.Column(
            "close_time",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="End of the span (UTC)",
        ),
        sa.Column("open", sa.Double(), nullable=False, comment="First price in the quote currency"),
        sa.Column("high", sa.Double(), nullable=False, comment="Highest price"),
        sa.Column("low", sa.Double(), nullable=False, comment="Lowest price"),
        sa.Column("close", sa.Double(), nullable=False, comment="Last price"),
        sa.Column(
            "volume",
            sa.Double(),
            nullable=True,
            comment="Traded volume, NULL where the provider gives none",
        ),
        sa.Column(
            "volume_kind",
            sa.Text(),
            nullable=False,
            comment="base, quote, shares, rolling_24h or none",
        ),
        sa.Column("trades", sa.BigInteger(), nullable=True, comment="Number of trades"),
        sa.Column(
            "source_kind",
            sa.Text(),
            nullable=False,
            comment="traded bars, or built from price points",
        ),
        sa.Column(
            "is_final",
            sa.Boolean(),
            nullable=False,
            comment="By the provider's own rule; never goes back",
        ),
        sa.Column(
            "known_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When these values became ours (UTC)",
        ),
        sa.Column(
            "dataset_version",
            sa.BigInteger(),
            nullable=False,
            comment="Version of the data in commit order",
        ),
        sa.Column(
            "run_id", sa.Uuid(), nullable=True, comment="The Dagster run that last changed the row"
        ),
        sa.CheckConstraint(
            "high >= open AND high >= close AND high < 'Infinity'", name="high_is_highest"
        ),
        sa.CheckConstraint("interval IN ('1h', '1d', '1w')", name="interval_is_known"),
        sa.CheckConstraint("open < 'Infinity' AND close < 'Infinity'", name="body_is_finite"),
        sa.CheckConstraint("volume >= 0 AND volume < 'Infinity'", name="volume_is_finite"),
        sa.CheckConstraint("low > 0 AND low <= open AND low <= close", name="low_is_lowest"),
        sa.CheckConstraint("open_time < close_time", name="span_is_positive"),
        sa.ForeignKeyConstraint(
            ["market_id"],
            ["market_data.market.market_id"],
        ),
        sa.PrimaryKeyConstraint("market_id", "interval", "open_time"),
        schema="market_data",
        comment="One row per market, interval and open_time: OHLC bars",
        info={
            "stamps": ("known_at", "dataset_version", "run_id"),
            "guard": "(incoming.is_final OR NOT stored.is_final)",
        },
    )
    op.create_table(
        "market_comparison",
        sa.Column("base_market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column("quote_market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column("interval", sa.Text(), nullable=False, comment="Interval of the bars compared"),
        sa.Column("horizon", sa.Text(), nullable=False, comment="Span looked back, such as 30d"),
        sa.Column(
            "as_of",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Close of the last final bar used (UTC)",
        ),
        sa.Column("price_ratio", sa.Double(), nullable=True, comment="Base close over quote close"),
        sa.Column(
            "volume_ratio",
            sa.Double(),
            nullable=True,
            comment="Base volume over quote volume in the horizon",
        ),
        sa.Column(
            "roi_spread",
            sa.Double(),
            nullable=True,
            comment="Base ROI minus quote ROI over the joined dates (fraction)",
        ),
        sa.Column(
            "correlation",
            sa.Double(),
            nullable=True,
            comment="Pearson correlation of simple returns on joined dates",
        ),
        sa.Column(
            "close_skew_seconds",
            sa.Double(),
            nullable=True,
            comment="Base close time minus quote close time, in seconds",
        ),
        sa.Column("n_returns", sa.Integer(), nullable=False, comment="Joined returns used"),
        sa.Column("reason", sa.Text(), nullable=True, comment="Why a value is NULL"),
        sa.Column(
            "run_id", sa.Uuid(), nullable=True, comment="The Dagster run that last changed the row"
        ),
        sa.CheckConstraint(
            "close_skew_seconds > '-Infinity' AND close_skew_seconds < 'Infinity'",
            name="close_skew_seconds_is_finite",
        ),
        sa.CheckConstraint(
            "price_ratio > '-Infinity' AND price_ratio < 'Infinity'", name="price_ratio_is_finite"
        ),
        sa.CheckConstraint(
            "roi_spread > '-Infinity' AND roi_spread < 'Infinity'", name="roi_spread_is_finite"
        ),
        sa.CheckConstraint(
            "volume_ratio > '-Infinity' AND volume_ratio < 'Infinity'",
            name="volume_ratio_is_finite",
        ),
        sa.CheckConstraint("base_market_id <> quote_market_id", name="pair_is_two_markets"),
        sa.CheckConstraint("correlation BETWEEN -1 AND 1", name="correlation_in_range"),
        sa.ForeignKeyConstraint(
            ["base_market_id"],
            ["market_data.market.market_id"],
        ),
        sa.ForeignKeyConstraint(
            ["quote_market_id"],
            ["market_data.market.market_id"],
        ),
        sa.PrimaryKeyConstraint(
            "base_market_id", "quote_market_id", "interval", "horizon", "as_of"
        ),
        schema="market_data",
        comment="One row per pair of markets, interval, horizon and as_of",
        info={"stamps": ("run_id",)},
    )
    op.create_table(
        "market_roi_statistic",
        sa.Column("market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column("interval", sa.Text(), nullable=False, comment="Interval of the bars used"),
        sa.Column("horizon", sa.Text(), nullable=False, comment="Span looked back, such as 30d"),
        sa.Column(
            "as_of",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Close of the last final bar used (UTC)",
        ),
        sa.Column(
            "method",
            sa.Text(),
            nullable=False,
            comment="Formula and rates the row was computed with",
        ),
        sa.Column(
            "roi",
            sa.Double(),
            nullable=True,
            comment="Last close over first close, minus one (fraction)",
        ),
        sa.Column(
            "annualised_return",
            sa.Double(),
            nullable=True,
            comment="Compounded; NULL for horizons under 30 days (fraction)",
        ),
        sa.Column(
            "annualised_volatility",
            sa.Double(),
            nullable=True,
            comment="Standard deviation of simple returns, annualised",
        ),
        sa.Column(
            "realised_volatility",
            sa.Double(),
            nullable=True,
            comment="Standard deviation of log returns, annualised",
        ),
        sa.Column("sharpe", sa.Double(), nullable=True, comment="Annualised Sharpe ratio"),
        sa.Column(
            "sortino",
            sa.Double(),
            nullable=True,
            comment="Annualised Sortino ratio, all returns in the denominator",
        ),
        sa.Column(
            "max_drawdown",
            sa.Double(),
            nullable=True,
            comment="Deepest fall from a peak (fraction, at most 0)",
        ),
        sa.Column(
            "calmar",
            sa.Double(),
            nullable=True,
            comment="Annualised return over the size of the maximum drawdown",
        ),
        sa.Column(
            "drawdown_peak_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Close of the peak before the deepest fall (UTC)",
        ),
        sa.Column(
            "drawdown_trough_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Close of its lowest point (UTC)",
        ),
        sa.Column(
            "drawdown_recovered_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Close that regained the peak (UTC), NULL if not yet",
        ),
        sa.Column(
            "annualisation_factor",
            sa.Double(),
            nullable=False,
            comment="Bars a year by the market's calendar",
        ),
        sa.Column("n_returns", sa.Integer(), nullable=False, comment="Returns used"),
        sa.Column(
            "n_missing",
            sa.Integer(),
            nullable=False,
            comment="Returns left out because they span a hole",
        ),
        sa.Column(
            "first_bar_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Close of the first bar used (UTC)",
        ),
        sa.Column("reason", sa.Text(), nullable=True, comment="Why a value is NULL"),
        sa.Column(
            "run_id", sa.Uuid(), nullable=True, comment="The Dagster run that last changed the row"
        ),
        sa.CheckConstraint(
            "annualised_return > '-Infinity' AND annualised_return < 'Infinity'",
            name="annualised_return_is_finite",
        ),
        sa.CheckConstraint(
            "annualised_volatility > '-Infinity' AND annualised_volatility < 'Infinity'",
            name="annualised_volatility_is_finite",
        ),
        sa.CheckConstraint("calmar > '-Infinity' AND calmar < 'Infinity'", name="calmar_is_finite"),
        sa.CheckConstraint(
            "realised_volatility > '-Infinity' AND realised_volatility < 'Infinity'",
            name="realised_volatility_is_finite",
        ),
        sa.CheckConstraint("roi > '-Infinity' AND roi < 'Infinity'", name="roi_is_finite"),
        sa.CheckConstraint("sharpe > '-Infinity' AND sharpe < 'Infinity'", name="sharpe_is_finite"),
        sa.CheckConstraint(
            "sortino > '-Infinity' AND sortino < 'Infinity'", name="sortino_is_finite"
        ),
        sa.CheckConstraint("max_drawdown BETWEEN -1 AND 0", name="drawdown_in_range"),
        sa.ForeignKeyConstraint(
            ["market_id"],
            ["market_data.market.market_id"],
        ),
        sa.PrimaryKeyConstraint("market_id", "interval", "horizon", "as_of", "method"),
        schema="market_data",
        comment="One row per market, interval, horizon, as_of and method: risk and return",
        info={"stamps": ("run_id",)},
    )
    op.create_table(
        "market_snapshot",
        sa.Column("market_id", sa.BigInteger(), nullable=False, comment="The market"),
        sa.Column(
            "observed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When the provider says the price was true (UTC)",
        ),
        sa.Column("price", sa.Double(), nullable=False, comment="Price in the quote currency"),
        sa.Column(
            "volume_24h",
            sa.Double(),
            nullable=True,
            comment="Rolling 24 h volume in the quote currency, as the provider says",
        ),
        sa.Column(
            "change_24h_ratio",
            sa.Double(),
            nullable=True,
            comment="24 h change as a fraction, as the provider says",
        ),
        sa.Column(
            "market_cap",
            sa.Double(),
            nullable=True,
            comment="Market capitalisation in the quote currency, as the provider says",
        ),
        sa.Column(
            "realised_volatility",
            sa.Double(),
            nullable=True,
            comment="Annualised, from log returns of final daily bars over the last 30 days",
        ),
        sa.Column(
            "roi",
            sa.Double(),
            nullable=True,
            comment="Price over the close 30 days before, minus one (fraction)",
        ),
        sa.Column(
            "bars_as_of",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Close of the last final daily bar used (UTC)",
        ),
        sa.Column("reason", sa.Text(), nullable=True, comment="Why a statistic is NULL"),
        sa.Column(
            "fetched_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was asked for (UTC)",
        ),
        sa.Column(
            "run_id", sa.Uuid(), nullable=True, comment="The Dagster run that last changed the row"
        ),
        sa.CheckConstraint(
            "change_24h_ratio > '-Infinity' AND change_24h_ratio < 'Infinity'",
            name="change_24h_ratio_is_finite",
        ),
        sa.CheckConstraint(
            "market_cap > '-Infinity' AND market_cap < 'Infinity'", name="market_cap_is_finite"
        ),
        sa.CheckConstraint("price > '-Infinity' AND price < 'Infinity'", name="price_is_finite"),
        sa.CheckConstraint(
            "realised_volatility > '-Infinity' AND realised_volatility < 'Infinity'",
            name="realised_volatility_is_finite",
        ),
        sa.CheckConstraint("roi > '-Infinity' AND roi < 'Infinity'", name="roi_is_finite"),
        sa.CheckConstraint(
            "volume_24h > '-Infinity' AND volume_24h < 'Infinity'", name="volume_24h_is_finite"
        ),
        sa.CheckConstraint("price > 0", name="price_is_positive"),
        sa.ForeignKeyConstraint(
            ["market_id"],
            ["market_data.market.market_id"],
        ),
        sa.PrimaryKeyConstraint("market_id", "observed_at"),
        schema="market_data",
        comment="One row per market and observed_at: live prices",
        info={"stamps": ("fetched_at", "run_id")},
    )


def downgrade() -> None:
    """Take the change back."""
    op.drop_table("market_snapshot", schema="market_data")
    op.drop_table("market_roi_statistic", schema="market_data")
    op.drop_table("market_comparison", schema="market_data")
    op.drop_table("market_aggregate", schema="market_data")
    op.drop_table("ingestion_run_table", schema="market_data")
    op.drop_table("ingestion_run_market", schema="market_data")
    op.drop_index(
        "market_provider_symbol_key",
        table_name="market",
        schema="market_data",
        postgresql_where=sa.text("is_active"),
    )
    op.drop_index("market_provider_id_key", table_name="market", schema="market_data")
    op.drop_index(
        "market_primary_key",
        table_name="market",
        schema="market_data",
        postgresql_where=sa.text("is_primary"),
    )
    op.drop_table("market", schema="market_data")
    op.drop_table("ingestion_run", schema="market_data")
    op.execute("DROP SEQUENCE market_data.dataset_version_seq")
