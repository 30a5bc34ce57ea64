"""What a job will take and cost, learned from the manifests of jobs before it. Pure.

A task's seconds are those of earlier tasks of the same shape (the same graph, whatever its
values) with the same models on the same GPU, in proportion to its weight. The handler says
shape and weight when it plans; nothing here knows what a task is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from processor.models import Model
from processor.prices import Prices
from processor.records import Manifest, Plan, Task

Basis = Literal["learned", "similar", "declared", "guessed"]
"""`learned`: from tasks with the same models on that GPU. `similar`: of the same shape, with other
models or on another GPU. `declared`: the workflow or the preset says so. `guessed`: nothing is known."""

MIN_SAMPLES = 5
GUESS_S = 10.0
_TRIM = 0.05
"""Of the samples at either end: a first task that loads models, one that found all in a cache."""
_VARIED = 1.1


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished task: how heavy it was, and its engine seconds."""

    weight: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of one task, and what that rests on."""

    seconds: float
    basis: Basis
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Fit:
    """A line through samples where their weights differ, else their mean in proportion. Never below
    the fastest sample's share, never negative."""

    mean_weight: float
    mean_seconds: float
    slope: float | None
    """Seconds per weight; None where the weights hardly differ."""
    lightest: float
    fastest: float

    def at(self, weight: float) -> float:
        """Expected seconds at a weight."""
        if self.slope is None:
            proportional = self.mean_weight > 0
            return self.mean_seconds * weight / self.mean_weight if proportional else self.mean_seconds
        if self.slope <= 0:
            return self.mean_seconds
        start = self.mean_seconds - self.slope * self.mean_weight
        return max(start + self.slope * weight, self.fastest * min(1.0, weight / self.lightest))


