"""Training presets: data under `workflows/training/`, one YAML file each."""

from __future__ import annotations

import io
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Final

from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from processor.errors import JobInvalid
from processor.models import Gpu, Model, Name, Scalar
from processor.problems import did_you_mean

DEFAULT: Final = "flux1-dev"


class BaseModel(Model):
    """A model to train on: a folder in diffusers format."""

    name: Name
    """Its folder under `models/` in the bucket."""
    repo: Name | None = None
    """On Hugging Face, where the bucket does not have it."""
    licence: str = ""
    gated: bool = False
    """Whether Hugging Face wants the licence accepted, and a token."""
    diffusers: bool = True
    """Whether it must be in diffusers format; False for a full config's architecture that no preset has."""


class TestRender(Model):
    """The ready workflow that shows what a LoRA does."""

    workflow: Name
    parameters: dict[Name, Scalar] = {}


class Preset(Model):
    """How a kind of base model is trained, with what it needs."""

    title: str
    base: BaseModel
    gpu: Gpu
    memory_gb: float = Field(gt=0)
    """Of the GPU, at these settings."""
    seconds_per_step: float = Field(gt=0)
    """On that GPU: what expected times are computed from."""
    video: bool = False
    settings: dict[Name, Any]
    model: dict[Name, Any] = {}
    """Further keys of the trainer's `model`, `train` and `sample` sections."""
    train: dict[Name, Any] = {}
    sample: dict[Name, Any] = {}
    prompts: list[str] = []
    """For the samples while it trains; `{trigger}` stands for the trigger word."""
    test_render: TestRender | None = None


def load_preset(name: str, *, where: str = "preset") -> Preset:
    """A preset by name.

    Raises:
        JobInvalid: there is none of that name.
    """
    files = preset_files()
    if name not in files:
        raise JobInvalid(f"no preset {name!r}", where=where, mend=did_you_mean(name, files))
    return _load(name)


@cache
def preset_files() -> dict[str, Traversable]:
    """The presets by name."""
    folder = resources.files("workflows") / "training"
    return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}


@cache
def preset_archs() -> frozenset[str]:
    """The architectures that have a preset."""
    return frozenset(load_preset(name).model["arch"] for name in preset_files())


@cache
def _load(name: str) -> Preset:
    return Preset.model_validate(read_yaml(preset_files()[name].read_bytes(), where=f"{name}.yaml"))


def read_yaml(data: bytes, *, where: str) -> Any:
    """YAML 1.2 of plain values: `lr: 1e-4` is a number, `no` a word, tags are refused.

    Raises:
        JobInvalid: with line and column.
    """
    try:
        return YAML(typ="safe", pure=True).load(io.BytesIO(data))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or type(error).__name__
        raise JobInvalid(f"not valid YAML: {what}{at}", where=where) from None
    except (ValueError, RecursionError) as error:
        raise JobInvalid(f"not valid YAML: {error}", where=where) from None
