"""The tables, column by column; comments are shown in PostgreSQL and in Dagster alike.

``Table.info`` says how the bulk upsert treats a table: ``stamps`` are columns that describe the
write and never make a row differ. ``guard`` is a condition under which a stored row may be
replaced, ``revisions`` the table that keeps replaced final rows.
"""

from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Sequence,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "market_data"
metadata = MetaData(schema=SCHEMA)
dataset_version_sequence = Sequence("dataset_version_seq", metadata=metadata)

_TIME = DateTime(timezone=True)


def _number(name: str, comment: str) -> Column[float]:
    return Column(name, Double, comment=comment)


def _price(name: str, comment: str) -> Column[float]:
    return Column(name, Double, nullable=False, comment=comment)


def _market_key(name: str = "market_id") -> Column[int]:
    target = ForeignKey(f"{SCHEMA}.market.market_id")
    return Column(name, BigInteger, target, primary_key=True, comment="The market")


def _finite(*columns: str) -> list[CheckConstraint]:
    """CHECK (x > 0) alone lets NaN and infinity in: NaN sorts above every number."""
    return [
        CheckConstraint(f"{name} > '-Infinity' AND {name} < 'Infinity'", name=f"{name}_is_finite")
        for name in columns
    ]


def _run() -> "Column[UUID]":
    return Column("run_id", Uuid, comment="The Dagster run that last changed the row")


def _count(name: str, comment: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default="0", comment=comment)


def _version() -> "Column[int]":
    return Column(
        "dataset_version", BigInteger, comment="Newest version of the bars it was made of"
    )


market = Table(
    "market",
    metadata,
    Column("market_id", BigInteger, Identity(), primary_key=True, comment="Surrogate key"),
    Column("provider", Text, nullable=False, comment="The provider that serves it"),
    Column("provider_market_id", Text, nullable=False, comment="The provider's own id"),
    Column(
        "listed_from",
        Date,
        nullable=False,
        server_default="1970-01-01",
        comment="A re-used ticker starts a new row",
    ),
    Column("symbol", Text, nullable=False, comment="This project's name, such as BTC-USD"),
    Column("name", Text, nullable=False, comment="Readable name"),
    Column("base", Text, nullable=False, comment="What is priced"),
    Column("quote", Text, nullable=False, comment="The currency it is priced in"),
    Column("venue", Text, nullable=False, comment="Exchange or aggregator"),
    Column("calendar", Text, nullable=False, comment="24/7 or an exchange calendar"),
    Column("intervals", ARRAY(Text), nullable=False, comment="Bar lengths the provider serves"),
    Column("price_basis", Text, nullable=False, comment="unadjusted, split_adjusted or adjusted"),
    Column("is_active", Boolean, nullable=False, server_default="true", comment="Still ingested"),
    Column(
        "is_primary",
        Boolean,
        nullable=False,
        server_default="false",
        comment="Read when only the symbol is named",
    ),
    Column(
        "former_symbols",
        ARRAY(Text),
        nullable=False,
        server_default="{}",
        comment="What it was called before it was renamed, the oldest first",
    ),
    Index("market_provider_id_key", "provider", "provider_market_id", "listed_from", unique=True),
    Index(
        "market_provider_symbol_key",
        "provider",
        "symbol",
        unique=True,
        postgresql_where=text("is_active"),
    ),
    Index("market_primary_key", "symbol", unique=True, postgresql_where=text("is_primary")),
    comment="One row per market: an instrument as one provider names it",
)

market_snapshot = Table(
    "market_snapshot",
    metadata,
    _market_key(),
    Column(
        "observed_at",
        _TIME,
        primary_key=True,
        comment="When the provider says the price was true (UTC)",
    ),
    _price("price", "Price in the quote currency"),
    _number("volume_24h", "Rolling 24 h volume in the quote currency, as the provider says"),
    _number("change_24h_ratio", "24 h change as a fraction, as the provider says"),
    _number("market_cap", "Market capitalisation in the quote currency, as the provider says"),
    _number(
        "realised_volatility",
        "Annualised, from log returns of final daily bars over the last 30 days",
    ),
    _number("roi", "Price over the close 30 days before, minus one (fraction)"),
    Column("bars_as_of", _TIME, comment="Close of the last final daily bar used (UTC)"),
    Column("reason", Text, comment="Why a statistic is NULL"),
    _version(),
    Column("fetched_at", _TIME, nullable=False, comment="When it was asked for (UTC)"),
    _run(),
    CheckConstraint("price > 0", name="price_is_positive"),
    *_finite("price", "volume_24h", "change_24h_ratio", "market_cap", "realised_volatility", "roi"),
    comment="One row per market and observed_at: live prices",
    info={"stamps": ("fetched_at", "run_id")},
)

