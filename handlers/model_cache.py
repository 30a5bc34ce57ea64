"""Models on local disk: just the files that a graph names, from `comfy_models/`.

A file appears whole (temporary name, then rename). Beside the folder's own tree,
`.dropbatch/` remembers which version of the store's object each file is: a LoRA trained
again has the same name and the same size.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from processor import layout
from processor.errors import ErrorKind, InvalidKey, NotFound, TaskFailed
from processor.records import ModelFile
from processor.store import ObjectInfo, Store, check_key

_CHUNK_BYTES = 4 * 1024**2
_TRUSTED_S = 60.0
"""How long a file once compared with the store is taken as current, so that a night of
small tasks does not ask for each."""
_TREE_FOLDERS = frozenset({"diffusers"})
"""Folders whose models are folders themselves, whole only with their `model_index.json`."""
_INDEX = "model_index.json"

ModelState = tuple[tuple[str, int, int], ...]
"""What lies under a model's path: of each file its name, size in bytes and time in ns. Not its inode: a
network file system may number a file anew each time that it is looked at."""


class ModelCache:
    """A local folder filled on demand; safe for several threads and processes at once.

    Args:
        directory: becomes `<folder>/<name>`; may be shared (a Modal Volume, an NFS mount
            with locks).
        store: where `comfy_models/` is.
    """

    def __init__(self, directory: Path, store: Store) -> None:
        self._directory = directory
        self._store = store
        self._trusted: dict[Path, float] = {}

    def ensure(self, models: Sequence[ModelFile]) -> bool:
        """Bring these models here; whether any file was replaced by another version.

        That is what this call did. What an engine that runs still holds, `model_state` tells: another
        process may have replaced a file before, or this call one and then failed at the next.

        Raises:
            TaskFailed: MISSING_MODEL, naming folder and file; REFUSED for a name that climbs.
            StoreError: the store could not be read.
        Cost: 1 request per model not compared in the last minute, 1 more per download.
        """
        replaced = False
        for model in models:
            if model.folder in _TREE_FOLDERS:
                replaced |= self._ensure_tree(model)
            else:
                replaced |= self._ensure_file(model_key(model), self.path_of(model), model)
        return replaced

    def lacking(self, models: Sequence[ModelFile]) -> list[ModelFile]:
        """Those that `ensure` would have to download, or find nowhere. Writes nothing, waits for no lock.

        Raises:
            TaskFailed: REFUSED for a name that climbs.
            StoreError: the store could not be read.
        Cost: 1 request per model; for a folder in diffusers format 1 per thousand files.
        """
        return [model for model in models if not self._is_here(model)]

    def _is_here(self, model: ModelFile) -> bool:
        key, path = model_key(model), self.path_of(model)
        if model.folder not in _TREE_FOLDERS:
            try:
                return path.is_file() and self._is_current(path, self._store.stat(key))
            except NotFound:
                return True  # put here by hand
        # By size alone: a listing does not tell every store's versions, and asking for each file
        # would cost more than the rare folder of equal sizes, which `ensure` brings.
        listed = [entry for page in self._store.list(f"{key}/") for entry in page.objects]
        return (path / _INDEX).is_file() and all(
            _has_size(self._directory / entry.key.removeprefix(layout.COMFY_MODELS), entry.size_bytes)
            for entry in listed
            if not entry.delete_marker
        )

    def path_of(self, model: ModelFile) -> Path:
        """Where a model lies here, or will."""
        key = model_key(model)
        return self._directory / key.removeprefix(layout.COMFY_MODELS)

    def _ensure_tree(self, model: ModelFile) -> bool:
        prefix = model_key(model) + "/"
        root = self.path_of(model)
        if self._is_trusted(root):
            return False
        entries = [
            entry for page in self._store.list(prefix) for entry in page.objects if not entry.delete_marker
        ]
        if not any(entry.key == prefix + _INDEX for entry in entries):
            if (root / _INDEX).is_file():
                return False
            raise _missing(model)
        replaced = False
        # The index goes last: it is what makes the folder a model to ComfyUI.
        for entry in sorted(entries, key=lambda entry: entry.key == prefix + _INDEX):
            path = self._directory / check_key(entry.key).removeprefix(layout.COMFY_MODELS)
            replaced |= self._ensure_file(entry.key, path, model)
        self._trusted[root] = time.monotonic()
        return replaced

    def _ensure_file(self, key: str, path: Path, model: ModelFile) -> bool:
        if self._is_trusted(path):
            return False
        with self._lock(key):
            try:
                info = self._store.stat(key)
            except NotFound:
                # Put here by hand, or baked into an image: as good as any.
                if path.is_file():
                    return False
                raise _missing(model) from None
            existed = path.is_file()
            if not (existed and self._is_current(path, info)):
                self._download(key, path, info, model)
            else:
                existed = False
            self._trusted[path] = time.monotonic()
            return existed

    def _is_trusted(self, path: Path) -> bool:
        return time.monotonic() - self._trusted.get(path, float("-inf")) < _TRUSTED_S and path.exists()

    def _is_current(self, path: Path, info: ObjectInfo) -> bool:
        """By the note of what we brought, unless another put a file in its place: then by size and time."""
        found = path.stat()
        if found.st_size != info.size_bytes:
            return False
        try:
            known = json.loads(self._note(info.key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        if "version" in known and known.get("mtime_s", int(found.st_mtime)) == int(found.st_mtime):
            return bool(known["version"] == info.version)
        return found.st_mtime >= info.modified.timestamp()

    def _download(self, key: str, path: Path, info: ObjectInfo, model: ModelFile) -> None:
        try:
            bring(self._store, info, path)
        except NotFound:
            raise _missing(model) from None
        note = self._note(key)
        note.parent.mkdir(parents=True, exist_ok=True)
        # In whole seconds, which every file system keeps.
        known = {"key": key, "version": info.version, "mtime_s": int(path.stat().st_mtime)}
        note.write_text(json.dumps(known), encoding="utf-8")

    def _note(self, key: str) -> Path:
        return self._directory / ".dropbatch" / f"{_short(key)}.json"

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        # flock belongs to the open file: it holds between threads as between processes.
        folder = self._directory / ".dropbatch"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{_short(key)}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def bring(store: Store, info: ObjectInfo, path: Path) -> None:
    """Bring the version that `info` is of to a path, where it appears whole.

    Raises:
        TaskFailed: UNAVAILABLE, it ended early.
        StoreError: NotFound, that version is gone; or it could not be read.
    Cost: 1 request.
    """
    source = store.get(info.key, version=info.version or None)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    part = Path(name)
    try:
        with source, os.fdopen(handle, "wb") as out:
            shutil.copyfileobj(source.body, out, _CHUNK_BYTES)
        if part.stat().st_size != info.size_bytes:
            raise TaskFailed(ErrorKind.UNAVAILABLE, f"the download of {info.key} ended early")
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def model_state(path: Path) -> ModelState:
    """What lies under a model's path, a file or a folder: another value once that was replaced,
    whoever did it; empty where nothing lies. Cost: no request."""
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = []
    for each in paths:
        try:
            facts = each.stat()
        except OSError:  # on its way in or out
            continue
        if not stat.S_ISDIR(facts.st_mode):
            found.append((each.relative_to(path).as_posix(), facts.st_size, facts.st_mtime_ns))
    return tuple(found)


def model_key(model: ModelFile) -> str:
    """The store key of a model.

    Raises:
        TaskFailed: REFUSED, for a name that would leave its folder.
    """
    folder, name = model.folder, model.name.replace("\\", "/")
    if "/" in folder or not folder:
        raise TaskFailed(ErrorKind.REFUSED, "a model folder is one name", where=folder[:200])
    try:
        return check_key(f"{layout.COMFY_MODELS}{folder}/{name}")
    except InvalidKey as error:
        raise TaskFailed(ErrorKind.REFUSED, f"no valid model name: {error.what}", where=name[:200]) from None


def paths_yaml(directory: Path, folders: Mapping[str, str]) -> str:
    """The text of an `--extra-model-paths-config` file that adds this folder.

    Args:
        folders: name → path below it; or several paths, one a line.

    JSON is YAML, and quotes whatever a path may hold. ComfyUI expands `$` and `~` in it.
    """
    return json.dumps({"dropbatch": {"base_path": str(directory), **folders}}, indent=1)


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def _missing(model: ModelFile) -> TaskFailed:
    return TaskFailed(
        ErrorKind.MISSING_MODEL,
        f"the model {model.name!r} is not in {layout.COMFY_MODELS}{model.folder}/",
        where=model.name,
        mend=f"Upload it as {layout.COMFY_MODELS}{model.folder}/{model.name}",
    )


def _short(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:24]
