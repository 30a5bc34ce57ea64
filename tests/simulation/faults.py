"""What goes wrong, and when: drawn by chance, or planned call by call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from processor.errors import AccessDenied, DropbatchError, StoreUnavailable
from processor.layout import AUTHORITY

if TYPE_CHECKING:
    from tests.simulation.world import Process, World


class Kind(StrEnum):
    """One way for a request to go wrong."""

    UNAVAILABLE = "503 before the effect"
    DENIED = "403 (a cap)"
    LOST_REPLY = "effect, then the reply lost"
    LATE = "given up, the effect landing later"
    SLEEP = "asleep before the effect"
    SUSPEND = "suspended, the monotonic clock standing still"
    SLOW_REPLY = "asleep before the reply"
    CRASH_BEFORE = "crash before the effect"
    CRASH_AFTER = "crash after the effect"


CRASHES = (Kind.CRASH_BEFORE, Kind.LOST_REPLY, Kind.CRASH_AFTER)
"""The three ways that `crashpoints` tries at every call."""

_CHANGES = frozenset({"put", "copy", "delete", "create", "write"})
"""Operations that have an effect to be lost or late; reading has none."""


class Faults(Protocol):
    """Asked at every call of every process."""

    def draw(self, world: World, process: Process, operation: str, key: str) -> Kind | None: ...

    def long_s(self, world: World) -> float:
        """How long a sleeper sleeps."""
        ...

    @staticmethod
    def error(kind: Kind) -> DropbatchError:
        """What the caller sees of a fault that it survives."""
        if kind is Kind.DENIED:
            return AccessDenied("the daily cap is reached")
        return StoreUnavailable(f"simulated: {kind}")


_DELAYS = frozenset({Kind.LATE, Kind.SLEEP, Kind.SUSPEND})
FOUNDING = (AUTHORITY, "authority", "refound/")
"""Keys of founding an authority, in the bucket and in the lease store."""


@dataclass
class Chance(Faults):
    """Faults by chance, while `on`.

    Args:
        rate: of calls that go wrong.
        weights: how the kinds share it.
        timely: keys whose requests take effect soon or never: the assumptions about time that
            docs/reliability.md states.
        aimed: (operation, how the key begins) → a kind and how likely it strikes just there: what
            a guard is for may need two rare things at once.
        exempt: processes whose names start so are spared (the user is no part of the machine).
    """

    rate: float
    weights: Mapping[Kind, float]
    exempt: tuple[str, ...] = ("user",)
    timely: tuple[str, ...] = FOUNDING
    aimed: Mapping[tuple[str, str], tuple[Kind, float]] = field(default_factory=dict)
    on: bool = True

    def __post_init__(self) -> None:
        self._kinds = list(self.weights)
        self._weights = list(self.weights.values())

    def draw(self, world: World, process: Process, operation: str, key: str) -> Kind | None:
        if not self.on or process.name.startswith(self.exempt):
            return None
        for (what, prefix), (kind, chance) in self.aimed.items():
            if operation == what and key.startswith(prefix) and world.random.random() < chance:
                return kind
        if world.random.random() >= self.rate:
            return None
        (kind,) = world.random.choices(self._kinds, self._weights)
        if kind in _DELAYS and key.startswith(self.timely):
            return None
        if kind in (Kind.LATE, Kind.LOST_REPLY) and operation not in _CHANGES:
            return Kind.UNAVAILABLE
        return kind

    def long_s(self, world: World) -> float:
        if world.random.random() < 0.5:
            return world.random.uniform(5, 90)
        return world.random.uniform(500, 1600)


class Planned(Faults):
    """Exactly these faults: the n-th call of the machine → what happens to it."""

    def __init__(self, plan: Mapping[int, Kind], *, exempt: tuple[str, ...] = ("user",)) -> None:
        self._plan = plan
        self._exempt = exempt
        self.seen: list[tuple[str, str]] = []
        """Every call that could have been hit: its operation and key."""

    def draw(self, world: World, process: Process, operation: str, key: str) -> Kind | None:
        if process.name.startswith(self._exempt):
            return None
        self.seen.append((operation, key))
        return self._plan.get(len(self.seen) - 1)

    def long_s(self, world: World) -> float:
        return 1000.0
