"""Estimates, held against what the same engine then took: the built-in one, and a ComfyUI where one is named.

Every second task of one job teaches, the others are predicted: whatever else the machine does
meanwhile slows both alike.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import pytest

from handlers.render import RenderHandler, RenderSettings
from processor.clock import SystemClock
from processor.estimate import learn
from processor.prices import prices
from processor.records import Manifest
from processor.run import run
from processor.testing.machine import Bench
from tests.support.rendering import builtin_settings, real_settings

TAUGHT = 20
WITHIN = 0.20


def finished_job(settings: RenderSettings, tmp_path: Path) -> Manifest:
    """Forty tasks of one workflow in two sizes, as a bucket's manifest has them."""
    bench = Bench(tmp_path / "tasks", RenderHandler(settings, SystemClock()))
    photo = (resources.files("workflows.examples") / "photos/cat.jpg").read_bytes()
    bench.main.put("inputs/cat.jpg", photo)
    job = {
        "workflow": "glow",
        "inputs": {"cat.jpg": "inputs/cat.jpg"},
        "overrides": {"image": "cat.jpg", "radius": 9},
        "matrix": {
            "product": {"amount": [round(0.05 * step, 2) for step in range(1, 2 * TAUGHT // 4 + 1)]},
            "zip": {
                "width": [256, 512, 256, 512],
                "height": [192, 384, 192, 384],
                "tint_amount": [0, 0, 0.3, 0.3],
            },
        },
    }
    bench.drop(job)
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    (value,) = bench.manifests()
    return Manifest.model_validate(value)


def error_of(manifest: Manifest) -> float:
    """How far the predicted cost of one half is from the measured one, having learned from the other."""
    plan = manifest.plan
    assert plan is not None
    assert manifest.outcome.value == "done"
    # Sizes alternate, so pairs do: each half has both.
    taught = [result for result in manifest.tasks if result.index // 2 % 2 == 0]
    asked = [result for result in manifest.tasks if result.index // 2 % 2]
    assert len(taught) == len(asked) == TAUGHT
    history = learn([manifest.model_copy(update={"tasks": taught})])
    usd_per_s = prices().usd_per_s("L40S")
    tasks = {task.index: task for task in plan.tasks}
    predicted = [history.predict(plan, tasks[result.index], None) for result in asked]
    assert {made.basis for made in predicted} == {"learned"}
    measured_usd = sum(result.seconds for result in asked) * usd_per_s
    return sum(made.seconds for made in predicted) * usd_per_s / measured_usd - 1


def test_twenty_tasks_teach_what_the_built_in_engine_will_take(tmp_path: Path) -> None:
    error = error_of(finished_job(builtin_settings(tmp_path), tmp_path))
    assert abs(error) < WITHIN, f"{error:+.1%}"


@pytest.mark.skipif(
    not (os.environ.get("COMFYUI_DIR") or os.environ.get("COMFYUI_URL")), reason="no ComfyUI is named"
)
def test_twenty_tasks_teach_what_a_real_comfyui_will_take(tmp_path: Path) -> None:
    error = error_of(finished_job(real_settings(tmp_path), tmp_path))
    assert abs(error) < WITHIN, f"{error:+.1%}"
