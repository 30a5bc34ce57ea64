"""What a prompt produced: every kind of file, under the names its author chose.

ComfyUI answers an identical prompt from its cache with the *first* run's file names, even
after those files were taken away. So each execution saves under a folder of its own: its
save nodes always run, its files can't be taken for another's, and their names stay nice.
Nodes that can't be told where to save are for `outputplace`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from handlers.render.catalog import MEDIA_TYPES
from handlers.render.graph import Graph, Set, describe, is_link, owner_of, title_of
from handlers.render.preflight import PREVIEWS, WHOLE_HOW_TO, upstream
from processor.errors import ErrorKind, TaskFailed
from processor.handler import LocalFile
from processor.layout import cut
from processor.redact import redact
from processor.spelling import readable

PREFIX_INPUT = "filename_prefix"

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*]+')
_DOTS = re.compile(r"\.{2,}")
_NUMBER = re.compile(r"%0(\d)d")
"""Where the number stands in what ffmpeg calls a sequence of pictures."""
_MAX_PART_BYTES = 80
_ADDED_BYTES = 32
"""Of what engines add to a prefix (`_00001_`, `-audio`, a size for `%width%`), so much stays whole."""
_MAX_PARTS = 4
_MAX_FILES = 10_000
_MAX_TEXT = 20_000
_MAX_DATA_ITEMS = 200


@dataclass(frozen=True, slots=True)
class Reported:
    """A file as the engine names it."""

    filename: str
    subfolder: str
    type: str
    node: str


Take = Callable[[Reported, Path], bool]
"""Bring a reported file to this new path; False when the engine does not have it."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A file that a node wrote where it chose: for `turns`."""

    path: str
    class_type: str
    maker: str
    """Stands for the node and all above it: an equal one writes the same."""
    cached: bool


class ForgottenOutput(TaskFailed):
    """The engine's cache reports a file that is gone or was written over: its node must run anew."""

    def __init__(self, what: str, *, where: str) -> None:
        super().__init__(ErrorKind.UNAVAILABLE, what, where=where)


def new_tag() -> str:
    """The folder of one execution's outputs, never used before."""
    return f"db-{secrets.token_hex(8)}"


def prefix_sets(graph: Graph, tag: str) -> list[Set]:
    """The changes that make every save node of this execution write under `tag`."""
    sets: list[Set] = []
    for node_id, node in graph.items():
        if PREFIX_INPUT in node["inputs"]:
            value = node["inputs"][PREFIX_INPUT]
            # A computed prefix can't be made unique, so it is replaced by the node's name.
            wanted = title_of(graph, node_id) if is_link(value) else str(value)
            sets.append(Set(node_id, PREFIX_INPUT, f"{tag}/{visible_prefix(wanted)}"))
    return sets


def folders_of(sets: list[Set]) -> Iterator[str]:
    """The folders under `output` that these prefixes may mean. ComfyUI's own save nodes make theirs; a
    custom node that takes a prefix for a mere name joins it to `output`, or to that folder once more."""
    for change in sets:
        folder = change.value.rpartition("/")[0]
        yield f"{folder}/{folder}"


def visible_prefix(text: str) -> str:
    """A prefix as a safe relative path: no climbing, no odd characters, bounded.

    Nor two dots in a row: ComfyUI saves such a file and refuses to hand it out.
    """
    text = _DOTS.sub(".", text)
    return "/".join(_visible_parts(text)[-_MAX_PARTS:]) or "output"


def reported_files(outputs: dict[str, dict[str, Any]], *, temporary: bool = False) -> Iterator[Reported]:
    """Every file in a history's outputs: any list item that is a dict with a `filename`.

    Save nodes put pictures and videos under `images`, others under `gifs`, `audio`, `3d`, …

    Args:
        temporary: previews (`type: temp`), which are not outputs, and only those.
    """
    seen: set[tuple[str, str]] = set()
    for node_id, node in outputs.items():
        for items in (node or {}).values():
            for item in items if isinstance(items, list) else []:
                if (
                    not isinstance(item, dict)
                    or not isinstance(item.get("filename"), str)
                    or not item["filename"]
                ):
                    continue
                file = Reported(
                    item["filename"],
                    str(item.get("subfolder") or ""),
                    str(item.get("type") or "output"),
                    node_id,
                )
                if (file.type == "temp") is temporary and (file.subfolder, file.filename) not in seen:
                    seen.add((file.subfolder, file.filename))
                    yield file


