"""What a user may drop: the job models, from which the JSON Schema is generated."""

# Without `from __future__ import annotations`: pydantic would compile each annotation from its text,
# a third of what importing this module costs beyond pydantic itself.

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

Scalar = str | int | float | bool
"""A value that an override, a matrix axis or a parameter may take."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
JobId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}-[0-9a-f]{16}$")]

JobKind = Literal["render", "train", "ingest"]

MAX_SEED = 2**64 - 1
"""KSampler's upper bound for `seed` (ComfyUI's object_info)."""


class Model(BaseModel):
    """Base of all our records: unknown keys refused, instances frozen.

    Validators are built on first use (`defer_build`), which keeps the import cheap.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Matrix(Model):
    """Axes that multiply a job into tasks.

    An axis is named like an override (`6.text`, `Title.text` or a declared parameter)
    and has a list of values. A plain object of lists is taken as `product`.
    """

    product: dict[Name, list[Scalar]] = {}
    """Every combination of these axes."""
    zip: dict[Name, list[Scalar]] = {}
    """Axes of equal length that move together; the whole is one more axis of the product."""
    include: list[dict[Name, Scalar]] = []
    """Further combinations, appended."""
    exclude: list[dict[Name, Scalar]] = []
    """Combinations that agree with one of these in all its axes are left out."""

    @model_validator(mode="before")
    @classmethod
    def _plain_is_product(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if not data.keys() & cls.model_fields.keys():
            return {"product": data}
        others = data.keys() - cls.model_fields.keys()
        if others and not data.keys() & {"product", "zip"}:
            beside = min(data.keys() - others)
            raise ValueError(f"beside {beside!r}, put axes under `product`: {min(others)!r}")
        return data

    @model_validator(mode="after")
    def _check_axes(self) -> "Matrix":
        for axis, values in (self.product | self.zip).items():
            if not values:
                raise ValueError(f"axis {axis!r} has no values")
        if len({len(values) for values in self.zip.values()}) > 1:
            lengths = ", ".join(f"{axis} {len(values)}" for axis, values in self.zip.items())
            raise ValueError(f"zipped axes must have equal lengths, these have: {lengths}")
        if both := self.product.keys() & self.zip.keys():
            raise ValueError(f"axis {min(both)!r} is in both product and zip")
        return self


class SeedRange(Model):
    """`count` seeds from `start` upwards."""

    start: int = Field(ge=0, le=MAX_SEED)
    count: int = Field(ge=1)


class SeedDraw(Model):
    """`random` seeds, drawn once when the job is planned and recorded in its manifest."""

    random: int = Field(ge=1)


Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Seeds = list[Seed] | SeedRange | SeedDraw

Gpu = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,24}(:[1-8])?$")]
"""A Modal GPU class, `L40S`, `A100-80GB`, `H100:2`, …"""


class Origin(Model):
    """Who dropped an emitted job: with its name, the parent makes the job id."""

    parent: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """A job's id, or the key of what it was made from."""
    name: Annotated[str, StringConstraints(min_length=1, max_length=300)]


