"""Base models on local disk: from `models/` in the bucket, else from Hugging Face.

A folder has two files of ours: a mark that it is whole, and a note of which object of the bucket
each of its files is. A model replaced under its name mostly has files of the same sizes.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final

from handlers.model_cache import bring
from handlers.train.presets import BaseModel
from handlers.train.process import scrubbed_environment
from processor.errors import ErrorKind, TaskFailed
from processor.inbox import is_marker
from processor.layout import BASE_MODELS
from processor.parallel import each
from processor.store import ObjectInfo, Store, check_key

Check = Callable[[], None]
"""Called about twice a second while something takes long; raises to end it."""
Download = Callable[[BaseModel, Path, Check], None]
"""Puts a model's repository into an empty folder; raises TaskFailed."""

_WHOLE: Final = ".dropbatch-whole"
"""Written last, taken away first: a folder without it was cut off."""
_NOTE: Final = ".dropbatch-files.json"
"""File name → what it is in the bucket."""
_OURS: Final = frozenset({_WHOLE, _NOTE})
_INDEX: Final = "model_index.json"
"""What a whole model in diffusers format has."""

Mark = list[int | str]
"""Size in bytes, and the version, or where there are none the time: what LIST says of an object."""
_THREADS: Final = 4
_POLL_S: Final = 0.5

_FETCH: Final = """
import json, os, sys
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
repo, folder = sys.argv[1:3]
passed_over = (".gguf", ".onnx", ".msgpack", ".h5")
try:
    # Asked first: out of reach of the hub, snapshot_download is content with whatever the folder has.
    info = HfApi().model_info(repo, files_metadata=True)
    snapshot_download(
        repo, revision=info.sha, local_dir=folder, ignore_patterns=["*" + suffix for suffix in passed_over]
    )
    for file in info.siblings:
        if file.rfilename.endswith(passed_over):
            continue
        path = os.path.join(folder, file.rfilename)
        if not os.path.isfile(path) or os.path.getsize(path) != file.size:
            raise OSError(f"{file.rfilename} did not come whole")
except GatedRepoError:
    print(json.dumps({"problem": "gated"}))
except RepositoryNotFoundError:
    print(json.dumps({"problem": "missing"}))
except Exception as error:
    print(json.dumps({"problem": f"{type(error).__name__}: {error}"[:500]}))
else:
    print(json.dumps({"problem": None}))
"""
"""Runs on the trainer's Python, which has huggingface_hub; its last line of output is the answer."""


class BaseModels:
    """A local folder of base models, filled on demand; safe for several processes at once.

    Args:
        download: where the bucket has a model not; None where nothing may be downloaded.
    """

    def __init__(self, directory: Path, download: Download | None) -> None:
        self._directory = directory
        self._download = download

    def ensure(self, store: Store, base: BaseModel, *, check: Check = lambda: None) -> Path:
        """Bring a base model here, as the bucket has it now. Do this on a CPU before a GPU is rented.

        Where the bucket has the model, the folder becomes its copy: what else lies in it is removed,
        or, should the bucket have no `model_index.json` of it, only what came from there before.
        A file of the right size in a folder without a note (made before there were notes, by hand,
        or from Hugging Face) is kept if it was written after the bucket's object was; one copied
        with an older time is fetched once more. A bucket that has nothing of the model leaves what
        is here, and placeholders of empty folders are nothing.

        Raises:
            TaskFailed: MISSING_MODEL, naming where it was looked for, or what it lacks; a licence not
                accepted; UNAVAILABLE when a download ended early.
            StoreError: the bucket could not be read. What was fetched is kept; the next call goes on.
        Cost: 1 request per 1,000 files, 1 per file that is not here as the bucket has it.
        """
        folder = self._directory / base.name
        prefix = f"{BASE_MODELS}{base.name}/"
        with self._lock(base.name, check):
            files = [item for page in store.list(prefix) for item in page.objects if not item.delete_marker]
            wanted = {
                name: item
                for item in files
                if not item.key.endswith("/") and _is_models(name := check_key(item.key)[len(prefix) :])
            }
            if wanted:
                self._from_bucket(store, wanted, folder, check)
                if (lacking := _lacking(base, folder)) is not None:
                    raise TaskFailed(
                        ErrorKind.MISSING_MODEL,
                        f"base model {base.name} is not whole: {lacking} is missing",
                        where=prefix,
                        mend="Upload all of it in diffusers format, then `dropbatch retry` the job",
                    )
                (folder / _WHOLE).touch()
            elif not (folder / _WHOLE).exists() or _lacking(base, folder) is not None:
                self._from_hub(base, folder, check)
        return folder

    def _from_bucket(self, store: Store, wanted: dict[str, ObjectInfo], folder: Path, check: Check) -> None:
        noted = _read_note(folder)
        here = {
            name: _mark(item)
            for name, item in wanted.items()
            if _is_current(folder / name, item, noted.get(name))
        }
        copied = _INDEX in wanted  # and not a part of an upload, beside what came from elsewhere
        gone = [
            path
            for path in _files(folder)
            if (name := path.relative_to(folder).as_posix()) not in wanted and (copied or name in noted)
        ]
        if gone or len(here) < len(wanted):
            (folder / _WHOLE).unlink(missing_ok=True)
        # First: what was a file may have become a folder.
        for path in gone:
            _remove(path, folder)

        def fetch(name: str) -> None:
            bring(store, wanted[name], folder / name)

        for name, _ in each(fetch, [name for name in wanted if name not in here], threads=_THREADS):
            check()
            here[name] = _mark(wanted[name])
            # What is still to come stays noted as what it was, so that a next call does not guess.
            _write_note(folder, {name: noted[name] for name in wanted if name in noted} | here)
        if here != noted:
            _write_note(folder, here)

    def _from_hub(self, base: BaseModel, folder: Path, check: Check) -> None:
        if base.repo is None or self._download is None:
            raise TaskFailed(
                ErrorKind.MISSING_MODEL,
                f"base model {base.name} is not in the bucket",
                where=f"{BASE_MODELS}{base.name}/",
                mend="Upload it there in diffusers format, then `dropbatch retry` the job",
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._download(base, folder, check)
        (folder / _WHOLE).touch()

    @contextmanager
    def _lock(self, name: str, check: Check) -> Iterator[None]:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / f".{name}.lock").open("w") as stream:
            while not _locked(stream):
                check()
                time.sleep(_POLL_S)
            yield


