"""The error tree."""

import pickle

from market_pipeline.domain.errors import PipelineError, ProviderError, TransientProviderError


def test_a_provider_error_keeps_its_fields_through_pickling() -> None:
    """An error that crosses a process names its provider and status on the other side too."""
    error = pickle.loads(pickle.dumps(TransientProviderError("yahoo", "too many requests", 429)))  # noqa: S301
    assert (error.provider, error.message, error.status) == ("yahoo", "too many requests", 429)
    assert str(error) == "yahoo: too many requests"


def test_every_provider_error_is_a_pipeline_error() -> None:
    """One except clause catches all that is raised on purpose."""
    assert issubclass(TransientProviderError, ProviderError)
    assert issubclass(ProviderError, PipelineError)
