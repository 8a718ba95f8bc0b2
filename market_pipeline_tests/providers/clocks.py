"""Clocks and limits for tests: waiting is counted, not done."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from market_pipeline.providers.http import CallLimits, Clocks

UTC_NOW = datetime(2024, 1, 15, 9, 0, tzinfo=UTC)
# An attempt may take as long as the machine needs: only what is about deadlines sets one.
QUICK = CallLimits(request_seconds=90.0, total_seconds=60.0, retry_after_seconds=30.0, attempts=4)


@dataclass
class FakeTime:
    """A clock that moves by sleeps alone, and sleeps take no time: no work is ever too slow."""

    slept: list[float] = field(default_factory=list)
    utc_now: datetime = UTC_NOW

    def sleep(self, seconds: float) -> None:
        """Move on by so many seconds at once."""
        self.slept.append(seconds)

    @property
    def clocks(self) -> Clocks:
        """The clocks to give to a client."""
        return Clocks(
            monotonic=lambda: sum(self.slept),
            sleep=self.sleep,
            utc=lambda: self.utc_now,
            jitter=lambda: 1.0,
        )
