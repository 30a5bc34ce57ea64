"""Base models on local disk: from `models/` in the bucket, else from Hugging Face."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from handlers.train.presets import BaseModel
from handlers.train.process import scrubbed_environment
from processor.errors import ErrorKind, TaskFailed
from processor.layout import BASE_MODELS
from processor.parallel import each
from processor.store import ObjectInfo, Store, check_key

Download = Callable[[BaseModel, Path], None]
"""Puts a model's repository into an empty folder; raises TaskFailed."""

_WHOLE: Final = ".dropbatch-whole"
"""Written last: a folder without it was cut off."""
_THREADS: Final = 4

_FETCH: Final = """
import json, sys
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
repo, folder = sys.argv[1:3]
try:
    snapshot_download(repo, local_dir=folder, ignore_patterns=["*.gguf", "*.onnx", "*.msgpack", "*.h5"])
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

    def ensure(self, store: Store, base: BaseModel) -> Path:
        """Bring a base model here. Do this on a CPU before a GPU is rented.

        Raises:
            TaskFailed: MISSING_MODEL, naming where it was looked for; a licence not accepted.
            StoreError: the bucket could not be read.
        Cost: 1 request per 1,000 files, 1 per file not here yet.
        """
        folder = self._directory / base.name
        prefix = f"{BASE_MODELS}{base.name}/"
        with self._lock(base.name):
            files = [item for page in store.list(prefix) for item in page.objects if not item.delete_marker]
            if files:
                self._from_bucket(store, prefix, files, folder)
            elif not (folder / _WHOLE).exists():
                self._from_hub(base, folder)
        return folder

    def _from_bucket(self, store: Store, prefix: str, files: list[ObjectInfo], folder: Path) -> None:
        def fetch(item: ObjectInfo) -> None:
            path = folder / check_key(item.key)[len(prefix) :]
            if path.is_file() and path.stat().st_size == item.size_bytes:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            with store.get(item.key) as download, part.open("wb") as stream:
                shutil.copyfileobj(download.body, stream, 1 << 20)
            part.replace(path)

        for _ in each(fetch, files, threads=_THREADS):
            pass
        (folder / _WHOLE).touch()

    def _from_hub(self, base: BaseModel, folder: Path) -> None:
        if base.repo is None or self._download is None:
            raise TaskFailed(
                ErrorKind.MISSING_MODEL,
                f"base model {base.name} is not in the bucket",
                where=f"{BASE_MODELS}{base.name}/",
                mend="Upload it there in diffusers format",
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._download(base, folder)
        (folder / _WHOLE).touch()

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / f".{name}.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def hub_download(python: Path) -> Download:
    """Downloads from Hugging Face with a given Python: the only process that sees the token."""

    def download(base: BaseModel, folder: Path) -> None:
        token = os.environ.get("HF_TOKEN", "")
        with tempfile.TemporaryDirectory() as home:
            environment = scrubbed_environment(Path(home), **({"HF_TOKEN": token} if token else {}))
            result = subprocess.run(
                [str(python), "-c", _FETCH, str(base.repo), str(folder)],
                env=environment,
                cwd=home,
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        problem = _problem(result.stdout, result.stderr)
        if problem is not None:
            raise _explained(problem, base, has_token=bool(token))

    return download


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
        mend = f"Accept it at {url}" + ("" if has_token else ", and set HF_TOKEN to a token of that account")
        return TaskFailed(
            ErrorKind.MISSING_MODEL,
            f"the licence of {base.repo} ({base.licence or 'see its page'}) is not accepted",
            where=url,
            mend=mend,
        )
    if problem == "missing":
        return TaskFailed(ErrorKind.MISSING_MODEL, f"Hugging Face has no {base.repo}", where=url)
    return TaskFailed(ErrorKind.UNAVAILABLE, f"{base.repo} could not be downloaded: {problem}", where=url)
