"""The batch that the worker of a market gives to one transaction."""

from dataclasses import dataclass, field, replace

from market_pipeline.domain.differences import Difference
from market_pipeline.domain.planning import RETRY, VERIFY
from market_pipeline.domain.validation import NOT_A_SESSION
from market_pipeline.ingestion.fetching import BarPage
from market_pipeline.ingestion.request import Route


@dataclass(slots=True)
class Progress:
    """What a market has come to so far in this run; its worker counts, the writer reports.

    Attributes:
        requested: Bars the calendar expects in what was asked for.
        asked: Requests that were needed. retries: Of them, those for holes alone.
        failures: What went wrong with some of them, in words.
        received: Bars that came. quarantined: Of them, refused ones, by the rule they broke.
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

    @property
    def strays(self) -> int:
        """How many bars came that no session has: nobody's fault, unless they are a rule."""
        return self.quarantined.get(NOT_A_SESSION, 0)

    def copy(self) -> "Progress":
        """Return it as of now: the writer reads it while the worker goes on counting."""
        return replace(self, failures=list(self.failures), quarantined=dict(self.quarantined))

    def count_page(self, page: BarPage, calls: int, throttled: int) -> None:
        """Take a page in, and the calls it took."""
        self.calls += calls
        self.throttled += throttled
        self.requested += page.request.bars
        self.received += page.received
        is_needed = page.request.purpose != VERIFY  # what is read again for safety may fail
        self.asked += is_needed
        self.retries += page.request.purpose == RETRY
        if is_needed and page.error is not None:
            self.failures.append(f"{page.request.interval}: {page.error}")
        for rule in page.validated.rejected["rule"] if len(page.validated.rejected) else ():
            self.quarantined[rule] = self.quarantined.get(rule, 0) + 1


@dataclass(frozen=True, slots=True)
class BarBatch:
    """Pages of one market that land together.

    Attributes:
        route: Provider and market. market_id: The market's key. token: The claim it is held by.
        pages: The answers. progress: The market's, as of now.
        is_last: The market's last: the claim is given back.
        difference: What is known of the market's difference after these pages; None: it has none.
        opens_event: The difference was first seen in these pages.
        releases: What differs is to be read again from now on; the pages came after that.
    """

    route: Route
    market_id: int
    token: int
    pages: tuple[BarPage, ...]
    progress: Progress
    is_last: bool = False
    difference: Difference | None = None
    opens_event: bool = False
    releases: bool = False
