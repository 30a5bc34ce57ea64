"""`dropbatch fetch`: a job's results on this machine, under names for people."""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from processor.cli import console
from processor.cli.exits import Exit, NoSuchJob
from processor.cli.options import Bucket, Config, EndpointUrl, JobRef, Json, load_settings, open_main
from processor.errors import StoreError
from processor.layout import cut

if TYPE_CHECKING:
    from processor.models import Scalar
    from processor.records import Manifest, OutputFile, TaskResult
    from processor.store import Store

_CHUNK_BYTES = 1024 * 1024
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*]+')


def command(
    job: JobRef,
    folder: Annotated[Path, typer.Argument(help="Where to put them; made if need be.", metavar="DIR")],
    *,
    jobs_at_once: Annotated[int, typer.Option("--parallel", min=1, max=64, help="Downloads at a time.")] = 8,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Download a job's results.

    Pictures are named by task, seed and parameters, or as the job's `output` says; a training's
    files keep their names. Each is checked against the manifest's SHA-256. What is there already and
    right is not fetched again.

    \b
    Example:
      dropbatch fetch portrait-3f9a ./portraits
    """
    from processor.cli.jobs import find_job, read_manifest

    store = open_main(load_settings(config, bucket, endpoint_url))
    job_id = find_job(store, job)
    manifest = read_manifest(store, job_id)
    if manifest is None:
        raise NoSuchJob("has not finished yet", where=job_id, mend="`dropbatch status` shows how far it is")
    names = nice_names(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    with console.transfer("fetching", sum(file.size_bytes for file, _ in names)) as moved:

        def download(item: tuple[OutputFile, str]) -> Path:
            return _download(store, item[0], folder / item[1], moved)

        with ThreadPoolExecutor(jobs_at_once) as pool:
            paths = list(pool.map(download, names))
    if as_json:
        console.print_json({"job_id": job_id, "files": [str(path) for path in paths]})
    else:
        console.note(f"{len(paths):,} files in {folder}")
    if not paths:
        raise typer.Exit(Exit.FAILED)


def nice_names(manifest: Manifest) -> list[tuple[OutputFile, str]]:
    """Each output with a file name that is unique in the job and safe on any system.

    Where the job says how to name them (`output.name`), that is how. What is no render's has telling
    names (the LoRA's, a sample's step); those of several runs are put in a folder each.
    """
    taken: set[str] = set()
    rendered = manifest.kind in ("render", None)
    given = not rendered or bool(((manifest.job or {}).get("output") or {}).get("name"))
    named = []
    width = len(str(max((result.index for result in manifest.tasks), default=0)))
    for result in sorted(manifest.tasks, key=lambda result: result.index):
        for file in result.files:
            suffix = _safe(PurePosixPath(file.name).suffix)
            stem = (given and _as_given(file.name)) or _nice(result, width)
            if not rendered and len(manifest.tasks) > 1:
                stem = f"{_nice(result, width)}/{stem}"
            name = stem + suffix
            count = 2
            while name.casefold() in taken:
                name = f"{stem}-{count}{suffix}"
                count += 1
            taken.add(name.casefold())
            named.append((file, name))
    return named


def _nice(result: TaskResult, width: int) -> str:
    parts = [f"{result.index:0{width}d}"]
    parts += [cut(_told(name, value), 40) for name, value in result.params.items() if "seed" not in name]
    if result.seed is not None:
        parts.append(f"seed{result.seed}")
    return cut("-".join(part for part in parts if part), 120).rstrip("-.")


def _as_given(name: str) -> str:
    """A file's own name without its suffix, folders and all; it can't lead out of where it is put."""
    stem = name.removesuffix(PurePosixPath(name).suffix).replace("\\", "/")
    parts = (_UNSAFE.sub("_", part).strip(" .") for part in stem.split("/"))
    return "/".join(cut(part, 200) for part in parts if part)


def _told(name: str, value: Scalar) -> str:
    """A text speaks for itself; a number needs its name."""
    text = str(value) if isinstance(value, str) else f"{name.rpartition('.')[2]}={value}"
    return _safe(text)


def _safe(text: str) -> str:
    return re.sub(r"[^\w.+=-]+", "-", text).strip("-")


def _download(store: Store, file: OutputFile, target: Path, moved: console.Moved) -> Path:
    if target.is_file() and target.stat().st_size == file.size_bytes and _sha256(target) == file.sha256:
        moved(file.size_bytes)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    digest = hashlib.sha256()
    try:
        with store.get(file.key) as download, partial.open("wb") as to:
            while chunk := download.body.read(_CHUNK_BYTES):
                digest.update(chunk)
                to.write(chunk)
                moved(len(chunk))
        if digest.hexdigest() != file.sha256:
            raise StoreError("its bytes are not those that the manifest names", where=file.key)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
