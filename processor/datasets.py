"""Dataset folders in the inbox: when one is complete, and what exactly was in it.

Pure logic over listings; `processor.folders` does the reading and writing. A folder is
complete when, first that applies: a `_manifest.json` in it lists names and sizes and all
are there; `_READY` is there and one later listing agrees; or two listings at least
`settle_s` apart on the store's clock agree.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Final

from pydantic import AwareDatetime

from processor.errors import JobInvalid
from processor.inbox import identity, is_marker
from processor.layout import DATASETS_INBOX, STATE, slug
from processor.models import Model
from processor.reading import parse_json
from processor.store import ObjectInfo, Page

READY: Final = "_READY"
LISTED: Final = "_manifest.json"
"""`{"files": {"a.png": 123456, …}}`: what the folder will hold once it is complete."""
OPTIONS: Final = "dataset.yaml"
CONTROL: Final = frozenset({LISTED, OPTIONS})
"""What a folder says of itself, and no check looks at as a picture or caption."""
VIDEOS: Final = frozenset({".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v"})
"""What the trainer reads of them (toolkit/data_loader.py of ai-toolkit 0.12.26)."""

MAX_LISTED_BYTES: Final = 16 * 1024 * 1024
_INVENTORIES: Final = f"{STATE}inventories/"
_NAMED: Final = 20
"""So many missing files are named; a report of thousands helps nobody."""
_SHOWN: Final = 200
"""Characters of a name that it says; what it says is remembered, in a small file."""
_RESTLESS: Final = 10
"""Fewer changes than this are no endless upload, however long ago the first look was."""
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\.][^\x00-\x1f\x7f/\\]{0,99}")


class FrozenFile(Model):
    """One version of one file of a folder."""

    name: str
    """Relative to the folder."""
    size_bytes: int
    version: str
    modified: AwareDatetime


class Inventory(Model):
    """A folder as one listing showed it: the files that become data, and what goes with them."""

    dataset: str
    files: list[FrozenFile] = []
    markers: list[FrozenFile] = []
    """`_READY` and operating systems' litter: removed with the folder, never data."""
    older: list[FrozenFile] = []
    """Versions and delete markers below what stands. They go before it does: a key whose
    newest version is removed first shows the one before."""

    @property
    def folder(self) -> str:
        """The key prefix that the names are relative to."""
        return folder_key(self.dataset)

    @property
    def digest(self) -> str:
        """Of the data files; equal to `DatasetFolder.digest` of the same listing."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(identity(_as_object(self.folder, file)))
        return digest.hexdigest()

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def without(self, earlier: Inventory) -> Inventory:
        """This inventory less the versions that an earlier one named."""
        named = [*earlier.files, *earlier.markers]
        versions = {(file.name, file.version) for file in named}
        # A listing without versions has the time instead, as the earlier one had.
        times = {(file.name, file.size_bytes, file.modified) for file in named}

        def fresh(files: list[FrozenFile]) -> list[FrozenFile]:
            return [
                file
                for file in files
                if (
                    (file.name, file.version) not in versions
                    if file.version
                    else (file.name, file.size_bytes, file.modified) not in times
                )
            ]

        return self.model_copy(update={"files": fresh(self.files), "markers": fresh(self.markers)})


class Frozen(Model):
    """A folder that was frozen: which job it is, and where its inventory is kept."""

    job_id: str
    inventory: str
    """A store key; the content's own hash is in its name."""
    problem: str | None = None
    """Why it was frozen incomplete."""


class Sighting(Model):
    """What is remembered of a folder between two ticks, in `state/`."""

    dataset: str
    first_seen: AwareDatetime
    since: AwareDatetime
    """On the store's clock: since when listings have agreed."""
    digest: str
    ready: bool = False
    changes: int = 0
    """How many listings differed from the one before."""
    missing: list[str] = []
    """What its manifest names and this very listing lacked; at most 20."""
    generation: int = 0
    """How often a folder of this name was frozen."""
    frozen: Frozen | None = None
    """The last time it was."""
    settled: bool = False
    """Whether that job has left the inbox, so that what lies here now came later."""


def is_dataset_name(name: str) -> bool:
    """Whether a folder under `inbox/datasets/` can become a dataset: 1 to 100 characters, no
    control characters or backslashes, no leading dot."""
    return _NAME.fullmatch(name) is not None


def check_dataset_name(name: str) -> str:
    """The name itself, before anything is uploaded under it: a folder of another name is never looked at.

    Raises:
        JobInvalid: no dataset can be called that.
    """
    if not is_dataset_name(name):
        raise JobInvalid(
            "no possible name for a dataset",
            where=name,
            mend="Rename the folder, or drop it with a --name: at most 100 characters, no slash or "
            "backslash, no leading dot",
        )
    return name


def folder_key(dataset: str) -> str:
    return f"{DATASETS_INBOX}{dataset}/"


def state_key(dataset: str) -> str:
    return f"{STATE}datasets/{state_name(dataset)}.json"


def state_name(dataset: str) -> str:
    """A folder's name where any name must fit: readable, and unlike all others."""
    return f"{slug(dataset)}-{hashlib.sha256(dataset.encode()).hexdigest()[:16]}"


