"""`dropbatch retry`: a finished job's failed tasks again, as a new job."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from processor.cli import console
from processor.cli.exits import NoSuchJob
from processor.cli.options import Bucket, Config, EndpointUrl, JobRef, Json, load_settings, open_main
from processor.errors import JobInvalid

if TYPE_CHECKING:
    from processor.records import Manifest


def command(
    job: JobRef,
    *,
    all_tasks: Annotated[bool, typer.Option("--all", help="Every task, not only those that failed.")] = False,
    max_cost: Annotated[
        float | None, typer.Option(help="US dollars that it may cost; as the first otherwise.", metavar="USD")
    ] = None,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Run a job's failed tasks again, and those that it never came to, as a new job.

    It uses the plan of the first one, drawn seeds and all; results that are good are copied. A
    training goes on from its last checkpoint, if that is still there (for a day), unless --all.

    \b
    Example:
      dropbatch retry portrait-3f9a
      dropbatch retry portrait-3f9a --all
      dropbatch retry zoe-train-77c1 --max-cost 12
    """
    from processor.cli.jobs import find_job, read_manifest
    from processor.cli.uploads import id_of, new_key
    from processor.gallery import job_name
    from processor.layout import JOBS, slug
    from processor.plan import refuse_rehearsal
    from processor.reading import read_job

    store = open_main(load_settings(config, bucket, endpoint_url))
    parent = find_job(store, job)
    manifest = read_manifest(store, parent)
    if manifest is None:
        raise NoSuchJob("has not finished yet", where=parent, mend="`dropbatch status` shows how far it is")
    _refuse_ingest(manifest)
    if manifest.job is None or manifest.plan is None:
        raise JobInvalid("never became tasks that could be tried again", where=parent, mend="Drop it anew")
    refuse_rehearsal(manifest)
    done = sum(result.status == "done" for result in manifest.tasks)
    if not all_tasks and done == len(manifest.plan.tasks):
        raise JobInvalid("none of its tasks failed", where=parent, mend="--all runs every task again")
    again: dict[str, Any] = {**manifest.job, "kind": manifest.kind, "retry_of": parent}
    again["retry_tasks"] = "all" if all_tasks else "failed"
    again.pop("origin", None)
    again.pop("not_before", None)
    if max_cost is not None:
        again["max_cost_usd"] = max_cost
        read_job(json.dumps(again).encode(), key="--max-cost")
    key = new_key(JOBS, slug(f"{job_name(manifest)} retry"))
    info = store.put(key, json.dumps(again, ensure_ascii=False).encode(), media_type="application/json")
    new = id_of(store, info)
    if as_json:
        console.print_json({"job_id": new, "key": key, "retry_of": parent})
    else:
        print(new or key)


def _refuse_ingest(manifest: Manifest) -> None:
    """A dataset is frozen as it lay in the inbox; only a folder that is dropped again is looked at again."""
    from processor.layout import settled_prefix
    from processor.records import Outcome

    if manifest.kind != "ingest" or manifest.job is None:
        return
    dataset, where = manifest.job["dataset"], manifest.job_id
    if manifest.outcome is Outcome.DONE:
        mend = f"`dropbatch train {dataset}` trains on it"
        raise JobInvalid("the dataset is archived already", where=where, mend=mend)
    folder = f"{settled_prefix(manifest.outcome, manifest.finished_at, where)}{dataset}/"
    mend = f"Mend what its report names and drop the folder again; its files are in {folder}"
    raise JobInvalid("a dataset folder is not tried again as a job", where=where, mend=mend)
