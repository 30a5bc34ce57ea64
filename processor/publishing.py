"""What follows from a finished training: its LoRA is published, its test render dropped."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from processor.dropping import drop
from processor.errors import NotFound, StoreError
from processor.layout import COMFY_MODELS, training_page_key
from processor.machine import Machine
from processor.models import LORA_PLACEHOLDER, Job
from processor.pointers import Pointer, advance
from processor.records import Manifest, Outcome, OutputFile, TaskResult
from processor.store import Store
from processor.training_page import render_training

_JOB: TypeAdapter[Job] = TypeAdapter(Job)
LORAS = f"{COMFY_MODELS}loras/"


def published(machine: Machine, manifest: Manifest) -> None:
    """Publish what a train job made, from its manifest alone. A rehearsal publishes nothing.

    Every run's LoRA goes to `comfy_models/loras/` under a name of its own; `<name>.latest.json`
    moves forward to the best of them, by its loss; then the test render is dropped.

    Cost: 2 requests per LoRA, 3 for the pointer, 1 for the page and 1 per render dropped.
    """
    if manifest.kind != "train" or manifest.plan is None:
        return
    page = render_training(manifest)
    if page is not None:
        key = training_page_key(manifest.job_id)
        machine.stores.main.put(key, page.encode(), media_type="text/html; charset=utf-8")
    if manifest.outcome not in (Outcome.DONE, Outcome.PARTIAL) or manifest.plan.shared.get("rehearsal"):
        return
    done = [(result, file) for result in manifest.tasks if (file := _lora(result)) is not None]
    for _, file in done:
        _publish(machine.stores.main, machine.stores.models, file)
    if not done:
        return
    best, file = min(done, key=lambda each: (each[0].data.get("loss_level") or 0.0, each[0].index))
    advance(machine, machine.stores.models, latest_key(manifest), _pointer(manifest, best, file))
    for job in _test_renders(manifest):
        drop(machine, job, parent=manifest.job_id, name="lora-test")


def latest_key(manifest: Manifest) -> str:
    """The pointer object of a training's published name."""
    shared: dict[str, Any] = manifest.plan.shared if manifest.plan else {}
    return f"{LORAS}{shared['publish']}.latest.json"


def _test_renders(manifest: Manifest) -> list[Job]:
    """What shows the first run's LoRA, with its name wherever one is asked for.

    It is the name in the run's result, not one made of the job's id: a retry's good results are
    copies, and their LoRAs keep the names under which they are known.
    """
    plan, file = manifest.plan, _lora(manifest.tasks[0])
    if plan is None or file is None:
        return []
    names = {LORA_PLACEHOLDER: file.name}
    if stem := plan.tasks[0].payload.get("lora"):  # an earlier plan, which names its own job's
        names[str(stem)] = file.name.removesuffix(".safetensors")
    return [_JOB.validate_python(_renamed(job, names)) for job in plan.shared.get("emit", [])]


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, str):
        for name, given in names.items():
            value = value.replace(name, given)
    return value


def _lora(result: TaskResult) -> OutputFile | None:
    name = result.data.get("lora")
    if result.status != "done" or result.data.get("rehearsal") or name is None:
        return None
    return next((file for file in result.files if file.name == name), None)


def _publish(main: Store, models: Store, file: OutputFile) -> None:
    """Put a LoRA where ComfyUI finds it; it is named after the job that trained it, and never changes."""
    target = LORAS + file.name
    try:
        if models.stat(target).size_bytes == file.size_bytes:
            return
    except NotFound:
        pass
    if main is models:
        size_bytes = models.copy(file.key, target).size_bytes
    else:
        size_bytes = _carry(main, models, file.key, target)
    if size_bytes != file.size_bytes:
        raise StoreError(f"the copy has {size_bytes} of {file.size_bytes} bytes", where=target)


def _carry(main: Store, models: Store, key: str, target: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora"
        with main.get(key) as download, path.open("wb") as stream:
            shutil.copyfileobj(download.body, stream, 1 << 20)
        return models.put(target, path).size_bytes


def _pointer(manifest: Manifest, result: TaskResult, file: OutputFile) -> Pointer:
    told = ("base_model", "dataset", "fingerprint", "config_hash", "trigger", "steps", "final_loss")
    facts = {name: result.data.get(name) for name in told}
    facts |= {"sha256": file.sha256, "file": file.name}
    return Pointer(key=LORAS + file.name, job_id=manifest.job_id, at=manifest.finished_at, facts=facts)
