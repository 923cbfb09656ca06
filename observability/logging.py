"""Logging of a process: format, levels, and the ids of the current work in each line."""

import logging
from typing import Final, Literal, TextIO

from opentelemetry import trace
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from observability.context import current_context

# The lowest level of each library, also where the process logs at DEBUG. At DEBUG they log whole requests,
# and so the private key on its way to Secrets Manager. httpx2 logs each URL at INFO, and so the token in a
# webhook's URL.
_LIBRARY_LEVELS: Final = {
    "alembic": logging.INFO,
    "boto3": logging.INFO,
    "botocore": logging.INFO,
    "httpcore2": logging.INFO,
    "httpx2": logging.WARNING,
    "urllib3": logging.INFO,
}
# The logger of the log sink. Its lines are delivered events, which no level may suppress.
_EVENT_LOGGER: Final = "thingbridge.events"
# Fields in which Temporal and uvicorn repeat the message.
_DUPLICATE_FIELDS: Final = ("temporal_log", "color_message")


def configure_logging(level: str, form: Literal["json", "text"], stream: TextIO | None) -> None:
    """Send the process's log to one stream.

    Args:
        level: the lowest level that is logged.
        form: `json`, one object a line with the ids of the current work; or `text`.
        stream: the destination; None is standard error.
    """
    handler = logging.StreamHandler(stream)
    if form == "json":
        handler.addFilter(_add_ids)
        handler.setFormatter(
            JsonFormatter(
                "{asctime}{levelname}{name}{message}",
                style="{",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
                datefmt="%Y-%m-%dT%H:%M:%S%z",
                reserved_attrs=[*RESERVED_ATTRS, *_DUPLICATE_FIELDS],
            )
        )
    else:
        handler.setFormatter(logging.Formatter("{asctime} {levelname:7} {name}: {message}", style="{"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, lowest in _LIBRARY_LEVELS.items():
        # The INFO lines of these libraries are of use only to somebody who debugs.
        library_level = lowest if level == "DEBUG" else logging.WARNING
        logging.getLogger(name).setLevel(max(library_level, logging.getLevelName(level)))
    logging.getLogger(_EVENT_LOGGER).setLevel(min(logging.INFO, logging.getLevelName(level)))


def silence_request_logging() -> None:
    """Prevent libraries from logging whole requests, which may hold keys, where a host configures logging."""
    for name, lowest in _LIBRARY_LEVELS.items():
        library = logging.getLogger(name)
        library.setLevel(max(lowest, library.level))


def _add_ids(record: logging.LogRecord) -> bool:
    """Add the ids of the current work to a log record; fields that it has already are kept."""
    fields = record.__dict__
    for name, value in current_context().items():
        fields.setdefault(name, value)
    if workflow := fields.get("temporal_workflow"):
        fields.setdefault("workflow_id", workflow["workflow_id"])
        fields.setdefault("run_id", workflow["run_id"])
    if activity := fields.get("temporal_activity"):
        fields.setdefault("workflow_id", activity.get("workflow_id"))
        fields.setdefault("run_id", activity.get("workflow_run_id"))
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        fields.setdefault("trace_id", f"{span.trace_id:032x}")
    return True
