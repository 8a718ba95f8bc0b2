"""The metadata of a materialisation for Dagster's UI: numbers, the relation, a table, a picture.

Here: metadata values, and the share of a write that is worth an event's bytes. Not here: the write
(``io_manager``), the choice of a picture (``plots``).
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pandas as pd
from sqlalchemy import Engine, Table

from market_pipeline.domain.records import Market
from market_pipeline.ingestion.batches import BarBatch, MarketStopped, Progress
from market_pipeline.ingestion.outcomes import BatchResult
from market_pipeline.storage.bulk.upsert import WriteCounts
from market_pipeline.storage.runs.evidence import count_rows, read_relation_name, read_totals
from market_pipeline.storage.tables import market_aggregate

MAX_LINES = 20
_OUTCOMES = ("failed", "partial", "ok")
ReportRow = Mapping[str, Any]


@dataclass(frozen=True)
class MaterializationSummary:
    """What an asset's output came to.

    Attributes:
        counts: What the database did. lines: What is worth reading, the worst first.
        numbers: More numbers that plot over time. rows: What was computed, if anything was.
        note: What was not computed, because nothing changed, in words.
    """

    counts: WriteCounts
    lines: Sequence[ReportRow]
    numbers: Mapping[str, int] = field(default_factory=dict)
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    note: str = ""

    @property
    def is_news(self) -> bool:
        """Whether rows changed or a market came short; what is no news leaves numbers only."""
        return self.counts.written > 0 or self.numbers.get("markets_short", 0) > 0


def build_numbers(written: MaterializationSummary) -> dict[str, int]:
    """Return what the UI plots from one materialisation to the next."""
    counts = {
        "rows_inserted": written.counts.inserted,
        "rows_updated": written.counts.updated,
        "rows_unchanged": written.counts.unchanged,
    }
    return {**counts, **written.numbers}


def describe_relation(engine: Engine, table: Table) -> dict[str, Any]:
    """Return the table's full name and row count, under the keys that Dagster gives them.

    And totals of all markets: a run over two of them must not make a plot fall.
    """
    with engine.connect() as connection:
        name, count = read_relation_name(connection, table), count_rows(connection, table)
        totals = read_totals(connection)
    estimated = {} if count.is_exact else {"row_count_is_estimated": True}
    holes = {"holes_left": totals["holes"]} if table is market_aggregate else {}
    total = {"markets": totals["markets"], **holes}
    return {"dagster/table_name": name, "dagster/row_count": count.rows, **estimated, **total}


def repeat_description(definition_metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns and their lineage as the asset's definition has them."""
    keys = ("dagster/column_schema", "dagster/column_lineage")
    return {key: definition_metadata[key] for key in keys if key in definition_metadata}


def build_receipt_line(
    item: BarBatch | MarketStopped, result: BatchResult, counts: WriteCounts, derived: WriteCounts
) -> dict[str, Any]:
    """Return one market's line in the table of a run's bars.

    Args:
        item: The market's last.
        result: What the database did with it.
        counts: Fetched bars of all the market's batches.
        derived: Days and weeks built from them.
    """
    market = item.route[1]
    progress = item.progress if isinstance(item, BarBatch) else Progress()
    return _build_line(market.symbol, market.provider, result, progress, counts, derived)


def build_unserved_line(symbol: str, reason: str) -> dict[str, Any]:
    """Return the line of a symbol that no provider serves."""
    nothing = WriteCounts()
    result = BatchResult(nothing, "failed", reason)
    return _build_line(symbol, "", result, Progress(), nothing, nothing)


def _build_line(
    symbol: str,
    provider: str,
    result: BatchResult,
    progress: Progress,
    counts: WriteCounts,
    derived: WriteCounts,
) -> dict[str, Any]:
    return {
        "market": symbol,
        "provider": provider,
        "outcome": result.outcome,
        "received": progress.received,
        "quarantined": result.quarantined,
        "inserted": counts.inserted,
        "updated": counts.updated,
        "unchanged": counts.unchanged,
        "revised": counts.revised,
        "derived inserted": derived.inserted,
        "derived updated": derived.updated,
        "derived unchanged": derived.unchanged,
        "holes left": result.holes_left,
        "calls": progress.calls,
        "reason": result.reason or "",
    }


def summarise_receipt(lines: Sequence[ReportRow]) -> dict[str, int]:
    """Return how many markets were asked for, how many came short, and the bars they gave."""
    return {
        "run_markets": len(lines),
        "markets_short": sum(line["outcome"] != "ok" for line in lines),
        "bars_received": sum(line["received"] for line in lines),
        "bars_quarantined": sum(line["quarantined"] for line in lines),
        "bars_revised": sum(line["revised"] for line in lines),
        "rows_derived": sum(
            line[f"derived {name}"] for line in lines for name in ("inserted", "updated")
        ),
    }


def sort_worst_first(lines: Sequence[ReportRow]) -> list[ReportRow]:
    """Return the lines with failed markets first, then partial ones, else in their order."""
    return sorted(lines, key=lambda line: _OUTCOMES.index(line["outcome"]))


def build_market_lines(markets: Sequence[Market]) -> list[ReportRow]:
    """Return one readable line for each market."""
    return [
        {
            "market": market.symbol,
            "provider": market.provider,
            "name": market.name,
            "venue": market.venue,
            "calendar": market.calendar,
            "bars": ", ".join(market.intervals),
        }
        for market in markets
    ]


def build_row_lines(rows: pd.DataFrame, symbols: Mapping[int, str]) -> list[ReportRow]:
    """Return the first rows as people read them: symbols for market ids, six decimals."""
    shown = rows.head(MAX_LINES)
    keys = [str(name) for name in shown.columns if str(name).endswith("market_id")]
    readable = shown.assign(**{key: shown[key].map(symbols) for key in keys})
    readable = readable.rename(columns={key: key.removesuffix("_id") for key in keys})
    return [
        {str(name): _format_value(value) for name, value in row.items()}
        for row in readable.to_dict("records")
    ]


def build_table(lines: Sequence[ReportRow]) -> dg.TableMetadataValue:
    """Return lines as a table shown inline; an event keeps no more than ``MAX_LINES`` of them."""
    shown = lines[:MAX_LINES]
    # Without a schema the columns would come in alphabetical order.
    columns = [dg.TableColumn(name, _name_type(shown, name)) for name in shown[0]]
    records = [dg.TableRecord(dict(line)) for line in shown]
    return dg.MetadataValue.table(records, dg.TableSchema(columns=columns))


def _name_type(lines: Sequence[ReportRow], name: str) -> str:
    kinds = {type(line[name]) for line in lines} - {type(None)}
    names = {int: "int", float: "float", bool: "bool"}
    return names.get(kinds.pop(), "string") if len(kinds) == 1 else "string"


def build_picture(png: bytes, title: str) -> dg.MarkdownMetadataValue:
    """Return a picture that the UI shows without asking for another address."""
    encoded = base64.b64encode(png).decode()
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{encoded})")


def _format_value(value: Any) -> Any:
    if pd.isna(value):
        return None
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, pd.Timestamp):
        return value.isoformat(sep=" ", timespec="minutes")
    return value if isinstance(value, int) else str(value)
