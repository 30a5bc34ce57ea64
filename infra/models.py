"""Models on Volumes: brought there on a CPU before a GPU is rented, let go when long unused."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from handlers.model_cache import ModelCache
from infra import rclone
from infra.machine import container_start, open_notes, open_stores
from infra.settings import Deployment
from infra.unanswered import NO_ANSWER
from processor.errors import DropbatchError, ErrorKind, TaskFailed
from processor.handler import Stores
from processor.log import unit_of_work
from processor.records import ErrorReport, ModelFile, Plan, Task
from processor.report import error_report

log = structlog.get_logger(__name__)

Problem = dict[str, Any] | None
"""An `ErrorReport` as JSON. Our exceptions would lose what they say on the wire."""

_OWN: Final = ".dropbatch"
_USED: Final = f"{_OWN}/used.json"
_GB: Final = 1_000_000_000
_TELL_EVERY_S: Final = 3.0
_ABANDONED_S: Final = 24 * 3600.0
"""No container lives longer, so nobody writes to a part of that age any more."""


def pull(
    deployed: Deployment,
    wanted: Sequence[dict[str, Any]],
    *,
    commit: Callable[[], None],
    reload: Callable[[], None],
) -> Problem:
    """Have these models on the Volume, and no more than its limit of others.

    Returns:
        What kept it, naming file and folder; None if all are there.
    """
    ours = container_start(deployed)
    models = [ModelFile.model_validate(each) for each in wanted]
    named = [f"{model.folder}/{model.name}" for model in models]
    with unit_of_work("pull", models=named) as line:
        try:
            reload()
            root = ours.settings.models_path
            replaced = ModelCache(root, open_stores(ours).models).ensure(models)
            note_use(root, named, now=time.time())
            line.add(replaced=replaced, abandoned=remove_abandoned(root, now=time.time()))
            line.add(removed=trim(root, int(ours.modal.models_limit_gb * _GB), set(named)))
            commit()
        except DropbatchError as error:
            line.add(why=str(error))
            return error_report(error).model_dump(mode="json", exclude_defaults=True)
    return None


def pull_bases(
    deployed: Deployment,
    tasks: Sequence[dict[str, Any]],
    *,
    fetch: Callable[[Plan, Stores], None],
    commit: Callable[[], None],
    reload: Callable[[], None],
) -> Problem:
    """Have the base models of these training tasks on their Volume, from the bucket or Hugging Face.

    Args:
        fetch: the train handler's own; the process that it starts alone is given HF_TOKEN.
    """
    ours = container_start(deployed)
    with unit_of_work("pull_bases", tasks=len(tasks)) as line:
        try:
            reload()
            plan = Plan(job_id="bases", kind="train", tasks=[Task.model_validate(task) for task in tasks])
            fetch(plan, open_stores(ours))
            commit()
        except DropbatchError as error:
            line.add(why=str(error))
            return error_report(error).model_dump(mode="json", exclude_defaults=True)
    return None


def sync(
    deployed: Deployment,
    path: str,
    *,
    push: bool,
    progress_id: str,
    commit: Callable[[], None],
    reload: Callable[[], None],
) -> dict[str, Any]:
    """Copy a folder of models between bucket and Volume; `stats` or `error`.

    Args:
        progress_id: where in the app's notes the caller looks how far it is; "" if nobody does.
    """
    ours = container_start(deployed)
    notes = open_notes(ours)
    told_at = 0.0

    def progress(stats: dict[str, Any]) -> None:
        nonlocal told_at
        if progress_id and time.monotonic() - told_at > _TELL_EVERY_S:
            told_at = time.monotonic()
            with suppress(*NO_ANSWER):
                notes.put(f"progress/{progress_id}", json.dumps(stats))
            # What is there by now stays, whatever comes. rclone has files open, and the client reloads
            # after a commit, which Modal refuses then: the commit at the end is the one that counts.
            with suppress(RuntimeError, *NO_ANSWER):
                commit()

    with unit_of_work("sync", path=path, push=push) as line:
        try:
            reload()
            stats = rclone.copy(ours, path, ours.settings.models_path, push=push, progress=progress)
            if not push:
                commit()
        except DropbatchError as error:
            line.add(why=str(error))
            return {"error": error_report(error).model_dump(mode="json", exclude_defaults=True)}
        line.add(**stats)
        return {"stats": stats}


def files(
    deployed: Deployment, gone: str, *, commit: Callable[[], None], reload: Callable[[], None]
) -> dict[str, Any]:
    """The models on the Volume, after one was removed if one is named; `models` or `error`."""
    root = container_start(deployed).settings.models_path
    reload()
    if gone:
        try:
            remove(root, gone)
        except DropbatchError as error:
            return {"error": error_report(error).model_dump(mode="json", exclude_defaults=True)}
        commit()
    return {"models": listing(root)}


def raise_problem(problem: Problem) -> None:
    """Raise what a pull came to.

    Raises:
        TaskFailed: with the kind that decides about a retry.
    """
    if problem is None:
        return
    report = ErrorReport.model_validate(problem)
    raise TaskFailed(report.kind, report.what, where=report.where, mend=report.mend, details=report.details)


def note_use(root: Path, names: Sequence[str], *, now: float) -> None:
    """Remember when models were last asked for. One process at a time writes here."""
    used = _read_use(root) | dict.fromkeys(names, now)
    (root / _OWN).mkdir(parents=True, exist_ok=True)
    (root / _USED).write_text(json.dumps(used), encoding="utf-8")


def trim(root: Path, limit_bytes: int, keep: set[str]) -> list[str]:
    """Remove the models that were not used for longest until the rest fits.

    Args:
        keep: `folder/name` of those that stay whatever their age.
    Returns:
        What was removed. The bucket still has it.

    What is no model (parts of copies, what nodes download by themselves) fills the Volume as well.
    """
    used = _read_use(root)
    sizes = {name: (_size(root / name), _last_use(root / name, used.get(name))) for name in _models(root)}
    total = _size(root) - _size(root / _OWN)
    removed = []
    for name, (size, _) in sorted(sizes.items(), key=lambda item: item[1][1]):
        if total <= limit_bytes:
            break
        if name in keep:
            continue
        _remove(root / name)
        total -= size
        removed.append(name)
    return removed


def remove_abandoned(root: Path, *, now: float) -> list[str]:
    """Remove what copies that were cut off left half done, ours and rclone's; names, below the Volume."""
    parts = [path for path in root.rglob("*") if _is_part(path) and path.is_file()]
    old = sorted(path for path in parts if now - path.stat().st_mtime > _ABANDONED_S)
    for path in old:
        path.unlink()
    return [path.relative_to(root).as_posix() for path in old]


