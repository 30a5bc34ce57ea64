"""What a render handler must be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from processor.config import Settings

EngineKind = Literal["attached", "comfyui", "builtin"]


@dataclass(frozen=True)
class RenderSettings:
    """Where the engine is and what it may do.

    With `comfyui_url` we attach to a running ComfyUI; with `comfyui_dir` we start and
    supervise one; with neither, the built-in engine. `work_dir` is private to one handler.
    """

    work_dir: Path
    models_dir: Path
    """Local model folder, filled on demand from `comfy_models/`."""
    comfyui_url: str | None = None
    comfyui_dir: Path | None = None
    comfyui_python: Path | None = None
    """That folder's own `.venv` or `venv` otherwise, else this interpreter."""
    extra_args: tuple[str, ...] = ()
    """Further flags for the engine, e.g. `("--highvram",)`."""
    cpu: bool | None = None
    """Force or forbid `--cpu`; None: where no CUDA device is seen. Where a GPU is paid for, False: a
    ComfyUI that does not start is noticed, one that renders on the CPU is only slow."""
    custom_nodes: bool = True
    """Whether a supervised ComfyUI loads the folder's custom nodes."""
    allow_nodes: frozenset[str] = frozenset()
    """Node classes that are denied by default and permitted here."""
    deny_nodes: frozenset[str] = frozenset()
    """Further node classes (or `fnmatch` patterns) to refuse."""
    object_info: Path | None = None
    """A stored answer of `/object_info`, for preflight without a server."""
    start_timeout_s: float = 180.0
    stop_timeout_s: float = 10.0
    interrupt_grace_s: float = 5.0
    """How long a cancelled prompt may take to yield before we stop waiting for it."""
    lost_server_s: float = 30.0
    """How long an attached server may be unreachable before its prompts count as lost."""
    concurrency: int = 3
    max_input_bytes: int = 2 * 1024**3
    max_url_input_bytes: int = 256 * 1024**2
    url_inputs: bool = True
    """Whether inputs may be http(s) URLs."""

    @property
    def engine(self) -> EngineKind:
        if self.comfyui_url:
            return "attached"
        return "comfyui" if self.comfyui_dir else "builtin"


def render_settings(settings: Settings) -> RenderSettings:
    """The part of the product's settings that a render handler needs."""
    return RenderSettings(
        work_dir=settings.scratch_path / "render",
        models_dir=(settings.models_dir or settings.scratch_path / "models").expanduser(),
        comfyui_url=settings.comfyui_url,
        comfyui_dir=settings.comfyui_dir,
        comfyui_python=settings.comfyui_python,
        extra_args=tuple(settings.comfyui_args),
        cpu=settings.comfyui_cpu,
        start_timeout_s=settings.comfyui_start_s,
        url_inputs=settings.url_inputs,
        allow_nodes=frozenset(settings.allow_nodes),
        deny_nodes=frozenset(settings.deny_nodes),
        max_input_bytes=settings.input_limit_bytes,
    )
