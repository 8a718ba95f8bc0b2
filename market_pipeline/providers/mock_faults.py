"""The faults of the mock provider: the syntax of MOCK_FAULTS, and when each fault happens.

Here: the words, the grammar, and the decision whether a fault applies to a call. Not here: the
changes that a fault makes to an answer (``mock_spoiling.py``).

A list of entries, separated by commas: ``SYMBOL:FAULT[=AMOUNT][@SPAN] [OPTION ...]``, for example
``ETH-USD:429 x2, BTC-USD:skipped_page@2024-01-05..2024-01-08, SPX:split=4@2024-02-01``. The symbol
``*`` means every market.

=================  ===========  ==============================================================
fault              amount       what the provider does
=================  ===========  ==============================================================
throttled (429)    30           refuses the call, with a Retry-After of so many seconds
timeout                         does not answer
wrong_symbol                    answers for another market
empty_page                      answers without a bar
skipped_page                    leaves out the bars of SPAN, or the middle third
truncated_history  10           answers with only so many of the newest bars
unclosed_bar                    says that the running bar is final
restated_bar       1.01         multiplies the prices of the final bars in SPAN (required)
split              2            from the moment SPAN on (required): divides all prices before
                                that moment, and multiplies volumes
rescaled           1.03         multiplies all prices, or those from the moment SPAN on
duplicate          1            sends the bars of SPAN, or the middle bar, twice; the second
                                time with prices multiplied by the amount
off_grid           7            moves the bars of SPAN, or the middle bar, by so many minutes
closed_date        1.5          sends a daily bar for each closed date too (in SPAN, or in all):
                                the bar before it, with prices multiplied by the amount
sub_cent_price     1e-8         scales all prices to this level
=================  ===========  ==============================================================

SPAN is ``2024-01-05`` (the day), ``2024-01-05T13:00`` (the hour) or ``2024-01-05..2024-01-08`` (the
end is not in it); all times are UTC. A call whose window does not touch SPAN gets a good answer.

Options: ``1h`` or ``1d`` (bars of this interval only), ``x2`` (the first two calls of a run for a
market that the fault concerns), ``30%`` (this share of such calls, drawn from MOCK_SEED and the
call's number), ``since=TIME`` and ``until=TIME`` (while the run's clock is in between; ``until`` is
excluded).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Lock

from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.domain.symbols import parse_symbol
from market_pipeline.settings import name_errors, shorten, split_list

EVERY_MARKET = "*"
THROTTLED, TIMEOUT, WRONG_SYMBOL = "throttled", "timeout", "wrong_symbol"
EMPTY_PAGE, SKIPPED_PAGE, TRUNCATED_HISTORY = "empty_page", "skipped_page", "truncated_history"
UNCLOSED_BAR, RESTATED_BAR, SPLIT = "unclosed_bar", "restated_bar", "split"
RESCALED = "rescaled"
DUPLICATE, OFF_GRID, SUB_CENT_PRICE = "duplicate", "off_grid", "sub_cent_price"
CLOSED_DATE = "closed_date"

# fault: the amount when none is given; None: it takes none
AMOUNTS: Mapping[str, float | None] = {
    THROTTLED: 30.0,
    TIMEOUT: None,
    WRONG_SYMBOL: None,
    EMPTY_PAGE: None,
    SKIPPED_PAGE: None,
    TRUNCATED_HISTORY: 10.0,
    UNCLOSED_BAR: None,
    RESTATED_BAR: 1.01,
    SPLIT: 2.0,
    RESCALED: 1.03,
    DUPLICATE: 1.0,
    OFF_GRID: 7.0,
    CLOSED_DATE: 1.5,
    SUB_CENT_PRICE: 1e-8,
}
ALIASES = {"429": THROTTLED}
WHOLE_AMOUNTS = (TRUNCATED_HISTORY,)
NEEDS_SPAN = (RESTATED_BAR, SPLIT)
HAVE_ONE_MOMENT = (SPLIT, RESCALED)
MOST_AMOUNT = 1e6
YEARS = range(1900, 2200)
_ENTRY = re.compile(
    r"(?P<symbol>[^:\s]+):(?P<kind>\w+)(=(?P<amount>[^@\s]*))?(@(?P<span>\S*))?(\s+(?P<options>.+))?"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry of MOCK_FAULTS.

    Attributes:
        kind: One of ``AMOUNTS``. symbol: Of the market, or ``*``.
        amount: Seconds, bars, minutes, a ratio or a price, as the kind says; else 0.
        span: The bars concerned by open_time; None: the kind's own choice.
        interval: Only bars of this interval; None: any, and live prices.
        calls: Only the first so many calls; None: all.
        probability_ratio: Share of the calls.
        since: Not before this run's clock. until: No longer from this run's clock on (UTC).
    """

    kind: str
    symbol: str
    amount: float = 0.0
    span: Window | None = None
    interval: Interval | None = None
    calls: int | None = None
    probability_ratio: float = 1.0
    since: datetime | None = None
    until: datetime | None = None

    def concerns(
        self, symbol: str, interval: Interval | None, window: Window, now: datetime
    ) -> bool:
        """Return whether a call can meet this fault."""
        return (
            self.symbol in (EVERY_MARKET, symbol)
            and self.interval in (None, interval)
            and self._is_active(now)
            and self._touches(window)
        )

    def _is_active(self, now: datetime) -> bool:
        has_begun = self.since is None or self.since <= now
        return has_begun and (self.until is None or now < self.until)

    def _touches(self, window: Window) -> bool:
        if self.span is None or self.kind == SPLIT:
            return True
        is_over = self.kind != RESCALED and self.span.end <= window.start
        return self.span.start < window.end and not is_over


