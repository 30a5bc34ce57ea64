"""`dropbatch run`: process the bucket on this machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from processor.cli import console
from processor.cli.exits import Exit
from processor.cli.options import Bucket, Config, EndpointUrl, Json, load_settings

if TYPE_CHECKING:
    from processor.cli.display import Display
    from processor.config import Settings
    from processor.machine import Machine
    from processor.run import RunReport, Wake

_SHOW_CURSOR: Final = b"\x1b[?25h\n"
"""The live display hides it."""


def command(
    *,
    once: Annotated[bool, typer.Option("--once", help="End when nothing is due any more.")] = False,
    night: Annotated[
        bool, typer.Option("--night", help="Take the jobs that wait for the night now.")
    ] = False,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Jobs in work at a time.", show_default=False)
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Log lines instead of the live display.")] = False,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Process the bucket on this machine.

    Stays until it is interrupted, woken by what is dropped; tasks that run then are given
    back, and another runner takes them up. ComfyUI is the one that COMFYUI_URL or COMFYUI_DIR
    names, else a small built-in engine for graphs without models.

    \b
    Example:
      dropbatch run --once --bucket ./my-bucket
      COMFYUI_URL=http://127.0.0.1:8188 dropbatch run
    """
    settings = load_settings(config, bucket, endpoint_url, concurrency=concurrency)
    display = None
    if sys.stderr.isatty() and not plain and settings.log_format == "auto":
        from processor.cli.display import Display

        display = Display()
    report, signalled = run_bucket(settings, once=once, night=night, display=display)
    if as_json:
        console.print_json(
            {
                "outcomes": {outcome.value: count for outcome, count in report.outcomes.items()},
                "given_back": report.given_back,
                "problem": report.problem,
                "over_budget": report.over_budget,
                "paused": report.paused,
            }
        )
    raise typer.Exit(_exit(report, signalled))


def run_bucket(
    settings: Settings, *, once: bool, display: Display | None, night: bool = False
) -> tuple[RunReport, signal.Signals | None]:
    """Build the machine and run it, with or without someone watching.

    Returns:
        What came of it, and the signal that ended it, if one did.
    """
    from processor import log
    from processor.assembly import build
    from processor.events import ignore
    from processor.run import Wake, run
    from processor.watch import waking

    log.configure(fmt=settings.log_format, level="warning" if display else settings.log_level)
    machine = build(settings, display or ignore)
    wake = Wake()
    with _stopping(machine, wake) as signalled:
        try:
            with waking(machine.stores.main, wake), display.shown() if display else nullcontext():
                report = run(
                    machine,
                    concurrency=settings.concurrency,
                    once=once,
                    night_open=True if night else None,
                    period_s=settings.tick_s,
                    wake=wake,
                )
        finally:
            machine.close()  # may wait for tasks, and is ended by a second signal, too
    return report, signalled[0] if signalled else None


@contextmanager
def _stopping(machine: Machine, wake: Wake) -> Iterator[list[signal.Signals]]:
    """The first SIGINT or SIGTERM winds down, a second one ends at once."""
    from processor.errors import ErrorKind

    received: list[signal.Signals] = []

    def wind_down() -> None:
        machine.stop.set(ErrorKind.PREEMPTED)
        wake.set()

    def handle(number: int, _frame: FrameType | None) -> None:
        if received:
            _end_at_once(128 + number)
        received.append(signal.Signals(number))
        # Not here: this interrupts whatever the main thread does, maybe holding those locks.
        threading.Thread(target=wind_down, name="wind-down").start()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_once(code: int) -> NoReturn:
    """Without what `sys.exit` would still wait for: threads whose tasks don't heed a stop. What was
    claimed is found again when its lease runs out; engines end with this process."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # interrupted, maybe, in the middle of writing to it
            stream.flush()
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), _SHOW_CURSOR)
    os._exit(code)


def _exit(report: RunReport, signalled: signal.Signals | None) -> int:
    if signalled is not None:
        return 128 + signalled
    if report.over_budget is not None:
        console.note(f"{report.over_budget}: what is due waits in the inbox for tomorrow")
    if report.paused:
        console.note("this bucket is paused; `dropbatch resume` lets it go on")
    if report.problem is not None:
        console.warn(report.problem)
        return Exit.STORE
    return Exit.OK if report.all_well else Exit.FAILED
