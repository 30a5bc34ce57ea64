"""`dropbatch drop`: put jobs and dataset folders in the inbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from processor.cli import console
from processor.cli.exits import Exit, UsageError
from processor.cli.options import Bucket, Config, EndpointUrl, Json, load_settings, open_main
from processor.errors import JobInvalid

if TYPE_CHECKING:
    from processor.cli.job_files import Changes, JobFile
    from processor.cli.uploads import Dropped
    from processor.config import Settings
    from processor.store import Store


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Job files, PNGs made by ComfyUI, dataset folders, or folders of job files.", metavar="PATH…"
        ),
    ],
    *,
    nightly: Annotated[bool, typer.Option("--nightly", help="Hold them for the night.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and drop what appears in a folder.")] = False,
    count: Annotated[int | None, typer.Option("-n", min=1, help="That many random seeds.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="7, 1,2,3, 100:20 (from 100 upwards) or random:20.", metavar="SEEDS")
    ] = None,
    settings_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change an input, e.g. 6.text=a cat.", metavar="PATH=VALUE"),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="One task a prompt: .txt, .csv or .jsonl.", metavar="FILE")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="A file that the graph reads: [NAME=]FILE.", metavar="FILE"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="A title for people, or the dataset's name.")] = None,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Put jobs or dataset folders in the inbox.

    A job is a ComfyUI graph as "Export (API)" writes it, a PNG that ComfyUI saved, or a job
    file. It is checked first; files that it names by a local path go up with it. Prints the
    job ids.

    \b
    Example:
      dropbatch drop portrait.json -n 20 --set "6.text=a lighthouse at dusk"
      dropbatch drop ./my-photos          # a dataset: pictures, captions
      dropbatch drop --watch ~/ComfyUI/exports
    """
    from processor.cli.job_files import Changes, parse_seeds, parse_setting

    if count and seeds:
        raise UsageError("-n and --seeds both say which seeds; give one of them")
    changes = Changes(
        overrides=dict(parse_setting(text) for text in settings_ or ()),
        inputs=dict(_input(text) for text in inputs or ()),
        prompts=_existing(prompts) if prompts else None,
        seeds={"random": count} if count else parse_seeds(seeds) if seeds else None,
        name=name,
    )
    settings = load_settings(config, bucket, endpoint_url)
    store = open_main(settings)
    if watch:
        from processor.cli.hot_folder import keep_dropping

        keep_dropping(store, paths, changes, nightly=nightly, limit_bytes=settings.job_file_limit_bytes)
        return
    jobs, folders, refused = _collect(paths, changes, settings.job_file_limit_bytes, nightly=nightly)
    dropped: list[Dropped] = []
    try:
        dropped.extend(_upload(settings, store, jobs, folders, nightly=nightly, dataset_name=name))
    finally:
        # What lies in the inbox will run, also when a later upload failed.
        if as_json:
            console.print_json({"dropped": [_facts(item) for item in dropped], "refused": refused})
        else:
            for item in dropped:
                print(item.job_id or item.key)
    if refused:
        raise typer.Exit(Exit.FAILED)


def _collect(
    paths: list[Path], changes: Changes, limit_bytes: int, *, nightly: bool
) -> tuple[list[JobFile], list[Path], list[dict[str, str]]]:
    """Everything is read and checked before anything is sent."""
    from processor.cli.job_files import find_sources, read_job_file
    from processor.datasets import check_dataset_name
    from processor.report import error_line, error_report

    jobs: list[JobFile] = []
    folders: list[Path] = []
    refused: list[dict[str, str]] = []

    def refuse(path: Path, error: JobInvalid) -> None:
        line = error_line(error_report(error))
        console.warn(f"not dropped: {line}")
        refused.append({"path": str(path), "error": line})

    for path in paths:
        files, datasets = find_sources(path)
        for folder in datasets:
            try:
                check_dataset_name(_dataset_name(folder, changes.name))
                folders.append(folder)
            except JobInvalid as error:
                refuse(folder, error)
        for file in files:
            try:
                job = read_job_file(file, changes, limit_bytes=limit_bytes)
                if nightly:
                    job.hold_for_the_night()
                jobs.append(job)
            except JobInvalid as error:
                refuse(file, error)
    return jobs, folders, refused


def _upload(
    settings: Settings,
    store: Store,
    jobs: list[JobFile],
    folders: list[Path],
    *,
    nightly: bool,
    dataset_name: str | None,
) -> Iterator[Dropped]:
    from processor.cli.job_files import dataset_files
    from processor.cli.uploads import drop_dataset, drop_job, rclone_copier
    from processor.links import links_left_out, why_left_out

    if nightly and folders:
        raise UsageError("datasets are not held for the night; only jobs are")
    contents = {folder: list(dataset_files(folder)) for folder in folders}
    for folder in folders:
        if links := links_left_out(folder):
            console.warn(f"{folder / links[0]}: {why_left_out(links)}")
    total_bytes = sum(len(job.data) + sum(p.stat().st_size for p in job.uploads.values()) for job in jobs)
    total_bytes += sum(path.stat().st_size for files in contents.values() for path in files)
    with console.transfer("uploading", total_bytes) as moved:
        for job in jobs:
            yield drop_job(store, job, nightly=nightly, moved=moved)
        for folder, files in contents.items():
            name = _dataset_name(folder, dataset_name)
            copier = rclone_copier(settings)
            yield drop_dataset(store, folder, files, name=name, moved=moved, copier=copier)


def _dataset_name(folder: Path, name: str | None) -> str:
    return name or folder.resolve().name


def _input(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    file = Path(path if equals else text)
    return name if equals else file.name, _existing(file)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UsageError("no such file", where=str(path))
    return path


def _facts(item: Dropped) -> dict[str, object]:
    return {"key": item.key, "job_id": item.job_id, "files": item.files}
