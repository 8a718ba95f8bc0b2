"""Why a step failed, as Dagster has recorded it."""

from typing import Any

_OURS = "market_pipeline."


def find_cause(error: Any) -> Any:
    """Return the innermost cause that this project explains itself, else the innermost of all.

    Args:
        error: Dagster's ``SerializableErrorInfo``.
    """
    chain = [error]
    while chain[-1].cause is not None:
        chain.append(chain[-1].cause)
    ours = [one for one in chain if one.message.startswith(_OURS)]
    return ours[-1] if ours else chain[-1]
