"""Around every command: errors become one readable line and an exit code, signals end it cleanly."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, ParamSpec, TypeVar

import typer

from processor.cli import reader_gone
from processor.cli.exits import Exit, exit_code
from processor.errors import DropbatchError
from processor.redact import redact

_EXTRAS = ("modal",)
"""Packages that only an extra of the same name brings."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def guarded(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Wrap a command's function; its signature stays for Typer to read."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        try:
            return command(*args, **kwargs)
        except DropbatchError as error:
            _tell(error, " ".join(str(error).split()))
            sys.exit(exit_code(error))
        except typer.Exit:
            raise
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(Exit.INTERRUPTED)
        except BrokenPipeError:
            reader_gone()
        except ModuleNotFoundError as error:
            _end_lacking(error)
        except OSError as error:
            _end_by_system(error)
        except Exception as error:  # noqa: BLE001  (the outermost handler: a person reads what it says)
            _tell_defect(error)

    return run


def _terminate(_number: int, _frame: FrameType | None) -> None:
    sys.exit(Exit.TERMINATED)


def _end_lacking(error: ModuleNotFoundError) -> NoReturn:
    extra = (error.name or "").partition(".")[0]
    if extra not in _EXTRAS:
        _tell_defect(error)
    _tell(error, f"this needs the {extra} extra. pip install 'dropbatch[{extra}]'")
    sys.exit(Exit.CONFIG)


def _end_by_system(error: OSError) -> NoReturn:
    """A file or folder of this machine is not there, not ours, not what it should be, or has no room."""
    if error.errno in _FULL:
        _tell(error, f"{error.strerror}. Make room, or write somewhere else")
    elif error.filename is None:
        _tell_defect(error)
    else:
        _tell(error, f"{error.filename}: {error.strerror}")
    sys.exit(Exit.FAILED)


def _tell_defect(error: Exception) -> NoReturn:
    _tell(error, f"{type(error).__name__}: {error}. A defect; DROPBATCH_DEBUG=1 shows more")
    sys.exit(Exit.INTERNAL)


def _tell(error: Exception, line: str) -> None:
    if os.environ.get("DROPBATCH_DEBUG") == "1":
        raise error
    print(f"error: {redact(line)}", file=sys.stderr)
