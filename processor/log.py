"""Logs: one canonical line per unit of work, for people on a terminal, JSON otherwise.

To stderr always, so that a command's own output can be piped. Every line passes the
redaction last, after exceptions were formatted. structlog takes a quarter of a second
to import: the command line imports this module late.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO

import structlog
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from processor.redact import redact

if TYPE_CHECKING:
    from processor.config import Settings

Format = Literal["auto", "console", "json"]
Level = Literal["debug", "info", "warning", "error"]

get_logger = structlog.get_logger

bind = bound_contextvars
"""`with bind(job_id=…, task=…, attempt=…):` adds to every line written inside, in this thread."""


def configure(*, fmt: Format = "auto", level: Level = "info", stream: TextIO | None = None) -> None:
    """Set up logging for this process. May be called again; the last call holds.

    Args:
        stream: `sys.stderr` as it is when a line is written, if None, so that a live
            display which redirects it stays whole.
    """
    tty = (stream or sys.stderr).isatty()
    for_people = fmt == "console" or (fmt == "auto" and tty)
    render: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=tty, exception_formatter=structlog.dev.plain_traceback)]
        if for_people
        else [structlog.processors.JSONRenderer(ensure_ascii=False)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if for_people else "iso", utc=not for_people),
            structlog.processors.format_exc_info,
            redact_line,
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(stream),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_FromLibraries()], force=True)


def configure_from(settings: Settings) -> None:
    configure(fmt=settings.log_format, level=settings.log_level)


class Line:
    """The canonical line of one unit of work, gathered while it runs."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def add(self, **fields: Any) -> None:
        self.fields.update(fields)


@contextmanager
def unit_of_work(event: str, **fields: Any) -> Iterator[Line]:
    """Write one line when the block ends, with how long it took and what was added.

    An exception is named on the line, at level error, and goes on: whoever decides
    about it owns the traceback.
    """
    line = Line()
    begun = time.monotonic()
    level = logging.INFO
    try:
        yield line
    except BaseException as error:
        level = logging.ERROR if isinstance(error, Exception) else logging.WARNING
        line.fields.setdefault("error", f"{type(error).__name__}: {error}")
        raise
    finally:
        taken_s = round(time.monotonic() - begun, 3)
        get_logger().log(level, event, **{**fields, **line.fields, "taken_s": taken_s})


def redact_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: no secret leaves in any value, however deep it lies."""
    texts = "\n".join(value for value in event.values() if isinstance(value, str))
    clean = redact(texts) == texts  # nearly always: one pass instead of one a value
    return {
        key: value if clean and isinstance(value, str) else _redacted(value) for key, value in event.items()
    }


def _redacted(value: Any) -> Any:
    match value:
        case str():
            return redact(value)
        case bool() | int() | float() | None:
            return value
        case dict():
            return {str(key): _redacted(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redacted(item) for item in value]
    return redact(str(value))


class _Lines:
    """Writes whole lines; a closed or broken stream never stops the work."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        stream = self._stream or sys.stderr
        try:
            stream.write(message + "\n")
            stream.flush()
        except (OSError, ValueError):
            return

    debug = info = warning = warn = error = critical = fatal = exception = log = msg


class _FromLibraries(logging.Handler):
    """Brings what libraries log through the standard module into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None
        )
