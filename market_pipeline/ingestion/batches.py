"""The batches of a run: pages of claimed markets on their way to a transaction."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from market_pipeline.domain.columns import BarColumns
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.differences import Difference
from market_pipeline.domain.errors import PipelineError, SupersededError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.planning import RETRY, VERIFY, FetchRequest
from market_pipeline.domain.validation import NOT_A_SESSION, ValidatedBars
from market_pipeline.ingestion.plan import MarketPlan
from market_pipeline.ingestion.request import Route
from market_pipeline.storage.bars.events import OpenDifference

Coverages = dict[Interval, Coverage]


@dataclass(frozen=True, slots=True)
class BarPage:
    """What came back for one request.

    Attributes:
        request: What was asked for. validated: Its bars, good and rejected. received: How many
            came.
        now: The run's clock (UTC).
        asked_at: When it was sent (UTC, wall clock). seconds: How long the answer took.
        error: What came instead of bars. status: The HTTP status of that, where there was one.
    """

    request: FetchRequest
    validated: ValidatedBars
    received: int
    now: datetime
    asked_at: datetime
    seconds: float
    error: str | None = None
    status: int | None = None


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
        seconds: Since the first request was made ready.
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
        for rule in page.validated.rejected.rules:
            self.quarantined[rule] = self.quarantined.get(rule, 0) + 1


@dataclass(slots=True)
class ClaimedMarket:
    """A market that the run holds, with what is known of it.

    Attributes:
        route: Provider and market. market_id: The market's key. token: The claim it is held by.
        coverages: As they are stored; a commit puts the new ones here.
        left_open: The difference that runs before this one have left open.
        plan: What is needed; None: it depends on the difference.
        overlaps: The stored final bars that short requests ask for again.
    """

    route: Route
    market_id: int
    token: int
    coverages: Coverages
    left_open: OpenDifference
    plan: MarketPlan | None = None
    overlaps: Mapping[FetchRequest, BarColumns] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BarBatch:
    """Pages of one market that land together.

    Attributes:
        held: The market. pages: The answers. progress: The market's, as of now.
        is_last: The market's last: the claim is given back.
        difference: What is known of the market's difference after these pages; None: it has none.
        opens_event: The difference was first seen in these pages.
        releases: What differs is to be read again from now on; the pages came after that.
    """

    held: ClaimedMarket
    pages: tuple[BarPage, ...] = ()
    progress: Progress = field(default_factory=Progress)
    is_last: bool = False
    difference: Difference | None = None
    opens_event: bool = False
    releases: bool = False

    @property
    def route(self) -> Route:
        """Provider and market."""
        return self.held.route

    @property
    def market_id(self) -> int:
        """The market's key."""
        return self.held.market_id

    @property
    def rows(self) -> int:
        """How many bars came."""
        return sum(page.received for page in self.pages)


@dataclass(frozen=True, slots=True)
class MarketStopped:
    """A market that gave no batch, why, and the claim that it was held by; 0: by none."""

    route: Route
    error: PipelineError
    token: int = 0

    @property
    def is_superseded(self) -> bool:
        """Whether another run took this market over."""
        return isinstance(self.error, SupersededError)

    @property
    def is_last(self) -> bool:
        """It has no more to give."""
        return True

    @property
    def rows(self) -> int:
        """No bars came."""
        return 0


Item = BarBatch | MarketStopped
