"""Errors as people see them: one line on a terminal, `error.json` beside a settled drop.

Every text that leaves through here is redacted and bounded, whoever raised the error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from processor import errors
from processor.errors import DropbatchError, ErrorKind, JobInvalid, TaskFailed
from processor.redact import redact
from processor.spelling import readable

if TYPE_CHECKING:
    from processor.records import ErrorReport, Manifest

MAX_TEXT = 2_000
MAX_DETAILS = 50
MAX_TASKS_REPORTED = 100
"""Failed tasks in an error.json; the manifest has them all."""

_KINDS: Final[Sequence[tuple[type[DropbatchError], ErrorKind]]] = (
    (errors.NotFound, ErrorKind.BAD_INPUT),
    (errors.TooLarge, ErrorKind.BAD_INPUT),
    (errors.InvalidKey, ErrorKind.BAD_INPUT),
    (errors.StoreError, ErrorKind.UNAVAILABLE),
    (errors.LeaseLost, ErrorKind.PREEMPTED),
    (errors.ForeignAuthority, ErrorKind.UNAVAILABLE),
    (errors.ConfigError, ErrorKind.REFUSED),
)
"""First match wins. AccessDenied is UNAVAILABLE: a daily cap ends, a key can be mended."""


def error_report(error: BaseException) -> ErrorReport:
    """Any exception as the record that manifests and pages show."""
    from processor.records import ErrorReport

    details: list[str] = []
    if isinstance(error, JobInvalid | TaskFailed):
        kind, details = error.kind, error.details
    elif isinstance(error, DropbatchError):
        kind = next((kind for cls, kind in _KINDS if isinstance(error, cls)), ErrorKind.INTERNAL)
    else:
        kind = ErrorKind.INTERNAL
    if isinstance(error, DropbatchError):
        what, where, mend = error.what, error.where, error.mend
    else:
        what, where, mend = f"{type(error).__name__}: {error}", None, None
    return ErrorReport(
        kind=kind,
        what=_clean(what) or type(error).__name__,
        where=_clean(where) if where else None,
        mend=_clean(mend) if mend else None,
        details=[_clean(detail) for detail in details[:MAX_DETAILS]],
    )


def error_line(report: ErrorReport) -> str:
    """An error report on one line: where, what, mend."""
    text = f"{report.where}: {report.what}" if report.where else report.what
    return " ".join((f"{text}. {report.mend}" if report.mend else text).split())


def error_json(manifest: Manifest) -> bytes:
    """`error.json` of a job that did not end well, from its manifest only."""
    failed = [result for result in manifest.tasks if result.error is not None]
    document: dict[str, Any] = {
        "job_id": manifest.job_id,
        "outcome": manifest.outcome.value,
        "drop": {"key": manifest.drop.key, "version": manifest.drop.version},
        "finished_at": manifest.finished_at.isoformat(),
        "error": manifest.error.model_dump(mode="json", exclude_defaults=True) if manifest.error else None,
        "failed_tasks": len(failed),
        "tasks": [
            {
                "index": result.index,
                "params": result.params,
                "seed": result.seed,
                "tries": result.tries,
                "error": result.error.model_dump(mode="json", exclude_defaults=True)
                if result.error
                else None,
            }
            for result in failed[:MAX_TASKS_REPORTED]
        ],
        "attempts": [attempt.model_dump(mode="json") for attempt in manifest.attempts],
    }
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _clean(text: str) -> str:
    return redact(readable(text[: MAX_TEXT * 2]))[:MAX_TEXT]
