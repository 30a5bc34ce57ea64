"""What can go wrong, said so that a person can mend it.

Adapters (stores, lease stores, the ComfyUI client, the trainer process) translate
their libraries' errors into these. Middle layers don't catch. `processor.retry`
decides what an `ErrorKind` means, and `processor.execute` is the one place that
turns an exception into a recorded outcome.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class DropbatchError(Exception):
    """Base of every error a person may see.

    Args:
        what: one sentence, without a final full stop.
        where: the file, key, field or node it is about.
        mend: what to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.mend = mend

    def __reduce__(self) -> tuple[Any, ...]:
        """Made again without its constructor, which may want more than the text that `args` holds."""
        return _again, (type(self), self.args), vars(self)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.mend}" if self.mend else text


def _again(kind: type[DropbatchError], args: tuple[Any, ...]) -> DropbatchError:
    return kind.__new__(kind, *args)


class ConfigError(DropbatchError):
    """The settings can't be used as they are."""


# --- store and lease store -------------------------------------------------------


class StoreError(DropbatchError):
    """Base of what a store or a lease store raises."""


class NotFound(StoreError):
    """The key, or that version of it, is not there. Never inferred from a 403 alone."""


class AlreadyExists(StoreError):
    """A put-if-absent found something standing."""


class VersionMismatch(StoreError):
    """What stands at the key is not the version that was named; nothing was changed."""


class AccessDenied(StoreError):
    """The store refuses: a missing capability, a wrong key, or a daily cap."""


class CapReached(AccessDenied):
    """A daily cap of the account is used up: it ends by itself, at midnight UTC."""


class InvalidKey(StoreError):
    """The key breaks the store's naming rules or would leave its root."""


class TooLarge(StoreError):
    """The object is larger than the caller allows."""


class StoreUnavailable(StoreError):
    """A passing fault that outlasted the adapter's own retries. Whether a write took
    effect is unknown; every write in the protocol may be repeated."""


class LeaseLost(DropbatchError):
    """Another process may own this job now: start nothing, commit nothing."""


class ForeignAuthority(DropbatchError):
    """This bucket's leases live in another lease store than the one configured here."""


# --- jobs and tasks --------------------------------------------------------------


class ErrorKind(StrEnum):
    """Why a job or task failed. `processor.retry` maps each to a decision."""

    INVALID = "invalid"
    """The drop or the graph breaks a rule; the same bytes will always break it."""
    MISSING_MODEL = "missing_model"
    MISSING_NODE = "missing_node"
    BAD_INPUT = "bad_input"
    """An input file is missing, unreadable or refused."""
    REFUSED = "refused"
    """Policy says no: a denied node, a private address, a limit."""
    NODE_FAILED = "node_failed"
    """A node raised while it ran; deterministic until shown otherwise."""
    OVER_BUDGET = "over_budget"
    CANCELLED = "cancelled"

    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"
    """The engine process died or its socket was lost for good."""
    TIMED_OUT = "timed_out"
    UNAVAILABLE = "unavailable"
    """A 5xx, a connection refused, a store that does not answer."""
    NO_ENGINE = "no_engine"
    """What tasks run on is not there, for as long as was waited for it. Nothing is wrong with the task:
    its job is given back, and waits."""
    NO_STORE = "no_store"
    """The store doesn't take what a task made, for as long as was waited for it. As NO_ENGINE."""
    PREEMPTED = "preempted"
    INTERNAL = "internal"
    """Our own defect: an exception nobody translated."""


class JobInvalid(DropbatchError):
    """The drop can't become a job. Ends as outcome `invalid`, with a report."""

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        mend: str | None = None,
        kind: ErrorKind = ErrorKind.INVALID,
        details: list[str] | None = None,
    ) -> None:
        super().__init__(what, where=where, mend=mend)
        self.kind = kind
        self.details = details or []


class TaskFailed(DropbatchError):
    """A task ended without a result. `kind` decides whether it is tried again."""

    log: str = ""
    """The engine's log while the task ran, redacted: where it failed is where it is wanted."""

    def __init__(
        self,
        kind: ErrorKind,
        what: str,
        *,
        where: str | None = None,
        mend: str | None = None,
        details: list[str] | None = None,
    ) -> None:
        super().__init__(what, where=where, mend=mend)
        self.kind = kind
        self.details = details or []
