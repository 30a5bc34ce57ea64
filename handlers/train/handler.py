"""The train handler: one training run per task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handlers.train.base_models import BaseModels, hub_download
from handlers.train.execution import Training
from handlers.train.planning import Run, plan_training
from handlers.train.rehearsal import rehearse
from handlers.train.settings import TrainSettings, train_settings
from processor.handler import PlanContext, Stores, TaskContext, TaskOutput, Work
from processor.models import JobBase, TrainJob
from processor.records import Plan

if TYPE_CHECKING:
    from processor.config import Settings


class TrainHandler:
    """Plans train jobs and runs them with ai-toolkit; see `processor.handler.Handler`.

    Every run is a child process of its own, so nothing is kept between two.
    """

    kind = "train"
    concurrency = 1

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        download = hub_download(settings.python) if settings.hugging_face else None
        self._bases = BaseModels(settings.base_dir, download)

    @classmethod
    def configured(cls, settings: Settings, stores: Stores) -> TrainHandler:  # noqa: ARG003 - stores come with each task
        """The handler that the settings describe."""
        return cls(train_settings(settings))

    def plan(self, job: JobBase, context: PlanContext) -> Plan:
        if not isinstance(job, TrainJob):
            raise TypeError(f"{type(job).__name__} is no train job")
        return plan_training(job, context, self._settings)

    def fetch_bases(self, plan: Plan, stores: Stores) -> None:
        """Have the plan's base models in the local folder: for a CPU, before a GPU is rented.

        Raises:
            TaskFailed: one is missing, or its licence is not accepted.
        """
        for base in {task.payload["base"]["name"]: task.payload for task in plan.tasks}.values():
            self._bases.ensure(stores.models, Run.model_validate(base).base)

    def run(self, work: Work, context: TaskContext) -> TaskOutput:
        # A plan made as a rehearsal stays one on every machine: what it trained, it would not publish.
        if self._settings.rehearsal or work.shared.get("rehearsal"):
            return rehearse(work, context)
        return Training(self._settings, self._bases, work, context).run()

    def close(self) -> None:
        """Runs end with their tasks; nothing is kept."""
