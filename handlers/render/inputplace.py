"""Where an engine finds the files that a graph reads.

Files are kept by content, not by task: tasks that read the same picture share it, and
ComfyUI's cache of what was computed from it holds. What nobody uses goes, oldest first,
once there is much of it.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from handlers.render.api import Api
from handlers.render.inputs import folder_of, safe_name
from processor.records import InputFile

_KEPT_BYTES: Final = 4 * 1024**3

Download = Callable[[InputFile, Path], None]


@dataclass
class _Placed:
    lock: threading.Lock = field(default_factory=threading.Lock)
    name: str | None = None
    size_bytes: int = 0
    users: int = 0


class InputPlace(ABC):
    """An engine's input directory. Thread-safe."""

    def __init__(self, kept_bytes: int = _KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._lock = threading.Lock()
        self._placed: OrderedDict[str, _Placed] = OrderedDict()

    @contextmanager
    def placed(self, files: Iterable[InputFile], download: Download) -> Iterator[dict[str, str]]:
        """Have these files there for the time of one prompt.

        Yields:
            For each file's name in the graph, the name it has in the input directory.
        Cost: 1 download for each file that is not there yet; on an attached server 1 request
            for each that was brought before.
        """
        entries: list[tuple[str, _Placed]] = []
        names: dict[str, str] = {}
        try:
            for file in files:
                folder = folder_of(file)
                with self._lock:
                    entry = self._placed.setdefault(folder, _Placed())
                    entry.users += 1
                    self._placed.move_to_end(folder)
                entries.append((folder, entry))
                with entry.lock:
                    # An attached server may have lost what it was given: a container made anew.
                    if entry.name is None or not self._has(entry.name):
                        entry.name, entry.size_bytes = self._bring(file, folder, download)
                    names[file.name] = entry.name
            yield names
        finally:
            self._release(entries)

    @abstractmethod
    def _bring(self, file: InputFile, folder: str, download: Download) -> tuple[str, int]:
        """Place one file under `folder`; its name there, and its size."""

    @abstractmethod
    def _has(self, name: str) -> bool:
        """Whether what was placed under this name is still there."""

    @abstractmethod
    def _drop(self, folder: str) -> None:
        """Delete a folder that nobody uses."""

    def _release(self, entries: list[tuple[str, _Placed]]) -> None:
        with self._lock:
            for _, entry in entries:
                entry.users -= 1
            total = sum(entry.size_bytes for entry in self._placed.values())
            for folder, entry in list(self._placed.items()):
                if total <= self._kept_bytes:
                    break
                if entry.users == 0:
                    total -= entry.size_bytes
                    del self._placed[folder]
                    self._drop(folder)


class LocalInputs(InputPlace):
    """The input directory of an engine of ours."""

    def __init__(self, directory: Path, kept_bytes: int = _KEPT_BYTES) -> None:
        super().__init__(kept_bytes)
        self._directory = directory

    def _bring(self, file: InputFile, folder: str, download: Download) -> tuple[str, int]:
        target = self._directory / folder / safe_name(file.source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        download(file, target)
        return f"{folder}/{target.name}", target.stat().st_size

    def _has(self, name: str) -> bool:
        return (self._directory / name).is_file()

    def _drop(self, folder: str) -> None:
        shutil.rmtree(self._directory / folder, ignore_errors=True)


class UploadedInputs(InputPlace):
    """The input directory of an attached server: by upload. ComfyUI has no route to delete
    there, so what was uploaded stays, and nothing is ever dropped."""

    def __init__(self, api: Api) -> None:
        super().__init__(kept_bytes=2**63)
        self._api = api

    def _bring(self, file: InputFile, folder: str, download: Download) -> tuple[str, int]:
        with tempfile.TemporaryDirectory(prefix="dropbatch-") as scratch:
            path = Path(scratch) / safe_name(file.source)
            download(file, path)
            return self._api.upload(path, subfolder=folder), path.stat().st_size

    def _has(self, name: str) -> bool:
        return self._api.has_input(name)

    def _drop(self, folder: str) -> None:
        raise AssertionError(f"{folder}: an attached server keeps what it was given")
