"""The causes of failed steps: the innermost one of each, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg

from market_pipeline.domain.errors import PipelineError
from market_pipeline.observability.logs import escape_controls
from market_pipeline.observability.redaction import redact

_INTERRUPTED = "DagsterExecutionInterruptedError"
_OUR_ERRORS = "market_pipeline."
_FROM_OUTSIDE = "This run has been marked as failed from outside"


@contextmanager
def told_plainly() -> Iterator[None]:
    """Let a step that fails with an error of ours say that first.

    Dagster wraps an error in one of its own, under which the UI shows ours after two stack traces.
    It leaves a ``Failure`` as it is, and prints its class: here that of our error.
    """
    try:
        yield
    except PipelineError as error:
        kind = type(error)
        same = type(kind.__name__, (dg.Failure,), {"__module__": kind.__module__})
        raise same(str(error)) from error


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a step failed: its key, the class of the innermost error, and what that says."""

    step: str
    error_class: str
    text: str


def find_cause(event: dg.DagsterEvent) -> Cause:
    """Return the cause of a step's failure."""
    return Cause(str(event.step_key), *describe_error(event.step_failure_data.error))


def describe_error(error: Any) -> tuple[str, str]:
    """Return the class of the cause, and its text without that where it is ours.

    The error is Dagster's record of one (``SerializableErrorInfo``); None: there is none.
    """
    if error is None:
        return "", "no reason given"
    error = _find_innermost(error)
    name = str(error.cls_name or "")
    if name == _INTERRUPTED:
        return name, "interrupted; what was already committed stays"
    text = escape_controls(redact(" ".join(error.message.split())))
    if "Too many open files" in text:
        text += ": raise this process's limit (ulimit -n), then run again"
    module_and_class, _, message = text.partition(": ")
    return name, message if module_and_class.startswith(_OUR_ERRORS) else text


def describe_run_failure(event: dg.DagsterEvent) -> str:
    """Return why a run failed that no step explains."""
    error = getattr(event.event_specific_data, "error", None)
    return str(event.message) if error is None else describe_error(error)[1]


def explain_run_failure(instance: dg.DagsterInstance, run_id: str, event: dg.DagsterEvent) -> str:
    """Return why a run failed that no step explains, or what kept it from beginning.

    A run that Dagster's queue could not hand over, as to a broker that is away, is marked as failed
    without a reason. The reason is in the event before that.
    """
    if not str(event.message).startswith(_FROM_OUTSIDE):
        return describe_run_failure(event)
    kind = dg.DagsterEventType.ENGINE_EVENT
    records = instance.get_records_for_run(run_id, of_type=kind, ascending=False).records
    happened = [record.event_log_entry.dagster_event for record in records]
    errors = [getattr(one and one.event_specific_data, "error", None) for one in happened]
    known = next((error for error in errors if error is not None), None)
    if known is None:
        return describe_run_failure(event)
    told = [known, known.cause or known.context]
    text = "; cause: ".join(" ".join(error.message.split()) for error in told if error is not None)
    return escape_controls(redact(text))


def _find_innermost(error: Any) -> Any:
    """Return the innermost cause that this project explains itself, else the innermost of all."""
    chain = [error]
    while chain[-1].cause is not None:
        chain.append(chain[-1].cause)
    ours = [link for link in chain if link.message.startswith(_OUR_ERRORS)]
    return ours[-1] if ours else chain[-1]
