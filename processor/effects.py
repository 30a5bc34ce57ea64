"""What follows from a standing manifest and from nothing else: gallery, emitted jobs, …

Effects run after the manifest stands and before the drop is gone, so a crash between
them is repaired by a later tick, which does them again. Each is therefore redoable.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import TypeAdapter

from processor.gallery import render_gallery
from processor.layout import emitted_job_id, emitted_key, gallery_key
from processor.machine import Machine
from processor.models import Job, JobBase, Origin
from processor.records import Manifest, Outcome, dump

Effect = Callable[[Machine, Manifest], None]

_JOBS = TypeAdapter(list[Job])


def gallery(machine: Machine, manifest: Manifest) -> None:
    """Write `index.html` beside the manifest. Cost: 1 request, none where nothing is to be seen."""
    if manifest.error is None and not any(result.files or result.error for result in manifest.tasks):
        return
    page = render_gallery(manifest).encode()
    machine.stores.main.put(gallery_key(manifest.job_id), page, media_type="text/html; charset=utf-8")


def emit(machine: Machine, manifest: Manifest) -> None:
    """Drop the jobs that `on_success` asks for, each under an id of its own parent and place.

    Emitting twice writes the same job id twice, and a job whose manifest stands is only
    settled: however often this runs, one emission is one job. Cost: 1 request a job.
    """
    if manifest.outcome is not Outcome.DONE or manifest.job is None:
        return
    wanted = _JOBS.validate_python(manifest.job.get("on_success", []))
    for place, job in enumerate(wanted, start=1):
        name = f"{job.name or 'then'}-{place}"
        drop(machine, job, parent=manifest.job_id, name=name)


def drop(machine: Machine, job: JobBase, *, parent: str, name: str) -> str:
    """Put a job into the inbox on the machine's own behalf; returns its id. Cost: 1 request."""
    job_id = emitted_job_id(parent, name)
    emitted = job.model_copy(update={"origin": Origin(parent=parent, name=name)})
    machine.stores.main.put(emitted_key(job_id), dump(emitted), media_type="application/json")
    return job_id


EFFECTS: tuple[Effect, ...] = (gallery, emit)
"""In this order."""


def run_effects(machine: Machine, manifest: Manifest) -> None:
    for effect in EFFECTS:
        effect(machine, manifest)
