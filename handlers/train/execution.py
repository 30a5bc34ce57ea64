"""One training run, from its checkpoint or its beginning to published-ready files."""

from __future__ import annotations

import math
import secrets
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from handlers.train.base_models import BaseModels
from handlers.train.checkpoints import (
    OPTIMIZER,
    WEIGHTS,
    Checkpoint,
    CheckpointStore,
    Snapshot,
    take_snapshot,
)
from handlers.train.config_file import to_yaml
from handlers.train.curve import Curve
from handlers.train.dataset_copy import copy_dataset
from handlers.train.pace import Pace
from handlers.train.planning import Run, lora_name
from handlers.train.process import Child, scrubbed_environment
from handlers.train.results import Results, finished_weights
from handlers.train.settings import TrainSettings
from handlers.train.trainlog import (
    BatchSkipped,
    NanLoss,
    OptimizerLost,
    OptimizerSaved,
    Saved,
    Step,
    read_piece,
)
from handlers.train.uploads import Uploader
from handlers.train.verdict import failure, nan_loss, not_resumed
from processor.errors import ErrorKind, TaskFailed
from processor.handler import Progress, TaskContext, TaskOutput, Work
from processor.layout import execution_prefix

log = structlog.get_logger(__name__)

_POLL_S: Final = 0.5
_HEADROOM: Final = 1.2
"""A step may take so much longer than those before it."""
_FINISH_S: Final = 60.0
"""Kept free before a deadline, to upload the last checkpoint."""
_DRAIN_S: Final = 3600.0


