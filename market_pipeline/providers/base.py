"""The interface of a provider: a static catalogue, bars and live prices."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar, Protocol, runtime_checkable

import pandas as pd

from market_pipeline.domain.columns import BarColumns
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import HistoryTerms, Market, PriceSnapshot, Window


@runtime_checkable
class Provider(Protocol):
    """A source of market data.

    A class registered under the entry-point group ``market_pipeline.providers`` is called with the
    environment's variables and must not touch the network or a file when constructed.

    Class attributes:
        name: What ``INGESTION_PROVIDER`` calls it.
        summary: One line for listings: what it serves.
        homepage: Where the data comes from, for the lineage's external asset.

    Attributes:
        calls_per_minute: How many requests a minute the provider grants; None: no limit. A class
            attribute, or an instance's where it depends on a setting such as the plan.
        calls_per_month: The same for a calendar month.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    homepage: ClassVar[str]

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read settings from the environment; an empty variable means unset."""

    @property
    def calls_per_minute(self) -> float | None:
        """Requests a minute that the provider grants, shared by all processes; None: no limit."""

    @property
    def calls_per_month(self) -> int | None:
        """Requests a calendar month that the provider grants; None: no limit."""

    def explain_missing_settings(self) -> str | None:
        """Return what must be set before this provider can be used, or None when it is ready."""

    def list_symbols(self) -> tuple[str, ...]:
        """Return the symbols of the static catalogue; examples where it is open-ended."""

    def find_market(self, symbol: str) -> Market | None:
        """Return the market behind a symbol, or None; never asks the network.

        What a provider has to assume about it goes into ``Market.assumed``: receipts show it.
        """

    def describe_history(self, market: Market, interval: Interval) -> HistoryTerms:
        """Return the terms on which the provider answers with bars; makes no request.

        A window of at most one page is fetched in one request. A bar becomes final no earlier than
        its close and the publication lag. The terms may be asked again after a fetch: some
        providers learn them then.

        Args:
            market: A market of this provider.
            interval: One of ``market.intervals``.
        """

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> pd.DataFrame | BarColumns:
        """Return the bars of one interval, ordered by open_time, without duplicates removed.

        A bar frame (``records``) or its columns (``columns``), which cost less. A window longer
        than a page is answered too, in several requests.

        Args:
            market: A market of this provider.
            interval: One of ``market.intervals``.
            window: Bars whose open_time lies in it are wanted.
            now: The run's clock; a bar is final when the provider's rule says so at this moment.

        Raises:
            TransientProviderError: Retries inside one call are used up.
            PermanentProviderError: The same request would fail again.
        """

    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return the latest price of each market that has one, in as few calls as possible.

        ``observed_at`` is when the provider says that the price was true. A run validates it by the
        moment at which the answer came: a price from more than 5 seconds later is refused. A run
        with a window end refuses every price from after that.

        Args:
            markets: Markets of this provider.
            now: The moment of the call (UTC), or the window end where one was given: the price
                that is wanted is the last one up to then.

        Raises:
            ProviderError: As for :meth:`fetch_bars`; ``reasons`` may name each market's own.
        """
