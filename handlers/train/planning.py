"""From a train job to its runs: dataset version, base model and config frozen, one task each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from statistics import fmean
from typing import Any, Final

from pydantic import Field

from handlers.ingest.archive import load_dataset
from handlers.ingest.records import Dataset
from handlers.train.config import Process, own_base, preset_process, raw_base, raw_process, raw_trigger
from handlers.train.expected import expectations, seconds_of, weight_of
from handlers.train.options import NO_VIDEOS, read_options
from handlers.train.presets import DEFAULT, BaseModel, Preset, load_preset, preset_archs
from handlers.train.sampling import test_render
from handlers.train.settings import TrainSettings
from processor.datasets import is_dataset_name
from processor.errors import JobInvalid
from processor.expand import expand
from processor.handler import PlanContext, Work
from processor.layout import BASE_MODELS, dataset_latest_key, slug
from processor.models import Model, Scalar, TrainJob
from processor.pointers import read_pointer
from processor.records import Plan, Task, canonical_hash
from processor.spelling import plural

_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RAW_GPU: Final = "A100-80GB"
_NO_VERSION: Final = "0" * 16
"""Of a dataset that is not at hand: only a plan on paper has it."""


class Run(Model):
    """A task's payload: one training run, all but the paths."""

    trainer_name: str
    """What the trainer calls it: the start of its files' names."""
    process: dict[str, Any]
    base: BaseModel
    dataset: str
    fingerprint: str
    config_hash: str
    trigger: str
    steps: int = Field(ge=1)
    save_every: int = Field(ge=1)
    keep: int = Field(ge=1)
    publish: str
    """The first part of the LoRA's name; see `lora_name`."""
    lora: str | None = Field(default=None, exclude=True)
    """Stands in earlier plans, and is not read: a retry of one would have its parent's name."""
    max_cost_usd: float | None = Field(default=None, exclude=True)
    """Stands in earlier plans, and is not read: what a run may cost comes with its work, so that a
    retry of a plan can be given more."""


def lora_name(run: Run, work: Work) -> str:
    """What a run's LoRA is called, without suffix: after the job that trains it.

    Not part of the plan, which a retry runs again: two jobs' LoRAs never share a name.
    """
    return f"{run.publish}-{work.job_id[-8:]}" + (f"-{work.task.index:02d}" if work.shared["sweep"] else "")


def plan_training(job: TrainJob, context: PlanContext, settings: TrainSettings) -> Plan:
    """Resolve a train job.

    Raises:
        JobInvalid: naming dataset, preset, setting or key, and the nearest known one.
    Cost: 3 requests at most.
    """
    dataset = _dataset(job, context)
    preset = _preset(job)
    publish = _publish_name(job.publish or dataset.name)
    trigger = job.trigger_word or (raw_trigger(job.config) if job.config else None) or dataset.name
    rows = expand(job.sweep, draw_key=context.job_id, max_tasks=context.max_tasks)
    tasks = []
    for index, row in enumerate(rows):
        process, base = _config(job, preset, row, trigger)
        _check_videos(preset, dataset, process)
        config_hash = canonical_hash([process, base.name])
        run = Run(
            trainer_name=f"lora-{slug(publish)}",
            process=process,
            base=base,
            dataset=dataset.name,
            fingerprint=dataset.fingerprint,
            config_hash=config_hash,
            trigger=trigger,
            steps=process["train"]["steps"],
            save_every=process["save"]["save_every"],
            keep=process["save"]["max_step_saves_to_keep"],
            publish=publish,
        )
        tasks.append(
            Task(
                index=index,
                hash=canonical_hash([config_hash, dataset.name, dataset.fingerprint]),
                params=row,
                payload=run.model_dump(mode="json"),
                group=base.name,
                weight=weight_of(process),
            )
        )
    seconds = [seconds_of(task.weight, preset) for task in tasks]
    gpu = preset.gpu if preset else _RAW_GPU
    emitted = [] if settings.rehearsal else test_render(job, preset, tasks[0], trigger)
    return Plan(
        job_id=context.job_id,
        kind="train",
        shared={
            "dataset": dataset.name,
            "fingerprint": dataset.fingerprint,
            "preset": job.preset or (None if job.config else DEFAULT),
            "trigger": trigger,
            "publish": publish,
            "sweep": len(rows) > 1,
            "rehearsal": settings.rehearsal,
            "emit": emitted,
        },
        tasks=tasks,
        gpu=gpu,
        # What a rehearsal takes teaches nothing; on paper it may be another machine that trains.
        shape="" if settings.rehearsal and not context.on_paper else _shape(tasks[0]),
        typical_seconds=fmean(seconds),
        warnings=_warnings(job, preset, dataset, tasks, settings, seconds=seconds, gpu=job.gpu or gpu),
    )


