"""How a trainer's end is to be understood: its exit code alone proves nothing. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from processor.errors import ErrorKind, TaskFailed

_KILLED: Final = {-9: "killed (often by the machine, out of memory)", -15: "asked to end", -2: "interrupted"}


@dataclass(frozen=True, slots=True)
class _Sign:
    """A text in the output that tells what went wrong."""

    kind: ErrorKind
    what: str
    mend: str
    texts: tuple[str, ...]
    all_of: bool = False
    in_last: bool = False
    """Only from the last error on: before, it is what the trainer could do without."""

    def shows_in(self, output: str, last: str) -> bool:
        match: Callable[[list[bool]], bool] = all if self.all_of else any
        output = output[output.rfind(last) :] if self.in_last and last else output
        return match([text in output for text in self.texts])


_SIGNS: Final = (
    _Sign(
        ErrorKind.OUT_OF_MEMORY,
        "the GPU ran out of memory",
        "Set low_vram, quantize, a lower resolution or batch_size, or a bigger gpu",
        # The trainer skips a batch or two for it, which is no end, and then gives up in words of its own.
        (
            "OutOfMemoryError",
            "CUDA out of memory",
            "CUDA error: out of memory",
            "times in a row, aborting training",
        ),
    ),
    _Sign(
        ErrorKind.BAD_INPUT,
        "a caption is not UTF-8",
        "Save it as UTF-8 and drop the folder again",
        ("UnicodeDecodeError", "load_caption"),
        all_of=True,
    ),
    _Sign(
        ErrorKind.BAD_INPUT,
        "the trainer found no pictures",
        "Check the dataset's files",
        ("no images found in", "dataset_path, 'r'"),
    ),
    _Sign(
        ErrorKind.MISSING_MODEL,
        "the base model can't be loaded",
        "Put it under models/ in the bucket, in diffusers format",
        (
            "is neither a valid local path nor a valid repo id",
            "is not a local folder and is not a valid model identifier",
            "LocalEntryNotFoundError",
            "Cannot find the requested files in the disk cache",
        ),
    ),
    _Sign(
        ErrorKind.INVALID,
        "the trainer refused its config",
        "See the trainer's log for the key; a preset avoids this",
        (
            "Unknown optimizer type",
            "config file is invalid",
            "yaml.parser.ParserError",
            "yaml.scanner.ScannerError",
        ),
    ),
    _Sign(
        ErrorKind.CRASHED,
        "a checkpoint could not be loaded",
        "The one before it is tried next",
        ("load_weights",),
    ),
    _Sign(
        ErrorKind.NODE_FAILED,
        "the trainer's installation is broken",
        "Install ai-toolkit's requirements as they are pinned",
        (
            "Found no NVIDIA driver",
            "ModuleNotFoundError",
            "ImportError",
            "cannot import name",
            "Could not import module",
        ),
        in_last=True,
    ),
)


def failure(exit_code: int, output: str) -> TaskFailed | None:
    """Why a trainer ended badly, by its exit code and what it printed; None after exit 0.

    Args:
        output: both streams, or their end.
    """
    if exit_code == 0:
        return None
    last = _last_error(output)
    if exit_code < 0:
        return TaskFailed(
            ErrorKind.PREEMPTED if exit_code == -15 else ErrorKind.CRASHED,
            f"the trainer was {_KILLED.get(exit_code, f'ended by signal {-exit_code}')}",
        )
    for sign in _SIGNS:
        if sign.shows_in(output, last):
            return TaskFailed(sign.kind, f"{sign.what}: {last}" if last else sign.what, mend=sign.mend)
    return TaskFailed(
        ErrorKind.CRASHED, f"the trainer ended with exit code {exit_code}: {last or 'no message'}"
    )


def nan_loss(step: int) -> TaskFailed:
    """A loss that is no number: the trainer would zero it, go on, and leave a broken LoRA."""
    return TaskFailed(
        ErrorKind.NODE_FAILED,
        f"the loss is no number at step {step}",
        where="settings.lr",
        mend="Lower lr, or train in bf16 instead of fp16",
    )


def not_resumed(step: int, began_at: int) -> TaskFailed:
    """The trainer passed over the checkpoint that lay where it looks: all would be trained once more."""
    return TaskFailed(
        ErrorKind.NODE_FAILED,
        f"the trainer began at step {began_at} instead of going on from the checkpoint of step {step}",
        mend="See its log for why; `dropbatch retry --all` trains from the beginning",
    )


def unfinished(step: int | None, steps: int) -> TaskFailed:
    """Exit 0 without the result that was asked for."""
    reached = "no final weights were saved" if step is None else f"it reached step {step}"
    return TaskFailed(ErrorKind.CRASHED, f"the trainer ended early: {reached} of {steps}")


def _last_error(output: str) -> str:
    """The exception's own line: the last one that names an error."""
    for line in reversed(output.splitlines()):
        name = line.split(":", 1)[0]
        if line[:1].strip() and name.endswith(("Error", "Exception", "Interrupt")) and " " not in name:
            return line.strip()[:300]
    return ""
