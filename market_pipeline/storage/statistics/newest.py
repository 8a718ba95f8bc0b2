"""Which row of a series of statistics or comparisons is the newest: one rule for all queries."""

import re

from sqlalchemy import TextClause, text

from market_pipeline.domain import comparisons, roi
from market_pipeline.settings import read_statistics_settings

_RANK = "as_of DESC, method ~ {method} DESC, dataset_version DESC NULLS LAST"
NEWEST = _RANK.format(method="%(method)s")
"""ORDER BY of rows of one series: the later ``as_of``, and of several methods the one in use.

The parameter ``method`` is :func:`find_method_in_use`.
"""


def rank_newest() -> TextClause:
    """Return ``NEWEST`` with its parameter, for a statement that is built of parts."""
    return text(_RANK.format(method=":method")).bindparams(method=find_method_in_use())


def find_method_in_use() -> str:
    """Return a regular expression: what rows say that are computed with the settings of now.

    Raises:
        SettingError: A setting of statistics is wrong.
    """
    settings = read_statistics_settings()
    # The factor A is the market's, not a setting.
    risk = roi.name_method(settings.risk_free_annual, 0.0, settings.min_returns, "FACTOR")
    pairs = comparisons.name_method(min_returns=settings.min_returns)
    return f"^({re.escape(risk).replace('FACTOR', '[^;]+')}|{re.escape(pairs)})$"
