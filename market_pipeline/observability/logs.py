"""Logs: a JSON object a line for machines, readable on a terminal, the same from every process.

::

    from market_pipeline.observability.logs import get_logger, log_context

    logger = get_logger(__name__)
    with log_context(market="BTC-USD"):
        logger.warning("the provider sent nothing", interval="1h", bars=0)

Within a run such a line also lands in Dagster's event log, and the run's id, job, step and trigger
are on it. ``LOG_LEVEL`` rules what is written. Secrets are taken out of the finished line, and
control characters in it are escaped, so that no text can forge another line.
"""

import contextvars
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from market_pipeline.observability.redaction import redact
from market_pipeline.settings import read_log_level

if TYPE_CHECKING:
    import structlog

ROOM = "market_pipeline"
_FIELDS = "pipeline_fields"
_CONTEXT: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("fields")
# What Dagster knows of a line itself.
_KNOWN = frozenset({"run_id", "trigger"})
_FAILURES = frozenset({"STEP_FAILURE", "PIPELINE_FAILURE"})


def get_logger(name: str) -> "structlog.stdlib.BoundLogger":
    """Return a logger whose methods take an event and fields; ``name`` is the module's."""
    return _Logger(name)  # type: ignore[return-value]


@contextmanager
def log_context(**fields: object) -> Iterator[None]:
    """Put fields on every line of this thread, and of those it starts with its context."""
    token = _CONTEXT.set({**_CONTEXT.get({}), **fields})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def read_context() -> Mapping[str, Any]:
    """Return the fields that :func:`log_context` puts on this thread's lines."""
    return _CONTEXT.get({})


def configure_logs(name: str = ROOM) -> None:
    """Write this process's lines to stderr; done again it changes nothing.

    The logger that is written is this project's, or "" for all libraries' warnings too.
    """
    level = read_log_level().upper()
    chosen, root = logging.getLogger(name), logging.getLogger()
    # A command writes all libraries' lines before the definitions ask for this project's.
    if not any(isinstance(handler, LineHandler) for handler in (*chosen.handlers, *root.handlers)):
        chosen.addHandler(LineHandler())
    logging.getLogger(ROOM).setLevel(level)
    logging.setLogRecordFactory(_make_record)
    if not name:  # Where nobody takes them they would vanish.
        logging.captureWarnings(capture=True)
    # Told at each run; that dagster.yaml names a handler is tested with the version in use.
    warnings.filterwarnings("ignore", message="Handling yaml-defined logging configuration")


def _make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """Return a record without secrets: Dagster stores its text before any handler sees it."""
    record = logging.LogRecord(*args, **kwargs)
    try:
        said = record.getMessage()
    except (TypeError, ValueError):  # A wrong format is the handler's to tell.
        return record
    hidden = redact(said)
    if hidden != said:
        record.msg, record.args = hidden, ()
    return record


class LineFormatter(logging.Formatter):
    """One line a record: JSON, or text for people."""

    def __init__(self, for_people: bool) -> None:
        """Choose who reads it."""
        super().__init__()
        self._for_people = for_people

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without secrets."""
        line = self._describe_record(record)
        text = _write_for_people(line) if self._for_people else json.dumps(line, default=str)
        return redact(text)

    def _describe_record(self, record: logging.LogRecord) -> dict[str, Any]:
        about: Mapping[str, Any] = getattr(record, "dagster_meta", None) or {}
        event = about.get("orig_message") or record.getMessage()
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "pipeline_event", event),
            **_describe_run(about),
            **_CONTEXT.get({}),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return line


class LineHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes lines to stderr, but for those that a run's handler writes."""

    def __init__(self) -> None:
        """Take the terminal for a reader, everything else for a machine."""
        super().__init__(sys.stderr)
        self._for_people = sys.stderr.isatty()
        self.setFormatter(LineFormatter(self._for_people))

    def filter(self, record: logging.LogRecord) -> bool:
        """Leave a run's lines to the run, which Dagster has taken over, and Python's warnings out.

        These are for developers: a log has them, a terminal does not.
        """
        handlers = logging.getLogger(ROOM).handlers
        is_taken_over = any(type(handler).__name__ == "DagsterLogHandler" for handler in handlers)
        is_runs = record.name.startswith(ROOM) and is_taken_over
        is_code = record.name == "py.warnings" and self._for_people
        return not is_runs and not is_code and bool(super().filter(record))


class RunHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes what a run's steps say, and what they fail of; dagster.yaml names it.

    On a terminal Dagster's own lines are enough. Whether there is one is asked before the first
    step: while a step runs, Dagster puts a pipe in the terminal's place. A process that writes a
    run's lines itself sets ``is_silent``.
    """

    is_silent = False

    def __init__(self) -> None:
        """Write to stderr at LOG_LEVEL and above."""
        super().__init__(sys.stderr)
        self._is_terminal = sys.stderr.isatty()
        self.setLevel(read_log_level().upper())
        self.setFormatter(LineFormatter(for_people=False))

    def filter(self, record: logging.LogRecord) -> bool:
        """Leave Dagster's events to its event log, but for failures."""
        about = getattr(record, "dagster_meta", None) or {}
        happened = about.get("dagster_event")
        should_emit = happened is None or happened.event_type_value in _FAILURES
        is_read = self.is_silent or self._is_terminal
        return should_emit and not is_read and bool(super().filter(record))


def escape_controls(text: str) -> str:
    """Return a text in which control characters are seen and do nothing."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


class _Logger:
    """A structlog logger, made when its first line is written: structlog takes 0.1 s to load."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        import structlog

        bound = structlog.wrap_logger(
            logging.getLogger(self._name),
            processors=[structlog.stdlib.filter_by_level, _hand_over],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
        return getattr(bound, attribute)


def _hand_over(
    _: Any, __: str, fields: "structlog.typing.EventDict"
) -> tuple[tuple[str], dict[str, Any]]:
    """Turn an event and its fields into a record that others can read, too."""
    event, exc_info = str(fields.pop("event")), fields.pop("exc_info", None)
    about = {name: value for name, value in _CONTEXT.get({}).items() if name not in _KNOWN}
    said = " ".join(f"{name}={value}" for name, value in {**about, **fields}.items())
    text = escape_controls(f"{event} {said}".rstrip()).replace("%", "%%")
    extra = {_FIELDS: dict(fields), "pipeline_event": event}
    return (redact(text),), {"extra": extra, "exc_info": exc_info}


def _describe_run(about: Mapping[str, Any]) -> dict[str, Any]:
    names = {"run_id": "run_id", "job_name": "job", "step_key": "step"}
    found = {new: about.get(old) for old, new in names.items() if about.get(old)}
    happened = about.get("dagster_event")
    error = getattr(getattr(happened, "event_specific_data", None), "error", None)
    return {**found, **({"error": error.to_string()} if error is not None else {})}


def _write_for_people(line: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in line.items() if name not in ("timestamp", "logger")}
    level, event = shown.pop("level"), escape_controls(str(shown.pop("event")))
    exception = shown.pop("exception", "") or shown.pop("error", "")
    rest = " ".join(f"{name}={escape_controls(str(value))}" for name, value in shown.items())
    return "\n".join(filter(None, [f"{level}: {event}  {rest}".rstrip(), exception]))
