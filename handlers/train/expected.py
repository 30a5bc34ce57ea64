"""What a run will take and cost, before any run like it has taught better. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Final

from handlers.train.presets import Preset
from processor.prices import prices
from processor.spelling import duration, money

_LOAD_S: Final = 240.0
"""Until the first step: the base model is read and quantized, pictures and captions are encoded."""
_RAW_SECONDS: Final = 2.0
"""A step of a full config, whose model nobody has measured, at 1024 by 1024."""
_RAW_SIDES: Final = (1024,)
_TRAINERS_SIDE: Final = 512
"""Where a full config says none."""
_MARGIN: Final = 1.1
_DAY_S: Final = 24 * 3600.0


def weight_of(process: dict[str, Any]) -> float:
    """How much work a run is: its steps, by pictures and megapixels of each, by latent frames."""
    train, (dataset,) = process["train"], process["datasets"]
    pictures = train.get("batch_size", 1) * train.get("gradient_accumulation", 1)
    pictures *= train.get("gradient_accumulation_steps", 1)
    sides = dataset.get("resolution", _TRAINERS_SIDE)
    frames = 1 + (dataset.get("num_frames", 1) - 1) / 4  # four of a video are one of its latents
    return float(train["steps"] * pictures * _area(sides) * frames)


def seconds_of(weight: float, preset: Preset | None) -> float:
    """Of one run on the GPU that the preset names, its loading included."""
    if preset is None:
        return _LOAD_S + weight * _RAW_SECONDS / _area(_RAW_SIDES)
    return _LOAD_S + weight * preset.seconds_per_step / _area(preset.settings["resolution"])


def expectations(seconds: Sequence[float], gpu: str, cap_usd: float | None) -> list[str]:
    """What is to be known before a plan's runs are paid for: the longest one's time, price, and share.

    Args:
        cap_usd: of the whole job; its runs share it evenly.
    """
    longest_s, usd_per_s = max(seconds), prices().usd_per_s(gpu)
    usd = longest_s * usd_per_s
    price = f", {money(usd)} at Modal's price" if usd else ""
    found = [f"Expected: about {duration(longest_s)} a run on {gpu}{price}"]
    if longest_s > _DAY_S:
        found.append("A run takes more than a day: it is continued from its last checkpoint")
    if cap_usd is not None and usd * _MARGIN > cap_usd / len(seconds):
        shared = f", its share of {money(cap_usd)}" if len(seconds) > 1 else ""
        found.append(
            f"A run may cost {money(cap_usd / len(seconds))}{shared}: at that price it may be stopped before "
            f"its end. Set max_cost_usd to {money(usd * _MARGIN * len(seconds))} or more"
        )
    return found


def _area(sides: int | Sequence[int]) -> float:
    """The mean megapixels of squares of these sides."""
    return fmean(side * side / 1e6 for side in ([sides] if isinstance(sides, int) else sides))
