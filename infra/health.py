"""Whether a container's GPU and engine are fit for another task."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, Final

import structlog

from processor.errors import DropbatchError, ErrorKind

log = structlog.get_logger(__name__)

_CHECK_EVERY_S: Final = 30.0
_SICK: Final = frozenset(
    {ErrorKind.CRASHED, ErrorKind.UNAVAILABLE, ErrorKind.OUT_OF_MEMORY, ErrorKind.INTERNAL}
)
"""Failures after which the container is looked at before it takes another task."""
_MAX_STRIKES: Final = 3
_SMI_TIMEOUT_S: Final = 20.0
_MODELS: Final = re.compile(r"\b(T4|L40S|L4|A100|A10|H100|H200|B200)")


class Fitness:
    """Between tasks: is this container fit for the next? A sick one gets nothing more. Thread-safe.

    Args:
        drain: makes Modal send this container nothing more.
    """

    def __init__(self, handler: Any, drain: Callable[[], None]) -> None:
        self._handler = handler
        self._drain = drain
        self._lock = threading.Lock()
        self._strikes = 0
        self._struck_at = self._checked_at = time.monotonic()

    def look(self, failures: Collection[ErrorKind], *, began: float) -> None:
        """Called after tasks that began then, by `time.monotonic()`, and failed of these, or of none."""
        now = time.monotonic()
        with self._lock:
            if _SICK.isdisjoint(failures):
                self._strikes = 0
            elif began >= self._struck_at:  # else it fell with the engine that was counted already
                self._strikes, self._struck_at = self._strikes + 1, now
            if not self._strikes and now - self._checked_at < _CHECK_EVERY_S:
                return
            self._checked_at, strikes = now, self._strikes
        problem = gpu_problem() or engine_problem(self._handler)
        if problem is None and strikes >= _MAX_STRIKES:
            problem = f"{strikes} failures in a row that other machines may not have"
        if problem is not None:
            log.error("container.sick", why=problem)
            self._leave()

    def _leave(self) -> None:
        try:
            self._drain()
        except Exception:
            # What was just finished must reach its caller; the next look asks again.
            log.exception("container.not_drained")


def warm(handler: Any) -> None:
    """Start the engine before the first task comes, where the handler has one.

    One that can't start must not fail the container's start, which Modal would try again and again: the
    first task meets the same, and its failure is recorded and decided upon.
    """
    start = getattr(handler, "warm", None)
    if not callable(start):
        return
    try:
        start()
    except DropbatchError as error:
        log.warning("engine.not_started", why=str(error))


def gpu_problem() -> str | None:
    """What is wrong with a GPU; None if all answer, or if there is none here. Takes ~50 ms."""
    _, problem = _ask_smi()
    return problem


@cache
def gpu_class() -> str | None:
    """What this container got, in Modal's words: `L40S`, `H100:2` for two; None without a GPU."""
    names, _ = _ask_smi()
    kind = in_modals_words(names[0]) if names else None
    return f"{kind}:{len(names)}" if kind and len(names) > 1 else kind


def in_modals_words(name: str) -> str | None:
    """`NVIDIA A100-SXM4-80GB` is an A100-80GB; None for what Modal doesn't have."""
    found = _MODELS.search(name)
    if found is None:
        return None
    if found[1] == "A100":
        return "A100-80GB" if "80GB" in name else "A100-40GB"
    return found[1]


def engine_problem(handler: Any) -> str | None:
    """What a handler that watches over an engine says of it; None if all is well."""
    ask = getattr(handler, "problem", None)
    return ask() if callable(ask) else None


def _ask_smi() -> tuple[list[str], str | None]:
    """The name of each GPU, a container's are all alike, and what went wrong if they could not be told."""
    binary = shutil.which("nvidia-smi")
    if binary is None:
        return [], None
    try:
        done = subprocess.run(
            [binary, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SMI_TIMEOUT_S,
            env={},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {error}"
    names = [name for line in done.stdout.splitlines() if (name := line.strip())]
    # A GPU that fell off the bus is named on stdout, with exit code 0 on some drivers.
    wrong = next((name for name in names if "error" in name.lower()), "")
    if done.returncode != 0 or wrong or not names:
        said = done.stderr.strip() or wrong or next(iter(names), "")
        return [], (said or f"nvidia-smi ended with {done.returncode}")[:300]
    return names, None
