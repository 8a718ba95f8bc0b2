"""Actions on pages: each is shown with its plan first, guarded, and noted in the log.

A form must hold the mark of our own pages (``credentials.build_form_token``); the request guard
has already refused strangers and other sites. What is done is what the command line does. Not
here: what an action does to the data (``ingestion``, ``alerting``), how runs start (``launching``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response

from market_pipeline.alerting.raising import acknowledge
from market_pipeline.api.configuration import is_loopback
from market_pipeline.api.credentials import find_name, is_form_token
from market_pipeline.api.pages.formats import format_plural
from market_pipeline.api.pages.rendering import find_form_secret
from market_pipeline.api.problems import ProblemError
from market_pipeline.api.services import Services, ServicesNeeded
from market_pipeline.domain.errors import PipelineError
from market_pipeline.ingestion.deciding import confirm_split, dismiss_event
from market_pipeline.ingestion.quarantine import discard_rows, replay_rows
from market_pipeline.storage.bars.quarantine import reopen_rows
from market_pipeline.storage.runs.actions import begin_action, end_action


def check_form(request: Request, form_token: Annotated[str, Form(max_length=200)] = "") -> None:
    """Refuse a form that is not from one of our own pages."""
    if not is_form_token(form_token, find_form_secret(request)):
        detail = (
            "this form is not from a page of this server, or the server was started again since: "
            "load the page again. Nothing was changed"
        )
        raise ProblemError(403, "Forbidden", detail)


router = APIRouter(prefix="/actions", include_in_schema=False, dependencies=[Depends(check_form)])
Number = Annotated[int, Form(ge=1, le=2**63 - 1)]
_UNCHANGED = ". Nothing was changed"


@dataclass(frozen=True, slots=True)
class Done:
    """What came of an action: a sentence, and the run that it started or wrote as."""

    result: str
    run_id: UUID | None = None
    outcome: str = "done"


@router.post("/acknowledge")
def acknowledge_alert(
    request: Request, services: ServicesNeeded, alert_id: Annotated[UUID, Form()]
) -> Response:
    """Take an alert on: no more reminders of it."""

    def do(now: datetime) -> Done:
        with services.engine.begin() as connection:
            if not acknowledge(connection, alert_id, now):
                raise PipelineError(f"alert {alert_id} is not open: nobody has to take it on")
        return Done("Acknowledged: no more reminders")

    act(request, services, "acknowledge", f"alert {alert_id}", do)
    return go_to(f"/alerts/{alert_id}")


@router.post("/replay")
def replay_row(request: Request, services: ServicesNeeded, row_id: Number) -> Response:
    """Validate a quarantined row again, and store it if it is good by now."""

    def do(now: datetime) -> Done:
        replayed = replay_rows(services.engine, [row_id], now)
        if replayed.refused:
            raise PipelineError(f"row {row_id} is still bad: {replayed.refused[row_id]}")
        return Done("Replayed: the bar is stored", replayed.run_id)

    act(request, services, "replay", f"row {row_id}", do)
    return go_to(f"/quarantine/{row_id}")


@router.post("/discard")
def discard_row(request: Request, services: ServicesNeeded, row_id: Number) -> Response:
    """Dismiss a quarantined row."""

    def do(now: datetime) -> Done:
        discard_rows(services.engine, [row_id], now)
        return Done("Discarded: it is counted when it comes again, and no longer listed")

    act(request, services, "discard", f"row {row_id}", do)
    return go_to(f"/quarantine/{row_id}")


@router.post("/undo-discard")
def undo_discard(request: Request, services: ServicesNeeded, row_id: Number) -> Response:
    """Take back that a row was discarded."""

    def do(_: datetime) -> Done:
        with services.engine.begin() as connection:
            if not reopen_rows(connection, [row_id]):
                raise PipelineError(f"row {row_id} is not discarded")
        return Done("Open again")

    act(request, services, "undo discard", f"row {row_id}", do)
    return go_to(f"/quarantine/{row_id}")


@router.post("/confirm")
def confirm_event(request: Request, services: ServicesNeeded, event_id: Number) -> Response:
    """Say that an event is a split: the bars before it are multiplied by its ratio."""

    def do(now: datetime) -> Done:
        done = confirm_split(services.engine, event_id, now)
        words = f"Confirmed: {format_plural(done.bars, 'bar')} multiplied by {done.ratio:.6g}"
        return Done(words, done.run_id)

    act(request, services, "confirm split", f"event {event_id}", do)
    return go_to(f"/events/{event_id}")


@router.post("/dismiss")
def dismiss_split(request: Request, services: ServicesNeeded, event_id: Number) -> Response:
    """Say that an event is no split."""

    def do(_: datetime) -> Done:
        dismiss_event(services.engine, event_id)
        return Done("Dismissed: statistics go on over it with the next run")

    act(request, services, "dismiss split", f"event {event_id}", do)
    return go_to(f"/events/{event_id}")


def act(
    request: Request,
    services: Services,
    action: str,
    target: str,
    do: Callable[[datetime], Done],
) -> Done:
    """Do something, and note who did it and what came of it.

    Raises:
        ProblemError: It was refused (409), with the reason.
    """
    action_id = note_beginning(request, services, action, target)
    try:
        done = do(datetime.now(UTC))
    except PipelineError as error:
        note_end(services, action_id, Done(str(error), outcome="refused"))
        said = str(error).removesuffix(_UNCHANGED)
        raise ProblemError(409, "Refused", f"{said}{_UNCHANGED}") from None
    except Exception as error:
        note_end(services, action_id, Done(type(error).__name__, outcome="failed"))
        raise
    note_end(services, action_id, done)
    return done


def note_beginning(request: Request, services: Services, action: str, target: str) -> int:
    """Note an action that begins, and return its key."""
    who = {**describe_actor(request, services.configuration.token), "begun_at": datetime.now(UTC)}
    with services.engine.begin() as connection:
        return begin_action(connection, **who, action=action, target=target)


def note_end(services: Services, action_id: int, done: Done) -> None:
    """Note how an action ended."""
    with services.engine.begin() as connection:
        end_action(connection, action_id, done.outcome, done.result, done.run_id)


def describe_actor(request: Request, token: str) -> Mapping[str, Any]:
    """Return who sends a request, as far as that is known, and from which address."""
    address = request.client.host if request.client else ""
    named = find_name(request.scope["headers"], token)
    unnamed = "holder of the API token" if token else "somebody"
    if not token and is_loopback(address):
        unnamed = "somebody on this machine"
    return {"actor": named or unnamed, "address": address}


def go_to(path: str) -> Response:
    """Return the answer to a form that was carried out: where its result is shown."""
    return RedirectResponse(path, 303)