def _locked(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_models(name: str) -> bool:
    # A folder of ours may have been uploaded as it was, with its mark and note.
    return name not in _OURS and not is_marker(PurePosixPath(name).name)


def _mark(item: ObjectInfo) -> Mark:
    return [item.size_bytes, item.version or item.modified.isoformat()]


def _is_current(path: Path, item: ObjectInfo, noted: Mark | None) -> bool:
    if not path.is_file():
        return False
    found = path.stat()
    if found.st_size != item.size_bytes:
        return False
    return noted == _mark(item) if noted is not None else found.st_mtime >= item.modified.timestamp()


def _files(folder: Path) -> list[Path]:
    """What lies in a model's folder and is not ours, leftovers of broken downloads, too."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [path for path in paths if path.relative_to(folder).as_posix() not in _OURS]


def _lacking(base: BaseModel, folder: Path) -> str | None:
    """A file that the trainer would miss, once it has a GPU: an upload may be under way, or of one file."""
    if base.diffusers and not (folder / _INDEX).is_file():
        return _INDEX
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        try:
            shards = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"what {index.relative_to(folder)} should say"
        for shard in sorted(shards):
            if not (index.parent / shard).is_file():
                return (index.parent / shard).relative_to(folder).as_posix()
    return None


def _remove(path: Path, folder: Path) -> None:
    """Remove a file, and the folders below `folder` that this leaves empty."""
    path.unlink(missing_ok=True)
    for parent in path.relative_to(folder).parents[:-1]:
        try:
            (folder / parent).rmdir()
        except OSError:
            return


def _read_note(folder: Path) -> dict[str, Mark]:
    try:
        return dict(json.loads((folder / _NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _write_note(folder: Path, marks: dict[str, Mark]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{_NOTE}.part"
    part.write_text(json.dumps(marks, sort_keys=True), encoding="utf-8")
    part.replace(folder / _NOTE)


def hub_download(python: Path) -> Download:
    """Downloads from Hugging Face with a given Python: the only process that sees the token."""

    def download(base: BaseModel, folder: Path, check: Check) -> None:
        token = os.environ.get("HF_TOKEN", "")
        with tempfile.TemporaryDirectory() as home:
            environment = scrubbed_environment(Path(home), **({"HF_TOKEN": token} if token else {}))
            with subprocess.Popen(
                [str(python), "-c", _FETCH, str(base.repo), str(folder)],
                env=environment,
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                stdout, stderr = _heard(process, check)
        problem = _problem(stdout, stderr)
        if problem is not None:
            raise _explained(problem, base, has_token=bool(token))

    return download


def _heard(process: subprocess.Popen[str], check: Check) -> tuple[str, str]:
    """Both streams of a process that ends by itself, or with the check that says to stop."""
    try:
        while True:
            try:
                return process.communicate(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                check()
    except BaseException:
        process.kill()
        raise


def _problem(stdout: str, stderr: str) -> str | None:
    lines = stdout.strip().splitlines()
    try:
        problem = json.loads(lines[-1])["problem"] if lines else None
    except (ValueError, KeyError, TypeError):
        problem = None
    else:
        if lines:
            return str(problem) if problem is not None else None
    return (re.sub(r"\s+", " ", stderr)[-300:]) or "the downloader ended without a word"


def _explained(problem: str, base: BaseModel, *, has_token: bool) -> TaskFailed:
    url = f"https://huggingface.co/{base.repo}"
    if problem == "gated":
        token = "" if has_token else ", set HF_TOKEN to a token of that account"
        mend = f"Accept it at {url}{token}, then `dropbatch retry` the job"
        return TaskFailed(
            ErrorKind.MISSING_MODEL,
            f"the licence of {base.repo} ({base.licence or 'see its page'}) is not accepted",
            where=url,
            mend=mend,
        )
    if problem == "missing":
        return TaskFailed(ErrorKind.MISSING_MODEL, f"Hugging Face has no {base.repo}", where=url)
    return TaskFailed(ErrorKind.UNAVAILABLE, f"{base.repo} could not be downloaded: {problem}", where=url)
