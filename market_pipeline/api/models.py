"""The answers of the read routes, field by field; OpenAPI shows them.

Times are UTC in ISO 8601, ratios fractions, prices in the market's quote currency. Null means
unknown; where a number could have been expected, ``reason`` says why.
"""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

_CURSOR = Field(description="Send it as `cursor` for the next page; null at the end")
_VERSION = Field(description="Newest version of the data; null before the first bar")


class Table(BaseModel):
    """The fields of every table beside its rows."""

    dataset_version: int | None = _VERSION
    next_cursor: str | None = _CURSOR


class OfMarket(BaseModel):
    """The market that an answer, or a row of it, is about."""

    symbol: str = Field(examples=["BTC-USD"])
    provider: str = Field(examples=["mock"])


class OfSeries(OfMarket):
    """One interval of a market."""

    interval: str


class MarketRow(OfMarket):
    """A market: an instrument as one provider names it."""

    name: str
    base: str
    quote: str
    venue: str
    calendar: str = Field(examples=["24/7"])
    price_basis: str = Field(examples=["unadjusted"])
    is_active: bool = Field(description="Still ingested")
    is_primary: bool = Field(description="The market that the bare symbol means")


class MarketTable(Table):
    """All markets that are stored."""

    data: list[MarketRow]


SOURCE_KIND = "traded, or points: then high and low are the greater and lesser of open and close"


class LatestBar(BaseModel):
    """The newest final bar of an interval."""

    interval: str
    open_time: datetime
    close_time: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float | None
    volume_kind: str
    source_kind: str = Field(description=SOURCE_KIND)
    known_at: datetime = Field(description="When these values became known")
    dataset_version: int


class Bar(OfMarket, LatestBar):
    """One final bar."""

    run_id: UUID | None
    is_final: bool | None = Field(None, description="Only with `provisional`")
    is_assumed: bool | None = Field(
        None, description="Only with `basis=assumed`: the record alone would not have the row"
    )


class BarTable(Table, OfSeries):
    """Bars by open_time."""

    data: list[Bar]


class LatestRoi(BaseModel):
    """The newest statistic of a horizon."""

    horizon: str = Field(examples=["30d"])
    as_of: datetime = Field(description="Close of the last bar used")
    roi: float | None
    annualised_volatility: float | None
    sharpe: float | None
    sortino: float | None
    max_drawdown: float | None
    reason: str | None


class RoiRow(OfSeries, LatestRoi):
    """Risk and return over a horizon."""

    method: str
    annualised_return: float | None
    realised_volatility: float | None
    calmar: float | None
    drawdown_peak_at: datetime | None
    drawdown_trough_at: datetime | None
    drawdown_recovered_at: datetime | None
    annualisation_factor: float
    n_returns: int
    n_missing: int
    first_bar_at: datetime | None
    dataset_version: int | None
    is_outdated: bool = Field(description="A bar of its window was corrected or loaded since")


class RoiTable(Table, OfMarket):
    """Statistics of one market by horizon and as_of."""

    data: list[RoiRow]


class ComparisonRow(BaseModel):
    """Two markets side by side over a horizon."""

    as_of: datetime = Field(description="Close of the last bar used")
    base_symbol: str
    base_provider: str
    quote_symbol: str
    quote_provider: str
    interval: str
    horizon: str
    method: str
    price_ratio: float | None
    volume_ratio: float | None
    roi_spread: float | None
    correlation: float | None
    close_skew_seconds: float | None
    n_returns: int
    reason: str | None
    dataset_version: int | None
    is_stored: bool = Field(description="False: computed when it was read")
    is_outdated: bool = Field(description="A bar of its window was corrected or loaded since")


class ComparisonTable(Table, OfMarket):
    """Comparisons of one market with others."""

    pairs_left_out: int = Field(description="Not stored, and too many to compute")
    data: list[ComparisonRow]


class LatestSnapshot(BaseModel):
    """The newest live price."""

    observed_at: datetime
    price: float
    change_24h_ratio: float | None
    volume_24h: float | None
    market_cap: float | None
    realised_volatility: float | None
    roi: float | None
    bars_as_of: datetime | None
    reason: str | None
    fetched_at: datetime


class LatestValues(OfMarket):
    """Everything that is newest of one market."""

    name: str
    quote: str
    calendar: str
    is_active: bool
    dataset_version: int | None = _VERSION
    snapshot: LatestSnapshot | None
    bars: list[LatestBar]
    roi: list[LatestRoi]


class LatestTable(Table):
    """Everything that is newest of several markets."""

    data: list[LatestValues]


class CoverageRow(OfSeries):
    """The coverage of one interval of a market."""

    first_bar_at: datetime | None
    last_bar_at: datetime | None
    final_to: datetime | None = Field(description="Close of the last final bar")
    bars: int
    n_holes: int = Field(description="Spans that are missing, explained ones too")
    refreshed_at: datetime | None
    n_never_asked: int = Field(description="Spans between settled ones that nobody asked for")
    verified: float | None = Field(description="Share of history read again in this turn")
    verified_at: datetime | None = Field(description="When a page of this turn was last read")
    turn_days: float | None = Field(description="Days that a whole turn takes at this pace")


class HoleRow(OfSeries):
    """A span that is missing, and why."""

    starts_at: datetime
    ends_at: datetime
    reason: str
    tries: int
    next_check_at: datetime | None
    detail: str | None


