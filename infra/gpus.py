"""What Modal's GPUs hold and cost: for the plan, for costs in manifests, for a bigger one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from processor.errors import ConfigError
from processor.problems import did_you_mean


@dataclass(frozen=True, slots=True)
class Gpu:
    """A class of GPU."""

    memory_gb: int
    usd_per_hour: float


GPUS: Final[dict[str, Gpu]] = {
    "T4": Gpu(16, 0.59),
    "L4": Gpu(24, 0.80),
    "A10": Gpu(24, 1.10),
    "L40S": Gpu(48, 1.95),
    "A100-40GB": Gpu(40, 2.10),
    "A100-80GB": Gpu(80, 2.50),
    "H100": Gpu(80, 3.95),
    "H200": Gpu(141, 4.54),
    "B200": Gpu(180, 6.25),
}
"""List prices of the kickoff guide; Modal's own page has the word (https://modal.com/pricing)."""

CPU_USD_PER_CORE_HOUR: Final = 0.0473
MEMORY_USD_PER_GIB_HOUR: Final = 0.0080
"""Modal's list prices for a physical core and a GiB, as of 2026-11; check them on its page."""

_LADDER: Final = ("T4", "L4", "A10", "L40S", "A100-80GB", "H200", "B200")
"""Each holds more than the one before: what follows an out-of-memory that nothing else mended."""


def parse(name: str) -> tuple[str, int]:
    """A GPU as an app or a job names it, `H100:2`: its class and how many.

    Raises:
        ConfigError: there is no such class.
    """
    kind, _, count = name.partition(":")
    if kind not in GPUS:
        raise ConfigError(f"Modal has no GPU {kind!r}", where="gpu", mend=did_you_mean(kind, GPUS))
    return kind, int(count or 1)


def usd_per_s(name: str | None) -> float:
    """What a second on this GPU costs; 0 without one, or of a class we don't know."""
    if name is None:
        return 0.0
    kind, _, count = name.partition(":")
    known = GPUS.get(kind)
    return known.usd_per_hour * int(count or 1) / 3600 if known else 0.0


def bigger(name: str) -> str:
    """The next class with more memory, as many of them; itself where there is none."""
    kind, count = parse(name)
    memory_gb = GPUS[kind].memory_gb
    larger = next((each for each in _LADDER if GPUS[each].memory_gb > memory_gb), kind)
    return f"{larger}:{count}" if count > 1 else larger
