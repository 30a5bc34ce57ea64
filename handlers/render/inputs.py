"""Files that a graph reads: resolved and frozen when planned, placed when run."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from handlers.fetching import Limits, Vet, fetch, is_public, is_url, redact_url
from handlers.render.catalog import TEXT_INPUTS
from handlers.render.graph import Graph, Schema, Set, Target, file_inputs, is_link, nearest
from handlers.render.policy import leads_out
from handlers.render.settings import RenderSettings
from processor.errors import ErrorKind, InvalidKey, JobInvalid, NotFound, StoreUnavailable, TaskFailed
from processor.parallel import FEW, each
from processor.records import InputFile
from processor.store import ObjectInfo, Store, check_key

_ANNOTATION = re.compile(r"\s*\[(input|output|temp)\]$")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def plain_name(value: str) -> tuple[str, str]:
    """A file input's value without ComfyUI's annotation, and that (`input` when there is none)."""
    match = _ANNOTATION.search(value)
    return (value[: match.start()], match[1]) if match else (value, "input")


def safe_name(source: str) -> str:
    """A file name that any system takes, with the extension that tells ComfyUI what it is."""
    last = PurePosixPath(source.partition("?")[0].replace("\\", "/")).name
    stem, dot, extension = last.rpartition(".")
    stem, extension = (stem, _UNSAFE.sub("", extension)[:12]) if dot else (last, "")
    stem = _UNSAFE.sub("-", stem).strip("-.")[:60] or "input"
    return f"{stem}.{extension.lower()}" if extension else stem


def folder_of(file: InputFile) -> str:
    """Where a file is placed: named by its content (or key and version), so that tasks share it
    and ComfyUI's cache holds."""
    identity = file.sha256 or f"{file.source}\0{file.version}"
    return "db-" + hashlib.sha256(identity.encode()).hexdigest()[:20]


def digest_of(file: InputFile) -> str:
    """What stands for a file in a task's hash."""
    return file.sha256 or hashlib.sha256(f"{file.source}\0{file.version}".encode()).hexdigest()


def file_targets(
    base: Graph, task_sets: Iterable[Iterable[Set]], names: Iterable[str], schema: Schema | None
) -> list[Target]:
    """The inputs through which a job's tasks name files.

    Of node classes whose file inputs are known, those. Of others, whatever holds one of these names,
    which are those of the job's `inputs`; a prompt that happens to be such a word is none.
    """
    wanted = set(names)
    values = [
        Set(node_id, name, value) for node_id, node in base.items() for name, value in node["inputs"].items()
    ]
    values += (change for changes in task_sets for change in changes)
    found: dict[Target, None] = {}
    for node_id, name, value in values:
        if not isinstance(value, str):
            continue
        node = base[node_id]
        known = file_inputs(node["class_type"], schema)
        if name in known or (not known and plain_name(value)[0] in wanted and not _is_prose(node, name)):
            found[Target(node_id, name)] = None
    return list(found)


def _is_prose(node: dict[str, Any], name: str) -> bool:
    return name in TEXT_INPUTS and ("TextEncode" in node["class_type"] or is_link(node["inputs"].get("clip")))


