"""The records that every provider gives, whatever its wire format.

A market, a price snapshot, and the bar frame: the one shape in which bars travel from a provider's
parser to the database.

Bar frame: a pandas DataFrame with exactly ``BAR_COLUMNS``, one row per interval and open_time:

=============  =====================  ==========================================================
column         dtype                  meaning
=============  =====================  ==========================================================
interval       str                    ``1h``, ``1d`` or ``1w``
open_time      datetime64[us, UTC]    start of the half-open span; a daily bar's is its session
                                      date at 00:00 UTC, a weekly bar's Monday 00:00 UTC
close_time     datetime64[us, UTC]    end of the span; a session's daily bar ends at its close
open .. close  float64                prices in the quote currency
volume         float64                NaN where the provider gives none
volume_kind    str                    ``base``, ``quote``, ``shares``, ``rolling_24h`` or ``none``
trades         float64                number of trades, NaN where unknown
source_kind    str                    ``traded`` bars, ``points`` when built from price points, or
                                      ``rescaled`` when multiplied here
is_final       bool                   by the provider's own rule
=============  =====================  ==========================================================
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from market_pipeline.domain.intervals import Interval

UTC_DTYPE = "datetime64[us, UTC]"
BAR_DTYPES: Mapping[str, str] = {
    "interval": "str",
    "open_time": UTC_DTYPE,
    "close_time": UTC_DTYPE,
    "open": "float64",
    "high": "float64",
    "low": "float64",
    "close": "float64",
    "volume": "float64",
    "volume_kind": "str",
    "trades": "float64",
    "source_kind": "str",
    "is_final": "bool",
}
BAR_COLUMNS = tuple(BAR_DTYPES)


@dataclass(frozen=True, slots=True)
class Market:
    """An instrument quoted in a currency, as one provider names it.

    Attributes:
        provider: The provider's name, for example ``yahoo``.
        symbol: This project's name for it, for example ``SPX``.
        provider_market_id: The provider's own id, for example ``^GSPC`` or ``bitcoin``.
        name: A readable name.
        base: What is priced. quote: The currency it is priced in.
        venue: The exchange or aggregator, for example ``aggregate`` or ``SNP``.
        calendar: ``24/7`` or the name of an exchange calendar, for example ``XNYS``.
        intervals: The bar lengths the provider serves, finest first; weeks are always built here.
        price_basis: ``unadjusted``, ``split_adjusted`` or ``adjusted``.
        assumed: What the provider had to assume about it, in a plain sentence for the receipt;
            None: nothing.
    """

    provider: str
    symbol: str
    provider_market_id: str
    name: str
    base: str
    quote: str
    venue: str
    calendar: str
    intervals: tuple[Interval, ...]
    price_basis: str = "unadjusted"
    assumed: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open span of UTC time ``[start, end)``; bars belong to it by their open_time."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class HistoryTerms:
    """On what terms a provider answers for one interval of a market; planning counts on them.

    Attributes:
        page: The longest span that one request is asked for.
        publication_lag: From a bar's close until its final values are out.
        reaches_back: Bars that opened longer ago than this cannot be had; None: no limit known.
        noise_ratio: A price that comes again may differ by this fraction and be the same price.
        parsing: Version of how answers are read; it grows when the same answer gives other bars.
    """

    page: timedelta
    publication_lag: timedelta = timedelta(0)
    reaches_back: timedelta | None = None
    noise_ratio: float = 0.0
    parsing: int = 1


@dataclass(frozen=True, slots=True)
class PriceSnapshot:
    """A live price as the provider says it.

    Attributes:
        market: What was priced.
        observed_at: When the provider says the price was true (UTC).
        price: In the quote currency.
        volume_24h: Rolling, in the quote currency; None where not given.
        change_24h_ratio: A fraction (0.01 is one percent); None where not given.
        market_cap: In the quote currency; None where not given.
    """

    market: Market
    observed_at: datetime
    price: float
    volume_24h: float | None = None
    change_24h_ratio: float | None = None
    market_cap: float | None = None


def build_bar_frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Return a bar frame from columns or constants; volume, trades and kinds have defaults."""
    defaults = {"volume": np.nan, "volume_kind": "none", "trades": np.nan, "source_kind": "traded"}
    raw = {**defaults, **columns}
    index = pd.RangeIndex(len(pd.Index(raw["open_time"])))
    frame = pd.DataFrame({name: raw[name] for name in BAR_COLUMNS}, index=index)
    return frame.astype(dict(BAR_DTYPES))


def build_empty_bar_frame() -> pd.DataFrame:
    """Return a bar frame without rows."""
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in BAR_DTYPES.items()})