def inventory_key(data: bytes) -> str:
    """Named by its content: whoever writes it writes the same bytes."""
    return f"{_INVENTORIES}{hashlib.sha256(data).hexdigest()}.json"


def is_inventory_key(key: str) -> bool:
    """Whether a key is one that only the machine writes an inventory under."""
    return re.fullmatch(_INVENTORIES + r"[0-9a-f]{64}\.json", key) is not None


def take_inventory(dataset: str, pages: Iterable[Page]) -> Inventory:
    """Sort a listing of one folder, with versions where there are versions."""
    folder = folder_key(dataset)
    files, markers, older = [], [], []
    for page in pages:
        for item in page.objects:
            name = item.key[len(folder) :]
            file = FrozenFile(
                name=name, size_bytes=item.size_bytes, version=item.version, modified=item.modified
            )
            if item.delete_marker or not item.latest:
                older.append(file)
            elif is_marker(PurePosixPath(name).name):
                markers.append(file)
            else:
                files.append(file)
    # What says "complete" goes first: a folder swept in part must not look whole.
    markers.sort(key=lambda file: file.name != READY)
    return Inventory(dataset=dataset, files=files, markers=markers, older=older)


def parse_listed(data: bytes, *, where: str) -> dict[str, int]:
    """File name → size, as a `_manifest.json` lists them.

    Raises:
        JobInvalid: it is no such list.
    """
    value = parse_json(data, key=where)
    files = value.get("files") if isinstance(value, dict) else None
    sizes = files.values() if isinstance(files, dict) else ()
    if not isinstance(files, dict) or not all(type(size) is int and size >= 0 for size in sizes):
        raise JobInvalid(
            "a folder's manifest lists names and sizes",
            where=where,
            mend='Write it as {"files": {"a.png": 123456}}',
        )
    return files


def write_listed(files: Mapping[str, int]) -> bytes:
    """The `_manifest.json` of a folder that goes up now: its files, and the `_READY` that goes last.

    That one tells a folder dropped again, whose files stand at their sizes from the start, from one
    that is whole. Only a key that may not take the earlier `_READY` away goes by the sizes alone.
    """
    return json.dumps({"files": {**files, READY: 0}}, ensure_ascii=False).encode()


def missing_files(listed: Mapping[str, int], inventory: Inventory) -> list[str]:
    """What a manifest lists that is not there at its size: at most 20 names, with the reason."""
    there = {file.name: file.size_bytes for file in [*inventory.files, *inventory.markers]}
    wanting = [
        f"{name[:_SHOWN]} (not there)"
        if name not in there
        else f"{name[:_SHOWN]} ({there[name]:,} of {size:,} bytes)"
        for name, size in sorted(listed.items())
        if there.get(name) != size
    ]
    more = [f"and {len(wanting) - _NAMED:,} more"] if len(wanting) > _NAMED else []
    return wanting[:_NAMED] + more


def sight(
    seen: Sighting | None, *, dataset: str, digest: str, ready: bool, now: datetime, settled: bool = False
) -> Sighting:
    """What to remember of this listing: the same as before if it agrees with the last one.

    Args:
        now: the store's clock, aware UTC.
        settled: what was frozen before has left; what lies here starts a new life.
    """
    if seen is None:
        return Sighting(dataset=dataset, first_seen=now, since=now, digest=digest, ready=ready)
    if settled and not seen.settled:
        return seen.model_copy(
            update={
                "first_seen": now,
                "since": now,
                "digest": digest,
                "ready": ready,
                "changes": 0,
                "missing": [],
                "settled": True,
            }
        )
    if (seen.digest, seen.ready) != (digest, ready):
        update = {
            "since": now,
            "digest": digest,
            "ready": ready,
            "missing": [],
            "changes": seen.changes + 1,
        }
        return seen.model_copy(update=update)
    return seen


def quiet_s(seen: Sighting, now: datetime) -> float:
    """For how long listings have agreed."""
    return (now - seen.since).total_seconds()


def is_restless(seen: Sighting) -> bool:
    """Whether it was seen to change so often that an upload must be under way, or without end."""
    return seen.changes >= _RESTLESS


def overdue(seen: Sighting, *, now: datetime, deadline_s: float, listed: bool) -> str | None:
    """Why a folder that never gets complete is given up, naming what is missing.

    Args:
        listed: it says what it will hold. As long as more of that comes it isn't given up: the rest
            would look whole without the list.
    """
    waited_s = (now - (seen.since if listed else seen.first_seen)).total_seconds()
    if waited_s < deadline_s:
        return None
    hours = waited_s / 3600
    if seen.missing:
        return f"incomplete after {hours:.0f} h: {', '.join(seen.missing)}"
    if listed or not is_restless(seen):
        return None  # nobody looked meanwhile; it gets its quiet period
    return f"still changing after {hours:.0f} h; last changed {seen.since:%Y-%m-%d %H:%M} UTC"


def _as_object(folder: str, file: FrozenFile) -> ObjectInfo:
    return ObjectInfo(folder + file.name, file.size_bytes, file.version, file.modified)
