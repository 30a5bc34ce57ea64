"""A training without a trainer: all but the GPU step, and labelled so everywhere."""

from __future__ import annotations

import json
import time

from handlers.train.dataset_copy import copy_dataset
from handlers.train.planning import Run
from processor.handler import LocalFile, Progress, TaskContext, TaskOutput, Work
from processor.layout import BASE_MODELS
from processor.spelling import plural

LABEL = "REHEARSAL"


def rehearse(work: Work, context: TaskContext) -> TaskOutput:
    """Fetch and check the dataset, look for the base model, resolve the config; train nothing.

    Raises:
        TaskFailed: whatever would have failed before the GPU step.
    """
    run = Run.model_validate(work.task.payload)
    began = time.monotonic()

    def progress(done: int, total: int) -> None:
        context.stop.check()
        context.progress(Progress("rehearsing: fetching the dataset", done, total))

    folder = context.workdir / "dataset"
    dataset = copy_dataset(context.stores.datasets, run.dataset, run.fingerprint, folder, progress=progress)
    prefix = f"{BASE_MODELS}{run.base.name}/"
    there = any(page.objects for page in context.stores.models.list(prefix))
    source = prefix if there else f"https://huggingface.co/{run.base.repo}" if run.base.repo else "nowhere"
    said = (
        f"{LABEL}: nothing was trained and nothing is published. "
        f"{plural(dataset.examples, 'example')} fetched and checked, config resolved for {run.steps} steps; "
        f"the base model would come from {source}. Set AI_TOOLKIT_DIR to train."
    )
    path = context.workdir / "rehearsal.txt"
    path.write_text(f"{said}\n", encoding="utf-8")
    config = context.workdir / "rehearsal-config.json"
    config.write_text(json.dumps(run.process, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return TaskOutput(
        [
            LocalFile(path, path.name, "text/plain; charset=utf-8"),
            LocalFile(config, config.name, "application/json"),
        ],
        time.monotonic() - began,
        data={"rehearsal": True, "text": said, "dataset": run.dataset, "fingerprint": run.fingerprint},
        engine={"trainer": f"{LABEL} (no AI_TOOLKIT_DIR)"},
    )
