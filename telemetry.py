"""What the process says of itself: structured logs on standard error."""

import functools
import logging
from typing import Final, Literal, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter

# At DEBUG these write whole requests, and so the private key on its way to Secrets Manager.
_NEVER_VERBOSE: Final = ("boto3", "botocore", "urllib3")
# Temporal's and uvicorn's own copies of what is in the message.
_SAID_TWICE: Final = ("temporal_log", "color_message")


def configure(level: str, form: Literal["json", "text"], stream: TextIO | None = None) -> None:
    """Send every log line to one stream; call it before a Temporal client is made.

    Args:
        level: the least that is said.
        form: `json`, one object a line with the workflow, run and activity it speaks of; or `text`.
        stream: none: standard error.
    """
    handler = logging.StreamHandler(stream)
    if form == "json":
        handler.setFormatter(
            JsonFormatter(
                "{asctime}{levelname}{name}{message}",
                style="{",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
                datefmt="%Y-%m-%dT%H:%M:%S%z",
                reserved_attrs=[*RESERVED_ATTRS, *_SAID_TWICE],
            )
        )
    else:
        handler.setFormatter(logging.Formatter("{asctime} {levelname:7} {name}: {message}", style="{"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _NEVER_VERBOSE:
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLevelName(level)))
    _log_the_core_too()


def hush_requests() -> None:
    """Have the libraries that see keys never say whole requests, where logging is set up by others."""
    for name in _NEVER_VERBOSE:
        library = logging.getLogger(name)
        library.setLevel(max(logging.INFO, library.level))


@functools.cache
def _log_the_core_too() -> None:
    """Have the SDK's core log where all else does: by itself it writes coloured text to standard output."""
    forwarding = LogForwardingConfig(
        logging.getLogger("temporalio.core"), append_target_to_name=False, prepend_target_on_message=False
    )
    said = LoggingConfig(TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding)
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=said)), error_if_already_set=False)
