"""A run's bars in Dagster's words: what is logged of each wave, and what the run came to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from market_pipeline.domain.errors import NothingIngestedError
from market_pipeline.ingestion.batches import Item
from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.outcomes import Landed
from market_pipeline.ingestion.receipts import mark_failed
from market_pipeline.ingestion.request import Route
from market_pipeline.ingestion.run_alerts import MarketOutcomes
from market_pipeline.observability.logs import log_context
from market_pipeline.orchestration.report import (
    MAX_LINES,
    MaterializationSummary,
    ReportRow,
    build_receipt_line,
    build_unserved_line,
    sort_worst_first,
    summarise_receipt,
)
from market_pipeline.storage.bulk.upsert import WriteCounts


def drain(context: dg.OutputContext, stream: BarStream) -> MaterializationSummary:
    """Commit a stream wave by wave.

    Raises:
        NothingIngestedError: No market gave a usable bar; their receipts are committed.
    """
    told = _RunTold(context)
    for landed in stream:
        told.note(landed)
    engine, run = stream.engine, stream.run
    with engine.begin() as connection:
        unserved = told.ends.report(connection, run)
    for symbol, reason in unserved.items():
        with log_context(market=symbol, done=1):
            context.log.warning("%s: %s", symbol, reason)
    lines = [told.lines[route] for route in stream.routes if route in told.lines]
    if lines and all(line["outcome"] == "failed" for line in lines):
        mark_failed(engine, run)
        reasons = "; ".join(f"{line['market']}: {line['reason']}" for line in lines[:MAX_LINES])
        raise NothingIngestedError(f"no market gave a usable bar. {reasons}")
    total = sum((rows for pair in told.totals.values() for rows in pair), WriteCounts())
    lines += [build_unserved_line(symbol, reason) for symbol, reason in unserved.items()]
    return MaterializationSummary(total, sort_worst_first(lines), summarise_receipt(lines))


@dataclass(slots=True)
class _RunTold:
    """What became of each market so far."""

    context: dg.OutputContext
    ends: MarketOutcomes = field(default_factory=MarketOutcomes)
    totals: dict[Route, tuple[WriteCounts, WriteCounts]] = field(default_factory=dict)
    lines: dict[Route, dict[str, Any]] = field(default_factory=dict)

    def note(self, landed: Sequence[Landed]) -> None:
        """Take a wave in, and log it: market by market, or in one line where it has many."""
        for one in landed:
            self._add(one)
        if len(landed) <= MAX_LINES:
            for one in landed:
                self._log_market(one.item)
        else:
            self._log_wave(landed)

    def _add(self, one: Landed) -> None:
        item, result = one.item, one.result
        self.ends.note(item, result)
        counts, derived = self.totals.get(item.route, (WriteCounts(), WriteCounts()))
        self.totals[item.route] = counts + result.counts, derived + result.derived
        self.lines[item.route] = build_receipt_line(item, result, *self.totals[item.route])

    def _log_market(self, item: Item) -> None:
        about = {"provider": item.route[0].name, "market": item.route[1].symbol}
        with log_context(**about, done=int(item.is_last)):
            self.context.log.info(_format_line(self.lines[item.route]))

    def _log_wave(self, landed: Sequence[Landed]) -> None:
        lines = [self.lines[one.item.route] for one in landed]
        short = [line for line in lines if line["outcome"] != "ok"]
        counts = sum((one.result.counts + one.result.derived for one in landed), WriteCounts())
        with log_context(done=sum(one.item.is_last for one in landed)):
            self.context.log.info(
                "%d markets: %d bars inserted, %d updated, %d unchanged; %d not complete",
                len(landed), counts.inserted, counts.updated, counts.unchanged, len(short),
            )  # fmt: skip
        for line in short[:MAX_LINES]:
            with log_context(provider=line["provider"], market=line["market"]):
                self.context.log.info(_format_line(line))


def _format_line(line: ReportRow) -> str:
    """Return the line that stands for a market in the run's log and in the command's progress."""
    received = "{market} from {provider}: {received:,} bars".format_map(line)
    written = "{inserted:,} inserted, {updated:,} updated, {unchanged:,} unchanged".format_map(line)
    built = line["derived inserted"] + line["derived updated"]
    derived = f"; {built:,} days and weeks built" if built else ""
    return f"{received}: {written}{derived}{'; ' if line['reason'] else ''}{line['reason']}"
