"""What a deploy will make, before it does: functions, GPUs, crons, doors, against the plan's limits,
and what it costs to stand there idle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from infra.gpus import CPU_USD_PER_CORE_HOUR, MEMORY_USD_PER_GIB_HOUR, usd_per_s
from infra.settings import Deployment

_MONTH_H: Final = 730.0
_TICKS_A_MONTH: Final = 60 * 24 * 30.4
TICK_BILLED_S: Final = 6.0
"""A tick's container from start to end: some 2 s to start, 2 s of work, 2 s of scaledown. The
work was measured on the loopback, the rest is Modal's published cold start; see docs/modal.md."""
TICK_CORES: Final = 0.25
TICK_GIB: Final = 0.5
STUDIO_CORES: Final = 4.0
STUDIO_GIB: Final = 16.0


@dataclass(frozen=True, slots=True)
class Row:
    """One function of the app."""

    name: str
    what: str
    gpus: tuple[str, ...] = ()
    containers: int = 1
    cron: str | None = None
    door: str | None = None
    """`proxy auth` or `signed`: who may call it over HTTP."""
    warm: int = 0
    """Containers that always run."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a Modal plan allows (the kickoff guide's table)."""

    gpus: int
    containers: int
    crons: int | None
    doors: int | None
    usd_included: float


LIMITS: Final = {
    "starter": Limits(gpus=10, containers=100, crons=5, doors=8, usd_included=30),
    "team": Limits(gpus=50, containers=1000, crons=None, doors=None, usd_included=100),
}


@dataclass(frozen=True)
class DeployPlan:
    """All that `dropbatch deploy` shows."""

    rows: tuple[Row, ...]
    limits: Limits

    @property
    def gpus(self) -> int:
        """GPUs at once, if every pool is full. A job's own GPU class has a pool of the same size."""
        return sum(row.containers * _count(row.gpus[0]) for row in self.rows if row.gpus)

    @property
    def containers(self) -> int:
        return sum(row.containers for row in self.rows)

    @property
    def crons(self) -> int:
        return sum(row.cron is not None for row in self.rows)

    @property
    def doors(self) -> int:
        return sum(row.door is not None for row in self.rows)

    @property
    def idle_usd_a_month(self) -> float:
        """Ticks that find nothing, and containers that are kept warm."""
        ticks_h = _TICKS_A_MONTH * TICK_BILLED_S / 3600
        return ticks_h * _usd_per_h(TICK_CORES, TICK_GIB) + sum(
            row.warm * _MONTH_H * _usd_per_h(STUDIO_CORES, STUDIO_GIB, next(iter(row.gpus), None))
            for row in self.rows
        )

    def over(self) -> Iterator[str]:
        """Each limit of the plan that this deploy would exceed."""
        for what, have, limit in (
            ("GPUs at once", self.gpus, self.limits.gpus),
            ("containers", self.containers, self.limits.containers),
            ("crons", self.crons, self.limits.crons),
            ("web endpoints", self.doors, self.limits.doors),
        ):
            if limit is not None and have > limit:
                yield f"{have} {what}, the plan allows {limit}"


def plan_of(deployed: Deployment) -> DeployPlan:
    """What these settings deploy."""
    return DeployPlan(tuple(_rows(deployed)), LIMITS[deployed.modal.plan])


def _rows(deployed: Deployment) -> Iterator[Row]:
    settings, ours = deployed.settings, deployed.modal

    def gpus(names: list[str]) -> tuple[str, ...]:
        return tuple(names) if ours.engine == "comfyui" else ()

    night, morning = (
        f"{at.minute} {at.hour} * * * {settings.zone}" for at in (settings.night_start, settings.night_end)
    )
    yield Row("tick", "looks at the inbox", containers=2, cron="* * * * * UTC")
    yield Row("nightly", "opens the night", cron=night)
    yield Row("morning", "reports the night, sweeps", cron=morning)
    yield Row("wake", "a tick out of turn", containers=2)
    yield Row("Dispatcher", "runs claimed jobs", containers=ours.dispatch_containers)
    yield Row("Renderer", "renders", gpus(ours.render_gpus), ours.render_containers)
    yield Row("Trainer", "trains", gpus(ours.train_gpus), ours.train_containers)
    yield Row("Ingester", "checks and archives datasets", containers=2)
    yield Row("pull", "brings models to the Volume")
    yield Row("pull_bases", "brings base models to the Volume")
    yield Row("sync_models", "copies models, both ways")
    yield Row("model_files", "lists and removes models")
    yield Row("capture", "takes ComfyUI's node schema at deploy")
    if ours.api:
        warm = ours.api_min_containers
        yield Row("Studio", "renders for the API", gpus(ours.api_gpus), ours.api_containers, warm=warm)
        yield Row("api", "headless API and status", containers=2, door="proxy auth")
    if ours.ui:
        yield Row("ui", "ComfyUI in the browser", gpus([ours.ui_gpu]), 1, door="proxy auth")
    if ours.webhook:
        yield Row("webhook", "Backblaze's notifications", containers=2, door="signed")


def _usd_per_h(cores: float, gib: float, gpu: str | None = None) -> float:
    return cores * CPU_USD_PER_CORE_HOUR + gib * MEMORY_USD_PER_GIB_HOUR + usd_per_s(gpu) * 3600


def _count(gpu: str) -> int:
    return int(gpu.partition(":")[2] or 1)
