"""What GPUs cost: the table in `workflows/prices.json`, and the rule that compares renting with Modal."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from pydantic import Field

from processor.models import Model


class GpuPrice(Model):
    """A class of GPU on Modal."""

    memory_gb: int = Field(gt=0)
    usd_per_h: float = Field(gt=0)


class RentPrice(Model):
    """What a whole machine with such a GPU is rented for, by the hour."""

    usd_per_h: tuple[float, float]


class Prices(Model):
    """`workflows/prices.json`."""

    as_of: str
    source: str
    modal: dict[str, GpuPrice]
    vast: dict[str, RentPrice]
    vast_cheaper_above: float = Field(gt=0, le=1)
    """Utilisation of a rented hour above which renting costs less than paying by the second."""
    cold_start_s: float
    """Until a container renders: its boot and the loading of models."""
    containers: int
    """That run at once on Modal's starter plan."""

    def usd_per_s(self, gpu: str | None) -> float:
        """What a second on this GPU costs on Modal (`H100:2` is two); 0 for none, or one not known."""
        if gpu is None:
            return 0.0
        kind, _, count = gpu.partition(":")
        known = self.modal.get(kind)
        return known.usd_per_h * int(count or 1) / 3600 if known else 0.0


@cache
def prices() -> Prices:
    """The table that comes with the package."""
    data = (resources.files("workflows") / "prices.json").read_bytes()
    return Prices.model_validate(json.loads(data))
