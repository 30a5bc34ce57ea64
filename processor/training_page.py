"""A training's page: curves together, samples side by side, settings and costs in one table.

Made from the manifest alone, like the gallery, and under the same rules (no script, all
escaped, links relative). The chart is drawn here as SVG inside the page, so that nothing
a trainer wrote is ever executed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from processor.gallery import file_href, job_name, make_page, shown_as_of, spell, styles
from processor.records import Manifest, TaskResult
from processor.spelling import duration, money

_WIDTH, _HEIGHT = 960, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 34
_TICKS: Final = 4
_COLOURS: Final = 8
_SMOOTHING: Final = 0.85
_MOST_SAMPLES: Final = 400
_SAMPLE: Final = re.compile(r"samples/step-(?P<step>\d{1,9})-(?P<number>\d{1,3})\.\w+")


@dataclass(frozen=True, slots=True)
class Line:
    """One run's curve: its number (for the colour) and an SVG path, raw and smoothed."""

    number: int
    colour: int
    raw: str
    smooth: str


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything the template needs to draw the curves."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    lines: list[Line]
    rows: list[Tick]
    columns: list[Tick]


@dataclass(frozen=True, slots=True)
class Sample:
    href: str
    step: int
    alt: str


@dataclass(frozen=True, slots=True)
class Row:
    """One run in the table."""

    number: int
    colour: int
    values: list[str]
    final_loss: str
    level: str
    steps: str
    taken: str
    cost: str
    lora: str
    href: str | None
    resumed: str
    error: str
    best: bool
    samples: list[list[Sample]]
    """One list a prompt, by step."""


def render_training(manifest: Manifest) -> str | None:
    """`comfy_outputs/<job-id>/training.html`; None for a job without any run. Pure."""
    results = sorted(manifest.tasks, key=lambda result: result.index)
    if not results or manifest.plan is None:
        return None
    shared: dict[str, Any] = manifest.plan.shared
    axes = list(dict.fromkeys(name for result in results for name in result.params))
    levels = [float(level) for result in results if (level := result.data.get("loss_level")) is not None]
    best = min(levels) if len(levels) > 1 else None
    rows = [_row(manifest, result, axes, best) for result in results]
    page = {
        "name": job_name(manifest),
        "outcome": manifest.outcome.value,
        "job_id": manifest.job_id,
        "rehearsal": bool(shared.get("rehearsal")) or any(r.data.get("rehearsal") for r in results),
        "facts": _facts(manifest, shared, results),
        "axes": axes,
        "rows": rows,
        "sweep": len(rows) > 1,
        "cost": any(row.cost for row in rows),
        "chart": _chart(results),
        "warnings": manifest.plan.warnings,
    }
    return make_page("training.html.j2", styles("base.css", "training.css"), page=page)


def _facts(
    manifest: Manifest, shared: dict[str, Any], results: Sequence[TaskResult]
) -> list[tuple[str, str]]:
    base = next((str(r.data["base_model"]) for r in results if r.data.get("base_model")), None)
    facts = [("Dataset", f"{shared.get('dataset')} · {shared.get('fingerprint')}")]
    if base:
        facts.append(("Base model", base))
    facts.append(("Trigger word", str(shared.get("trigger"))))
    facts.append(("Engine time", duration(manifest.seconds)))
    if manifest.cost_usd:
        facts.append(("Cost", money(manifest.cost_usd)))
    return facts


def _row(manifest: Manifest, result: TaskResult, axes: Sequence[str], best: float | None) -> Row:
    data = result.data
    level = data.get("loss_level")
    lora = next((file for file in result.files if file.name == data.get("lora")), None)
    resumed = data.get("resumed_from")
    return Row(
        number=result.index,
        colour=result.index % _COLOURS,
        values=[spell(result.params[axis]) if axis in result.params else "" for axis in axes],
        final_loss=_loss(data.get("final_loss")),
        level=_loss(level),
        steps=f"{data['steps']:,}" if isinstance(data.get("steps"), int) else "",
        taken=duration(float(data.get("train_seconds", result.seconds))),
        cost=money(result.cost_usd) if result.cost_usd else "",
        lora=lora.name if lora else "",
        href=file_href(manifest.job_id, lora.key) if lora else None,
        resumed=f"continued from step {resumed:,}" if isinstance(resumed, int) else "",
        error=result.error.what if result.error else "",
        best=best is not None and level == best,
        samples=_samples(manifest.job_id, result),
    )


def _samples(job_id: str, result: TaskResult) -> list[list[Sample]]:
    """Sample pictures of each prompt by step; every run has the same prompts and seeds."""
    found: dict[int, list[Sample]] = {}
    for file in result.files[:_MOST_SAMPLES]:
        href, match = file_href(job_id, file.key), _SAMPLE.fullmatch(file.name)
        if href is None or match is None or shown_as_of(file) != "image":
            continue
        step, number = int(match["step"]), int(match["number"])
        alt = f"run {result.index}, prompt {number}, step {step}"
        found.setdefault(number, []).append(Sample(href, step, alt))
    return [sorted(row, key=lambda sample: sample.step) for _, row in sorted(found.items())]


def _loss(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _chart(results: Sequence[TaskResult]) -> Chart | None:
    curves = [(result, points) for result in results if len(points := _points(result)) > 1]
    if not curves:
        return None
    losses = [loss for _, points in curves for _, loss in points]
    low, high = min(losses), max(losses)
    spread = (high - low) or 1.0
    last = max(points[-1][0] for _, points in curves) or 1
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(step: float) -> float:
        return round(_LEFT + step / last * inner_width, 1)

    def y(loss: float) -> float:
        return round(_TOP + (high - loss) / spread * inner_height, 1)

    def path(points: Sequence[tuple[int, float]]) -> str:
        return "M" + "L".join(f"{x(step)} {y(loss)}" for step, loss in points)

    return Chart(
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        lines=[
            Line(result.index, result.index % _COLOURS, path(points), path(_smoothed(points)))
            for result, points in curves
        ],
        rows=[
            Tick(y(low + spread * k / _TICKS), f"{low + spread * k / _TICKS:.3g}") for k in range(_TICKS + 1)
        ],
        columns=[Tick(x(step), f"{step:,}") for step in _even(last)],
    )


def _even(last: int) -> list[int]:
    """Whole steps for the ticks, the first and the last among them."""
    return sorted({round(last * k / _TICKS) for k in range(_TICKS + 1)})


def _points(result: TaskResult) -> list[tuple[int, float]]:
    return [(int(step), float(loss)) for step, loss in result.data.get("losses") or []]


def _smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    mean, found = points[0][1], []
    for step, loss in points:
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        found.append((step, mean))
    return found