class Training:
    """One execution of one task."""

    def __init__(self, settings: TrainSettings, bases: BaseModels, work: Work, context: TaskContext) -> None:
        self._settings = settings
        self._bases = bases
        self._work = work
        self._context = context
        self._run = Run.model_validate(work.task.payload)
        self._home = context.workdir / "home"
        self._dataset = context.workdir / "dataset"
        self._output = context.workdir / "output"
        self._folder = self._output / self._run.trainer_name
        """Where the trainer saves. It takes every `<its name>*` in here for a checkpoint."""
        prefix = execution_prefix(work.job_id, work.attempt, work.task.index, secrets.token_hex(4))
        self._checkpoints = CheckpointStore(
            context.stores.main,
            job_id=work.job_id,
            index=work.task.index,
            task_hash=work.task.hash,
            prefix=prefix,
            keep=self._run.keep,
            retried=work.retried,
        )
        self._curve = Curve()
        self._resumed: Checkpoint | None = None
        self._seconds_before = 0.0
        self._inherited_s = 0.0
        self._began = time.monotonic()
        self._step = 0
        self._pace = Pace(start=0, steps=self._run.steps, save_every=self._run.save_every)
        self._saved: Path | None = None
        self._sampled: set[str] = set()
        self._skipped = 0
        """Steps of this run that taught nothing."""
        self._saved_at = -1
        """Step of a save whose samples are still to be looked for."""
        self._finish_s = settings.stop_grace_s
        """For the last checkpoint's upload, once the trainer has failed or was stopped."""
        self._held: Snapshot | None = None
        """Taken, but not all losses up to its step have been heard: they come on another stream."""

    def run(self) -> TaskOutput:
        """Train to the end.

        Raises:
            TaskFailed: with the kind that decides about a retry, which goes on from the
                newest checkpoint; its `log` is the trainer's.
        """
        base = self._prepare()
        config = self._write_config(base)
        self._began = time.monotonic()
        child = Child(
            [str(self._settings.python), "run.py", str(config)],
            cwd=self._settings.toolkit_dir or Path(),
            env=scrubbed_environment(
                self._home, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HOME=str(self._home / "hf")
            ),
        )
        uploader = Uploader(self._checkpoints)
        try:
            self._follow(child, uploader)
            seconds = time.monotonic() - self._began
            if (error := failure(child.exit_code(), child.log)) is not None:
                raise error
            weights = finished_weights(self._folder, self._run)
        except TaskFailed as error:
            child.stop(self._settings.stop_grace_s)
            self._finish(uploader, self._finish_s)
            error.log = child.log  # read where a failure is recorded
            raise
        finally:
            child.stop(self._settings.stop_grace_s)
        self._finish(uploader, _DRAIN_S)
        name, folder = lora_name(self._run, self._work), self._context.workdir / "results"
        results = Results(self._run, self._curve, self._checkpoints, folder, name=name)
        return results.output(
            weights,
            samples=self._folder / "samples",
            seconds=seconds,
            total_seconds=self._seconds_before + seconds,
            resumed_from=self._resumed.step if self._resumed else None,
            skipped=self._skipped,
            log=child.log,
        )

    def _prepare(self) -> Path:
        """Dataset, base model and checkpoint in their places. Returns the base model's folder."""
        context, run = self._context, self._run

        def progress(done: int, total: int) -> None:
            context.stop.check()
            context.progress(Progress("fetching the dataset", done, total))

        self._home.mkdir()
        self._folder.mkdir(parents=True)
        copy_dataset(context.stores.datasets, run.dataset, run.fingerprint, self._dataset, progress=progress)
        context.progress(Progress(f"fetching {run.base.name}", 0, 1))
        base = self._bases.ensure(context.stores.models, run.base, check=context.stop.check)
        self._resume()
        context.stop.check()
        return base

    def _resume(self) -> None:
        """Lay out the newest whole checkpoint as the trainer looks for it.

        It goes on from the newest file by change time, whatever its step, and dies of one
        that is not whole: so there is exactly one.
        """
        staging = self._context.workdir / "checkpoint"
        staging.mkdir()
        record = self._checkpoints.restore(staging)
        if record is None:
            return
        name = f"{self._run.trainer_name}_{record.step:09d}.safetensors"
        (staging / WEIGHTS).rename(self._folder / name)
        if (staging / OPTIMIZER).exists():
            (staging / OPTIMIZER).rename(self._folder / OPTIMIZER)
        self._resumed = record
        self._curve = Curve(record.losses)
        self._seconds_before, self._inherited_s = record.seconds, record.inherited_s
        self._step = record.step
        self._pace = Pace(start=record.step, steps=self._run.steps, save_every=self._run.save_every)

    def _write_config(self, base: Path) -> Path:
        """The config with this run's own paths: the only ones in it."""
        process = {**self._run.process, "training_folder": str(self._output), "device": "cuda"}
        process["model"] = {**process.get("model", {}), "name_or_path": str(base)}
        process["datasets"] = [
            {**dataset, "folder_path": str(self._dataset)} for dataset in process["datasets"]
        ]
        path = self._context.workdir / "config.yaml"
        path.write_bytes(to_yaml(self._run.trainer_name, process))
        return path

    def _follow(self, child: Child, uploader: Uploader) -> None:
        """Read the trainer's output until it ends."""
        heard_at = time.monotonic()
        while not child.ended:
            self._context.stop.check()
            line = child.next(_POLL_S)
            if line is None:
                self._hand_over(uploader)
                if time.monotonic() - heard_at > self._settings.silence_s:
                    raise TaskFailed(ErrorKind.CRASHED, "the trainer has been silent for too long")
                continue
            heard_at = time.monotonic()
            self._hear(line, uploader)

    def _hear(self, line: str, uploader: Uploader) -> None:
        event = read_piece(line, self._run.trainer_name)
        if isinstance(event, Step):
            self._count(event)
            self._stop_before_a_checkpoint()
            if self._held is not None and event.done >= self._held.step:
                self._hand_over(uploader)
            if event.done > self._saved_at >= 0:
                self._saved_at = -1
                uploader.add_samples(self._new_samples())
        elif isinstance(event, NanLoss):
            raise nan_loss(self._step)
        elif isinstance(event, BatchSkipped):
            self._skipped += 1
        elif isinstance(event, Saved):
            self._saved = self._folder / event.path.name
        elif isinstance(event, OptimizerSaved | OptimizerLost) and self._saved is not None:
            path, self._saved = self._saved, None
            # One that was not saved leaves a part of itself, or the one of the save before.
            optimizer = self._folder / OPTIMIZER if isinstance(event, OptimizerSaved) else None
            if path.stem != self._run.trainer_name and self._keep(path, optimizer, uploader):
                self._stop_in_time()

    def _count(self, step: Step) -> None:
        if self._resumed is not None and step.done < self._resumed.step:
            raise not_resumed(self._resumed.step, step.done)
        self._step = step.done
        if step.loss is not None:
            if not math.isfinite(step.loss):
                raise nan_loss(step.done)
            if step.done < step.total:
                self._curve.add(step.done, step.loss)
        self._pace.stepped(step.done, time.monotonic())
        stage = "training" if step.loss is None else f"training, loss {step.loss:.3g}"
        self._context.progress(Progress(stage, step.done, step.total))

    def _keep(self, weights: Path, optimizer: Path | None, uploader: Uploader) -> bool:
        """Take a finished save, and hand it to the uploader as soon as its losses are known.

        Returns:
            False if the trainer has pruned it meanwhile.
        """
        step = int(weights.stem.rpartition("_")[2])
        self._pace.saved(step)
        folder = self._context.workdir / f"snapshot-{step:09d}-{secrets.token_hex(2)}"
        try:
            take_snapshot(weights, optimizer, folder)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            return False
        self._hand_over(uploader)
        seconds = self._seconds_before + time.monotonic() - self._began
        self._held, self._saved_at = Snapshot(step, folder, seconds=seconds), step
        if self._step >= step:
            self._hand_over(uploader)
        return True

    def _hand_over(self, uploader: Uploader) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            points = [point for point in self._curve.points if point[0] <= held.step]
            uploader.add(replace(held, losses=points))

    def _finish(self, uploader: Uploader, timeout_s: float) -> None:
        self._hand_over(uploader)
        if not uploader.close(timeout_s):
            log.warning("checkpoint.given_up", job_id=self._work.job_id, after_s=timeout_s)

    def _new_samples(self) -> list[Path]:
        """Sample pictures since the last look. They are made right after a save, so by the next
        step they are whole."""
        found = [path for path in sorted((self._folder / "samples").glob("*.*")) if path.is_file()]
        new = [path for path in found if path.name not in self._sampled]
        self._sampled.update(path.name for path in new)
        return new

    def _stop_before_a_checkpoint(self) -> None:
        """Stop a run whose next checkpoint can't come in time or within its cap: what it trains is lost.

        Mostly before its first one, which it alone can tell of; after that only a run that got slower.
        """
        next_s = self._pace.ahead_s(time.monotonic())
        if next_s is not None:
            self._stop_if(next_s, deadline_s=self._context.deadline, at=f"at step {self._step}")

    def _stop_in_time(self) -> None:
        """Right after a checkpoint, stop if the next one would come too late or too dear."""
        next_s = self._pace.interval_s(time.monotonic()) * _HEADROOM
        self._stop_if(
            next_s,
            deadline_s=self._context.deadline - _FINISH_S,
            at=f"right after the checkpoint of step {self._step}",
        )

    def _stop_if(self, next_s: float, *, deadline_s: float, at: str) -> None:
        error = self._too_late(next_s, deadline_s, at) or self._too_dear(next_s, at)
        if error is not None:
            # Nobody waits for the machine, unlike after a preemption: what was paid for is kept.
            self._finish_s = max(_FINISH_S, self._finish_s)
            raise error

    def _too_late(self, next_s: float, deadline_s: float, at: str) -> TaskFailed | None:
        if time.monotonic() + next_s > deadline_s:
            return TaskFailed(
                ErrorKind.TIMED_OUT,
                f"stopped {at}: the next checkpoint would come after the time limit",
                where="timeout_s",
                mend="Raise timeout_s, or lower save_every",
            )
        return None

    def _too_dear(self, next_s: float, at: str) -> TaskFailed | None:
        cap_usd, usd_per_s = self._work.max_cost_usd, self._context.usd_per_s
        if cap_usd is None or not usd_per_s:
            return None
        spent_s = self._seconds_before - self._inherited_s + time.monotonic() - self._began
        if (spent_s + next_s) * usd_per_s > cap_usd:
            return TaskFailed(
                ErrorKind.OVER_BUDGET,
                f"stopped {at}: it has cost ${spent_s * usd_per_s:.2f} of ${cap_usd:.2f}, and the next "
                f"checkpoint would come at ${(spent_s + next_s) * usd_per_s:.2f}",
                where="max_cost_usd",
                mend="`dropbatch retry --max-cost USD` goes on from its newest checkpoint; or lower steps, "
                "save_every or resolution",
            )
        return None
