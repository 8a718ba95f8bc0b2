"""The providers, found by entry point, and which of them serves which market.

Here: discovery in the entry-point group ``market_pipeline.providers``, and routing by the static
catalogues. Not here: any request to a provider's server. A provider that is down keeps its
markets, so a series never changes its source because of an outage.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from market_pipeline.domain.errors import MarketNotServedError, PipelineError, SettingError
from market_pipeline.domain.records import Market
from market_pipeline.providers.base import Provider
from market_pipeline.settings import name_errors, read_provider_call_limits, read_variable, shorten

GROUP = "market_pipeline.providers"
FAMILIES = ("ccxt",)
_CALLS = "PROVIDER_CALLS_PER_MINUTE"


@lru_cache(maxsize=1)
def _list_entry_points() -> tuple[EntryPoint, ...]:
    """Look once a process: it reads every installed package's metadata."""
    return tuple(entry_points(group=GROUP))


def list_provider_names() -> tuple[str, ...]:
    """Return the names of all installed providers, in alphabetical order; loads none of them."""
    return tuple(sorted({point.name for point in _list_entry_points()}))


def find_offered_name(name: str) -> str:
    """Return the name by which a provider is installed: that of its family, if it has one."""
    return _find_offer(name)[0].name


def load_provider(name: str, environ: Mapping[str, str]) -> Provider:
    """Construct a provider.

    Raises:
        SettingError: Nobody offers the name, two packages do, what is offered cannot be loaded, or
            one of the provider's own settings is wrong.
    """
    point, member = _find_offer(name)
    source = _describe_source(point)
    try:
        offered: Any = point.load()
        provider: Any = offered.make_member(environ, member) if member else offered(environ)
    except PipelineError:
        raise
    except Exception as error:  # a plugin may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise SettingError(f"provider {name!r} from {source} cannot be loaded: {reason}") from error
    if not isinstance(provider, Provider) or provider.name != name:
        raise SettingError(
            f"provider {name!r} from {source} is not a provider of that name: expected a "
            f"class with the members of market_pipeline.providers.base.Provider and name = {name!r}"
        )
    return provider


@dataclass(frozen=True, slots=True)
class Routing:
    """The provider of each market.

    Attributes:
        routes: Provider and market, in the order of the symbols.
        unserved: The symbols that no provider serves, each with who was asked and why not.
    """

    routes: list[tuple[Provider, Market]]
    unserved: Mapping[str, str]


def route_markets(
    symbols: Iterable[str], provider_names: Sequence[str], environ: Mapping[str, str]
) -> list[tuple[Provider, Market]]:
    """Return the routes of :func:`route_served`, where each symbol must have one.

    Raises:
        MarketNotServedError: Names each symbol that no provider serves, who was asked and why not.
        SettingError: As of :func:`route_served`.
    """
    routing = route_served(symbols, provider_names, environ)
    if routing.unserved:
        raise MarketNotServedError(_explain_unserved(routing.unserved))
    return routing.routes


def route_served(
    symbols: Iterable[str], provider_names: Sequence[str], environ: Mapping[str, str]
) -> Routing:
    """Return each symbol's provider and market; a symbol that no provider serves stops no other.

    A symbol belongs to the first provider in the list whose catalogue has it. A provider that lacks
    a setting serves nothing.

    Raises:
        MarketNotServedError: No symbol is served; names them, who was asked and why not.
        SettingError: A provider is unknown, broken or wrongly set, also in
            PROVIDER_CALLS_PER_MINUTE, which would limit nobody.
    """
    _check_call_limits(environ)
    providers = [load_provider(name, environ) for name in provider_names]
    missing = {provider.name: provider.explain_missing_settings() for provider in providers}
    ready = [provider for provider in providers if missing[provider.name] is None]
    found = {symbol: _find_route(symbol, ready) for symbol in symbols}
    asked = _list_asked(missing)
    unserved = {symbol: asked for symbol, route in found.items() if route is None}
    if len(unserved) == len(found):
        raise MarketNotServedError(_explain_unserved(unserved))
    return Routing([route for route in found.values() if route is not None], unserved)


def _check_call_limits(environ: Mapping[str, str]) -> None:
    known, text = list_provider_names(), read_variable(_CALLS, environ)
    unknown = [name for name in read_provider_call_limits(environ) if not is_provider_name(name)]
    with name_errors(f"{_CALLS}={shorten(text)!r}"):
        if unknown:
            raise SettingError(f"{unknown[0]!r} is unknown: expected some of {', '.join(known)}")


def _find_route(symbol: str, providers: Iterable[Provider]) -> tuple[Provider, Market] | None:
    for provider in providers:
        market = provider.find_market(symbol)
        if market is not None:
            return provider, market
    return None


def _explain_unserved(unserved: Mapping[str, str]) -> str:
    symbols = list(unserved)
    shown = ", ".join(symbols[:10]) + (", ..." if len(symbols) > 10 else "")
    return f"no provider serves {shown} ({len(symbols)} in all). Asked: {unserved[symbols[0]]}"


def _list_asked(missing: Mapping[str, str | None]) -> str:
    asked = "; ".join(
        f"{name}: {f'not ready, {reason}' if reason else 'not in its catalogue'}"
        for name, reason in missing.items()
    )
    return asked or "nobody"


def check_provider_name(name: str) -> None:
    """Make sure that a provider of the name can be had; of a family, the family is loaded.

    Raises:
        SettingError: Nobody offers the name, or two packages do.
    """
    point, member = _find_offer(name)
    if member:
        point.load().make_member({}, member)


def is_provider_name(name: str) -> bool:
    """Tell whether a provider of the name can be had."""
    try:
        check_provider_name(name)
    except SettingError:
        return False
    return True


def _find_offer(name: str) -> tuple[EntryPoint, str]:
    """Return who offers a name, and which member of its family is meant; empty: there is none.

    ``ccxt-bitstamp`` is the member ``bitstamp`` of ``ccxt``, unless a package offers that name.
    """
    family, _, member = name.partition("-")
    is_family = name not in list_provider_names() and family in FAMILIES
    return _find_entry_point(family if is_family else name), member if is_family else ""


def _find_entry_point(name: str) -> EntryPoint:
    points = [point for point in _list_entry_points() if point.name == name]
    sources = {_describe_source(point): point for point in points}
    if len(sources) > 1:
        raise SettingError(
            f"provider {name!r} is offered more than once: {'; '.join(sorted(sources))}. "
            "Uninstall one of the packages"
        )
    if not sources:
        known = ", ".join(list_provider_names()) or "none: is market-pipeline installed?"
        raise SettingError(f"provider {name!r} is unknown: expected one of {known}")
    return next(iter(sources.values()))


def _describe_source(point: EntryPoint) -> str:
    package = "an unknown package" if point.dist is None else f"package {point.dist.name}"
    return f"{point.value} ({package})"
