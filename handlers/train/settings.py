"""What a train handler must be told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from processor.errors import ConfigError

if TYPE_CHECKING:
    from processor.config import Settings


@dataclass(frozen=True)
class TrainSettings:
    """Where the trainer is and what it may use."""

    base_dir: Path
    """Base models, filled on demand from `models/` in the bucket or from Hugging Face."""
    toolkit_dir: Path | None = None
    """A checkout of ai-toolkit; None rehearses: everything but the GPU step."""
    toolkit_python: Path | None = None
    """Its Python; the checkout's own `.venv` or `venv` otherwise."""
    hugging_face: bool = True
    """Whether base models may be downloaded."""
    max_job_cost_usd: float | None = None
    """What a job may cost that does not say so itself; only for what its plan says of it."""
    stop_grace_s: float = 10.0
    """Between asking the trainer to end and ending it; what it saved is uploaded meanwhile."""
    silence_s: float = 3600.0
    """A trainer that prints nothing for so long hangs."""

    @property
    def rehearsal(self) -> bool:
        return self.toolkit_dir is None

    @property
    def python(self) -> Path:
        """The trainer's interpreter."""
        if self.toolkit_python is not None:
            return self.toolkit_python
        candidates = [(self.toolkit_dir or Path()) / name / "bin" / "python" for name in (".venv", "venv")]
        return next((path for path in candidates if path.exists()), Path("python3"))


def train_settings(settings: Settings) -> TrainSettings:
    """The part of the product's settings that a train handler needs.

    Raises:
        ConfigError: no training could be gone on from in this scratch folder.
    """
    toolkit = settings.ai_toolkit_dir
    if toolkit:
        _check_scratch(settings.scratch_path.resolve())
    python = settings.ai_toolkit_python
    return TrainSettings(
        max_job_cost_usd=settings.max_job_cost_usd,
        base_dir=settings.scratch_path / "base_models",
        toolkit_dir=toolkit.expanduser().absolute() if toolkit else None,
        # Not resolved: a virtual environment's interpreter is a link, and is known by its own path.
        toolkit_python=Path(os.path.abspath(python.expanduser())) if python else None,  # noqa: PTH100
    )


def _check_scratch(folder: Path) -> None:
    """Refuse a folder in whose path the trainer finds no checkpoints of its own.

    It looks for them by a pattern, and takes a path that holds one of these for another kind of file
    (`get_latest_save_path` of ai-toolkit 0.12.26): it would begin anew, time after time.
    """
    found = [text for text in ("_LoRA", "_refiner", "_t2i", "_cn", "*", "?", "[") if text in str(folder)]
    if found:
        raise ConfigError(
            f"{folder}: with {found[0]!r} in its path the trainer would find no checkpoint to go on from",
            where="work_dir",
            mend="Set work_dir (DROPBATCH_WORK_DIR) to another folder",
        )
