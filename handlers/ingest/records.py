"""What is known of a dataset's files, as `dataset.json` keeps it beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final, Literal

from pydantic import AwareDatetime

from processor.models import Model

CAPTION: Final = ".txt"


class DatasetFile(Model):
    """One file of a dataset's version."""

    name: str
    kind: Literal["picture", "video", "caption"]
    size_bytes: int
    sha256: str
    width: int = 0
    height: int = 0
    look: int | None = None
    colour: tuple[int, int, int] = (0, 0, 0)
    caption: str | None = None
    """Of a caption file: its text."""

    @property
    def stem(self) -> str:
        """What picture and caption share."""
        return str(PurePosixPath(self.name).with_suffix(""))


class Dataset(Model):
    """`dataset.json`: one immutable version of a dataset."""

    name: str
    fingerprint: str
    files: list[DatasetFile]
    made_at: AwareDatetime
    joined: str | None = None
    """The version that this folder's files were added to."""

    @property
    def examples(self) -> int:
        """Pictures and videos."""
        return sum(file.kind != "caption" for file in self.files)


def archived_name(name: str) -> str:
    """What a file is called in the archive: a caption's suffix is small, as the trainer looks for it."""
    path = PurePosixPath(name)
    return str(path.with_suffix(CAPTION)) if path.suffix.lower() == CAPTION else name


def fingerprint(files: Iterable[DatasetFile]) -> str:
    """16 hex that name a dataset's version: of its files' names and contents, and nothing else."""
    digest = hashlib.sha256()
    for name, sha256 in sorted((file.name, file.sha256) for file in files):
        digest.update(f"{name}\0{sha256}\n".encode())
    return digest.hexdigest()[:16]
