"""From a file on this machine, and the options of `drop`, to a job file for the inbox."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processor.cli.exits import UsageError
from processor.datasets import LISTED, VIDEOS
from processor.errors import JobInvalid
from processor.inbox import is_marker
from processor.links import is_hidden, is_own_file
from processor.reading import is_api_export, parse_json, prompt_lines
from processor.recurring import read_file

INPUTS = "inputs/"
"""Where files that jobs read are uploaded, by content: `inputs/<16 hex of sha256>/<name>`."""

IMAGES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".avif", ".heic", ".heif", ".tif", ".tiff"}
)
MEDIA = IMAGES | VIDEOS | {".wav", ".mp3", ".flac", ".ogg", ".m4a"}
_MAX_PROMPTS_BYTES = 8 * 1024 * 1024
_OUTPUT_TAGS = re.compile(r"^(db-[0-9a-f]{16}/)+")
"""Where one run of ours wrote its files; a picture's graph has it in front of its prefixes."""
_PLACED_INPUT = re.compile(r"^db-[0-9a-f]{20}/")
"""Where runs of ours find the files that they read."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What the command line adds to each job that it drops."""

    overrides: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Path] = field(default_factory=dict)
    prompts: Path | None = None
    seeds: Any = None
    name: str | None = None

    def __bool__(self) -> bool:
        return any((self.overrides, self.inputs, self.prompts, self.seeds, self.name))


@dataclass(frozen=True, slots=True)
class JobFile:
    """A job ready for the inbox, and the files that have to be there before it."""

    source: Path
    data: bytes
    uploads: dict[str, Path] = field(default_factory=dict)
    """Key → file."""
    recurring: bool = False
    """It has a `schedule`: a template."""

    def hold_for_the_night(self) -> None:
        """Make sure that it can be held.

        Raises:
            JobInvalid: it comes when its own schedule says.
        """
        if self.recurring:
            raise JobInvalid(
                "a job with a `schedule` is not held for the night",
                where=str(self.source),
                mend="Leave out --nightly, or the schedule",
            )


def find_sources(path: Path) -> tuple[list[Path], list[Path]]:
    """The job files and the dataset folders that a path on the command line means.

    A folder with pictures or videos in it is a dataset; one without is taken for a folder of job files.

    Raises:
        UsageError: there is nothing, or nothing that could be dropped.
    """
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise UsageError("no such file or folder", where=str(path))
    if any(file.suffix.lower() in IMAGES | VIDEOS for file in dataset_files(path)):
        return [], [path]
    jobs = sorted(file for file in path.glob("*.json") if not is_marker(file.name) and file.name != LISTED)
    if not jobs:
        raise UsageError("neither pictures, videos nor job files are in it", where=str(path))
    return jobs, []


def dataset_files(folder: Path) -> Iterator[Path]:
    """Data files of a dataset folder: no markers, nothing hidden, no links out of it."""
    root = folder.resolve()
    for file in sorted(folder.rglob("*")):
        if not is_hidden(file.relative_to(folder)) and is_own_file(file, root):
            yield file


def read_job_file(path: Path, changes: Changes, *, limit_bytes: int) -> JobFile:
    """Read, change and validate one job; a PNG gives the graph that made it.

    A job that needs no change is sent byte for byte. What a job names by a path beside it goes
    up with it.

    Raises:
        JobInvalid: it can't become a job.
    """
    data = graph_in_picture(path) if path.suffix.lower() == ".png" else read_limited(path, limit_bytes)
    name = str(path)
    _, recurring = read_file(data, key=name)
    value: dict[str, Any] = parse_json(data, key=name)
    uploads: dict[str, Path] = {}
    changed = value
    if changes:
        changed = _with_changes(value, changes, uploads)
    changed = _with_local_workflow(changed, path.parent, limit_bytes)
    changed = _with_local_files(changed, path.parent, uploads)
    _check_placed_inputs(changed, name)
    if changed is not value:
        data = json.dumps(changed, ensure_ascii=False).encode()
    if len(data) > limit_bytes:
        raise JobInvalid(f"{len(data):,} bytes; at most {limit_bytes:,} are taken", where=name)
    read_file(data, key=name)
    return JobFile(path, data, uploads, recurring)


