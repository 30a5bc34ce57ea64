"""`dropbatch models`: the models on Modal's Volume."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.commands.options import asking_modal, function, load_deployment
from processor.cli import console
from processor.cli.exits import UsageError
from processor.cli.options import Bucket, Config, EndpointUrl, Json

if TYPE_CHECKING:
    from infra.settings import Deployment

_ACTIONS = ("sync", "ls", "push", "rm")


def command(
    action: Annotated[str, typer.Argument(help="sync, ls, push or rm.", metavar="ACTION")] = "ls",
    path: Annotated[
        str, typer.Argument(help="A folder or file, as `loras` or `loras/mine.safetensors`.", metavar="PATH")
    ] = "",
    *,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """The models on Modal's Volume, a cache of comfy_models/ in the bucket.

    Jobs bring what they need by themselves; `sync` brings a folder, or all, beforehand. Only what
    changed is copied, and a copy that was cut off goes on. `push` brings the bucket what it lacks,
    and replaces there only a file named in full. `rm` takes a model off the Volume.

    \b
    Example:
      dropbatch models sync loras
      dropbatch models ls
      dropbatch models rm checkpoints/old.safetensors
    """
    if action not in _ACTIONS:
        raise UsageError(f"no such action: {action}; it is one of {', '.join(_ACTIONS)}")
    if action == "rm" and not path:
        raise UsageError("`rm` needs the model's path")
    deployed = load_deployment(config, bucket, endpoint_url)
    with asking_modal(deployed.modal.app_name):
        if action in ("sync", "push"):
            done = _copy(deployed, path, push=action == "push")
        else:
            done = function(deployed, "model_files").remote(path if action == "rm" else "")
    _raise(done)
    if as_json:
        console.print_json(done)
    elif "models" in done:
        console.print_table(["model", "size", "last used"], [_row(model) for model in done["models"]])
    else:
        stats = done["stats"]
        size_gb = stats["bytes"] / 1e9
        console.note(f"{stats['transfers']} files copied, {size_gb:.2f} GB, {stats['checks']} as they were")


def _copy(deployed: Deployment, path: str, *, push: bool) -> dict[str, Any]:
    """Have it copied on Modal, and say now and then how far it is."""
    import modal

    progress_id = secrets.token_hex(8)
    notes = modal.Dict.from_name(deployed.modal.notes_name, create_if_missing=True)
    call = function(deployed, "sync_models").spawn(path, push, progress_id)
    told = ""
    while True:
        try:
            return dict(call.get(timeout=3))
        except TimeoutError:
            said = notes.get(f"progress/{progress_id}")
        if said and said != told:
            told, stats = said, json.loads(said)
            total = (stats["totalBytes"] or 0) / 1e9
            console.note(f"{stats['bytes'] / 1e9:.2f} of {total:.2f} GB, {stats['transfers']} files")


def _row(model: dict[str, Any]) -> list[str]:
    used = datetime.fromtimestamp(model["used_at"], UTC)
    return [model["name"], f"{model['size_bytes'] / 1e9:.2f} GB", f"{used:%Y-%m-%d %H:%M}"]


def _raise(done: dict[str, Any]) -> None:
    from infra.models import raise_problem

    raise_problem(done.get("error"))
