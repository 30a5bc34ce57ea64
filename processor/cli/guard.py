"""Around every command: errors become one readable line and an exit code, signals end it cleanly."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, ParamSpec, TypeVar

import typer

from processor.cli.exits import Exit, exit_code
from processor.errors import DropbatchError
from processor.redact import redact

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
            # The reader (`| head`) has gone; nothing more may be written, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(Exit.OK)
        except OSError as error:
            if error.filename is None:
                _tell_defect(error)
            # A file or folder of this machine that is not there, not ours, or not what it should be.
            _tell(error, f"{error.filename}: {error.strerror}")
            sys.exit(Exit.FAILED)
        except Exception as error:  # noqa: BLE001  (the outermost handler: a person reads what it says)
            _tell_defect(error)

    return run


def _terminate(_number: int, _frame: FrameType | None) -> None:
    sys.exit(Exit.TERMINATED)


def _tell_defect(error: Exception) -> NoReturn:
    _tell(error, f"{type(error).__name__}: {error}. A defect; DROPBATCH_DEBUG=1 shows more")
    sys.exit(Exit.INTERNAL)


def _tell(error: Exception, line: str) -> None:
    if os.environ.get("DROPBATCH_DEBUG") == "1":
        raise error
    print(f"error: {redact(line)}", file=sys.stderr)
