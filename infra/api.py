"""The headless API: render now and get the file, or drop a job and ask for it later.

    POST /render          {workflow, overrides, …, files?} → the picture, or JSON of several
    POST /jobs            the same, or any job → 202 {"job": id, …}
    GET  /jobs/<id>       what became of it
    GET  /jobs/<id>/files/<n>
    GET  /status          the bucket at a glance

Every route is behind Modal's proxy auth. A job goes through the inbox like any drop.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from infra.asgi import Reply, Request, status_of
from processor.errors import ErrorKind, JobInvalid, NotFound, StoreError
from processor.inbox import Drop, scan
from processor.layout import AUTHORITY, JOBS, is_job_id, manifest_key, slug
from processor.leases.authority import Founding
from processor.leases.protocol import LeaseStore
from processor.models import JobBase, RenderJob
from processor.reading import parse_json, read_job
from processor.records import Manifest
from processor.store import ObjectInfo, Store, read_bytes

log = structlog.get_logger(__name__)

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
MAX_MANIFEST_BYTES: Final = 256 * 1024 * 1024
MAX_FILES: Final = 32
_INPUTS: Final = "inputs/api/"
_JOB: Final = re.compile(r"/jobs/(?P<job>[^/]+)(?:/files/(?P<file>\d{1,6}))?")


@dataclass(frozen=True)
class Api:
    """The endpoint's function.

    Args:
        render: runs a job in the API's own pool; `{"files": …}` or `{"error": …}`. See `infra.desk`.
        wake: has a tick begin.
    """

    store: Store
    leases: LeaseStore
    render: Callable[[RenderJob], dict[str, Any]]
    wake: Callable[[], object]

    def __call__(self, request: Request) -> Reply:
        match request.method, request.path.rstrip("/"):
            case "POST", "/render" | "":
                return self._render(request)
            case "POST", "/jobs":
                return self._drop(request)
            case "GET", "/status":
                return Reply.of_json(self._status())
            case "GET", path if found := _JOB.fullmatch(path):
                return self._job(found["job"], found["file"])
        return Reply.of_json({"error": f"no such route: {request.method} {request.path}"}, 404)

    def _render(self, request: Request) -> Reply:
        job = self._read(request.body)
        if not isinstance(job, RenderJob):
            raise JobInvalid("only render jobs are answered at once", mend="POST /jobs takes all kinds")
        rendered = self.render(job)
        if error := rendered.get("error"):
            return Reply.of_json({"error": error["what"], **error}, status_of(ErrorKind(error["kind"])))
        files = rendered["files"]
        if len(files) == 1:
            name = re.sub(r'[^\x20-\x7e]|["\\]', "_", files[0]["name"])
            disposition = {"content-disposition": f'inline; filename="{name}"'}
            return Reply(200, files[0]["data"], files[0]["media_type"], disposition)
        if not files:
            return Reply.of_json({"error": "the workflow made no files"}, 422)
        listed = [file | {"data": base64.b64encode(file["data"]).decode()} for file in files]
        return Reply.of_json({"files": listed})

    def _drop(self, request: Request) -> Reply:
        job = self._read(request.body)
        key = f"{JOBS}api/{slug(job.name or job.kind)}-{secrets.token_hex(4)}.json"
        value = job.model_dump(mode="json", exclude_defaults=True) | {"kind": job.kind}
        info = self.store.put(key, json.dumps(value).encode(), media_type="application/json")
        # It is dropped. Whatever fails from here on must not have the caller drop it again.
        self._wake()
        if (job_id := self._id_of(info)) is None:
            return Reply.of_json({"job": None, "key": key, "status": None}, 202)
        return Reply.of_json({"job": job_id, "key": key, "status": f"/jobs/{job_id}"}, 202)

    def _wake(self) -> None:
        try:
            self.wake()
        except Exception as error:  # noqa: BLE001 - whatever Modal says, the cron finds the job
            log.warning("api.not_woken", why=f"{type(error).__name__}: {error}")

    def _id_of(self, info: ObjectInfo) -> str | None:
        """The job's id, for which an S3 server without versions must be asked; None if it can't tell."""
        try:
            known = info if info.version else self.store.stat(info.key)
        except StoreError as error:
            log.warning("api.id_not_known", key=info.key, why=str(error))
            return None
        return Drop(known.key, known.version, known.size_bytes, known.modified).job_id

    def _job(self, job_id: str, file: str | None) -> Reply:
        if not is_job_id(job_id):
            raise NotFound("no such job", where=job_id[:100])
        try:
            data = read_bytes(self.store, manifest_key(job_id), limit_bytes=MAX_MANIFEST_BYTES)
        except NotFound:
            if file is not None:
                raise
            return Reply.of_json({"job": job_id, "state": self._state(job_id)})
        manifest = Manifest.model_validate_json(data)
        files = [each for result in manifest.tasks for each in result.files]
        if file is None:
            return Reply.of_json(_summary(manifest))
        if int(file) >= len(files):
            raise NotFound(f"the job has {len(files)} files", where=f"files/{file}")
        wanted = files[int(file)]
        return Reply(
            200,
            read_bytes(self.store, wanted.key, limit_bytes=MAX_MANIFEST_BYTES),
            wanted.media_type,
        )

    def _state(self, job_id: str) -> str:
        """`waiting` includes jobs that never were: without a listing nobody can tell them apart."""
        return "running" if self.leases.read(f"lease/{job_id}/1") else "waiting"

    def _status(self) -> dict[str, Any]:
        inbox = scan(self.store, keep=100)
        now = datetime.now(UTC)
        oldest = min((drop.modified for drop in inbox.due), default=now)
        return {
            "pending": inbox.pending,
            "nightly": inbox.nightly,
            "datasets": sorted(inbox.datasets),
            "paused": inbox.paused,
            "oldest_s": round((inbox.date - oldest).total_seconds()) if inbox.due else 0,
            "leases": self._authority(),
        }

    def _authority(self) -> str | None:
        try:
            data = read_bytes(self.store, AUTHORITY, limit_bytes=64 * 1024)
        except NotFound:
            return None
        return Founding.model_validate_json(data).backend

    def _read(self, body: bytes) -> JobBase:
        """A job as a drop would say it, with files that came along put where it finds them."""
        value = parse_json(body, key="body")
        if not isinstance(value, dict) or "files" not in value:
            return read_job(body, key="body")
        files = value.pop("files")
        if not isinstance(files, dict) or len(files) > MAX_FILES:
            raise JobInvalid(f"an object of at most {MAX_FILES} names and base64 contents", where="files")
        inputs = value.get("inputs", {})
        if not isinstance(inputs, dict):
            mend = "Leave it out, or name files with the keys or URLs that they come from"
            raise JobInvalid("an object of names and where they come from", where="inputs", mend=mend)
        uploaded = {str(name): self._upload(str(name), data) for name, data in files.items()}
        value["inputs"] = {**inputs, **uploaded}
        return read_job(json.dumps(value).encode(), key="body")

    def _upload(self, name: str, data: Any) -> str:
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise JobInvalid("not base64", where=f"files.{name[:100]}") from None
        key = _INPUTS + hashlib.sha256(content).hexdigest()[:32]
        self.store.put(key, content)
        return key


def _summary(manifest: Manifest) -> dict[str, Any]:
    files = [file for result in manifest.tasks for file in result.files]
    job = manifest.job_id
    return {
        "job": job,
        "state": manifest.outcome.value,
        "tasks": len(manifest.tasks),
        "seconds": manifest.seconds,
        "cost_usd": manifest.cost_usd,
        "error": manifest.error.model_dump(mode="json", exclude_defaults=True) if manifest.error else None,
        "files": [
            {
                "name": file.name,
                "media_type": file.media_type,
                "key": file.key,
                "url": f"/jobs/{job}/files/{n}",
            }
            for n, file in enumerate(files)
        ],
    }
