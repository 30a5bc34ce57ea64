"""The test render that follows a training: the same seeds with and without the LoRA."""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

from handlers.train.presets import Preset
from processor.models import LORA_PLACEHOLDER, Matrix, RenderJob, SeedRange, TrainJob
from processor.records import Task

_SEEDS: Final = SeedRange(start=1, count=3)


def test_render(job: TrainJob, preset: Preset | None, task: Task, trigger: str) -> list[dict[str, Any]]:
    """The render jobs to drop once the LoRA is published, as JSON; at most one.

    `LORA_PLACEHOLDER` stands in them for its file, which is named after the job that trains it.

    The preset's own is emitted only if its workflow is among the ready ones, and only for
    the preset's own base model: on another one it would show something else.

    Args:
        task: the run whose LoRA is tested, the first of a sweep.
    """
    if isinstance(job.sample, RenderJob):
        return [job.sample.model_dump(mode="json", exclude_defaults=True)]
    wanted = preset.test_render if preset is not None and job.sample else None
    own_base = preset is not None and task.payload["base"]["name"] == preset.base.name
    if wanted is None or not own_base or not has_workflow(wanted.workflow):
        return []
    texts = {
        name: value.replace("{trigger}", trigger) if isinstance(value, str) else value
        for name, value in wanted.parameters.items()
    }
    render = RenderJob(
        kind="render",
        name=f"{LORA_PLACEHOLDER} test",
        workflow=wanted.workflow,
        overrides={**texts, "lora": LORA_PLACEHOLDER},
        matrix=Matrix(product={"strength": [0.0, 1.0]}),
        seeds=_SEEDS,
    )
    return [render.model_dump(mode="json", exclude_defaults=True)]


def has_workflow(name: str) -> bool:
    """Whether a ready workflow of this name is installed."""
    return (resources.files("workflows") / "render" / f"{name}.json").is_file()
