"""The number of returns that a statistic needs, and its notation in the method.

By default a statistic needs four fifths of the returns that the calendar expects within its
horizon, and at least five (three for horizons of up to seven days). So a holiday does not make a
statistic NULL, and a hole does. A number from the settings replaces this rule.
"""

import re
from dataclasses import dataclass

import numpy as np

from market_pipeline.domain.arrays import IntArray

WEEK_DAYS = 7
_LEAST, _LEAST_OF_WEEK = 5, 3
# A week has no more sessions than this on an exchange, so a larger number could never be reached.
_MOST_OF_WEEK = 5
_FEWEST = 2
_FIRST_NUMBER = 20
_NAMED = re.compile(r";min=(?:(?P<share>0\.8/5)|(?P<number>[0-9]+))$")


@dataclass(frozen=True, slots=True)
class MinReturns:
    """The fewest returns of a statistic.

    Attributes:
        number: Counts whatever the calendar expects; for horizons of up to seven days five at
            most. None: four fifths of what the calendar expects, and at least five (three).
    """

    number: int | None = None

    @property
    def name(self) -> str:
        """Its notation in a method: ``min=0.8/5`` or ``min=20``."""
        return f"min={'0.8/5' if self.number is None else self.number}"

    def find(self, days: int, expected: IntArray) -> IntArray:
        """Return the fewest returns for a horizon, given how many its calendar expects."""
        is_short = days <= WEEK_DAYS
        if self.number is not None:
            fewest = min(self.number, _MOST_OF_WEEK) if is_short else self.number
            return np.full(expected.shape, max(fewest, _FEWEST))
        least = _LEAST_OF_WEEK if is_short else _LEAST
        return np.maximum(-(-4 * expected // 5), least)


def parse_min_returns(method: str) -> MinReturns:
    """Return the fewest returns that a method names; a method without a number means 20."""
    named = _NAMED.search(method)
    if named is None:
        return MinReturns(_FIRST_NUMBER)
    return MinReturns() if named["share"] else MinReturns(int(named["number"]))