def parse_setting(text: str) -> tuple[str, Any]:
    """`6.text=a cat` as a path and a value: JSON where it is JSON, else text.

    Raises:
        UsageError: there is no `=`.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UsageError("write it like 6.text=value", where=f"--set {text}")
    try:
        parsed = json.loads(value)
    except ValueError:
        return path.strip(), value
    return path.strip(), parsed if isinstance(parsed, str | int | float | bool) else value


def parse_seeds(text: str) -> Any:
    """`7`, `1,2,3`, `100:20` (20 from 100 upwards) or `random:20`, as a job says it.

    Raises:
        UsageError: it is none of them.
    """
    if match := re.fullmatch(r"random:(\d+)", text):
        return {"random": int(match[1])}
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        return {"start": int(match[1]), "count": int(match[2])}
    if re.fullmatch(r"\d+(,\d+)*", text):
        return [int(part) for part in text.split(",")]
    raise UsageError("write 7, 1,2,3, 100:20 or random:20", where=f"--seeds {text}")


def input_key(path: Path) -> str:
    """Where a file that a job reads is uploaded; equal content under one name is stored once."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{INPUTS}{digest[:16]}/{path.name}"


def read_limited(path: Path, limit_bytes: int) -> bytes:
    """A file's bytes.

    Raises:
        JobInvalid: it has more than `limit_bytes`.
    """
    size_bytes = path.stat().st_size
    if size_bytes > limit_bytes:
        raise JobInvalid(f"{size_bytes:,} bytes; at most {limit_bytes:,} are taken", where=str(path))
    return path.read_bytes()


def graph_in_picture(path: Path) -> bytes:
    """The graph that ComfyUI saved in a PNG, as it was before it ran.

    Raises:
        JobInvalid: it is no PNG, or holds none.
    """
    from processor.pictures import open_picture

    try:
        with open_picture(path) as picture:
            graph = picture.info.get("prompt")
    except Exception as error:  # noqa: BLE001 - Pillow's own are of many kinds
        raise JobInvalid(f"not a readable PNG: {error}", where=str(path)) from None
    if not isinstance(graph, str):
        raise JobInvalid(
            "this picture holds no ComfyUI prompt",
            where=str(path),
            mend="Only pictures saved by ComfyUI, with their metadata, have one",
        )
    return _as_written(graph)


def _as_written(text: str) -> bytes:
    """A graph without what its execution added: ComfyUI what IS_CHANGED said (often NaN, which
    is no JSON), we where that one run's files went."""
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError):  # whoever reads it says what is wrong
        return text.encode()
    if not isinstance(graph, dict) or not is_api_export(graph):
        return text.encode()
    for node in graph.values():
        node.pop("is_changed", None)
        inputs = node.get("inputs")
        if isinstance(inputs, dict) and isinstance(inputs.get("filename_prefix"), str):
            inputs["filename_prefix"] = _OUTPUT_TAGS.sub("", inputs["filename_prefix"])
    return json.dumps(graph).encode()


def _with_changes(value: dict[str, Any], changes: Changes, uploads: dict[str, Path]) -> dict[str, Any]:
    job: dict[str, Any] = {"workflow": value} if is_api_export(value) else dict(value)
    if changes.overrides:
        job["overrides"] = {**job.get("overrides", {}), **changes.overrides}
    if changes.seeds:
        job["seeds"] = changes.seeds
    if changes.name:
        job["name"] = changes.name
    if changes.prompts:
        job["prompts"] = _prompts(changes.prompts, uploads)
    for name, path in changes.inputs.items():
        key = input_key(path)
        uploads[key] = path
        job["inputs"] = {**job.get("inputs", {}), name: key}
    return job


