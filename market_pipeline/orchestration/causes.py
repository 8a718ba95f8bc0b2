"""Why a step failed, as Dagster has recorded it."""

from dagster._utils.error import SerializableErrorInfo

_OURS = "market_pipeline."


def find_cause(error: SerializableErrorInfo) -> SerializableErrorInfo:
    """Return the innermost cause that this project explains itself, else the innermost of all."""
    chain = [error]
    while chain[-1].cause is not None:
        chain.append(chain[-1].cause)
    ours = [one for one in chain if one.message.startswith(_OURS)]
    return ours[-1] if ours else chain[-1]
