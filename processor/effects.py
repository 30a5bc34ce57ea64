"""What follows from a standing manifest and from nothing else: gallery, emitted jobs, …

Effects run after the manifest stands and before the drop is gone, so a crash between
them is repaired by a later tick, which does them again. Each is therefore redoable.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import TypeAdapter

from processor.beside import beside
from processor.dropping import drop
from processor.gallery import render_gallery, shown_texts
from processor.ingestion import ingested
from processor.layout import gallery_key
from processor.machine import Machine
from processor.models import Job
from processor.publishing import published
from processor.records import Manifest, Outcome
from processor.reuse import findable

Effect = Callable[[Machine, Manifest], None]

_JOBS = TypeAdapter(list[Job])


def gallery(machine: Machine, manifest: Manifest) -> None:
    """Write `index.html` beside the manifest. Cost: 1 request, none where nothing is to be seen."""
    if manifest.error is None and not any(
        result.files or result.error or shown_texts(manifest, result) for result in manifest.tasks
    ):
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


def notify(machine: Machine, manifest: Manifest) -> None:
    """Tell people, each once. Cost: none without a notifier, else see `processor.notify`."""
    if machine.notices is not None:
        machine.notices.job(machine.stores.main, manifest)


EFFECTS: tuple[Effect, ...] = (gallery, beside, findable, emit, ingested, published, notify)
"""In this order."""


def run_effects(machine: Machine, manifest: Manifest) -> None:
    for effect in EFFECTS:
        effect(machine, manifest)
