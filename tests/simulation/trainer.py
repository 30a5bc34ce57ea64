"""A training without a trainer: the real plan, dataset copy and checkpoints around some waiting."""

from __future__ import annotations

from pathlib import Path

from handlers.train.checkpoints import WEIGHTS, CheckpointStore, Snapshot
from handlers.train.dataset_copy import copy_dataset
from handlers.train.handler import TrainHandler
from handlers.train.planning import Run, lora_name
from handlers.train.settings import TrainSettings
from processor.handler import LocalFile, PlanContext, TaskContext, TaskOutput, Work
from processor.layout import execution_prefix
from processor.models import JobBase
from processor.records import Plan
from tests.simulation.world import World
from tests.support.trainer import weights

STEPS = 3
"""Each of them a checkpoint."""
_STEP_S = 150.0


class SimTrainer:
    """Trains three steps, and goes on from the newest checkpoint that is whole."""

    kind = "train"
    concurrency = 1

    def __init__(self, world: World) -> None:
        self._world = world
        settings = TrainSettings(base_dir=Path("nowhere"), toolkit_dir=Path("nowhere"), hugging_face=False)
        self._real = TrainHandler(settings)

    def plan(self, job: JobBase, context: PlanContext) -> Plan:
        return self._real.plan(job, context)

    def run(self, work: Work, context: TaskContext) -> TaskOutput:
        run = Run.model_validate(work.task.payload)
        copy_dataset(
            context.stores.datasets,
            run.dataset,
            run.fingerprint,
            context.workdir / "dataset",
            progress=lambda *_: context.stop.check(),
        )
        kept = CheckpointStore(
            context.stores.main,
            job_id=work.job_id,
            index=work.task.index,
            task_hash=work.task.hash,
            prefix=execution_prefix(work.job_id, work.attempt, work.task.index, self._world.token()[:8]),
            keep=2,
        )
        # What is learnt follows from the dataset, as far as anybody can tell here.
        value = int(run.fingerprint[:3], 16) / 16**3
        restored = kept.restore(context.workdir)
        begun = restored.step if restored else 0
        for step in range(begun + 1, STEPS + 1):
            self._world.pause(_STEP_S * (0.5 + self._world.random.random()))
            context.stop.check()
            folder = context.workdir / f"step-{step}"
            folder.mkdir()
            (folder / WEIGHTS).write_bytes(weights(step, value=value))
            kept.upload(Snapshot(step, folder))
        lora = context.workdir / f"{lora_name(run, work)}.safetensors"
        lora.write_bytes(weights(STEPS, value=value))
        data = {
            "lora": lora.name,
            "loss_level": 0.5,
            "final_loss": 0.5,
            "dataset": run.dataset,
            "fingerprint": run.fingerprint,
            "config_hash": run.config_hash,
            "steps": STEPS,
            "resumed_from": begun or None,
        }
        file = LocalFile(lora, lora.name, "application/octet-stream")
        return TaskOutput([file], _STEP_S * STEPS, data=data)

    def close(self) -> None:
        """Nothing was started."""
