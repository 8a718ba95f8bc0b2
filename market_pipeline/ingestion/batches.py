"""What a market's worker hands over for one transaction."""

from dataclasses import dataclass, field, replace

from market_pipeline.domain.planning import RETRY, VERIFY
from market_pipeline.ingestion.fetching import Page
from market_pipeline.ingestion.request import Route


@dataclass(slots=True)
class Progress:
    """What a market has come to so far in this run; its worker counts, the writer reports.

    Attributes:
        requested: Bars the calendar expects in what was asked for.
        asked: Requests that were needed. retries: Of them, those for holes alone.
        failures: What went wrong with some of them, in words.
        received: Bars that came. quarantined: Of them, impossible ones.
        calls: Requests as the provider counts them, retries included. throttled: Refused for
            coming too often.
        seconds: Since the market was claimed.
    """

    requested: int = 0
    asked: int = 0
    retries: int = 0
    failures: list[str] = field(default_factory=list)
    received: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    throttled: int = 0
    seconds: float = 0.0

    def copy(self) -> "Progress":
        """Return it as of now: the writer reads it while the worker goes on counting."""
        return replace(self, failures=list(self.failures), quarantined=dict(self.quarantined))

    def count_page(self, page: Page, calls: int, throttled: int) -> None:
        """Take a page in, and the calls it took."""
        self.calls += calls
        self.throttled += throttled
        self.requested += page.ask.bars
        self.received += page.received
        is_needed = page.ask.purpose != VERIFY  # what is read again for safety may fail
        self.asked += is_needed
        self.retries += page.ask.purpose == RETRY
        if is_needed and page.error is not None:
            self.failures.append(f"{page.ask.interval}: {page.error}")
        for rule in page.judged.rejected["rule"] if len(page.judged.rejected) else ():
            self.quarantined[rule] = self.quarantined.get(rule, 0) + 1


@dataclass(frozen=True, slots=True)
class BarBatch:
    """Pages of one market that land together.

    Attributes:
        route: Provider and market. market_id: The market's key. token: The claim it is held by.
        pages: The answers. progress: The market's, as of now.
        split_ratio: Set when the series was rescaled: nothing lands, all is read again.
        is_last: The market's last: the claim is given back.
        ends_reload: With it the series is whole again.
    """

    route: Route
    market_id: int
    token: int
    pages: tuple[Page, ...]
    progress: Progress
    split_ratio: float | None = None
    is_last: bool = False
    ends_reload: bool = False