def _shape(task: Task) -> str:
    """Runs of one architecture take alike, in proportion to their weight."""
    return f"train-{_arch(task.payload['process'])}"


def _arch(process: Process) -> str:
    """What the trainer takes the base model for."""
    return str(process["model"].get("arch", "sd1"))


def _dataset(job: TrainJob, context: PlanContext) -> Dataset:
    name, _, version = job.dataset.partition("/")
    store = context.stores.datasets
    if not is_dataset_name(name):
        raise JobInvalid(f"{job.dataset!r} is no name of a dataset", where="dataset")
    if not version:
        pointer = read_pointer(store, dataset_latest_key(name))
        if pointer is None:
            if context.bucketless:
                return _unseen(name, _NO_VERSION, context)
            raise JobInvalid(
                f"there is no dataset {name!r}",
                where="dataset",
                mend=f"Drop its folder under inbox/datasets/{name}/ first",
            )
        version = str(pointer.facts["fingerprint"])
    if re.fullmatch(r"[0-9a-f]{16}", version) is None:
        raise JobInvalid(f"{version!r} is no version of a dataset: 16 hex digits", where="dataset")
    dataset = load_dataset(store, name, version)
    if dataset is None and context.bucketless:
        return _unseen(name, version, context)
    if dataset is None:
        raise JobInvalid(f"dataset {name!r} has no version {version}", where="dataset")
    return dataset


def _unseen(name: str, version: str, context: PlanContext) -> Dataset:
    """Stands for a dataset in the bucket, where none is at hand: without files."""
    return Dataset(name=name, fingerprint=version, files=[], made_at=context.now)


def _preset(job: TrainJob) -> Preset | None:
    if job.config is not None:
        if job.preset is not None:
            raise JobInvalid("give a preset or a full config, not both", where="config")
        return None
    return load_preset(job.preset or DEFAULT)


def _config(
    job: TrainJob, preset: Preset | None, row: Mapping[str, Scalar], trigger: str
) -> tuple[Process, BaseModel]:
    """Config and base model of one run."""
    changes: dict[str, Any] = {**job.settings, **row}
    where = "settings.base_model"
    if preset is None:
        named, config = changes.pop("base_model", None), job.config or {}
        base = own_base(str(named), where=where) if named else raw_base(config)
        process = raw_process(config, changes, trigger=trigger)
        known = _arch(process) in preset_archs()
        return process, base if known else base.model_copy(update={"diffusers": False})
    options = read_options(preset.settings, changes, where="settings")
    base = own_base(options.base_model, where=where) if options.base_model else preset.base
    return preset_process(preset, options, trigger=trigger), base


def _check_videos(preset: Preset | None, dataset: Dataset, process: Process) -> None:
    """Refuse a run that would see none of what it is to learn from."""
    videos = sum(file.kind == "video" for file in dataset.files)
    if not videos or process["datasets"][0].get("num_frames", 1) > 1:
        return
    if (preset is not None and preset.video) or videos == dataset.examples:
        said = f"dataset {dataset.name!r} has {plural(videos, 'video')}: {NO_VIDEOS}"
        raise JobInvalid(said, where="settings.num_frames")


def _publish_name(name: str) -> str:
    """A file's name; what can't be one becomes a slug, with a little of its hash: names of other
    alphabets have no slug of their own, and would share one pointer."""
    if _FILE_NAME.fullmatch(name):
        return name
    return f"{slug(name)}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _warnings(
    job: TrainJob,
    preset: Preset | None,
    dataset: Dataset,
    tasks: list[Task],
    settings: TrainSettings,
    *,
    seconds: list[float],
    gpu: str,
) -> list[str]:
    found = []
    if not dataset.files:  # an archived one has some
        found.append(f"Dataset {job.dataset!r} is looked for in the bucket only with --bucket")
    if settings.rehearsal:
        found.append(
            "REHEARSAL: no trainer is configured (AI_TOOLKIT_DIR). All but the GPU step is done; "
            "nothing is trained, nothing is published"
        )
    cap_usd = settings.max_job_cost_usd if job.max_cost_usd is None else job.max_cost_usd
    found += expectations(seconds, gpu, cap_usd)
    if preset is not None and not preset.video and any(file.kind == "video" for file in dataset.files):
        found.append(f"{preset.title} takes no videos; they are left out")
    bases = {task.payload["base"]["name"] for task in tasks}
    found.append(f"Base model: {', '.join(sorted(f'{BASE_MODELS}{base}' for base in bases))}")
    return found