def chosen_files(
    outputs: dict[str, dict[str, Any]], graph: Graph, *, tag: str, cached: Collection[str] = ()
) -> list[Chosen]:
    """Of the files that `collect` brings, those that lie outside this execution's folder."""
    return [
        Chosen(
            f"{file.subfolder}/{file.filename}".lstrip("/"),
            graph[file.node]["class_type"],
            _maker(graph, file.node),
            file.node in cached,
        )
        for file in reported_files(outputs)
        if _is_taken(file, graph, tag) and not _is_ours(file, tag)
    ]


def reported_data(
    outputs: dict[str, dict[str, Any]], graph: Graph, owners: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Texts and numbers that nodes show (`text`, `result`, …), by node title, redacted."""
    data: dict[str, Any] = {}
    for shown_id, node in outputs.items():
        node_id = owner_of(graph, shown_id, owners)
        for key, items in (node or {}).items():
            if key == "animated" or not isinstance(items, list) or any(isinstance(i, dict) for i in items):
                continue
            plain = [_plain(item) for item in items if isinstance(item, (str, int, float, bool))]
            if plain and len(data) < _MAX_DATA_ITEMS:
                label = (
                    title_of(graph, node_id)
                    if key in ("text", "result")
                    else f"{title_of(graph, node_id)}.{key}"
                )
                data[label if label not in data else f"{label} ({node_id})"] = (
                    plain[0] if len(plain) == 1 else plain
                )
    return data


def collect(
    outputs: dict[str, dict[str, Any]],
    graph: Graph,
    *,
    tag: str,
    workdir: Path,
    take: Take,
    left: Path | None = None,
    cached: Collection[str] = (),
    owners: Mapping[str, str] | None = None,
) -> list[LocalFile]:
    """Bring this execution's files to `workdir` and give them their names back.

    Args:
        left: our output folder of this execution, where we own one: what lies there
            unreported (checkpoints, LoRAs) is an output, too.
        cached: nodes that the engine answered from its cache.
        owners: for nodes that others expanded into, what the engine says of whose they are.
    Raises:
        ForgottenOutput: what a cached node reports is not there any more.
        TaskFailed: no output at all, or one that is reported and not there, or not finished.
    """
    _check_finished(outputs, graph, owners)
    names = _Names()
    files: list[LocalFile] = []
    for reported in reported_files(outputs):
        if not _is_taken(reported, graph, tag):
            continue
        node_id, before = owner_of(graph, reported.node, owners), len(files)
        for each, path in _taken(reported, workdir, before, take):
            name = names.free(_visible_name(each, tag))
            files.append(LocalFile(path, name, media_type(name), node_id))
            if len(files) > _MAX_FILES:
                raise TaskFailed(ErrorKind.REFUSED, f"more than {_MAX_FILES:,} output files")
        if len(files) == before:
            what = f"{describe(graph, node_id)} reports {reported.filename!r}, which does not exist"
            if reported.node in cached:
                raise ForgottenOutput(f"{what} any more", where=node_id)
            raise TaskFailed(ErrorKind.NODE_FAILED, what, where=node_id)
    for found in sorted(left.rglob("*")) if left is not None and left.is_dir() else ():
        if found.is_file() and not found.is_symlink():
            inner = found.relative_to(left).parts if left is not None else (found.name,)
            name = names.free("/".join(part for part in inner if part != tag))
            path = workdir / f"{len(files):05d}{_suffix(name)}"
            move(found, path)
            files.append(LocalFile(path, name, media_type(name)))
    if not files and not reported_data(outputs, graph):
        raise _nothing(graph)
    return files


def media_type(name: str) -> str:
    """By extension; the engine's own word for it (`format`) is not reliable."""
    return MEDIA_TYPES.get(PurePosixPath(name).suffix.lower(), "application/octet-stream")


def inside(root: Path, *parts: str) -> Path | None:
    """`root/parts…`, or None if that, links resolved, lies outside `root`."""
    try:
        path = root.joinpath(*parts).resolve()
        return path if path.is_relative_to(root.resolve()) else None
    except (OSError, ValueError):
        return None


def move(source: Path, target: Path) -> None:
    """Rename, or copy and delete where they are on different file systems."""
    shutil.move(source, target)


def _is_taken(reported: Reported, graph: Graph, tag: str) -> bool:
    """Not so a cached report of another execution: nodes with a prefix write under our tag only, and
    so do those that others expand into, as far as we can know."""
    told = reported.node not in graph or PREFIX_INPUT in graph[reported.node]["inputs"]
    return not told or _is_ours(reported, tag)


def _is_ours(reported: Reported, tag: str) -> bool:
    return PurePosixPath(reported.subfolder.replace("\\", "/")).parts[:1] == (tag,)


def _taken(reported: Reported, workdir: Path, place: int, take: Take) -> Iterator[tuple[Reported, Path]]:
    """Bring a reported file, or those that it stands for: a node that writes a picture for each frame
    reports them as `clip.%03d.png`, which are `clip.001.png` and so on, until one is not there."""
    suffix = _suffix(_visible_file(reported.filename))
    path = workdir / f"{place:05d}{suffix}"
    if take(reported, path):
        yield reported, path
        return
    if (pattern := _NUMBER.search(reported.filename)) is None:
        return
    head, tail = reported.filename[: pattern.start()], reported.filename[pattern.end() :]
    for number in itertools.count(1):
        each = replace(reported, filename=f"{head}{number:0{pattern[1]}d}{tail}")
        path = workdir / f"{place + number - 1:05d}{suffix}"
        if not take(each, path):
            return
        yield each, path


def _check_finished(
    outputs: dict[str, dict[str, Any]], graph: Graph, owners: Mapping[str, str] | None
) -> None:
    """Refuse what goes on in prompts that the node queued itself: those are nobody's, and their files
    lie in a folder that goes with this one."""
    for shown_id, node in outputs.items():
        if (node or {}).get("unfinished_batch"):
            node_id = owner_of(graph, shown_id, owners)
            raise TaskFailed(
                ErrorKind.NODE_FAILED,
                f"{describe(graph, node_id)} is not finished: it has queued a prompt for the rest by itself",
                where=node_id,
                mend=WHOLE_HOW_TO,
            )


def _maker(graph: Graph, node_id: str) -> str:
    above = {each: (graph[each]["class_type"], graph[each]["inputs"]) for each in upstream(graph, [node_id])}
    return hashlib.sha256(json.dumps([node_id, above], sort_keys=True).encode()).hexdigest()


def _visible_name(reported: Reported, tag: str) -> str:
    """A reported file's path as people see it: safe like a prefix, with the file's own suffix."""
    inner, _, filename = reported.filename.replace("\\", "/").rpartition("/")
    folders = [part for part in _visible_parts(f"{reported.subfolder}/{inner}") if part != tag]
    return "/".join([*folders, _visible_file(filename)][-_MAX_PARTS:])


def _visible_parts(text: str) -> list[str]:
    parts = []
    for part in text.replace("\\", "/").split("/"):
        clean = cut(_UNSAFE.sub("_", part).strip(), _MAX_PART_BYTES).strip()
        if clean.strip(". "):
            parts.append(clean)
    return parts


def _visible_file(filename: str) -> str:
    """A file's name. Too long a one loses its middle: the prefix that people know it by is at its
    beginning; the counter that tells it from the next, and its type, are at its end."""
    suffix = _suffix(filename)
    data = _UNSAFE.sub("_", filename.removesuffix(suffix)).strip().encode("utf-8", "ignore")
    stem = data.decode("utf-8")
    if len(data) > _MAX_PART_BYTES + _ADDED_BYTES:
        # Each end by itself: halves of two characters could make a third.
        stem = cut(stem, _MAX_PART_BYTES).strip() + data[-_ADDED_BYTES:].decode("utf-8", "ignore")
    return (stem if stem.strip(". ") else "output") + _UNSAFE.sub("_", suffix).strip()


def _suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return suffix if suffix.isascii() and len(suffix) <= 12 else ""


def _plain(item: str | float) -> str | float:
    return redact(readable(item[:_MAX_TEXT])) if isinstance(item, str) else item


def _nothing(graph: Graph) -> TaskFailed:
    previews = [
        node_id
        for node_id, node in graph.items()
        if node["class_type"] in PREVIEWS or node["class_type"].startswith("Preview")
    ]
    if previews:
        return TaskFailed(
            ErrorKind.INVALID,
            f"{describe(graph, previews[0])} only previews, so there is nothing to keep",
            where=previews[0],
            mend="Replace it by SaveImage",
        )
    return TaskFailed(ErrorKind.NODE_FAILED, "the prompt succeeded without any output", where="workflow")


class _Names:
    """Gives each file a name of its own."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def free(self, name: str) -> str:
        path, number, result = PurePosixPath(name), 1, name
        while result.casefold() in self._taken:
            number += 1
            result = str(path.with_name(f"{path.stem}_{number}{path.suffix}"))
        self._taken.add(result.casefold())
        return result
