"""The ingest handler: a frozen inbox folder becomes a checked, archived dataset version."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from handlers.ingest.archive import load_dataset, sources, store_dataset
from handlers.ingest.examine import add, check_folder, conclude, examine, left_out
from handlers.ingest.options import MAX_BYTES, DatasetOptions, read_dataset_options
from handlers.ingest.pictures import MAX_FILE_BYTES, kind_of
from handlers.ingest.records import Dataset, DatasetFile, fingerprint
from handlers.ingest.report import Finding, Report
from processor.datasets import CONTROL, OPTIONS, FrozenFile, Inventory, folder_key
from processor.errors import ErrorKind, JobInvalid, NotFound, TaskFailed
from processor.folders import MAX_INVENTORY_BYTES
from processor.handler import LocalFile, PlanContext, Progress, Stores, TaskContext, TaskOutput, Work
from processor.layout import (
    dataset_latest_key,
    dataset_prefix,
    emitted_job_id,
    execution_prefix,
    manifest_key,
)
from processor.models import IngestJob, JobBase
from processor.parallel import each
from processor.pointers import Pointer, read_pointer
from processor.records import Manifest, Outcome, Plan, Task, canonical_hash
from processor.spelling import plural
from processor.store import Store, read_bytes

if TYPE_CHECKING:
    from processor.config import Settings

_CHECK_THREADS = 8
"""Files looked at at a time; of large pictures fewer are decoded at once (`pictures.Pixels`)."""
_MAX_MANIFEST_BYTES = 64 * 1024 * 1024
_MAX_KEPT_BYTES = 32 * 1024
"""Of options that are kept for the next drop, in a pointer: a small file."""


class IngestHandler:
    """Checks a folder on a CPU, archives it, and says which train job follows."""

    kind = "ingest"
    concurrency = 1

    @classmethod
    def configured(cls, settings: Settings, stores: Stores) -> IngestHandler:  # noqa: ARG003 - needs neither
        return cls()

    @staticmethod
    def check_folder(folder: Path) -> dict[str, Any]:
        """What `dropbatch check` shows of a folder on this machine: counts, errors, warnings.

        Raises:
            JobInvalid: its name or its `dataset.yaml` can't be used.
        """
        report = check_folder(folder)
        return {
            "pictures": report.pictures,
            "videos": report.videos,
            "captions": report.captions,
            "errors": [str(finding) for finding in report.errors],
            "warnings": report.summary(),
        }

    def plan(self, job: JobBase, context: PlanContext) -> Plan:
        """One task: the whole folder. Cost: 3 requests."""
        if not isinstance(job, IngestJob):
            raise TypeError(f"{type(job).__name__} is no ingest job")
        if job.problem is not None:
            raise JobInvalid(
                job.problem,
                where=folder_key(job.dataset),
                mend="Upload the folder again, with `_READY` last",
            )
        try:
            inventory = _read_inventory(context.stores.main, job.inventory)
        except (NotFound, ValidationError):
            raise JobInvalid(
                "the inventory of this folder is gone",
                where=job.inventory,
                mend="Upload the folder again, with `_READY` last",
            ) from None
        if inventory.dataset != job.dataset:
            raise JobInvalid("the inventory is of another folder", where=job.inventory)
        pointer = read_pointer(context.stores.datasets, dataset_latest_key(job.dataset))
        kept = _kept_options(pointer, inventory)
        options = kept or _read_options(context.stores.main, inventory)
        newest = pointer.facts["fingerprint"] if pointer else None
        payload = {
            "inventory": job.inventory,
            "options": options.model_dump(mode="json", exclude_defaults=True),
            "options_of": newest if kept else None,
            "join": None if options.replace else newest,
            "made_at": context.now.isoformat(),
        }
        task = Task(index=0, hash=canonical_hash(payload), params={"dataset": job.dataset}, payload=payload)
        return Plan(job_id=context.job_id, kind="ingest", tasks=[task])

    def run(self, work: Work, context: TaskContext) -> TaskOutput:
        return _Ingest(work, context).run()

    def close(self) -> None:
        """Nothing was started."""


class _Ingest:
    """One folder on its way into the archive."""

    def __init__(self, work: Work, context: TaskContext) -> None:
        self._work = work
        self._context = context
        self._stores = context.stores
        self._began = time.monotonic()
        payload: dict[str, Any] = work.task.payload
        self._inventory = _read_inventory(self._stores.main, payload["inventory"])
        self._options = DatasetOptions.model_validate(payload["options"])
        self._join: str | None = payload["join"]
        self._made_at: str = payload["made_at"]
        self._name = self._inventory.dataset
        self._report = Report(self._name, options_of=payload.get("options_of"))

    def run(self) -> TaskOutput:
        joined = self._joined()
        files = self._examine()
        if joined is not None:
            new = {file.name for file in files}
            files += [file for file in joined.files if file.name not in new]
        files.sort(key=lambda file: file.name)
        conclude(self._report, files, self._options)
        reports = self._write_reports()
        if self._report.errors:
            self._fail(reports)
        dataset = Dataset.model_validate(
            {
                "name": self._name,
                "fingerprint": fingerprint(files),
                "files": files,
                "made_at": self._made_at,
                "joined": joined.fingerprint if joined else None,
            }
        )
        known = load_dataset(self._stores.datasets, self._name, dataset.fingerprint) is not None
        if not known:
            self._archive(dataset, joined)
        data = self._conclusion(dataset, joined, known)
        return TaskOutput(reports, time.monotonic() - self._began, data=data)

    def _joined(self) -> Dataset | None:
        if self._join is None:
            return None
        joined = load_dataset(self._stores.datasets, self._name, self._join)
        if joined is None:
            raise TaskFailed(
                ErrorKind.BAD_INPUT,
                f"version {self._join}, which these files were to join, is gone",
                where=dataset_prefix(self._name, self._join),
                mend="Drop the whole folder with `replace: true` in its dataset.yaml",
            )
        return joined

    def _examine(self) -> list[DatasetFile]:
        files: list[DatasetFile] = []
        frozen = [file for file in self._inventory.files if file.name not in CONTROL]
        total = len(frozen)
        for done, (_, seen) in enumerate(each(self._look_at, frozen, threads=_CHECK_THREADS), start=1):
            self._context.stop.check()
            self._context.progress(Progress("checking", done, total))
            add(self._report, files, seen)
        return files

    def _look_at(self, frozen: FrozenFile) -> DatasetFile | Finding:
        """Fetch one file, look at it, and let it go: the disk holds a few at a time. Cost: 1 request."""
        kind = kind_of(frozen.name)
        if kind in ("misnamed", "unusable", "unseen", "other"):
            return left_out(frozen.name, kind)
        if frozen.size_bytes > MAX_FILE_BYTES:
            return Finding("error", f"{frozen.size_bytes:,} bytes; at most {MAX_FILE_BYTES:,}", frozen.name)
        path = self._context.workdir / secrets.token_hex(8)
        try:
            return examine(path, frozen.name, self._fetch(frozen, path))
        except NotFound:
            return Finding("error", "was changed or removed after the folder was complete", frozen.name)
        finally:
            path.unlink(missing_ok=True)

    def _fetch(self, frozen: FrozenFile, path: Path) -> str:
        digest = hashlib.sha256()
        key = self._inventory.folder + frozen.name
        with self._stores.main.get(key, version=frozen.version) as download, path.open("wb") as stream:
            while chunk := download.body.read(1 << 20):
                digest.update(chunk)
                stream.write(chunk)
        return digest.hexdigest()

    def _write_reports(self) -> list[LocalFile]:
        folder = self._context.workdir / "report"
        folder.mkdir()
        (folder / "report.json").write_bytes(self._report.to_json())
        (folder / "report.txt").write_text(self._report.to_text(), encoding="utf-8")
        return [
            LocalFile(folder / "report.json", "report.json", "application/json"),
            LocalFile(folder / "report.txt", "report.txt", "text/plain; charset=utf-8"),
        ]

    def _fail(self, reports: list[LocalFile]) -> None:
        """Leave the report where the settling finds it, and end. Cost: 2 requests."""
        work = self._work
        prefix = execution_prefix(work.job_id, work.attempt, work.task.index, secrets.token_hex(4))
        for file in reports:
            self._stores.main.put(prefix + file.name, file.path, media_type=file.media_type)
        errors = self._report.errors
        raise TaskFailed(
            ErrorKind.BAD_INPUT,
            f"the folder can't be trained on: {plural(len(errors), 'error')}, first {errors[0]}",
            where=prefix + "report.json",
            mend="Mend the files that the report names, then drop the folder again",
            details=[str(finding) for finding in errors],
        )

    def _archive(self, dataset: Dataset, joined: Dataset | None) -> None:
        total = len(dataset.files)

        def progress(done: int) -> None:
            self._context.stop.check()
            self._context.progress(Progress("archiving", done, total))

        wanted = sources(self._stores, self._inventory, dataset.files, joined)
        store_dataset(self._stores, dataset, wanted, workdir=self._context.workdir, progress=progress)

    def _conclusion(self, dataset: Dataset, joined: Dataset | None, known: bool) -> dict[str, Any]:
        """What the manifest says: the version, and the training that follows from it."""
        where = dataset_prefix(dataset.name, dataset.fingerprint)
        said = f"{plural(dataset.examples, 'example')} in {where}"
        if known:
            said = f"The same content as {where}, which is there already"
        elif joined is not None:
            said += f", joined with version {joined.fingerprint}"
        if self._report.options_of:
            said += f"; options as version {self._report.options_of} had them"
        data: dict[str, Any] = {
            "dataset": dataset.name,
            "fingerprint": dataset.fingerprint,
            "examples": dataset.examples,
            "warnings": len(self._report.warnings),
            "known": known,
            "text": said,
        }
        options = self._options.model_dump(mode="json", exclude_defaults=True, exclude={"replace"})
        if len(json.dumps(options)) <= _MAX_KEPT_BYTES:
            data["options"] = options
        if self._options.train:
            job = self._options.train_job(dataset.name, dataset.fingerprint)
            said_once = job.model_dump(mode="json", exclude_defaults=True)
            data["train"] = {
                "job": said_once,
                "parent": where,
                "name": f"{dataset.name}-train-{canonical_hash(said_once)[:8]}",
            }
            if known:
                data["text"] += self._of_its_training(emitted_job_id(where, data["train"]["name"]))
        return data

    def _of_its_training(self, job_id: str) -> str:
        """What becomes of a training whose id follows from what was dropped again. Cost: 2 requests."""
        key = manifest_key(job_id)
        manifest = None
        page = next(iter(self._stores.main.list(key)))  # a missing key may answer 403
        if any(item.key == key and not item.delete_marker for item in page.objects):
            data = read_bytes(self._stores.main, key, limit_bytes=_MAX_MANIFEST_BYTES)
            with suppress(ValidationError):  # which is said where that job is settled
                manifest = Manifest.model_validate_json(data)
        if manifest is None or manifest.outcome is Outcome.DONE:
            return "; it is trained only if its options are new"
        again = f"dropbatch retry {job_id}" if manifest.plan else f"dropbatch train {self._name}"
        return f"; its training is {manifest.outcome.value} and runs no more by itself: `{again}`"


def _read_inventory(store: Store, key: str) -> Inventory:
    return Inventory.model_validate_json(read_bytes(store, key, limit_bytes=MAX_INVENTORY_BYTES))


def _kept_options(pointer: Pointer | None, inventory: Inventory) -> DatasetOptions | None:
    """The options of the version that a folder without a `dataset.yaml` joins; None where it has one.

    Raises:
        JobInvalid: they are no longer what a training takes.
    """
    if pointer is None or any(file.name == OPTIONS for file in inventory.files):
        return None
    kept = pointer.facts.get("options")
    if kept is None:  # archived before options were kept
        return None
    options = DatasetOptions.model_validate(kept)
    options.train_options()
    return options


def _read_options(store: Store, inventory: Inventory) -> DatasetOptions:
    where = inventory.folder + OPTIONS
    frozen = next((file for file in inventory.files if file.name == OPTIONS), None)
    data = read_bytes(store, where, version=frozen.version, limit_bytes=MAX_BYTES) if frozen else None
    return read_dataset_options(data, where=where)
