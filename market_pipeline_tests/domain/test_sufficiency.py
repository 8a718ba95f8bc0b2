"""The fewest returns of a statistic: the rule, a number from the settings, and their notation."""

import numpy as np
import pytest

from market_pipeline.domain.sufficiency import MinReturns, parse_min_returns


@pytest.mark.parametrize(
    ("number", "days", "expected", "fewest"),
    [
        (None, 30, 20, 16),  # four fifths
        (None, 30, 21, 17),  # of a fraction the whole number above it
        (None, 30, 4, 5),  # never less than five
        (None, 7, 5, 4),
        (None, 7, 2, 3),  # within a week never less than three
        (None, 8, 2, 5),
        (20, 30, 4, 20),  # a setting wins, whatever the calendar expects
        (20, 7, 5, 5),  # an exchange has no more than five sessions a week
        (20, 8, 6, 20),
        (4, 7, 5, 4),
        (1, 30, 20, 2),  # a deviation takes two
    ],
)
def test_a_statistic_needs_so_many_returns(
    number: int | None, days: int, expected: int, fewest: int
) -> None:
    """Worked out by hand."""
    assert MinReturns(number).find(days, np.array([expected])).tolist() == [fewest]


@pytest.mark.parametrize("needed", [MinReturns(), MinReturns(20), MinReturns(3)])
def test_a_method_names_the_rule(needed: MinReturns) -> None:
    """What was needed is read back from a stored key."""
    assert parse_min_returns(f"simple;rf=0;A=365;{needed.name}") == needed


def test_a_method_without_the_rule_is_of_the_first_version() -> None:
    """It needed twenty."""
    assert parse_min_returns("simple;rf=0;A=365") == MinReturns(20)
