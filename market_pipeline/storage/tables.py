"""The tables, column by column; comments are shown in PostgreSQL and in Dagster alike.

``Table.info`` says how the bulk upsert treats a table: ``stamps`` are columns that describe the
write and never make a row differ. ``guard`` is a condition under which a stored row may be
replaced, ``revisions`` the table that keeps replaced final rows.
"""

from collections.abc import Callable
from typing import Any

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
from sqlalchemy.schema import SchemaItem

SCHEMA = "market_data"
SCHEMAS = (SCHEMA, "dagster")
"""Of the whole database: ours, and Dagster's beside it."""
metadata = MetaData(schema=SCHEMA)
dataset_version_sequence = Sequence("dataset_version_seq", metadata=metadata)

TIME = DateTime(timezone=True)


def key(name: str, kind: Any, comment: str, *parts: SchemaItem, **options: Any) -> Column[Any]:
    """Return a column of the primary key."""
    return Column(name, kind, *parts, primary_key=True, comment=comment, **options)


def needed(name: str, kind: Any, comment: str, *parts: SchemaItem, **options: Any) -> Column[Any]:
    """Return a column that always has a value."""
    return Column(name, kind, *parts, nullable=False, comment=comment, **options)


def optional(name: str, kind: Any, comment: str, **options: Any) -> Column[Any]:
    """Return a column that may be NULL."""
    return Column(name, kind, comment=comment, **options)


def name_market(make: Callable[..., Column[Any]] = key, name: str = "market_id") -> Column[Any]:
    """Return a column that names a market; ``make`` says of what sort it is."""
    return make(name, BigInteger, "The market", ForeignKey(f"{SCHEMA}.market.market_id"))


def _name_receipt() -> Column[Any]:
    target = ForeignKey(f"{SCHEMA}.ingestion_run.run_id", ondelete="CASCADE")
    return Column("run_id", Uuid, target, primary_key=True)


def _finite(*columns: str) -> list[CheckConstraint]:
    """CHECK (x > 0) alone lets NaN and infinity in: NaN sorts above every number."""
    return [
        CheckConstraint(f"{name} > '-Infinity' AND {name} < 'Infinity'", name=f"{name}_is_finite")
        for name in columns
    ]


def _run() -> Column[Any]:
    return optional("run_id", Uuid, "The Dagster run that last changed the row")


def _count(name: str, comment: str) -> Column[Any]:
    return needed(name, Integer, comment, server_default="0")


def _version() -> Column[Any]:
    return optional("dataset_version", BigInteger, "Newest version of the bars it was made of")


