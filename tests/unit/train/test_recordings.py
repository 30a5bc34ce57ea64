"""Every recording of the real trainer parses, and is classified as what it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from handlers.train.trainlog import NanLoss, OptimizerSaved, Pieces, Resumed, Saved, Step, is_bar, read_piece
from handlers.train.verdict import failure
from processor.errors import ErrorKind

RECORDINGS = Path(__file__, "../../../../../shared/recordings/ai-toolkit-0.12.26").resolve()
NAME = "tiny_lora"

pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the trainer's recordings are not here")

ENDS: dict[str, ErrorKind | None] = {
    "adamw8bit": None,
    "bad_caption": ErrorKind.BAD_INPUT,
    "bf16": None,
    "cache_to_disk": None,
    "corrupt_image_garbage": None,
    "corrupt_image_truncated": None,
    "corrupt_image_truncated_cached": None,
    "cpu_torch": None,
    "diffusers_0.40_import_fail": ErrorKind.NODE_FAILED,
    "empty_dataset": ErrorKind.BAD_INPUT,
    "exc_bad_model": ErrorKind.MISSING_MODEL,
    "exc_bad_optimizer": ErrorKind.INVALID,
    "exc_bad_process": ErrorKind.INVALID,
    "exc_bad_yaml": ErrorKind.INVALID,
    "extend_steps": None,
    "logflag": None,
    "missing_dataset": ErrorKind.BAD_INPUT,
    "no_captions": None,
    "rerun_finished": None,
    "resume_ctime_trap": None,
    "resume_stray_file": ErrorKind.CRASHED,
    "resume_truncated_ckpt": ErrorKind.CRASHED,
    "resume_truncated_optimizer": None,
    "sampling": None,
    "sigint": None,
    "sigkill": ErrorKind.CRASHED,
    "sigterm": ErrorKind.PREEMPTED,
    "sigterm_during_load": ErrorKind.PREEMPTED,
    "sigterm_resume": None,
    "train_ok": None,
    "triton_installed_no_gpu": ErrorKind.NODE_FAILED,
}
"""Exit 0 is no verdict of its own: `sigint` left no result."""


def events(text: str) -> list[object]:
    """What a reader makes of a recording that arrives in pieces of seven characters."""
    pieces = Pieces()
    found: list[str] = []
    for at in range(0, len(text), 7):
        found.extend(pieces.feed(text[at : at + 7]))
    found.extend(pieces.end())
    return [event for piece in found if (event := read_piece(piece, NAME)) is not None]


def recorded(name: str) -> tuple[str, int]:
    text = (RECORDINGS / f"{name}.log").read_bytes().decode()
    match = re.search(r"^exit code: (-?\d+)$", text, re.MULTILINE)
    assert match is not None
    return text, int(match[1])


def test_no_recording_is_left_out() -> None:
    """A new recording needs a verdict here."""
    assert {path.stem for path in RECORDINGS.glob("*.log")} == set(ENDS)


@pytest.mark.parametrize("name", ENDS)
def test_each_end_is_classified_right(name: str) -> None:
    """From the exit code and the output alone, as the handler has them."""
    text, exit_code = recorded(name)
    error = failure(exit_code, text)
    assert (error.kind if error else None) == ENDS[name], error
    if error and exit_code > 0:
        assert "Error" in error.what or error.mend


def test_what_the_trainer_could_do_without_is_not_why_it_ended() -> None:
    """It says so of optional packages, and goes on; the last error counts."""
    said = "Warning: cannot import name 'flash_attn' from 'x', going on without\n"
    other = failure(1, f"{said}Traceback (most recent call last):\nRuntimeError: cosmic ray")
    assert other is not None
    assert (other.kind, "cosmic ray" in other.what) == (ErrorKind.CRASHED, True)
    broken = failure(1, "Traceback (most recent call last):\nImportError: cannot import name 'x' from 'y'")
    assert broken is not None
    assert broken.kind is ErrorKind.NODE_FAILED


@pytest.mark.parametrize("name", [name for name, kind in ENDS.items() if kind is None])
def test_each_progress_bar_reads_to_its_last_step(name: str) -> None:
    """Steps only rise, all losses are numbers, and the last step is the one that was reached."""
    text, _ = recorded(name)
    steps = [event for event in events(text) if isinstance(event, Step)]
    done = [step.done for step in steps]
    assert done == sorted(done)
    last = re.findall(rf"{NAME}: .*?(\d+)/(\d+) \[", text)[-1]
    assert (steps[-1].done, steps[-1].total) == (int(last[0]), int(last[1]))
    if name != "rerun_finished":
        assert all(step.loss is None or 0 < step.loss < 10 for step in steps)
        assert any(step.loss for step in steps)
        assert any(step.lr == 1e-4 for step in steps)


def test_a_good_run_reads_step_by_step() -> None:
    """The losses of each step, and both saves, in order."""
    text = (RECORDINGS / "train_ok.stderr").read_text() + (RECORDINGS / "train_ok.stdout").read_text()
    found = events(text)
    losses = {step.done: step.loss for step in found if isinstance(step, Step) and step.done < step.total}
    assert losses == {0: 1.307, 1: 1.189, 2: 1.237, 3: 1.118}
    saves = [event for event in found if isinstance(event, Saved | OptimizerSaved)]
    names = [event.path.name if isinstance(event, Saved) else "optimizer" for event in saves]
    assert names == [f"{NAME}_000000002.safetensors", "optimizer", f"{NAME}.safetensors", "optimizer"]


def test_a_resumed_run_says_where_it_goes_on() -> None:
    """The step in the checkpoint's metadata."""
    text, _ = recorded("sigterm_resume")
    assert Resumed(100) in events(text) or Resumed(101) in events(text)


def test_bars_are_told_from_lines_worth_keeping() -> None:
    """A log of the interesting lines has no bars, and no line less."""
    text, _ = recorded("sampling")
    kept = [piece for piece in Pieces().feed(text + "\n") if not is_bar(piece)]
    assert not any("%|" in piece for piece in kept)
    assert any(piece.startswith("Saved checkpoint to") for piece in kept)


def test_a_nan_loss_is_seen_in_either_form() -> None:
    """The trainer prints one and shows the other."""
    assert read_piece("loss is nan", NAME) == NanLoss()
    step = read_piece(f"{NAME}:  25%|##5  | 1/4 [00:00<00:01,  1.91it/s, lr: 1.0e-04 loss: nan]", NAME)
    assert isinstance(step, Step)
    assert step.loss != step.loss