class InputResolver:
    """Turns the file names of a job's graphs into frozen sources, each looked up once.

    A name is looked for in the job's `inputs`, then as a URL, then next to the drop, then
    as a store key. On an attached server a plain name may be a file that it has.
    """

    def __init__(
        self,
        inputs: Mapping[str, str],
        store: Store,
        *,
        drop_key: str,
        settings: RenderSettings,
        vet: Vet = is_public,
    ) -> None:
        self._inputs = dict(inputs)
        self._store = store
        self._folder = drop_key.rpartition("/")[0]
        self._settings = settings
        self._vet = vet
        self._found: dict[str, InputFile | None] = {}
        self._standing: dict[str, ObjectInfo] = {}
        """What the store has of the names that were looked up ahead."""

    @property
    def files(self) -> list[InputFile]:
        """All that was resolved, in the order of asking."""
        return [file for file in self._found.values() if file is not None]

    def look_up(self, values: Iterable[str], keep_alive: Callable[[], None]) -> None:
        """Ask the store about many names at once, before each is resolved in its turn.

        What is not found, or not allowed, is left to `resolve`, which says where it stands; so
        are a few, which need no haste.

        Cost: 1 or 2 requests per name, several at a time.
        """
        names = [self._inputs.get(plain_name(value)[0]) or plain_name(value)[0] for value in values]
        wanted = [name for name in dict.fromkeys(names) if not is_url(name) and not leads_out(name)]
        if len(wanted) <= FEW:
            return
        for name, info in each(self._look_ahead, wanted):
            keep_alive()
            if info is not None:
                self._standing[name] = info

    def _look_ahead(self, name: str) -> ObjectInfo | None:
        try:
            return self._look(name, name)
        except JobInvalid:
            return None

    def resolve(self, value: str, target: Target) -> InputFile | None:
        """The source of one file input; None where the attached server must have it.

        Raises:
            JobInvalid: not found, refused, or a bad URL.
        """
        if value not in self._found:
            self._found[value] = self._find(value, target)
        return self._found[value]

    def check_all_used(self, used: Iterable[str]) -> None:
        """Refuse a job whose `inputs` name files that no node loads: most likely a slip."""
        names = {plain_name(value)[0] for value in used}
        for name in self._inputs:
            if name not in names:
                mend = nearest(name, names, what="files that nodes load")
                raise JobInvalid(f"no node loads {name!r}", where=f"inputs.{name}", mend=mend)

    def _find(self, value: str, target: Target) -> InputFile | None:
        name, area = plain_name(value)
        source = self._inputs.get(name)
        place = f"inputs.{name}" if source else str(target)
        if source is None and (area != "input" or (leads_out(name) and not is_url(name))):
            raise JobInvalid(
                f"{value[:200]!r} is not a file of this job",
                where=place,
                mend="Name a file in `inputs`",
                kind=ErrorKind.REFUSED,
            )
        wanted = source or name
        if is_url(wanted):
            return self._freeze_url(value, wanted, place)
        info = self._standing.get(wanted) or self._look(wanted, place)
        if info is not None:
            self._check_size(info, place)
            return InputFile(name=value, source=info.key, version=info.version)
        if source is None and self._settings.engine == "attached":
            return None
        looked = " and ".join(self._candidates(wanted))
        raise JobInvalid(
            f"there is no file {wanted[:200]!r} (looked for {looked[:400]})",
            where=place,
            mend="Upload it there, or say in `inputs` which key or URL it is",
            kind=ErrorKind.BAD_INPUT,
        )

    def _look(self, name: str, place: str) -> ObjectInfo | None:
        found = (self._stat(key, place) for key in self._candidates(name))
        return next((info for info in found if info is not None), None)

    def _candidates(self, name: str) -> list[str]:
        return list(dict.fromkeys([f"{self._folder}/{name}" if self._folder else name, name]))

    def _stat(self, key: str, place: str) -> ObjectInfo | None:
        try:
            return self._store.stat(check_key(key))
        except NotFound:
            return None
        except InvalidKey as error:
            raise JobInvalid(error.what, where=place, kind=ErrorKind.BAD_INPUT) from None

    def _check_size(self, info: ObjectInfo, place: str) -> None:
        if info.size_bytes > self._settings.max_input_bytes:
            limit = self._settings.max_input_bytes / 1024**2
            raise JobInvalid(
                f"{info.key} is larger than {limit:,.0f} MiB", where=place, kind=ErrorKind.BAD_INPUT
            )

    def _freeze_url(self, value: str, url: str, place: str) -> InputFile:
        # Downloaded once now for its hash: a URL has no version, and a task's result must
        # not be adopted for other bytes than it was made from.
        if not self._settings.url_inputs:
            raise JobInvalid("URLs are not permitted as inputs here", where=place, kind=ErrorKind.REFUSED)
        with tempfile.TemporaryDirectory() as folder:
            try:
                got = fetch(url, Path(folder) / "file", limits=url_limits(self._settings), vet=self._vet)
            except TaskFailed as error:
                if error.kind is ErrorKind.UNAVAILABLE:
                    raise StoreUnavailable(error.what, where=place) from None
                raise JobInvalid(error.what, where=place, mend=error.mend, kind=error.kind) from None
        return InputFile(name=value, source=url, sha256=got.sha256)


def url_limits(settings: RenderSettings) -> Limits:
    return Limits(max_bytes=settings.max_url_input_bytes)


def download(
    file: InputFile, target: Path, store: Store, settings: RenderSettings, *, vet: Vet = is_public
) -> None:
    """Fetch a frozen input to `target`, streaming, and check that it is still the same.

    Raises:
        TaskFailed: gone, changed, or larger than allowed.
        StoreError: the store could not be read.
    """
    if is_url(file.source):
        got = fetch(file.source, target, limits=url_limits(settings), vet=vet)
        if file.sha256 and got.sha256 != file.sha256:
            target.unlink(missing_ok=True)
            raise TaskFailed(
                ErrorKind.BAD_INPUT, f"{redact_url(file.source)} has changed since this job was planned"
            )
        return
    try:
        with store.get(file.source, version=file.version) as source, target.open("xb") as out:
            _copy(source.body, out, file, settings.max_input_bytes)
    except NotFound:
        target.unlink(missing_ok=True)
        raise TaskFailed(
            ErrorKind.BAD_INPUT,
            f"{file.source} is gone, or was replaced since this job was planned",
            mend="Drop the job again",
        ) from None
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _copy(source: BinaryIO, out: BinaryIO, file: InputFile, max_bytes: int) -> None:
    left = max_bytes
    while piece := source.read(1024 * 1024):
        left -= len(piece)
        if left < 0:
            raise TaskFailed(ErrorKind.BAD_INPUT, f"{file.source} is larger than allowed")
        out.write(piece)
