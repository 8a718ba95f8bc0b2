"""What a failed step says: our error and its cure first, wherever in the step it was raised."""

from typing import Any

import dagster as dg
import pytest

from market_pipeline.definitions import build_definitions
from market_pipeline.domain.errors import SettingError, StorageError
from market_pipeline.orchestration.causes import find_cause, told_plainly
from market_pipeline.orchestration.checks import check_market_aggregates
from market_pipeline.orchestration.output_checks import check_outputs
from market_pipeline.orchestration.resources import Database
from market_pipeline_tests.orchestration.conftest import Materialise

pytestmark = pytest.mark.usefixtures("without_pictures")

MORNING = "2024-03-15T10:00Z"


def read_failure(result: dg.ExecuteInProcessResult) -> tuple[dg.DagsterEvent, str]:
    """Return the failure of the first step that failed, and the message that the UI shows first."""
    failed = next(event for event in result.all_events if event.is_step_failure)
    error: Any = failed.step_failure_data.error
    return failed, error.message


@pytest.mark.parametrize(
    ("asset", "request_", "begins"),
    [
        ("market_aggregates", {"lookback_days": -1}, "SettingError: lookback_days=-1: "),
        (
            "latest_market_cache",
            {"provider": "nobody"},
            "SettingError: provider 'nobody' is unknown",
        ),
        # Raised while the inputs of the step are loaded, and while its output is stored.
        ("market_snapshots", {"symbols": ["X:FOO"]}, "MarketNotServedError: "),
        ("market_aggregates", {"symbols": ["BTC-USD"]}, "NothingIngestedError: no market gave a"),
    ],
)
def test_a_failed_step_says_our_error_first(
    materialise: Materialise,
    monkeypatch: pytest.MonkeyPatch,
    asset: str,
    request_: dict[str, object],
    begins: str,
) -> None:
    """Alerts and receipts name it by the same class and words."""
    monkeypatch.setenv("MOCK_FAULTS", "BTC-USD:wrong_symbol")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    failed, message = read_failure(materialise(asset, window_end=MORNING, **request_))
    assert message.startswith(f"market_pipeline.domain.errors.{begins}")
    cause = find_cause(failed)
    assert f"{cause.error_class}: {cause.text}".startswith(begins)


def test_checks_say_it_too(
    materialise: Materialise, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are steps of their own, and fail of the database alone."""

    def refuse(_: Database) -> None:
        raise StorageError("the database is away: start it")

    assert materialise("markets", window_end=MORNING).success
    monkeypatch.setattr(Database, "engine", property(refuse))
    selection = dg.AssetSelection.checks(check_market_aggregates, check_outputs)
    alone = dg.Definitions(jobs=[dg.define_asset_job("checks", selection=selection)])
    job = dg.Definitions.merge(build_definitions(), alone).resolve_job_def("checks")
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    failures = [event for event in result.all_events if event.is_step_failure]
    for event in failures:
        error: Any = event.step_failure_data.error
        assert error.message.startswith("market_pipeline.domain.errors.StorageError: the database")
    assert {event.step_key for event in failures} == {"market_aggregates_checks", "output_checks"}


def test_other_errors_and_good_steps_are_left_alone() -> None:
    """A bug keeps its stack trace, and a value its way."""
    with pytest.raises(ValueError, match="a bug"), told_plainly():
        raise ValueError("a bug")
    with pytest.raises(dg.Failure) as plain, told_plainly():
        raise SettingError("LOG_LEVEL: set it to info")
    assert plain.value.description == "LOG_LEVEL: set it to info"
    assert isinstance(plain.value.__cause__, SettingError)
    assert told_plainly()(len)([1, 2]) == 2  # type: ignore[arg-type]