market_aggregate = Table(
    "market_aggregate",
    metadata,
    _market_key(),
    Column("interval", Text, primary_key=True, comment="1h, 1d or 1w"),
    Column("open_time", _TIME, primary_key=True, comment="Start of the half-open span (UTC)"),
    Column("close_time", _TIME, nullable=False, comment="End of the span (UTC)"),
    _price("open", "First price in the quote currency"),
    _price("high", "Highest price"),
    _price("low", "Lowest price"),
    _price("close", "Last price"),
    _number("volume", "Traded volume, NULL where the provider gives none"),
    Column("volume_kind", Text, nullable=False, comment="base, quote, shares, rolling_24h or none"),
    Column("trades", BigInteger, comment="Number of trades"),
    Column(
        "source_kind",
        Text,
        nullable=False,
        comment="traded bars, points (built from price points), or rescaled here",
    ),
    Column(
        "is_final", Boolean, nullable=False, comment="By the provider's own rule; never goes back"
    ),
    Column("known_at", _TIME, nullable=False, comment="When these values became ours (UTC)"),
    Column(
        "dataset_version", BigInteger, nullable=False, comment="Version of the data in commit order"
    ),
    _run(),
    CheckConstraint("interval IN ('1h', '1d', '1w')", name="interval_is_known"),
    CheckConstraint("open_time < close_time", name="span_is_positive"),
    CheckConstraint("low > 0 AND low <= open AND low <= close", name="low_is_lowest"),
    CheckConstraint("high >= open AND high >= close AND high < 'Infinity'", name="high_is_highest"),
    CheckConstraint("open < 'Infinity' AND close < 'Infinity'", name="body_is_finite"),
    CheckConstraint("volume >= 0 AND volume < 'Infinity'", name="volume_is_finite"),
    comment="One row per market, interval and open_time: OHLC bars",
    info={
        "stamps": ("known_at", "dataset_version", "run_id"),
        "guard": "(incoming.is_final OR NOT stored.is_final)",
    },
)

market_aggregate_revision = Table(
    "market_aggregate_revision",
    metadata,
    *(
        Column(
            column.name,
            column.type,
            primary_key=column.primary_key,
            nullable=column.nullable,
            comment=column.comment,
        )
        for column in market_aggregate.columns
    ),
    Column("known_until", _TIME, nullable=False, comment="When it was replaced (UTC)"),
    Column(
        "replaced_by_version",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="Version of the data that replaced it",
    ),
    Column("replaced_by_run", Uuid, comment="The Dagster run that replaced it"),
    comment="One row per final bar that was replaced: its old values, kept for good",
)
market_aggregate.info["revisions"] = market_aggregate_revision

market_comparison = Table(
    "market_comparison",
    metadata,
    _market_key("base_market_id"),
    _market_key("quote_market_id"),
    Column("interval", Text, primary_key=True, comment="Interval of the bars compared"),
    Column("horizon", Text, primary_key=True, comment="Span looked back, such as 30d"),
    Column("as_of", _TIME, primary_key=True, comment="Close of the last final bar used (UTC)"),
    Column(
        "method", Text, primary_key=True, comment="Formula and limits the row was computed with"
    ),
    _number("price_ratio", "Base close over quote close"),
    _number("volume_ratio", "Base volume over quote volume in the horizon"),
    _number("roi_spread", "Base ROI minus quote ROI over the joined dates (fraction)"),
    _number("correlation", "Pearson correlation of simple returns on joined dates"),
    _number("close_skew_seconds", "Base close time minus quote close time, in seconds"),
    Column("n_returns", Integer, nullable=False, comment="Joined returns used"),
    Column("reason", Text, comment="Why a value is NULL"),
    _version(),
    _run(),
    CheckConstraint("base_market_id <> quote_market_id", name="pair_is_two_markets"),
    CheckConstraint("correlation BETWEEN -1 AND 1", name="correlation_in_range"),
    *_finite("price_ratio", "volume_ratio", "roi_spread", "close_skew_seconds"),
    comment="One row per pair of markets, interval, horizon, as_of and method",
    info={"stamps": ("run_id",)},
)

market_roi_statistic = Table(
    "market_roi_statistic",
    metadata,
    _market_key(),
    Column("interval", Text, primary_key=True, comment="Interval of the bars used"),
    Column("horizon", Text, primary_key=True, comment="Span looked back, such as 30d"),
    Column("as_of", _TIME, primary_key=True, comment="Close of the last final bar used (UTC)"),
    Column("method", Text, primary_key=True, comment="Formula and rates the row was computed with"),
    _number("roi", "Last close over first close, minus one (fraction)"),
    _number("annualised_return", "Compounded; NULL for horizons under 30 days (fraction)"),
    _number("annualised_volatility", "Standard deviation of simple returns, annualised"),
    _number("realised_volatility", "Standard deviation of log returns, annualised"),
    _number("sharpe", "Annualised Sharpe ratio"),
    _number("sortino", "Annualised Sortino ratio, all returns in the denominator"),
    _number("max_drawdown", "Deepest fall from a peak (fraction, at most 0)"),
    _number("calmar", "Annualised return over the size of the maximum drawdown"),
    Column("drawdown_peak_at", _TIME, comment="Close of the peak before the deepest fall (UTC)"),
    Column("drawdown_trough_at", _TIME, comment="Close of its lowest point (UTC)"),
    Column(
        "drawdown_recovered_at",
        _TIME,
        comment="Close that regained the peak (UTC), NULL if not yet",
    ),
    _price("annualisation_factor", "Bars a year by the market's calendar"),
    Column("n_returns", Integer, nullable=False, comment="Returns used"),
    Column(
        "n_missing", Integer, nullable=False, comment="Returns left out because they span a hole"
    ),
    Column("first_bar_at", _TIME, comment="Close of the first bar used (UTC)"),
    Column("reason", Text, comment="Why a value is NULL"),
    _version(),
    _run(),
    CheckConstraint("max_drawdown BETWEEN -1 AND 0", name="drawdown_in_range"),
    *_finite(
        "roi",
        "annualised_return",
        "annualised_volatility",
        "realised_volatility",
        "sharpe",
        "sortino",
        "calmar",
    ),
    comment="One row per market, interval, horizon, as_of and method: risk and return",
    info={"stamps": ("run_id",)},
)

