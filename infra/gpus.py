"""Modal's GPUs by name: which there are, what one costs, which is bigger."""

from __future__ import annotations

from typing import Final

from processor.errors import ConfigError
from processor.prices import prices
from processor.problems import did_you_mean

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
    known = prices().modal
    if kind not in known:
        raise ConfigError(f"Modal has no GPU {kind!r}", where="gpu", mend=did_you_mean(kind, known))
    return kind, int(count or 1)


def usd_per_s(name: str | None) -> float:
    """What a second on this GPU costs; 0 without one. One that we don't know is taken for the dearest of
    its number: at no price no cap would hold."""
    if name is None:
        return 0.0
    kind, _, count = name.partition(":")
    known = prices()
    if kind not in known.modal:
        dearest = max(known.modal, key=lambda each: known.modal[each].usd_per_h)
        name = f"{dearest}:{count or 1}"
    return known.usd_per_s(name)


def bigger(name: str) -> str:
    """The next class with more memory, as many of them; itself where there is none."""
    kind, count = parse(name)
    known = prices().modal
    memory_gb = known[kind].memory_gb
    larger = next((each for each in _LADDER if each in known and known[each].memory_gb > memory_gb), kind)
    return f"{larger}:{count}" if count > 1 else larger
