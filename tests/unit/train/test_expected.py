"""What a plan says of time and money, before any training has taught it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handlers.train.planning import plan_training
from handlers.train.settings import TrainSettings
from processor.estimate import estimate, learn
from processor.handler import PlanContext, Stores
from processor.models import TrainJob
from processor.prices import prices
from processor.records import Plan
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock


def planned(*, rehearsal: bool = False, on_paper: bool = False, **job: Any) -> Plan:
    """A job's plan, without a bucket."""
    context = PlanContext(
        job_id="zoe-0000000000000000",
        drop_key="zoe.json",
        stores=Stores.single(MemoryStore()),
        now=ManualClock().now(),
        max_tasks=100,
        on_paper=on_paper,
        bucketless=True,
    )
    toolkit = None if rehearsal else Path("nowhere")
    settings = TrainSettings(base_dir=Path("nowhere"), toolkit_dir=toolkit, max_job_cost_usd=10.0)
    read = TrainJob.model_validate({"kind": "train", "dataset": "zoe", **job})
    return plan_training(read, context, settings)


def expected_s(plan: Plan) -> float:
    return estimate(plan, learn(()), prices(), gpu=plan.gpu or "").seconds


def test_a_training_is_estimated_by_its_presets_speed() -> None:
    """Hours, and not the seconds of a picture; a sweep's runs each by their own steps."""
    assert expected_s(planned(preset="wan21-14b")) == pytest.approx(2000 * 6.5 + 240)
    swept = planned(preset="sd15", sweep={"steps": [100, 300]})
    assert expected_s(swept) == pytest.approx(400 * 0.35 + 2 * 240)
    assert [task.weight for task in swept.tasks] == pytest.approx([100 * 0.262144, 300 * 0.262144])


@pytest.mark.parametrize(
    ("settings", "times"),
    [({"batch_size": 2}, 2), ({"gradient_accumulation": 3}, 3), ({"resolution": [1024]}, 4), ({}, 1)],
)
def test_more_pictures_and_larger_ones_are_more_work(settings: dict[str, Any], times: int) -> None:
    """Beside the preset's own settings."""
    plan = planned(preset="sd15", settings=settings)
    assert expected_s(plan) == pytest.approx(1500 * 0.35 * times + 240)


def test_a_share_that_does_not_reach_is_warned_of() -> None:
    """Four FLUX runs under ten dollars would each be stopped shortly before their end."""
    (said,) = [text for text in planned(sweep={"rank": [8, 16, 32, 64]}).warnings if "share" in text]
    assert "A run may cost $2.50, its share of $10.00" in said
    assert "Set max_cost_usd to $10." in said
    assert not any("may cost" in text for text in planned().warnings)
    assert any("at Modal's price" in text for text in planned().warnings)
    assert any("A run may cost $1.00: " in text for text in planned(max_cost_usd=1).warnings)


def test_a_full_config_is_estimated_too() -> None:
    """By a guess of its own: nobody has measured its model."""
    config = {"process": [{"train": {"steps": 100}, "model": {"name_or_path": "mine"}}]}
    assert 240 < expected_s(planned(config=config)) < 400


@pytest.mark.parametrize(
    ("model", "diffusers"),
    [({"arch": "flux"}, True), ({"is_xl": True}, True), ({}, True), ({"arch": "chroma"}, False)],
)
def test_only_architectures_that_have_a_preset_must_be_in_diffusers_format(
    model: dict[str, Any], diffusers: bool
) -> None:
    """Some of the others are one file, which no preset's model is."""
    config = {"process": [{"train": {"steps": 100}, "model": {"name_or_path": "mine", **model}}]}
    (task,) = planned(config=config).tasks
    assert task.payload["base"]["diffusers"] is diffusers


def test_a_rehearsal_teaches_nothing() -> None:
    """Its seconds are no training's; on paper another machine may be the one that trains."""
    assert planned(preset="sd15").shape == "train-sd1"
    assert planned(preset="sd15", rehearsal=True).shape == ""
    assert planned(preset="sd15", rehearsal=True, on_paper=True).shape == "train-sd1"
