"""What jobs will cost: learned from manifests, on every GPU, and how renting compares."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.render.weight import shape_of, weight_of
from processor.estimate import GUESS_S, Fit, Sample, estimate, fit, learn
from processor.prices import prices
from processor.records import DropRef, Manifest, Outcome, Plan, Task, TaskResult

NOW = datetime(2026, 5, 4, tzinfo=UTC)
PRICES = prices()


def plan(count: int = 1, *, weight: float = 1.0, group: str = "sd15", **more: Any) -> Plan:
    tasks = [Task(index=k, hash=str(k), weight=weight, group=group) for k in range(count)]
    return Plan(**{"job_id": "j-0123456789abcdef", "kind": "render", "shape": "s", "tasks": tasks, **more})


def finished(made: Plan, seconds: list[float], gpu: str | None = "L40S", **result: Any) -> Manifest:
    results = [
        TaskResult(
            index=task.index,
            hash=task.hash,
            attempt="1-a",
            execution="e",
            started_at=NOW,
            **{"status": "done", "gpu": gpu, "seconds": seconds[task.index], **result},
        )
        for task in made.tasks
    ]
    return Manifest(
        schema_version=1,
        job_id=made.job_id,
        kind="render",
        outcome=Outcome.DONE,
        drop=DropRef(key="inbox/a.json", version="1"),
        plan=made,
        tasks=results,
        attempt="1-a",
        started_at=NOW,
        finished_at=NOW,
    )


def test_twenty_noisy_tasks_teach_within_a_few_percent() -> None:
    """With one that loaded models and so took ten times as long."""
    source = random.Random(7)  # noqa: S311 - noise to be repeated
    seconds = [source.gauss(6, 0.6) for _ in range(20)]
    seconds[0] = 60.0
    history = learn([finished(plan(20), seconds)])
    made = estimate(plan(500), history, PRICES, gpu="L40S")
    assert (made.basis, made.samples) == ("learned", 20)
    assert made.seconds == pytest.approx(500 * 6, rel=0.1)
    assert made.usd == pytest.approx((made.seconds + 10 * 20) * 1.95 / 3600, rel=1e-3)


def test_a_fixed_part_and_one_that_grows_are_told_apart() -> None:
    """Decoding costs the same whatever the steps; then twice the weight is less than twice the time."""
    tasks = [Task(index=k, hash=str(k), weight=float(1 + k % 4)) for k in range(20)]
    made = plan().model_copy(update={"tasks": tasks})
    history = learn([finished(made, [2 + 3 * task.weight for task in tasks])])
    assert history.predict(made, Task(index=0, hash="x", weight=8.0), "L40S").seconds == pytest.approx(26)


def test_other_models_or_another_gpu_are_similar_not_learned() -> None:
    history = learn([finished(plan(20), [6.0] * 20)])
    assert history.predict(plan(), plan(group="sdxl").tasks[0], "L40S").basis == "similar"
    assert history.predict(plan(), plan().tasks[0], "H100").basis == "similar"


def test_what_the_workflow_says_holds_until_something_is_learned() -> None:
    nothing = learn([])
    assert estimate(plan(typical_seconds=4.0), nothing, PRICES, gpu="L40S").seconds == 4.0
    assert estimate(plan(), nothing, PRICES, gpu="L40S").seconds == GUESS_S


@pytest.mark.parametrize("result", [{"status": "failed"}, {"reused_from": "other"}])
def test_failures_and_copies_teach_nothing(result: dict[str, Any]) -> None:
    assert not learn([finished(plan(20), [6.0] * 20, **result)]).shapes


def test_every_class_has_its_price_and_says_whether_it_has_the_memory() -> None:
    """The guide's table; an A100 with 40 GB is too small for what asks for 80."""
    made = estimate(plan(10, typical_seconds=360.0, gpu="A100-80GB"), learn([]), PRICES, gpu="A100-80GB")
    classes = {entry.gpu: entry for entry in made.classes}
    assert set(classes) == set(PRICES.modal)
    assert not classes["A100-40GB"].fits
    assert classes["H100"].fits
    assert classes["H100"].usd > classes["A100-80GB"].usd
    assert made.usd == classes["A100-80GB"].usd


@pytest.mark.parametrize(("seconds", "cheaper"), [(300, "modal"), (1200, "vast"), (3700, "vast")])
def test_renting_pays_above_the_rules_utilisation(seconds: float, cheaper: str) -> None:
    """The guide's example: five minutes of an hour on Modal, an hour through on Vast.ai."""
    made = estimate(plan(typical_seconds=float(seconds)), learn([]), PRICES, gpu="A100-80GB")
    assert made.cheaper == cheaper
    assert made.vast_usd == ((0.5, 1.0) if seconds < 3600 else (1.0, 2.0))


def test_thousands_of_tasks_ask_what_was_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two thousand tasks of two thousand samples take minutes."""
    fitted: list[int] = []

    def counted(samples: Sequence[Sample]) -> Fit:
        fitted.append(len(samples))
        return fit(samples)

    monkeypatch.setattr("processor.estimate.fit", counted)
    history = learn([finished(plan(300), [6.0] * 300)])
    assert estimate(plan(400), history, PRICES, gpu="L40S").basis == "learned"
    assert fitted == [300, 300]  # on that GPU; and on all others, of which nothing else is known
    history.add(finished(plan(20), [60.0] * 20))
    assert estimate(plan(400), history, PRICES, gpu="L40S").samples == 320


@given(
    st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0.01, 1e4)), min_size=1, max_size=40),
    st.floats(0.1, 1e3),
)
def test_an_estimate_is_never_negative_or_absurd(samples: list[tuple[float, float]], weight: float) -> None:
    seconds = fit([Sample(*sample) for sample in samples]).at(weight)
    assert 0 <= seconds < 1e4 * 1e4 * 2


def graph(**latent: Any) -> dict[str, Any]:
    return {
        "3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20, "latent_image": ["5", 0]}},
        "5": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 512, "height": 512, "batch_size": 1, **latent},
        },
    }


def test_weight_grows_with_steps_and_pixels_and_shape_with_neither() -> None:
    assert weight_of(graph()) == 20
    assert weight_of(graph(width=1024, batch_size=3)) == 120
    assert weight_of({"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}) == 1
    assert shape_of(graph()) == shape_of(graph(width=1024))
    assert shape_of(graph()) != shape_of({**graph(), "9": {"class_type": "SaveImage", "inputs": {}}})


@pytest.mark.parametrize(("gpu", "usd"), [(None, 0), ("L40S", 1.95), ("H100:2", 7.9), ("abacus", 0)])
def test_a_second_costs_what_the_table_says(gpu: str | None, usd: float) -> None:
    assert PRICES.usd_per_s(gpu) * 3600 == pytest.approx(usd)