market = Table(
    "market",
    metadata,
    key("market_id", BigInteger, "Surrogate key", Identity()),
    needed("provider", Text, "The provider that serves it"),
    needed("provider_market_id", Text, "The provider's own id"),
    needed("listed_from", Date, "A re-used ticker starts a new row", server_default="1970-01-01"),
    needed("symbol", Text, "This project's name, such as BTC-USD"),
    needed("name", Text, "Readable name"),
    needed("base", Text, "What is priced"),
    needed("quote", Text, "The currency it is priced in"),
    needed("venue", Text, "Exchange or aggregator"),
    needed("calendar", Text, "24/7 or an exchange calendar"),
    needed("intervals", ARRAY(Text), "Bar lengths the provider serves"),
    needed("price_basis", Text, "unadjusted, split_adjusted or adjusted"),
    needed("is_active", Boolean, "Still ingested", server_default="true"),
    needed("is_primary", Boolean, "Read when only the symbol is named", server_default="false"),
    optional(
        "preferred_at",
        TIME,
        "When somebody declared it primary; NULL: INGESTION_PROVIDER decides (UTC)",
    ),
    needed(
        "former_symbols",
        ARRAY(Text),
        "What it was called before it was renamed, the oldest first",
        server_default="{}",
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
    name_market(),
    key("observed_at", TIME, "When the provider says the price was true (UTC)"),
    needed("price", Double, "Price in the quote currency"),
    optional(
        "volume_24h", Double, "Rolling 24 h volume in the quote currency, as the provider says"
    ),
    optional("change_24h_ratio", Double, "24 h change as a fraction, as the provider says"),
    optional(
        "market_cap", Double, "Market capitalisation in the quote currency, as the provider says"
    ),
    optional(
        "realised_volatility",
        Double,
        "Annualised, from log returns of final daily bars over the last 30 days",
    ),
    optional("roi", Double, "Price over the close 30 days before, minus one (fraction)"),
    optional("bars_as_of", TIME, "Close of the last final daily bar used (UTC)"),
    optional("reason", Text, "Why a statistic is NULL"),
    _version(),
    needed("fetched_at", TIME, "When it was asked for (UTC)"),
    _run(),
    CheckConstraint("price > 0", name="price_is_positive"),
    *_finite("price", "volume_24h", "change_24h_ratio", "market_cap", "realised_volatility", "roi"),
    comment="One row per market and observed_at: live prices",
    info={"stamps": ("fetched_at", "run_id")},
)

market_aggregate = Table(
    "market_aggregate",
    metadata,
    name_market(),
    key("interval", Text, "1h, 1d or 1w"),
    key("open_time", TIME, "Start of the half-open span (UTC)"),
    needed("close_time", TIME, "End of the span (UTC)"),
    needed("open", Double, "First price in the quote currency"),
    needed("high", Double, "Highest price"),
    needed("low", Double, "Lowest price"),
    needed("close", Double, "Last price"),
    optional("volume", Double, "Traded volume, NULL where the provider gives none"),
    needed("volume_kind", Text, "base, quote, shares, rolling_24h or none"),
    optional("trades", BigInteger, "Number of trades"),
    needed("source_kind", Text, "traded bars, points (built from price points), or rescaled here"),
    needed("is_final", Boolean, "By the provider's own rule; never goes back"),
    needed("known_at", TIME, "When these values became ours (UTC)"),
    needed("dataset_version", BigInteger, "Version of the data in commit order"),
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
    needed("known_until", TIME, "When it was replaced (UTC)"),
    key(
        "replaced_by_version",
        BigInteger,
        "Version of the data that replaced it",
        autoincrement=False,
    ),
    optional("replaced_by_run", Uuid, "The Dagster run that replaced it"),
    comment="One row per final bar that was replaced: its old values, kept for good",
)
market_aggregate.info["revisions"] = market_aggregate_revision

market_comparison = Table(
    "market_comparison",
    metadata,
    name_market(name="base_market_id"),
    name_market(name="quote_market_id"),
    key("interval", Text, "Interval of the bars compared"),
    key("horizon", Text, "Span looked back, such as 30d"),
    key("as_of", TIME, "Close of the last final bar used (UTC)"),
    key("method", Text, "Formula and limits the row was computed with"),
    optional("price_ratio", Double, "Base close over quote close"),
    optional("volume_ratio", Double, "Base volume over quote volume in the horizon"),
    optional("roi_spread", Double, "Base ROI minus quote ROI over the joined dates (fraction)"),
    optional("correlation", Double, "Pearson correlation of simple returns on joined dates"),
    optional("close_skew_seconds", Double, "Base close time minus quote close time, in seconds"),
    needed("n_returns", Integer, "Joined returns used"),
    optional("reason", Text, "Why a value is NULL"),
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
    name_market(),
    key("interval", Text, "Interval of the bars used"),
    key("horizon", Text, "Span looked back, such as 30d"),
    key("as_of", TIME, "Close of the last final bar used (UTC)"),
    key("method", Text, "Formula and rates the row was computed with"),
    optional("roi", Double, "Last close over first close, minus one (fraction)"),
    optional("annualised_return", Double, "Compounded; NULL for horizons under 30 days (fraction)"),
    optional("annualised_volatility", Double, "Standard deviation of simple returns, annualised"),
    optional("realised_volatility", Double, "Standard deviation of log returns, annualised"),
    optional("sharpe", Double, "Annualised Sharpe ratio"),
    optional("sortino", Double, "Annualised Sortino ratio, all returns in the denominator"),
    optional("max_drawdown", Double, "Deepest fall from a peak (fraction, at most 0)"),
    optional("calmar", Double, "Annualised return over the size of the maximum drawdown"),
    optional("drawdown_peak_at", TIME, "Close of the peak before the deepest fall (UTC)"),
    optional("drawdown_trough_at", TIME, "Close of its lowest point (UTC)"),
    optional("drawdown_recovered_at", TIME, "Close that regained the peak (UTC), NULL if not yet"),
    needed("annualisation_factor", Double, "Bars a year by the market's calendar"),
    needed("n_returns", Integer, "Returns used"),
    needed("n_missing", Integer, "Returns left out because they span a hole"),
    optional("first_bar_at", TIME, "Close of the first bar used (UTC)"),
    optional("reason", Text, "Why a value is NULL"),
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
    key("run_id", Uuid, "The Dagster run"),
    needed("trigger", Text, "manual, schedule, cron or backfill"),
    needed("provider", Text, "Providers asked, in order"),
    needed("request", JSONB, "Symbols, look-back and window as asked"),
    needed("started_at", TIME, "When the run began (UTC)"),
    optional("completed_at", TIME, "Last write (UTC)"),
    optional("ended_at", TIME, "When its last step ended; NULL: it runs, or was killed (UTC)"),
    optional("outcome", Text, "ok, partial or failed; NULL while it runs"),
    optional("error", Text, "What ended it, in one line; NULL: no step failed"),
    optional("tick_id", Uuid, "The tick that it is a part of"),
    optional("shard", Integer, "Its shard of the tick; 0: it derives"),
    Index("ingestion_run_tick", "tick_id", postgresql_where=text("tick_id IS NOT NULL")),
    CheckConstraint("outcome IN ('ok', 'partial', 'failed')", name="outcome_is_known"),
    comment="One row per run: its receipt",
)

ingestion_run_market = Table(
    "ingestion_run_market",
    metadata,
    _name_receipt(),
    name_market(),
    _count("requested", "Bars that the plan expected"),
    needed("received", Integer, "Bars the provider sent"),
    needed("inserted", Integer, "Fetched bars that are new"),
    needed("updated", Integer, "Fetched bars that changed"),
    needed("unchanged", Integer, "Fetched bars as they were"),
    _count("derived_inserted", "Days and weeks built from them that are new"),
    _count("derived_updated", "Days and weeks built from them that changed"),
    _count("derived_unchanged", "Days and weeks built from them as they were"),
    _count("revised", "Of the updated, final bars whose old values were kept"),
    _count("quarantined", "Bars that were impossible"),
    _count("spikes", "Bars stored though they jump"),
    _count("holes_left", "Spans still missing that should be there"),
    _count("calls", "Requests made to the provider"),
    _count("throttled_calls", "Of them, refused for coming too often"),
    needed("seconds", Double, "From claim to commit", server_default="0"),
    optional("watermark_before", TIME, "Close of the last final bar before (UTC)"),
    optional("watermark_after", TIME, "Close of the last final bar after (UTC)"),
    optional("first_version", BigInteger, "First dataset version written; NULL: none"),
    optional("last_version", BigInteger, "Last dataset version written; NULL: none"),
    needed("outcome", Text, "ok, partial or failed"),
    optional("reason", Text, "What went wrong"),
    optional("assumed", Text, "What the provider had to assume about the market"),
    optional(
        "claim_token",
        BigInteger,
        "Token of the claim it was written under; NULL: nothing was asked of the provider",
    ),
    comment="One row per run and market: the bars' part of the receipt",
)

ingestion_run_table = Table(
    "ingestion_run_table",
    metadata,
    _name_receipt(),
    key("table_name", Text, "The table written"),
    needed("inserted", Integer, "Rows new"),
    needed("updated", Integer, "Rows changed"),
    needed("unchanged", Integer, "Rows as they were"),
    comment="One row per run and table: what was written",
)

computed_input = Table(
    "computed_input",
    metadata,
    key("table_name", Text, "The table that was computed"),
    key("scope", Text, "Which markets: a key, or a digest of many"),
    needed(
        "fingerprint",
        Text,
        "Digest of bars' version, holes, events and settings that it was computed from",
    ),
    needed("computed_at", TIME, "When (UTC)"),
    _run(),
    comment="One row per computed table and set of markets: the same inputs are not computed again",
)
