"""Formats of values on pages: numbers, fractions, times, ages, reasons. Pure.

A missing value is a dash. The page also holds the exact value beside the formatted one.
"""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from math import isfinite, log10
from typing import Any

from market_pipeline.storage.bars.revisions import FIELDS

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_SPANS = ((86_400 * 2, 86_400, "d"), (3_600 * 2, 3_600, "h"), (120, 60, "min"), (0, 1, "s"))
REASONS = {
    "insufficient_data": "too few returns in this span",
    "zero_variance": "the price did not move",
    "no_downside": "no return was below the target",
    "unexplained_hole": "bars are missing without an explanation",
    "short_horizon": "too short a span to annualise",
    "never_asked": "no run has asked for some of the bars yet",
    "restating": "the provider restated its history; runs are reading it again",
    "suspected_split": "a jump that looks like a split: confirm or dismiss it",
    "mixed_parsing": "two parser versions read its bars: use `markets reload`",
    "no_common_date": "the two markets have no day in common",
    "quote_currency_differs": "quoted in different currencies",
    "close_skew": "the two markets close too far apart in time",
    "out_of_range": "too large or too small for a number",
    "fetch_failed": "the request failed",
    "provider_empty": "the provider has no bars there",
    "no_trades": "nothing was traded",
    "quarantined": "the bar came, but was impossible",
    "before_first": "before the market's first bar",
    "after_last": "after the market's last bar",
    "no_bars": "there are no bars",
    "not_finite": "a price or the volume is not a number",
    "price_not_positive": "a price is zero or negative",
    "low_above_body": "the low is above open or close",
    "high_below_body": "the high is below open or close",
    "volume_negative": "the volume is negative",
    "in_the_future": "the bar opens in the future",
    "absurd_time": "the open time is missing or before 1970",
    "bad_span": "the bar ends before it begins",
    "not_a_session": "the market is closed at that time",
    "off_grid": "no bar of this length starts then",
    "conflicting_duplicate": "the same bar came twice, with other values",
    "out_of_reach": "the provider does not reach back that far any more",
}

# Codes with an underscore alone: others are words that a sentence may hold.
_CODES = re.compile(rf"\b({'|'.join(code for code in REASONS if '_' in code)})\b")
_SINGLES = re.compile(r"\b(1 (?:hole|bar|row|market))s\b")


def format_price(value: float | None) -> str:
    """Return a price: two decimals from 1,000 on, else about six digits that count."""
    if value is None or not isfinite(value):
        return MISSING
    decimals = 2 if abs(value) >= 1_000 or value == 0 else min(12, 5 - int(log10(abs(value)) // 1))
    return _set_minus(f"{value:,.{max(2, decimals)}f}")


def format_pct(value: float | None, is_signed: bool = True) -> str:
    """Return a fraction in percent, with its sign."""
    if value is None or not isfinite(value):
        return MISSING
    decimals = 2 if abs(value) < 10 else 0
    return _set_minus(f"{value * 100:{'+' if is_signed else ''},.{decimals}f} %")


def format_number(value: float | None, decimals: int = 3) -> str:
    """Return a plain number."""
    if value is None or not isfinite(value):
        return MISSING
    return _set_minus(f"{value:,.{decimals}f}")


def format_count(value: int | None) -> str:
    """Return a count with separators."""
    return MISSING if value is None else f"{value:,}"


def say_plainly(text: str | None) -> str:
    """Return the reason of a receipt or an alert with codes in words, and one thing as one."""
    words = _CODES.sub(lambda code: REASONS[code[0]], text or "")
    return _SINGLES.sub(r"\1", words)


def format_plural(count: int, thing: str, ending: str = "s") -> str:
    """Return ``1 hole`` or ``2 holes``."""
    return f"{count:,} {thing}{'' if count == 1 else ending}"


def format_sent(value: Any, name: str) -> str:
    """Return a number of a quarantined bar; what is no number stays the word that came."""
    if not isinstance(value, int | float):
        return str(value or MISSING)
    return format_compact(value) if name == "volume" else format_price(value)


def list_changed_fields(row: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Return each field that a revision changed, with its old and its new value."""
    return [
        (name, row[f"old_{name}"], row[name]) for name in FIELDS if row[f"old_{name}"] != row[name]
    ]


def format_compact(value: float | None) -> str:
    """Return a large number to three digits: 63.8 B."""
    if value is None or not isfinite(value):
        return MISSING
    scale, unit = next(((s, f" {u}") for s, u in _SCALES if abs(value) >= s), (1.0, ""))
    return _set_minus(f"{value / scale:.3g}{unit}")


def format_time(value: datetime | None) -> str:
    """Return a time in UTC to the minute."""
    return MISSING if value is None else f"{value:%Y-%m-%d %H:%M} UTC"


def format_date(value: datetime | None) -> str:
    """Return a date."""
    return MISSING if value is None else f"{value:%Y-%m-%d}"


def format_span(value: timedelta | float) -> str:
    """Return a length of time in its largest fitting unit: 95 s, 3 h, 12 d."""
    seconds = max(0.0, value.total_seconds() if isinstance(value, timedelta) else value)
    return next(
        f"{int(seconds // length)} {unit}" for least, length, unit in _SPANS if seconds >= least
    )


def format_age(value: datetime, now: datetime) -> str:
    """Return how long ago a time is; what lies ahead is *in* so long."""
    seconds = (now - value).total_seconds()
    return f"in {format_span(-seconds)}" if seconds < 0 else f"{format_span(seconds)} ago"


def describe_reason(reason: str | None) -> str:
    """Return the meaning of a reason; an unknown reason is returned as it is."""
    return REASONS.get(reason or "", reason or "")


def describe_direction(value: float | None) -> str:
    """Return ``up``, ``down`` or ``flat``: a class of the style sheet, and which arrow is drawn."""
    if value is None or not value:
        return "flat"
    return "up" if value > 0 else "down"


def name_market(row: Mapping[str, Any]) -> str:
    """Return the full name of the market that a row is about."""
    return f"{row['provider']}:{row['symbol']}"


def describe_source(row: Mapping[str, Any]) -> str:
    """Return the name of a market's instrument and where its prices are from, each once."""
    said = (row["symbol"], row["name"], row["provider"], row["venue"])
    return ", ".join(dict.fromkeys(words for words in said if words != row["symbol"]))


def exact(value: Any) -> str:
    """Return a number with all digits of the database."""
    return "" if value is None else repr(float(value))


def _set_minus(text: str) -> str:
    return text.replace("-", MINUS)