def listing(root: Path) -> list[dict[str, Any]]:
    """Every model on the Volume with its size and when it was last used."""
    used = _read_use(root)
    return [
        {"name": name, "size_bytes": _size(root / name), "used_at": _last_use(root / name, used.get(name))}
        for name in sorted(_models(root))
    ]


def remove(root: Path, name: str) -> None:
    """Take a model off the Volume; the bucket keeps it.

    Raises:
        TaskFailed: there is none of that name, or the name leads out.
    """
    if name not in set(_models(root)):
        raise TaskFailed(
            ErrorKind.MISSING_MODEL, "not on the Volume", where=name, mend="`dropbatch models ls`"
        )
    _remove(root / name)


def _models(root: Path) -> list[str]:
    """`folder/name` of each: a file at any depth, or a folder in diffusers format as one."""
    if not root.is_dir():
        return []
    found = []
    for folder in sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith(".")):
        if folder.name == "diffusers":
            found += [f"{folder.name}/{tree.name}" for tree in folder.iterdir()]
            continue
        files = (path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path))
        found += [path.relative_to(root).as_posix() for path in files]
    return found


def _is_part(path: Path) -> bool:
    return path.name.startswith(".part-") or path.suffix == ".partial"


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or _is_part(path)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def _last_use(path: Path, noted: float | None) -> float:
    return noted if noted is not None else path.stat().st_mtime


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _read_use(root: Path) -> dict[str, float]:
    with suppress(OSError, ValueError):
        known = json.loads((root / _USED).read_text("utf-8"))
        if isinstance(known, dict):
            return {str(name): float(at) for name, at in known.items()}
    return {}
