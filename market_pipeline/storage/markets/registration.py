"""Registration of markets: their rows, and the primary market of each symbol.

Not here: which of them a run fetches (``ingestion.request``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Engine,
    Select,
    Text,
    cast,
    func,
    insert,
    select,
    tuple_,
    update,
)

from market_pipeline.domain.records import Market
from market_pipeline.storage.bars.stored import has_bars
from market_pipeline.storage.bulk.upsert import WriteCounts, lock_merges
from market_pipeline.storage.latest.market_versions import bump_list_version
from market_pipeline.storage.tables import market

_COLUMNS = (
    "provider", "provider_market_id", "symbol", "name", "base", "quote", "venue", "calendar",
    "price_basis",
)  # fmt: skip
FACTS = ("calendar", "quote", "price_basis")
"""What bars are read by: while a market has bars, only ``markets reload`` changes these."""
Rows = Mapping[tuple[str, str], Mapping[str, Any]]


class _Primary(NamedTuple):
    """Whose market a bare symbol means, and whether somebody declared it."""

    provider: str
    is_preferred: bool = False


def ensure_markets(engine: Engine, markets: Sequence[Market], claim_primary: bool) -> list[int]:
    """Return the keys of markets in their order; registers those that are new."""
    with engine.begin() as connection:
        register_markets(connection, markets, claim_primary)
        known = _read_known(connection, markets)
    return [int(known[_key(one)]["market_id"]) for one in markets]


def ensure_market(engine: Engine, one: Market, claim_primary: bool) -> int:
    """Return one market's key; registers it where it is new."""
    return ensure_markets(engine, [one], claim_primary)[0]


def activate_market(engine: Engine, one: Market, claim_primary: bool) -> None:
    """Register a market, or take a deactivated one back."""
    with engine.begin() as connection:
        lock_merges(connection)
        if (one.provider, one.provider_market_id) in find_inactive(connection, [one]):
            newest = select(func.max(market.c.listed_from)).where(*_is_same(one))
            this = (*_is_same(one), market.c.listed_from == newest.scalar_subquery())
            connection.execute(update(market).where(*this).values(is_active=True))
            bump_list_version(connection)
        register_markets(connection, [one], claim_primary)


def keep_facts(connection: Connection, markets: Sequence[Market]) -> list[Market]:
    """Return markets with the stored facts where they have bars, and a note where those differ."""
    known = _read_known(connection, markets)
    return [_keep_stored(connection, one, known.get(_key(one), {})) for one in markets]


def _keep_stored(connection: Connection, one: Market, stored: Mapping[str, Any]) -> Market:
    differing = [name for name in FACTS if stored and stored[name] != getattr(one, name)]
    if not differing or not has_bars(connection, stored["market_id"]):
        return one
    kept = " and ".join(f"{name.replace('_', ' ')} {stored[name]}" for name in differing)
    told = " and ".join(getattr(one, name) for name in differing)
    note = (
        f"{kept} {'is' if len(differing) == 1 else 'are'} kept as stored, though {one.provider} "
        f"says {told}: `market-pipeline markets reload {one.provider}:{one.symbol}` would change "
        f"{'it' if len(differing) == 1 else 'them'}"
    )
    assumed = "; ".join(filter(None, (one.assumed, note)))
    return replace(one, **{name: stored[name] for name in differing}, assumed=assumed)


def _select_pairs(pairs: Sequence[tuple[str, str]]) -> "Select[Any]":
    """Return pairs as a query: as parameters, ten thousand would be too deep for the server."""
    columns = [cast([pair[at] for pair in pairs], ARRAY(Text)) for at in (0, 1)]
    named = func.unnest(*columns).table_valued("first", "second", name="pair").render_derived()
    return select(named.c.first, named.c.second)


def _key(one: Market) -> tuple[str, str]:
    return one.provider, one.provider_market_id


def _is_same(one: Market) -> tuple[ColumnElement[bool], ...]:
    return (
        market.c.provider == one.provider,
        market.c.provider_market_id == one.provider_market_id,
    )


def find_inactive(connection: Connection, markets: Sequence[Market]) -> set[tuple[str, str]]:
    """Return the provider and provider's id of those that are stored, and nowhere active."""
    key = (market.c.provider, market.c.provider_market_id)
    query = (
        select(*key)
        .where(tuple_(*key).in_(_select_pairs([_key(one) for one in markets])))
        .group_by(*key)
        .having(~func.bool_or(market.c.is_active))
    )
    return {(row[0], row[1]) for row in connection.execute(query)}