class Output(Model):
    """What becomes of the files that tasks make."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=300)] | None = None
    """A template for their names: `{task}`, `{seed}`, `{name}` (the file's own), or any parameter
    that differs between the tasks: `{prompt}-{seed}`. Folders are made by `/`."""
    format: Literal["webp", "jpeg"] | None = None
    """Convert still pictures; what moves, or is no picture, stays as it is."""
    quality: int = Field(default=90, ge=1, le=100)
    keep_original: bool = False
    """Keep what was converted, too."""
    contact_sheet: bool = False
    """Write `contact-sheet.jpg` beside the gallery: all pictures of the job, small, on one."""
    sequence: Literal["webp", "gif", "mp4"] | None = None
    """Write `sequence.<format>` beside the gallery: the tasks' first pictures, one after another."""
    fps: float = Field(default=8.0, ge=0.1, le=60)
    """Of the sequence."""


class JobBase(Model):
    """What every kind of job may say. Each concrete job narrows `kind` to its own."""

    kind: JobKind
    name: Name | None = None
    """A title for people; the file's name otherwise."""
    gpu: Gpu | None = None
    """The GPU class on Modal, `L40S`, `H100:2`; the launcher's default otherwise."""
    where: Literal["modal", "local", "any"] = "any"
    """Which launcher may run it."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher goes first; equal ones by age."""
    not_before: AwareDatetime | None = None
    """It stays in the inbox until then."""
    timeout_s: int | None = Field(default=None, ge=1, le=24 * 3600)
    """For one task; 20 minutes for renders and 24 hours for trainings otherwise."""
    max_attempts: int | None = Field(default=None, ge=1, le=10)
    """Attempts that may begin before it is given up as `dead`."""
    max_cost_usd: float | None = Field(default=None, ge=0)
    """Fan-out stops once the job has cost this much; finished tasks are kept. A training stops at a
    checkpoint."""
    notify: bool = True
    """Whether configured notifiers hear of it."""
    on_success: "list[Job]" = Field(default=[], max_length=20)
    """Jobs to drop once this one is done, each exactly once."""
    retry_of: JobId | None = None
    """Run that job's plan again; its finished tasks are copied unless `retry_tasks` is `all`."""
    retry_tasks: Literal["failed", "all"] = "failed"
    origin: Origin | None = None
    """Set by the machine on what it emits; a drop by hand can't have it."""

    def cap_usd(self, otherwise_usd: float) -> float:
        """What it may cost: as it says itself, else as the settings do."""
        return otherwise_usd if self.max_cost_usd is None else self.max_cost_usd


class RenderJob(JobBase):
    """One or many ComfyUI prompts."""

    kind: Literal["render"]
    workflow: dict[str, Any] | Name
    """A graph as ComfyUI's "Export (API)" writes it, the name of a ready workflow, or the
    store key of one (`comfy_workflows/mine.json`)."""
    overrides: dict[Name, Any] = {}
    """By node id or title: `{"6": {"text": "…"}}`, `{"6": {"inputs": {…}}}`, `{"6.text": "…"}`;
    or by a parameter that the named workflow declares: `{"prompt": "…"}`."""
    inputs: dict[Name, Name] = Field(default={}, max_length=1000)
    """Files for LoadImage and its like: file name → store key or http(s) URL."""
    matrix: Matrix | None = None
    """Axes of values; one task per combination."""
    seeds: Seeds | None = None
    """One task per seed, set on every seed input of the graph (or its `seed` parameter)."""
    prompts: list[Annotated[str, StringConstraints(max_length=100_000)]] | Name | None = None
    """One task per prompt: a list, or the store key of a .txt (one a line), .csv (columns are
    parameters) or .jsonl file."""
    output: Output | None = None
    """Names and conversion of what the tasks make, contact sheet, sequence."""
    allow_invalid_outputs: bool = False
    """Let ComfyUI drop outputs that fail validation instead of failing the task."""
    reuse: bool = False
    """Answer tasks from earlier manifests where graph, parameters and inputs are the same."""


LORA_PLACEHOLDER = "{lora}"
"""Stands for the LoRA's file name in a test render, until one is published."""


class TrainJob(JobBase):
    """One training run, or a sweep of them."""

    kind: Literal["train"]
    dataset: Name
    """`name` (its newest fingerprint) or `name/fingerprint`, under `datasets/`."""
    preset: Name | None = None
    """A training preset by name."""
    config: dict[str, Any] | None = None
    """A full trainer config instead of a preset, brought under the same rules."""
    settings: dict[Name, Any] = {}
    """Changes to the preset: steps, lr, resolution, rank, …"""
    sweep: Matrix | None = None
    """Axes of settings; one training per combination."""
    trigger_word: Name | None = None
    publish: Name | None = None
    """The LoRA's name under `comfy_models/loras/`; the dataset's name otherwise."""
    sample: RenderJob | bool = True
    """The test render to emit after publishing; `true` for the preset's own."""


class IngestJob(JobBase):
    """A dataset folder, as the inbox reads it; not written by hand."""

    kind: Literal["ingest"]
    dataset: Name
    inventory: Name
    """Store key of what was in the folder when it was frozen."""
    problem: str | None = None
    """Why the folder was frozen although it never got complete."""


Job = Annotated[RenderJob | TrainJob | IngestJob, Field(discriminator="kind")]
