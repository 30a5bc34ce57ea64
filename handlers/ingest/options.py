"""`dataset.yaml`: what a person may say about a folder of pictures, and the train job it makes."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from handlers.train.options import NO_VIDEOS, TrainOptions, read_options
from handlers.train.presets import DEFAULT, Preset, load_preset, read_yaml
from processor.errors import JobInvalid
from processor.models import Gpu, Matrix, Model, Name, RenderJob, TrainJob
from processor.problems import did_you_mean, find_problems

MAX_BYTES = 64 * 1024
_MAX_NODES = 5_000
"""Aliases let a small YAML file unfold into gigabytes; so many values are plenty."""


class DatasetOptions(Model):
    """The keys of `dataset.yaml`. Training settings may stand beside these or under `settings`."""

    preset: Name = DEFAULT
    trigger_word: Name | None = None
    """The word that calls up what is learnt; the folder's name otherwise."""
    settings: dict[Name, Any] = {}
    sweep: Matrix | None = None
    publish: Name | None = None
    gpu: Gpu | None = None
    max_cost_usd: float | None = Field(default=None, ge=0)
    timeout_s: int | None = Field(default=None, ge=1, le=24 * 3600)
    sample: RenderJob | bool = True
    train: bool = True
    """False: check and archive only."""
    replace: bool = False
    """True: this folder alone is the new version; else it joins the newest one."""
    min_images: int = Field(default=3, ge=1)

    def train_job(self, dataset: str, fingerprint: str) -> TrainJob:
        """The job that trains on a version of this dataset."""
        return TrainJob(
            kind="train",
            name=dataset,
            dataset=f"{dataset}/{fingerprint}",
            preset=self.preset,
            settings=self.settings,
            sweep=self.sweep,
            trigger_word=self.trigger_word or dataset,
            publish=self.publish or dataset,
            sample=self.sample,
            gpu=self.gpu,
            max_cost_usd=self.max_cost_usd,
            timeout_s=self.timeout_s,
        )

    def loaded_preset(self) -> Preset:
        return load_preset(self.preset, where="dataset.yaml: preset")

    def why_no_videos(self) -> str | None:
        """Why the training would see no videos; None where it would, or a sweep decides."""
        if not self.loaded_preset().video:
            return f"preset {self.preset} takes no videos"
        axes = self.sweep.product.keys() | self.sweep.zip.keys() if self.sweep else ()
        if self.train_options().num_frames > 1 or "num_frames" in axes:
            return None
        return NO_VIDEOS

    def train_options(self) -> TrainOptions:
        """The settings that the training will have, sweep aside."""
        return read_options(self.loaded_preset().settings, self.settings, where="dataset.yaml: settings")


def read_dataset_options(data: bytes | None, *, where: str) -> DatasetOptions:
    """The options in a `dataset.yaml`; the defaults where there is none.

    Raises:
        JobInvalid: broken YAML, unknown or wrong keys; settings that no training would take.
    """
    value = read_yaml(data, where=where) if data else None
    if value is None:
        value = {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise JobInvalid("dataset.yaml is a mapping of options", where=where)
    if _nodes(value) > _MAX_NODES:
        raise JobInvalid(f"more than {_MAX_NODES:,} values", where=where)
    beside = {key: value.pop(key) for key in list(value) if key in TrainOptions.model_fields}
    known = DatasetOptions.model_fields.keys() | TrainOptions.model_fields.keys()
    if unknown := sorted(value.keys() - known):
        mend = did_you_mean(unknown[0], known)
        raise JobInvalid(f"unknown key {unknown[0]!r}", where=where, mend=mend)
    settings = value.get("settings", {})
    if beside and isinstance(settings, dict):
        value["settings"] = {**settings, **beside}
    try:
        options = DatasetOptions.model_validate(value)
    except ValidationError as error:
        problems = [str(problem) for problem in find_problems(error, value, DatasetOptions)]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise JobInvalid(problems[0] + more, where=where, details=problems) from None
    options.train_options()
    return options


def _nodes(value: object, *, limit: int = _MAX_NODES) -> int:
    """How many values a document unfolds to, counted no further than the limit."""
    todo, count = [value], 0
    while todo and count <= limit:
        item = todo.pop()
        count += 1
        if isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    return count
