"""`dropbatch cancel`: ask whoever runs a job to stop it."""

from __future__ import annotations

from processor.cli import console
from processor.cli.options import Bucket, Config, EndpointUrl, JobRef, Json, load_settings, open_main
from processor.errors import JobInvalid


def command(
    job: JobRef,
    *,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Stop a job that waits or runs.

    What it has finished is kept; it ends as `cancelled` at the next tick.

    \b
    Example:
      dropbatch cancel portrait-3f9a
    """
    from processor.cli.jobs import find_job, read_manifest
    from processor.layout import cancel_key

    store = open_main(load_settings(config, bucket, endpoint_url))
    job_id = find_job(store, job)
    if (manifest := read_manifest(store, job_id)) is not None:
        raise JobInvalid(f"has ended already: {manifest.outcome.value}", where=job_id)
    store.put(cancel_key(job_id), b"{}", media_type="application/json")
    if as_json:
        console.print_json({"job_id": job_id, "cancel": cancel_key(job_id)})
    else:
        console.note(f"{job_id} is asked to stop")
