"""`run` as a process: it stays, is woken by a drop, and ends cleanly when told to."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from processor.cli.display import Display
from processor.errors import ErrorKind
from processor.events import (
    JobClaimed,
    JobPlanned,
    JobReleased,
    JobSettled,
    TaskFinished,
    TaskProgress,
    TaskStarted,
)
from processor.handler import Progress
from processor.records import ErrorReport, Outcome
from tests.unit.cli.conftest import Dropbatch
from tests.unit.test_gallery import JOB, manifest, result

ROOT = Path(__file__).parents[3]
DEADLINE_S = 30


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something another process does."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(
    dropbatch: Dropbatch, bucket: Path, job_file: Callable[..., Path], number: signal.Signals, code: int
) -> None:
    """What was dropped while it ran is done; its exit code is the signal's, as the shell has it."""
    command = [sys.executable, "-c", "from processor.cli import main; main()", "run", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            eventually((bucket / "state" / "authority.json").exists)
            job = dropbatch("drop", job_file()).out.strip()
            eventually((bucket / "comfy_outputs" / job / "manifest.json").exists)
            eventually(lambda: not list((bucket / "inbox/jobs").glob("*.json")))
            process.send_signal(number)
            out, err = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert process.returncode == code, err
    assert json.loads(out)["outcomes"] == {"done": 1}
    assert b"Traceback" not in err


STUBBORN = """
import time
from pathlib import Path
from processor.testing.handler import ScriptedHandler

class Stubborn:
    @classmethod
    def configured(cls, settings, stores):
        def script(work, context):
            Path("begun").touch()
            time.sleep(600)
        return ScriptedHandler(script)
"""


@pytest.mark.usefixtures("bucket")
def test_a_second_signal_ends_it_at_once(
    dropbatch: Dropbatch, job_file: Callable[..., Path], tmp_path: Path
) -> None:
    """It went on waiting for the threads of tasks that did not heed the first."""
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    dropbatch("drop", job_file())
    command = [sys.executable, "-c", "from processor.cli import main; main()", "run", "--plain"]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "DROPBATCH_HANDLERS": '{"render": "stubborn:Stubborn"}',
    }
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        try:
            eventually((tmp_path / "begun").exists)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            assert process.poll() is None, "the first lets tasks end"
            process.send_signal(signal.SIGINT)
            assert process.wait(5) == 130
        finally:
            process.kill()


def test_the_display_leaves_a_line_for_each_job() -> None:
    """Done, failed with its reason, given back; and survives events of jobs it never saw."""
    stream = io.StringIO()
    display = Display(Console(file=stream, width=120, force_terminal=True, color_system=None))
    error = ErrorReport(kind=ErrorKind.NODE_FAILED, what="no [bold]luck[/bold]", where="node 3")
    with display.shown():
        display(JobClaimed(JOB, "inbox/jobs/cats.json"))
        display(JobPlanned(JOB, 2, adopted=0))
        display(TaskStarted(JOB, 0))
        display(TaskProgress(JOB, 0, Progress("KSampler", 3, 20)))
        display(TaskFinished(JOB, result(0), will_retry=False))
        display(TaskFinished("unseen-0123456789abcdef", result(0), will_retry=True))
        display(
            JobSettled(
                JOB, manifest(result(0), result(1, status="failed", error=error), outcome=Outcome.PARTIAL)
            )
        )
        display(JobClaimed("back-0123456789abcdef", "inbox/jobs/back.json"))
        display(JobReleased("back-0123456789abcdef", "lease lost"))
    text = stream.getvalue()
    assert f"◐ {JOB}  partial" in text
    assert "1 of 2 tasks" in text
    assert "node 3: no [bold]luck[/bold]" in text
    assert "back-0123456789abcdef  given back: lease lost" in text
