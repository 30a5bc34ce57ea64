"""Drops that the machine itself makes: each under an id that follows from its origin."""

from __future__ import annotations

from processor.layout import emitted_job_id, emitted_key
from processor.machine import Machine
from processor.models import JobBase, Origin
from processor.records import dump


def drop(machine: Machine, job: JobBase, *, parent: str, name: str) -> str:
    """Put a job into the inbox on the machine's own behalf; returns its id.

    Dropping twice writes the same job id twice, and a job whose manifest stands is only
    settled: however often this runs, it is one job. Cost: 1 request.
    """
    job_id = emitted_job_id(parent, name)
    emitted = job.model_copy(update={"origin": Origin(parent=parent, name=name)})
    machine.stores.main.put(emitted_key(job_id), dump(emitted), media_type="application/json")
    return job_id