def register_markets(
    connection: Connection,
    markets: Sequence[Market],
    claim_primary: bool,
    replace_facts: bool = False,
) -> WriteCounts:
    """Insert or update market rows; a symbol's primary is the configured provider's or preferred.

    A market is who its provider says it is: one with a new symbol keeps its row and its history;
    another one under a symbol that was in use begins a row of its own, and the former one ends.
    Calendar, quote and price basis of one that has bars stay as they are. Waits for other writers
    only when something has to change.

    Args:
        connection: In a transaction.
        markets: As routed.
        claim_primary: Take the place of another provider's primary market, unless somebody
            preferred that one; without it only a vacant place is taken.
        replace_facts: Change also what stored bars were read by: the caller reads them again.
    """
    if not replace_facts:
        markets = keep_facts(connection, markets)
    if not _find_work(connection, markets, claim_primary):
        return WriteCounts(unchanged=len(markets))
    lock_merges(connection)
    known = _read_known(connection, markets)
    counts = WriteCounts()
    # Renamed ones first: they give their old symbols free for others.
    for one in markets:
        if _key(one) in known:
            counts += _update(connection, one, known[_key(one)])
    counts += _insert(connection, [one for one in markets if _key(one) not in known])
    _settle_primaries(connection, markets, claim_primary)
    bump_list_version(connection)
    return counts


def _find_work(connection: Connection, markets: Sequence[Market], claim_primary: bool) -> bool:
    known = _read_known(connection, markets)
    primaries = _read_primaries(connection, [one.symbol for one in markets])
    return any(
        _find_changes(one, known.get(_key(one))) != {}
        or _wants_primary(one, primaries.get(one.symbol), claim_primary)
        for one in markets
    )


def _read_known(connection: Connection, markets: Sequence[Market]) -> Rows:
    """Return the active rows of some markets, by provider and provider's id."""
    columns = (market.c.provider, market.c.provider_market_id)
    query = select(market).where(
        tuple_(*columns).in_(_select_pairs([_key(one) for one in markets])), market.c.is_active
    )
    rows = (dict(row) for row in connection.execute(query).mappings())
    return {(row["provider"], row["provider_market_id"]): row for row in rows}


def _read_primaries(connection: Connection, symbols: Sequence[str]) -> dict[str, _Primary]:
    is_preferred = market.c.preferred_at.is_not(None)
    query = select(market.c.symbol, market.c.provider, is_preferred).where(
        market.c.symbol.in_(symbols), market.c.is_primary
    )
    return {row[0]: _Primary(row[1], row[2]) for row in connection.execute(query)}


def _find_changes(one: Market, known: Mapping[str, Any] | None) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(one, name) for name in _COLUMNS}
    row["intervals"] = [interval.value for interval in one.intervals]
    return row if known is None else {k: v for k, v in row.items() if known[k] != v}


def _update(connection: Connection, one: Market, stored: Mapping[str, Any]) -> WriteCounts:
    changes = _find_changes(one, stored)
    if not changes:
        return WriteCounts(unchanged=1)
    if "symbol" in changes:
        _retire_namesakes(connection, [one])
        # Of the old symbol; the new one's is settled next.
        changes |= {"is_primary": False, "preferred_at": None}
        changes["former_symbols"] = [*stored["former_symbols"], stored["symbol"]]
    this = market.c.market_id == stored["market_id"]
    connection.execute(update(market).where(this).values(changes))
    return WriteCounts(updated=1)


def _insert(connection: Connection, markets: Sequence[Market]) -> WriteCounts:
    """Insert new markets, in one statement however many there are."""
    if not markets:
        return WriteCounts()
    retired = _retire_namesakes(connection, markets)
    today = datetime.now(UTC).date()
    for is_successor in (False, True):
        rows = [
            {**_find_changes(one, None), **({"listed_from": today} if is_successor else {})}
            for one in markets
            if ((one.provider, one.symbol) in retired) is is_successor
        ]
        if rows:
            connection.execute(insert(market), rows)
    return WriteCounts(inserted=len(markets))


def _retire_namesakes(connection: Connection, markets: Sequence[Market]) -> set[tuple[str, str]]:
    """End the markets that had the symbols so far, and return whose; their history stays."""
    name = tuple_(market.c.provider, market.c.symbol)
    key = tuple_(market.c.provider, market.c.provider_market_id)
    ended = (
        update(market)
        .where(name.in_(_select_pairs([(one.provider, one.symbol) for one in markets])))
        .where(market.c.is_active, key.not_in(_select_pairs([_key(one) for one in markets])))
        .values(is_active=False, is_primary=False, preferred_at=None)
        .returning(market.c.provider, market.c.symbol)
    )
    return {(row.provider, row.symbol) for row in connection.execute(ended)}


def _wants_primary(one: Market, primary: _Primary | None, claim: bool) -> bool:
    if primary is None:
        return True
    return claim and not primary.is_preferred and primary.provider != one.provider


def _settle_primaries(connection: Connection, markets: Sequence[Market], claim: bool) -> None:
    primaries = _read_primaries(connection, [one.symbol for one in markets])
    chosen: dict[str, _Primary] = {}
    for one in markets:
        if _wants_primary(one, chosen.get(one.symbol, primaries.get(one.symbol)), claim):
            chosen[one.symbol] = _Primary(one.provider)
    if not chosen:
        return
    deposed = update(market).where(market.c.symbol.in_(list(chosen)), market.c.is_primary)
    connection.execute(deposed.values(is_primary=False))
    pairs = [(symbol, primary.provider) for symbol, primary in chosen.items()]
    of_chosen = tuple_(market.c.symbol, market.c.provider).in_(_select_pairs(pairs))
    connection.execute(update(market).where(of_chosen, market.c.is_active).values(is_primary=True))