class FaultPlan:
    """Decides which faults a call meets, and counts the calls for ``x2`` and ``30%``.

    Args:
        faults: What may go wrong, applied in this order.
        seed: Decides which calls a probability hits.
    """

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        self._faults = tuple(faults)
        self._seed = seed
        self._calls: Counter[str] = Counter()
        self._lock = Lock()

    def draw(
        self, symbol: str, interval: Interval | None, window: Window, now: datetime
    ) -> tuple[Fault, ...]:
        """Return the faults that one call meets; each call counts.

        Args:
            symbol: Of the market.
            interval: Of the bars; None for a live price.
            window: What is asked for.
            now: The run's clock (UTC).
        """
        kind_of_call = "price" if interval is None else "bars"
        return tuple(
            fault
            for number, fault in enumerate(self._faults)
            if fault.concerns(symbol, interval, window, now)
            and self._happens(fault, f"{number}|{symbol}|{kind_of_call}")
        )

    def _happens(self, fault: Fault, key: str) -> bool:
        with self._lock:
            call = self._calls[key]
            self._calls[key] += 1
        if fault.calls is not None and call >= fault.calls:
            return False
        return _draw_share(f"{self._seed}|{key}|{call}") < fault.probability_ratio


def _draw_share(key: str) -> float:
    """Return a number in [0, 1) that is a function of the key alone."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") / 2**32


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Return the faults that MOCK_FAULTS asks for; none when it is empty.

    Raises:
        SettingError: Names the entry and what was expected.
    """
    faults = []
    for entry in split_list(text):
        with name_errors(f"MOCK_FAULTS has {shorten(entry)!r}"):
            faults.append(_parse_entry(entry))
    return tuple(faults)


def _parse_entry(entry: str) -> Fault:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise SettingError(
            "expected SYMBOL:FAULT[=AMOUNT][@SPAN] [OPTION ...], such as BTC-USD:429=30 x2"
        )
    kind = _parse_kind(match["kind"])
    symbol = match["symbol"] if match["symbol"] == EVERY_MARKET else parse_symbol(match["symbol"])
    span = _parse_span(kind, match["span"])
    fault = Fault(kind, symbol, _parse_amount(kind, match["amount"]), span)
    if span is not None and kind == SPLIT:
        fault = replace(fault, since=span.start)
    for option in (match["options"] or "").split():
        fault = _apply_option(fault, option)
    return fault


def _parse_kind(text: str) -> str:
    kind = ALIASES.get(text, text.lower())
    if kind not in AMOUNTS:
        known = ", ".join([*AMOUNTS, *ALIASES])
        raise SettingError(f"fault {text!r} is unknown: expected one of {known}")
    return kind


def _parse_amount(kind: str, text: str | None) -> float:
    default = AMOUNTS[kind]
    if text is None:
        return default or 0.0
    if default is None:
        raise SettingError(f"{kind} takes no amount")
    try:
        amount = float(text)
    except ValueError:
        amount = 0.0
    is_whole = amount.is_integer() or kind not in WHOLE_AMOUNTS
    if not 0 < amount <= MOST_AMOUNT or not is_whole:
        wanted = "a whole number" if kind in WHOLE_AMOUNTS else "a number"
        raise SettingError(
            f"{text!r} is not an amount: expected {wanted} above 0, such as {default:g}"
        )
    return amount


def _parse_span(kind: str, text: str | None) -> Window | None:
    if text is None:
        if kind in NEEDS_SPAN:
            raise SettingError(f"{kind} needs a time, such as {kind}@2024-01-05")
        return None
    first, dots, last = text.partition("..")
    start = _parse_time(first)
    if dots and kind in HAVE_ONE_MOMENT:
        raise SettingError(f"{kind} takes one moment, such as {kind}@{first}")
    length = timedelta(hours=1) if "T" in first.upper() else timedelta(days=1)
    end = _parse_time(last) if dots else start + length
    if end <= start:
        raise SettingError(f"{text!r} ends before it begins")
    return Window(start, end)


def _parse_time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.year not in YEARS:
        raise SettingError(
            f"{text!r} is not a time: expected UTC such as 2024-01-05 or 2024-01-05T13:00"
        )
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _apply_option(fault: Fault, option: str) -> Fault:
    name, _, value = option.partition("=")
    if name == "since":
        return replace(fault, since=_parse_time(value))
    if name == "until":
        return replace(fault, until=_parse_time(value))
    if option in (Interval.HOUR.value, Interval.DAY.value):
        return replace(fault, interval=Interval(option))
    if re.fullmatch(r"x[1-9]\d{0,5}", option):
        return replace(fault, calls=int(option[1:]))
    if re.fullmatch(r"\d{1,2}(\.\d+)?%|100%", option):
        return replace(fault, probability_ratio=float(option[:-1]) / 100)
    raise SettingError(
        f"option {option!r} is unknown: expected x2, 30%, 1h, 1d, since=TIME or until=TIME"
    )
