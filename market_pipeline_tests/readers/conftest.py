"""Fixtures of the readers' tests: a database whose versions are written one by one."""

import pytest
from sqlalchemy import Engine

from market_pipeline_tests.readers.bar_history import History


@pytest.fixture
def history(engine: Engine) -> History:
    """An empty history on a database of its own."""
    return History(engine)