def _with_local_workflow(value: dict[str, Any], folder: Path, limit_bytes: int) -> dict[str, Any]:
    """The workflow of a job inline that it names by a path beside it: `check` reads that one, too."""
    named = value.get("workflow")
    if not isinstance(named, str) or not named.endswith(".json") or not (local := _local(named, folder)):
        return value
    return {**value, "workflow": parse_json(read_limited(local, limit_bytes), key=str(local))}


def _with_local_files(value: dict[str, Any], folder: Path, uploads: dict[str, Path]) -> dict[str, Any]:
    """Upload what a job or its graph names by a path beside it, and name it by its key instead."""
    job = {"workflow": value} if is_api_export(value) else value
    inputs = dict(job.get("inputs", {}))
    for name, source in _sources(job).items():
        if local := _local(source, folder):
            inputs[name] = input_key(local)
            uploads[inputs[name]] = local
    changed = {**job, "inputs": inputs} if inputs else dict(job)
    prompts = job.get("prompts")
    if isinstance(prompts, str) and (local := _local(prompts, folder)):
        changed["prompts"] = _prompts(local, uploads)
    return changed if changed != job else value


def files_beside(path: Path, *, limit_bytes: int) -> set[Path]:
    """Where beside a job file the files would be that it reads; nothing of what is no job."""
    try:
        data = read_limited(path, limit_bytes)
        read_file(data, key=str(path))
        value = parse_json(data, key=str(path))
    except (JobInvalid, OSError):
        return set()
    job = {"workflow": value} if is_api_export(value) else value
    return {Path(os.path.normpath(path.parent / source)) for source in _sources(job).values()}


def _sources(job: dict[str, Any]) -> dict[str, str]:
    """What the files that a job reads are called, and where it says that they are."""
    inputs: dict[str, str] = job.get("inputs", {})
    return {name: name for name in _media_named(job.get("workflow"))} | inputs


def _check_placed_inputs(value: dict[str, Any], name: str) -> None:
    """Refuse a graph that reads what was put there for another run, and is no more."""
    job = {"workflow": value} if is_api_export(value) else value
    if job.keys() & {"overrides", "matrix", "prompts"}:  # any of them may set another: planning finds out
        return
    for node_id, node in _nodes(job.get("workflow")):
        for key, source in node["inputs"].items():
            if not isinstance(source, str) or not _PLACED_INPUT.match(source):
                continue
            if source not in job.get("inputs", {}):
                raise JobInvalid(
                    "the file that an earlier run read here is no longer there",
                    where=f"{name}: {node_id}.{key}",
                    mend=f"Give it by --input {source}=FILE",
                )


def _nodes(graph: object) -> Iterator[tuple[str, dict[str, Any]]]:
    for node_id, node in graph.items() if isinstance(graph, dict) else ():
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
            yield node_id, node


def _media_named(graph: object) -> Iterator[str]:
    """Strings in a graph that look like a picture's, sound's or video's file name."""
    for _, node in _nodes(graph):
        for value in node["inputs"].values():
            if isinstance(value, str) and Path(value).suffix.lower() in MEDIA:
                yield value


def _local(source: str, folder: Path) -> Path | None:
    """The file beside the job that `source` names, None if there is none.

    Only below the job's own folder: a job file that came from elsewhere must not be able
    to carry off any other file of this machine. `--input` takes files from anywhere.
    """
    if "://" in source or "\0" in source:
        return None
    path = folder / source
    try:
        inside = path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except OSError:  # a name that is too long is no file
        return None
    return path if inside else None


def _prompts(path: Path, uploads: dict[str, Path]) -> list[str] | str:
    """A .txt becomes part of the job; a table is uploaded, for its columns are parameters."""
    if path.suffix.lower() in (".csv", ".jsonl"):
        key = input_key(path)
        uploads[key] = path
        return key
    try:
        prompts = list(prompt_lines(read_limited(path, _MAX_PROMPTS_BYTES).decode("utf-8-sig")))
    except UnicodeDecodeError:
        raise JobInvalid("not UTF-8 text", where=str(path)) from None
    if not prompts:
        raise JobInvalid("there is no prompt in it", where=str(path))
    return prompts