ingestion_run = Table(
    "ingestion_run",
    metadata,
    Column("run_id", Uuid, primary_key=True, comment="The Dagster run"),
    Column("trigger", Text, nullable=False, comment="manual, schedule, cron or backfill"),
    Column("provider", Text, nullable=False, comment="Providers asked, in order"),
    Column("request", JSONB, nullable=False, comment="Symbols, look-back and window as asked"),
    Column("started_at", _TIME, nullable=False, comment="When the run began (UTC)"),
    Column("completed_at", _TIME, comment="Last write (UTC)"),
    Column(
        "ended_at", _TIME, comment="When its last step ended; NULL: it runs, or was killed (UTC)"
    ),
    Column("outcome", Text, comment="ok, partial or failed; NULL while it runs"),
    Column("error", Text, comment="What ended it, in one line; NULL: no step failed"),
    CheckConstraint("outcome IN ('ok', 'partial', 'failed')", name="outcome_is_known"),
    comment="One row per run: its receipt",
)

ingestion_run_market = Table(
    "ingestion_run_market",
    metadata,
    Column(
        "run_id",
        Uuid,
        ForeignKey(f"{SCHEMA}.ingestion_run.run_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    _market_key(),
    _count("requested", "Bars that the plan expected"),
    Column("received", Integer, nullable=False, comment="Bars the provider sent"),
    Column("inserted", Integer, nullable=False, comment="Fetched bars that are new"),
    Column("updated", Integer, nullable=False, comment="Fetched bars that changed"),
    Column("unchanged", Integer, nullable=False, comment="Fetched bars as they were"),
    _count("derived_inserted", "Days and weeks built from them that are new"),
    _count("derived_updated", "Days and weeks built from them that changed"),
    _count("derived_unchanged", "Days and weeks built from them as they were"),
    _count("revised", "Of the updated, final bars whose old values were kept"),
    _count("quarantined", "Bars that were impossible"),
    _count("spikes", "Bars stored though they jump"),
    _count("holes_left", "Spans still missing that should be there"),
    _count("calls", "Requests made to the provider"),
    _count("throttled_calls", "Of them, refused for coming too often"),
    Column("seconds", Double, nullable=False, server_default="0", comment="From claim to commit"),
    Column("watermark_before", _TIME, comment="Close of the last final bar before (UTC)"),
    Column("watermark_after", _TIME, comment="Close of the last final bar after (UTC)"),
    Column("first_version", BigInteger, comment="First dataset version written; NULL: none"),
    Column("last_version", BigInteger, comment="Last dataset version written; NULL: none"),
    Column("outcome", Text, nullable=False, comment="ok, partial or failed"),
    Column("reason", Text, comment="What went wrong"),
    Column("assumed", Text, comment="What the provider had to assume about the market"),
    comment="One row per run and market: the bars' part of the receipt",
)

ingestion_run_table = Table(
    "ingestion_run_table",
    metadata,
    Column(
        "run_id",
        Uuid,
        ForeignKey(f"{SCHEMA}.ingestion_run.run_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("table_name", Text, primary_key=True, comment="The table written"),
    Column("inserted", Integer, nullable=False, comment="Rows new"),
    Column("updated", Integer, nullable=False, comment="Rows changed"),
    Column("unchanged", Integer, nullable=False, comment="Rows as they were"),
    comment="One row per run and table: what was written",
)

computed_input = Table(
    "computed_input",
    metadata,
    Column("table_name", Text, primary_key=True, comment="The table that was computed"),
    Column("scope", Text, primary_key=True, comment="Which markets: a key, or a digest of many"),
    Column(
        "fingerprint",
        Text,
        nullable=False,
        comment="Digest of bars' version, holes, events and settings that it was computed from",
    ),
    Column("computed_at", _TIME, nullable=False, comment="When (UTC)"),
    _run(),
    comment="One row per computed table and set of markets: the same inputs are not computed again",
)
