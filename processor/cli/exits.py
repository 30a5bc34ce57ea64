"""What `dropbatch` says when it ends, to the shell. The one list of exit codes."""

from __future__ import annotations

from enum import IntEnum

from processor.errors import ConfigError, DropbatchError, InvalidKey, NotFound, StoreError, TooLarge


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1
    """A job failed or is invalid; a check found something; `doctor` found a fault; a file of
    this machine is not as the command needs it."""
    USAGE = 2
    """The command line is wrong (also Typer's code)."""
    CONFIG = 3
    """The settings can't be used as they are."""
    STORE = 4
    """The store is unreachable, refuses, or holds something else than it should."""
    NOT_FOUND = 5
    """There is no such job, file or key."""
    INTERNAL = 70
    """Our own defect; `DROPBATCH_DEBUG=1` shows the traceback (BSD's EX_SOFTWARE)."""
    INTERRUPTED = 130
    """SIGINT."""
    TERMINATED = 143
    """SIGTERM."""


class NoSuchJob(DropbatchError):
    """No job's id begins like that, or several do."""


class UsageError(DropbatchError):
    """Arguments that don't fit together."""


def exit_code(error: DropbatchError) -> Exit:
    """The exit code that an error ends a command with."""
    match error:
        case ConfigError():
            return Exit.CONFIG
        case NoSuchJob() | NotFound():
            return Exit.NOT_FOUND
        case UsageError():
            return Exit.USAGE
        case InvalidKey() | TooLarge():
            return Exit.FAILED
        case StoreError():
            return Exit.STORE
    return Exit.FAILED
