"""A file of a dataset, from wherever it lies, as a record or as a finding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from handlers.ingest.checks import check_set
from handlers.ingest.options import MAX_BYTES, DatasetOptions, read_dataset_options
from handlers.ingest.pictures import (
    MAX_CAPTION_BYTES,
    BadFile,
    FileKind,
    Looked,
    kind_of,
    look_at_picture,
    look_at_video,
    read_caption,
)
from handlers.ingest.records import DatasetFile, archived_name
from handlers.ingest.report import Finding, Report
from processor.datasets import CONTROL, OPTIONS, check_dataset_name
from processor.errors import JobInvalid
from processor.inbox import is_marker
from processor.links import is_own_file, links_left_out, why_left_out


def examine(path: Path, name: str, sha256: str) -> DatasetFile | Finding:
    """Look at one picture, video or caption.

    Args:
        name: relative to the folder, as reports call it.
    """
    kind = kind_of(name)
    try:
        if kind == "picture":
            return _record(path, name, kind, sha256, looked=look_at_picture(path))
        if kind == "video":
            return _record(path, name, kind, sha256, looked=look_at_video(path))
        if kind == "caption":
            with path.open("rb") as stream:
                text = read_caption(stream.read(MAX_CAPTION_BYTES + 1))
            return _record(path, name, kind, sha256, looked=Looked(), caption=text)
    except BadFile as error:
        return Finding("error", str(error), name)
    return left_out(name, kind)


def left_out(name: str, kind: FileKind) -> Finding:
    """What a file that is no data means for its folder."""
    if kind == "misnamed":
        return Finding("error", f"is not read: the options' name is {OPTIONS}, and nothing else", name)
    if kind == "unusable":
        return Finding("error", "is of a format that the trainer leaves out; save it as PNG or JPEG", name)
    if kind == "unseen":
        return Finding(
            "warning", "lies where the trainer does not look (hidden, or controls); left out", name
        )
    return Finding("warning", "is no picture, video or caption and is left out", name)


def check_folder(folder: Path, *, dataset: str | None = None) -> Report:
    """Check a folder on this machine as an ingest would: what `dropbatch check` shows.

    Raises:
        JobInvalid: its `dataset.yaml`, or its name, can't be used.
    """
    report = Report(check_dataset_name(dataset or folder.resolve().name))
    options_path = folder / OPTIONS
    data = _first_bytes(options_path) if options_path.is_file() else None
    options = read_dataset_options(data, where=str(options_path))
    files: list[DatasetFile] = []
    for path in _files_of(folder):
        relative = path.relative_to(folder).as_posix()
        if relative in CONTROL or is_marker(path.name):
            continue
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        add(report, files, examine(path, relative, sha256))
    if links := links_left_out(folder):
        report.findings.append(Finding("warning", why_left_out(links), links[0]))
    conclude(report, files, options)
    return report


def add(report: Report, files: list[DatasetFile], seen: DatasetFile | Finding) -> None:
    """Sort what an examination gave."""
    if isinstance(seen, DatasetFile):
        files.append(seen)
    else:
        report.findings.append(seen)


def conclude(report: Report, files: list[DatasetFile], options: DatasetOptions) -> None:
    """Check the set, once every file has been examined."""
    check_set(report, files, options, trigger=options.trigger_word or report.dataset)


def _record(
    path: Path, name: str, kind: FileKind, sha256: str, *, looked: Looked, caption: str | None = None
) -> DatasetFile:
    return DatasetFile.model_validate(
        {
            "name": archived_name(name),
            "kind": kind,
            "size_bytes": path.stat().st_size,
            "sha256": sha256,
            "width": looked.width,
            "height": looked.height,
            "look": looked.look,
            "colour": looked.colour,
            "caption": caption,
        }
    )


def _files_of(folder: Path) -> Iterable[Path]:
    root = folder.resolve()
    return sorted(path for path in folder.rglob("*") if is_own_file(path, root))


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise JobInvalid(f"more than {MAX_BYTES:,} bytes", where=str(path))
    return data