@dataclass(slots=True)
class History:
    """Samples of earlier tasks, by what makes them comparable."""

    exact: dict[tuple[str, str, str | None], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    """By shape, models, GPU."""
    shapes: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    _fits: dict[Hashable, Fit] = field(default_factory=dict)
    """By the keys of both; made once, for thousands of tasks ask for the same."""

    def add(self, manifest: Manifest) -> None:
        """Take in a finished job; reused results and failures teach nothing."""
        plan = manifest.plan
        if plan is None or not plan.shape:
            return
        self._fits.clear()
        tasks = {task.index: task for task in plan.tasks}
        for result in manifest.tasks:
            task = tasks.get(result.index)
            if task is None or result.status != "done" or result.reused_from or result.seconds <= 0:
                continue
            sample = Sample(task.weight, result.seconds)
            self.exact[plan.shape, task.group, result.gpu].append(sample)
            self.shapes[plan.shape].append(sample)

    def predict(self, plan: Plan, task: Task, gpu: str | None) -> Prediction:
        """The seconds that a task will take on a GPU."""
        alike = (plan.shape, task.group, gpu)
        exact = self.exact.get(alike, [])
        if len(exact) >= MIN_SAMPLES:
            return Prediction(self._fit(alike, exact).at(task.weight), "learned", len(exact))
        if similar := self.shapes.get(plan.shape, []) if plan.shape else []:
            return Prediction(self._fit(plan.shape, similar).at(task.weight), "similar", len(similar))
        if plan.typical_seconds is not None:
            return Prediction(plan.typical_seconds, "declared")
        return Prediction(GUESS_S, "guessed")

    def _fit(self, key: Hashable, samples: Sequence[Sample]) -> Fit:
        if key not in self._fits:
            self._fits[key] = fit(samples)
        return self._fits[key]


def learn(manifests: Iterable[Manifest]) -> History:
    """What these jobs teach."""
    history = History()
    for manifest in manifests:
        history.add(manifest)
    return history


def fit(samples: Sequence[Sample]) -> Fit:
    """What some samples, at least one, say of other weights; the extremes are left out."""
    kept = _trimmed(samples)
    mean_weight = fmean(sample.weight for sample in kept)
    mean_seconds = fmean(sample.seconds for sample in kept)
    lightest, heaviest = min(s.weight for s in kept), max(s.weight for s in kept)
    slope = None
    if len(kept) >= MIN_SAMPLES and heaviest >= lightest * _VARIED:
        spread = sum((s.weight - mean_weight) ** 2 for s in kept)
        slope = sum((s.weight - mean_weight) * (s.seconds - mean_seconds) for s in kept) / spread
    return Fit(mean_weight, mean_seconds, slope, lightest, min(s.seconds for s in kept))


def _trimmed(samples: Sequence[Sample]) -> list[Sample]:
    """Without the extremes of seconds per weight."""
    cut = int(len(samples) * _TRIM)
    ordered = sorted(samples, key=lambda sample: sample.seconds / max(sample.weight, 1e-9))
    return ordered[cut : len(ordered) - cut]


class GpuCost(Model):
    """A job on one class of GPU."""

    gpu: str
    memory_gb: int
    usd_per_h: float
    seconds: float
    usd: float
    """With cold starts."""
    basis: Basis
    fits: bool
    """It has the memory of the GPU that the workflow names."""


class Estimate(Model):
    """What a job will take, on each class of GPU."""

    tasks: int
    gpu: str
    """The one it would run on."""
    seconds: float
    """Of the engine, all tasks together."""
    usd: float
    basis: Basis
    samples: int
    cold_starts: int
    wall_seconds: float
    """With as many containers as the plan has."""
    classes: list[GpuCost]
    utilisation: float
    """Of the hours that one rented machine would be paid for."""
    vast_usd: tuple[float, float] | None
    """On Vast.ai, where the table has a price for that GPU."""
    cheaper: Literal["modal", "vast"]
    """By the rule of thumb on utilisation."""


def seconds_on(plan: Plan, history: History, gpu: str | None) -> tuple[float, Basis, int]:
    """Engine seconds of all tasks on a GPU, the weakest of what they rest on, and its samples."""
    predictions = [history.predict(plan, task, gpu) for task in plan.tasks]
    weakest = max(predictions, key=lambda made: _ORDER.index(made.basis))
    return sum(made.seconds for made in predictions), weakest.basis, weakest.samples


def estimate(plan: Plan, history: History, table: Prices, *, gpu: str) -> Estimate:
    """What a plan costs on `gpu`, and on every other class at the seconds that are known for it."""
    kind = gpu.partition(":")[0]
    per_class = {name: seconds_on(plan, history, name) for name in dict.fromkeys([kind, *table.modal])}
    starts = min(len(plan.tasks), table.containers)
    memory_gb = table.modal[kind].memory_gb if plan.gpu and kind in table.modal else 0
    classes = [
        GpuCost(
            gpu=name,
            memory_gb=price.memory_gb,
            usd_per_h=price.usd_per_h,
            seconds=round(per_class[name][0], 3),
            usd=round((per_class[name][0] + starts * table.cold_start_s) * price.usd_per_h / 3600, 4),
            basis=per_class[name][1],
            fits=price.memory_gb >= memory_gb,
        )
        for name, price in table.modal.items()
    ]
    seconds, basis, samples = per_class[kind]
    hours = max(1, math.ceil(seconds / 3600))
    utilisation = seconds / (hours * 3600)
    rent = table.vast.get(kind)
    return Estimate(
        tasks=len(plan.tasks),
        gpu=gpu,
        seconds=round(seconds, 3),
        usd=round((seconds + starts * table.cold_start_s) * table.usd_per_s(gpu), 4),
        basis=basis,
        samples=samples,
        cold_starts=starts,
        wall_seconds=round(seconds / starts + table.cold_start_s, 3),
        classes=classes,
        utilisation=round(utilisation, 4),
        vast_usd=(hours * rent.usd_per_h[0], hours * rent.usd_per_h[1]) if rent else None,
        cheaper="vast" if utilisation > table.vast_cheaper_above else "modal",
    )


_ORDER: tuple[Basis, ...] = ("learned", "similar", "declared", "guessed")
