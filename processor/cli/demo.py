"""`dropbatch demo`: the example drops, rendered on this machine without a model."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from processor.cli import console
from processor.cli.exits import Exit
from processor.cli.options import load_settings

if TYPE_CHECKING:
    from processor.config import Settings
    from processor.store import Store

_KEPT = (
    "bucket",
    "lease_backend",
    "comfyui_url",
    "comfyui_dir",
    "comfyui_python",
    "comfyui_args",
    "comfyui_cpu",
    "models_dir",
    "work_dir",
    "log_level",
    "log_format",
)
"""Settings that the demo goes by."""
_MARK = ".dropbatch-demo"
"""A folder that holds this file was made by the demo, and may be made anew by it."""
_WHOLE_S = 60.0
"""Nobody takes a file that old for one that is being written."""


def command(
    folder: Annotated[
        Path, typer.Argument(help="Where the demo's bucket goes; made anew each time.", metavar="FOLDER")
    ] = Path(".demo"),
) -> None:
    """Render the example drops on this machine and show the gallery.

    Makes a folder-bucket, drops photographs and the jobs that work on them (and three broken
    ones, and a dataset that is left for later), and processes them.

    \b
    Example:
      dropbatch demo
      dropbatch demo /tmp/demo && dropbatch open --bucket /tmp/demo
    """
    root = _prepared(folder)
    settings = _settings(root)
    _run(settings)
    _show(settings, root)


def _settings(root: Path) -> Settings:
    """The demo's bucket and the user's engine; other settings may name buckets and people.

    Raises:
        StoreError: the ComfyUI that is named does not answer; its jobs would wait for it.
    """
    from processor.cli.findings import ask

    own = load_settings(None, str(root), None, lease_backend="directory")
    defaults = {
        name: field.get_default() for name, field in type(own).model_fields.items() if name not in _KEPT
    }
    if own.comfyui_url:
        ask(own.comfyui_url.rstrip("/") + "/system_stats")
    return own.model_copy(update=defaults)


def _prepared(folder: Path) -> Path:
    """An empty folder-bucket with the example drops in it.

    Raises:
        ConfigError: the folder exists and is not the demo's own.
    """
    from processor.errors import ConfigError
    from processor.store.directory import DirectoryStore
    from workflows.examples import examples

    folder = folder.expanduser().absolute()
    if folder.exists():
        if any(folder.iterdir()) and not (folder / _MARK).exists():
            raise ConfigError(
                "this folder is not empty, and not the demo's", where=str(folder), mend="Name another one"
            )
        shutil.rmtree(folder)
    store = DirectoryStore(folder, create=True)
    store.put(_MARK, b"Made by `dropbatch demo`, which removes and makes this folder anew.\n")
    written_at = time.time() - _WHOLE_S
    for example in examples():
        store.put(example.key, example.read())
        # A broken job file that is young may still be being written, and would be waited for.
        os.utime(folder / example.key, (written_at, written_at))
    return folder


def _run(settings: Settings) -> None:
    from processor.cli.run import run_bucket
    from processor.errors import StoreError

    display = None
    if sys.stderr.isatty():
        from processor.cli.display import Display

        display = Display()
    report, signalled = run_bucket(settings, once=True, display=display)
    if signalled is not None:
        raise typer.Exit(128 + signalled)
    if report.problem is not None:
        raise StoreError(report.problem, where=settings.bucket)


def _show(settings: Settings, root: Path) -> None:
    """The table of jobs, where to look, and what this was and was not."""
    from processor.cli.options import open_main

    store = open_main(settings)
    made = _print_jobs(store)
    out = console.out()
    out.print()
    out.print(f"Pictures: [bold]{escape(str(root / made / 'index.html'))}[/bold]", soft_wrap=True)
    out.print(
        f"All jobs: [bold]dropbatch open --bucket {escape(shlex.quote(str(root)))}[/bold]", soft_wrap=True
    )
    out.print()
    if settings.comfyui_url or settings.comfyui_dir:
        out.print("Rendered by your ComfyUI.", style="dim")
        return
    out.print(
        "No model ran: these graphs use image nodes only, on the built-in engine. For diffusion, connect a\n"
        "real ComfyUI: COMFYUI_URL=http://127.0.0.1:8188 (one that runs) or COMFYUI_DIR=/path/to/ComfyUI\n"
        "(one to start), then drop any graph exported with Workflow > Export (API).",
        style="dim",
    )


def _print_jobs(store: Store) -> str:
    """Print what became of each drop; the folder of the job with the most pictures."""
    from datetime import UTC, datetime

    from processor.cli.jobs import recent
    from processor.inbox import scan
    from processor.layout import job_prefix
    from processor.report import error_line
    from processor.spelling import duration, plural

    manifests = recent(store, limit=100, now=datetime.now(UTC), days=1)
    if not manifests:
        raise typer.Exit(Exit.FAILED)
    rows = [
        [
            escape(manifest.drop.key),
            console.word(manifest.outcome.value),
            f"{sum(len(result.files) for result in manifest.tasks) or ''}",
            duration(manifest.seconds) if manifest.tasks else "",
            escape(error_line(manifest.error)[:100]) if manifest.error else "",
        ]
        for manifest in sorted(
            manifests, key=lambda manifest: (manifest.error is not None, manifest.drop.key)
        )
    ]
    console.print_table(["drop", "", "pictures", "engine", ""], rows)
    for dataset in scan(store, keep=1).datasets.values():
        files = plural(dataset.files, "file")
        console.note(f"inbox/datasets/{dataset.name}: {files}, left for later (it has no _READY)")
    most = max(manifests, key=lambda manifest: sum(len(result.files) for result in manifest.tasks))
    return job_prefix(most.job_id)