class NeverAskedRow(OfSeries):
    """A span between settled spans that no run has asked for."""

    starts_at: datetime
    ends_at: datetime
    bars: int = Field(description="Bars that the calendar expects in it")


class CoverageTable(Table):
    """Coverage by market and interval, every hole, and what was never asked for."""

    data: list[CoverageRow]
    holes: list[HoleRow]
    never_asked: list[NeverAskedRow]


class HoleTable(Table):
    """Holes by market, interval and time."""

    data: list[HoleRow]


class AlertRow(BaseModel):
    """An alert, from the first time it was raised until it is resolved."""

    alert_id: UUID
    kind: str = Field(examples=["market_stale"])
    severity: Literal["info", "warning", "error", "critical"]
    state: Literal["open", "acknowledged", "gone", "resolved"] = Field(
        description="gone: its cause is gone, and it is resolved unless it comes back"
    )
    message: str
    members: dict[str, Any] = Field(description="The markets or providers that it is about")
    times: int
    raised_at: datetime
    seen_at: datetime
    acknowledged_at: datetime | None
    resolved_at: datetime | None
    run_id: UUID | None


class AlertTable(Table):
    """Alerts, the newest first."""

    data: list[AlertRow]


class QuarantineRow(OfSeries):
    """An impossible bar as it came, kept once with its reason."""

    row_id: int
    open_time: datetime | None
    rule: str
    detail: str = Field(description="The values that broke the rule")
    payload: dict[str, Any] = Field(description="The whole bar as it came")
    run_id: UUID
    first_seen_at: datetime
    last_seen_at: datetime
    times_seen: int
    status: Literal["open", "replayed", "discarded"]
    resolved_at: datetime | None


class QuarantineTable(Table):
    """Quarantined rows, the last seen first."""

    data: list[QuarantineRow]


class ChangeRow(OfSeries):
    """A final bar that differs between two dataset versions."""

    open_time: datetime
    changed: str = Field(description="new, or the names of the values that differ")
    old_close: float | None
    close: float
    old_volume: float | None
    volume: float | None
    version: int
    known_at: datetime
    run_id: UUID | None


class ChangeTable(Table):
    """Changed bars."""

    n_changes: int = Field(description="All of them; `data` holds the first")
    data: list[ChangeRow]


class PlanProvider(BaseModel):
    """The price of a plan at one provider."""

    provider: str
    calls: int
    bars: int
    minutes: float | None = Field(description="At its rate; null: it has none")
    day_ratio: float | None = Field(description="Calls as a share of a day's; null: no limit")


class PlanRow(OfSeries):
    """What would be asked for of one series."""

    calls: int
    bars: int
    starts_at: datetime
    ends_at: datetime
    purpose: str


class Plan(BaseModel):
    """What a run would ask for. Nobody is asked."""

    providers: list[PlanProvider]
    data: list[PlanRow]
    cuts: list[str] = Field(description="Parts of the window that a calendar does not know")
    unserved: dict[str, str] = Field(description="Symbols that no provider serves, and why")


class RunRequest(BaseModel):
    """The request of a run: markets and window."""

    model_config = ConfigDict(extra="allow")

    symbols: list[str] = []
    lookback_days: int | None = None
    window_start: datetime | None = None
    window_end: datetime | None = None
    unserved: dict[str, str] = Field({}, description="Symbols that no provider serves, and why")
    deactivated: list[str] = Field([], description="Symbols of markets that were deactivated")


class RunRow(BaseModel):
    """A run's receipt in one line."""

    run_id: UUID
    trigger: str
    provider: str
    started_at: datetime
    completed_at: datetime | None
    ended_at: datetime | None
    outcome: str | None = Field(
        description="ok, partial or failed; before the end running, or interrupted (process died)"
    )
    error: str | None = Field(description="The error that ended it; null: no step failed")
    request: RunRequest


class RunTable(Table):
    """Runs, the newest first."""

    data: list[RunRow]


class RunMarket(BaseModel):
    """A market's part of a receipt; counts are null where the run did not reach the market."""

    symbol: str
    provider: str | None = Field(description="null: no provider serves the symbol")
    requested: int | None = Field(description="Bars that the plan expected")
    received: int | None
    inserted: int | None
    updated: int | None
    unchanged: int | None
    derived_inserted: int | None = Field(description="Days and weeks built from fetched bars")
    derived_updated: int | None
    derived_unchanged: int | None
    revised: int | None = Field(description="Updated final bars, whose old values were kept")
    quarantined: int | None
    spikes: int | None
    holes_left: int | None
    calls: int | None
    throttled_calls: int | None
    seconds: float | None
    watermark_before: datetime | None = Field(description="Close of the last final bar before")
    watermark_after: datetime | None
    first_version: int | None
    last_version: int | None
    outcome: Literal["ok", "partial", "failed", "missing"]
    reason: str | None
    assumed: str | None = Field(description="What the provider had to assume about the market")


class RunWrites(BaseModel):
    """A table's part of a receipt: rows."""

    table_name: str
    inserted: int
    updated: int
    unchanged: int


class RunReceipt(RunRow):
    """A run's whole receipt."""

    link: str = Field(description="The run in Dagster's UI")
    markets: list[RunMarket]
    tables: list[RunWrites]
