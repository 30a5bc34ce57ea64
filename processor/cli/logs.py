"""`dropbatch logs`: what the engine said, and what went wrong."""

from __future__ import annotations

import json
import pkgutil
from typing import TYPE_CHECKING, Annotated

import typer

from processor.cli import console
from processor.cli.exits import NoSuchJob, UsageError
from processor.cli.options import Bucket, Config, EndpointUrl, Json, load_settings, open_main

if TYPE_CHECKING:
    from processor.records import Manifest
    from processor.store import Store

_SHOWN_BYTES = 4 * 1024 * 1024
"""Of each log; the rest is in the bucket."""


def command(
    job: Annotated[
        str | None, typer.Argument(help="A job id, or the beginning of one.", metavar="JOB")
    ] = None,
    *,
    on_modal: Annotated[bool, typer.Option("--modal", help="Follow the app's containers instead.")] = False,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """A job's engine log and errors.

    \b
    Example:
      dropbatch logs portrait-3f9a
      dropbatch logs --modal
    """
    from processor.cli.jobs import find_job, read_manifest
    from processor.report import error_json

    if (job is None) != on_modal:
        raise UsageError("name a job, or say --modal")
    settings = load_settings(config, bucket, endpoint_url)
    if job is None:
        # By name, as handlers are found: this package never imports `infra`.
        raise typer.Exit(pkgutil.resolve_name("infra.commands.logs:follow")(settings))
    store = open_main(settings)
    job_id = find_job(store, job)
    logs = {key: _read(store, key) for key in _log_keys(store, job_id)}
    manifest = read_manifest(store, job_id)
    errors = error_json(manifest).decode() if manifest and _went_wrong(manifest) else ""
    if not logs and not errors:
        raise NoSuchJob("nothing was logged and nothing failed", where=job_id)
    if as_json:
        console.print_json({"job_id": job_id, "logs": logs, "errors": json.loads(errors) if errors else None})
        return
    for key, text in logs.items():
        console.note(key)
        print(text.rstrip())
    if errors:
        console.note("errors")
        print(errors.rstrip())


def _went_wrong(manifest: Manifest) -> bool:
    return manifest.error is not None or any(result.error for result in manifest.tasks)


def _log_keys(store: Store, job_id: str) -> list[str]:
    from processor.layout import job_prefix

    prefix = job_prefix(job_id)
    return [
        item.key for page in store.list(prefix) for item in page.objects if item.key.endswith("/engine.log")
    ]


def _read(store: Store, key: str) -> str:
    with store.get(key) as download:
        text = download.body.read(_SHOWN_BYTES).decode("utf-8", "replace")
        if download.info.size_bytes > _SHOWN_BYTES:
            text += f"\n… {download.info.size_bytes - _SHOWN_BYTES:,} more bytes in {key}"
    return console.printable(text)  # a log could otherwise drive the reader's terminal
