"""What a person may set on a training, typed and bounded; and how it reads as trainer config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from processor.errors import JobInvalid
from processor.models import Model, Name
from processor.problems import find_problems

Side = Annotated[int, Field(ge=64, le=4096)]
Prompt = Annotated[str, Field(min_length=1, max_length=2000)]
Optimizer = Literal["adamw", "adamw8bit", "adafactor", "prodigy", "prodigy8bit", "lion8bit", "automagic"]
"""Names that the trainer knows (toolkit/optimizer.py of ai-toolkit 0.12.26), but for `lion`, whose package
its requirements lack."""
Precision = Literal["bf16", "fp16", "fp32"]
NO_VIDEOS = "at num_frames 1 the trainer sees no videos; set num_frames (41, say), or take them out"
_SAVED = {"bf16": "bf16", "fp16": "float16", "fp32": "float32"}


class TrainOptions(Model):
    """The settings of one training run. A preset gives the defaults, a job changes them."""

    base_model: Name | None = None
    """Another base of the preset's kind: its folder under `models/` in the bucket."""
    steps: int = Field(default=2000, ge=1, le=200_000)
    lr: float = Field(default=1e-4, gt=0, le=1)
    rank: int = Field(default=16, ge=1, le=512)
    alpha: int | None = Field(default=None, ge=1, le=512)
    """As `rank` otherwise."""
    resolution: list[Side] = Field(default=[1024], min_length=1, max_length=8)
    """Sides of the squares whose area the pictures are scaled to; a list trains on each."""
    batch_size: int = Field(default=1, ge=1, le=64)
    gradient_accumulation: int = Field(default=1, ge=1, le=64)
    save_every: int = Field(default=250, ge=1)
    """Steps between two checkpoints."""
    keep: int = Field(default=4, ge=1, le=100)
    """The newest checkpoints that are kept, on disk and in the bucket."""
    optimizer: Optimizer = "adamw8bit"
    dtype: Precision = "bf16"
    save_dtype: Precision = "fp16"
    noise_scheduler: Literal["ddpm", "flowmatch"] = "flowmatch"
    caption_dropout: float = Field(default=0.05, ge=0, le=1)
    shuffle_tokens: bool = False
    repeats: int = Field(default=1, ge=1, le=1000)
    num_frames: int = Field(default=1, ge=1, le=241)
    """Frames a clip; more than 1 trains on videos."""
    gradient_checkpointing: bool = True
    train_text_encoder: bool = False
    quantize: bool = False
    low_vram: bool = False
    cache_latents: bool = True
    sample_every: int = Field(default=250, ge=0)
    """Steps between two sets of sample pictures; 0 for none."""
    sample_prompts: list[Prompt] = Field(default=[], max_length=16)
    sample_steps: int = Field(default=20, ge=1, le=200)
    sample_size: tuple[Side, Side] = (1024, 1024)
    guidance: float = Field(default=4, ge=0, le=30)
    seed: int = Field(default=42, ge=0, le=2**32 - 1)

    @field_validator("resolution", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) else value

    def as_process(self) -> dict[str, Any]:
        """The trainer's `process` section, without paths."""
        sampling = self.sample_every > 0 and bool(self.sample_prompts)
        process: dict[str, Any] = {
            "type": "sd_trainer",
            "network": {"type": "lora", "linear": self.rank, "linear_alpha": self.alpha or self.rank},
            "save": {
                "dtype": _SAVED[self.save_dtype],
                "save_every": self.save_every,
                "max_step_saves_to_keep": self.keep,
                "push_to_hub": False,
            },
            "datasets": [
                {
                    "caption_ext": "txt",
                    "caption_dropout_rate": self.caption_dropout,
                    "shuffle_tokens": self.shuffle_tokens,
                    "cache_latents_to_disk": self.cache_latents,
                    "num_repeats": self.repeats,
                    "num_frames": self.num_frames,
                    "resolution": list(self.resolution),
                }
            ],
            "train": {
                "batch_size": self.batch_size,
                "steps": self.steps,
                "gradient_accumulation": self.gradient_accumulation,
                "train_unet": True,
                "train_text_encoder": self.train_text_encoder,
                "gradient_checkpointing": self.gradient_checkpointing,
                "noise_scheduler": self.noise_scheduler,
                "optimizer": self.optimizer,
                "lr": self.lr,
                "dtype": self.dtype,
                "disable_sampling": not sampling,
            },
            "model": {"quantize": self.quantize, "low_vram": self.low_vram},
        }
        if sampling:
            process["sample"] = {
                "sampler": self.noise_scheduler,
                "sample_every": self.sample_every,
                "prompts": list(self.sample_prompts),
                "neg": "",  # without one the trainer's tokenizer fails on None
                "width": self.sample_size[0],
                "height": self.sample_size[1],
                "seed": self.seed,
                "walk_seed": True,
                "guidance_scale": self.guidance,
                "sample_steps": self.sample_steps,
            }
        return process


def read_options(defaults: Mapping[str, Any], changes: Mapping[str, Any], *, where: str) -> TrainOptions:
    """A preset's settings with a job's changes.

    Raises:
        JobInvalid: an unknown or wrong setting, with the nearest known name.
    """
    value = {**defaults, **changes}
    try:
        return TrainOptions.model_validate(value)
    except ValidationError as error:
        problems = [str(problem) for problem in find_problems(error, value, TrainOptions)]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise JobInvalid(problems[0] + more, where=where, details=problems) from None
