"""Where everything lies in the bucket, and how a drop gets its job id.

All keys are relative to the one configurable root prefix; the store adds it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from datetime import date, datetime
from functools import lru_cache
from pathlib import PurePosixPath

from processor.records import Outcome

INBOX = "inbox/"
JOBS = "inbox/jobs/"
EMITTED = "inbox/jobs/emitted/"
NIGHTLY = "inbox/nightly/"
RECURRING = "inbox/recurring/"
DATASETS_INBOX = "inbox/datasets/"
CONTROL = "inbox/control/"
PAUSED = "inbox/control/paused"
CANCEL = "inbox/control/cancel/"

WORKFLOWS = "comfy_workflows/"
COMFY_MODELS = "comfy_models/"
BASE_MODELS = "models/"
DATASETS = "datasets/"
OUTPUTS = "comfy_outputs/"
NIGHTS = "comfy_outputs/nightly/"
STATE = "state/"
AUTHORITY = "state/authority.json"
SPEND = "state/spend/"
OBJECT_INFO = "state/object_info.json"
CLOCK = "state/clock"
"""Written to learn what time it is where a folder-bucket's files are dated."""
BESIDE = (
    *("tasks.csv", "tasks.jsonl", "contact-sheet.jpg"),
    *("sequence.webp", "sequence.gif", "sequence.mp4"),
)
"""What may lie beside a job's gallery; a sweep leaves it alone."""
DONE = "done/"
FAILED = "failed/"

_SLUG_MAX = 40
_JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}-[0-9a-f]{16}")


def slug(text: str) -> str:
    """Readable ASCII for a key or id: lower case letters, digits and single hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:_SLUG_MAX].strip("-") or "job"


def cut(text: str, limit_bytes: int) -> str:
    """The beginning, as many whole characters as fit: keys and file systems count bytes."""
    return text.encode("utf-8", "ignore")[:limit_bytes].decode("utf-8", "ignore")


@lru_cache(maxsize=4096)  # of one drop it is asked a dozen times
def job_id(key: str, version: str) -> str:
    """The id of the job that a drop is: a slug of its name and a hash of key and version."""
    digest = hashlib.sha256(f"{key}\0{version}".encode()).hexdigest()[:16]
    return f"{slug(PurePosixPath(key).stem)}-{digest}"


def emitted_job_id(parent: str, name: str) -> str:
    """The id of what the machine itself drops: without a version, so emitting twice is one job."""
    digest = hashlib.sha256(f"emitted\0{parent}\0{name}".encode()).hexdigest()[:16]
    return f"{slug(name)}-{digest}"


def is_job_id(text: str) -> bool:
    return _JOB_ID.fullmatch(text) is not None


def emitted_key(job: str) -> str:
    return f"{EMITTED}{job}.json"


def dataset_prefix(dataset: str, fingerprint: str) -> str:
    return f"{DATASETS}{dataset}/{fingerprint}/"


def dataset_record_key(dataset: str, fingerprint: str) -> str:
    """The list of a version's files, written last: a version without it is not whole."""
    return dataset_prefix(dataset, fingerprint) + "dataset.json"


def dataset_latest_key(dataset: str) -> str:
    return f"{DATASETS}{dataset}/latest.json"


def training_page_key(job: str) -> str:
    return f"{OUTPUTS}{job}/training.html"


def manifest_key(job: str) -> str:
    return f"{OUTPUTS}{job}/manifest.json"


def night_report_key(morning: date) -> str:
    return f"{NIGHTS}{morning:%Y-%m-%d}/report.json"


def night_page_key(morning: date) -> str:
    return f"{NIGHTS}{morning:%Y-%m-%d}/index.html"


def quiet_night_key(morning: date) -> str:
    """Stands where a night had no jobs and so has no report."""
    return f"{STATE}quiet-nights/{morning:%Y-%m-%d}"


def gallery_key(job: str) -> str:
    return f"{OUTPUTS}{job}/index.html"


def job_prefix(job: str) -> str:
    return f"{OUTPUTS}{job}/"


def beside_key(job: str, name: str) -> str:
    """Something beside the gallery: one of `BESIDE`."""
    return f"{OUTPUTS}{job}/{name}"


def attempt_prefix(job: str, attempt: str) -> str:
    return f"{OUTPUTS}{job}/{attempt}/"


def attempt_key(job: str, attempt: str) -> str:
    return f"{OUTPUTS}{job}/{attempt}/attempt.json"


def candidate_key(job: str, attempt: str) -> str:
    return f"{OUTPUTS}{job}/{attempt}/manifest.json"


def engine_log_key(job: str, attempt: str) -> str:
    return f"{OUTPUTS}{job}/{attempt}/engine.log"


def execution_prefix(job: str, attempt: str, index: int, execution: str) -> str:
    """Where one execution of task `index` writes; no two executions share it."""
    return f"{OUTPUTS}{job}/{attempt}/{index:05d}-{execution}/"


def result_key(job: str, attempt: str, index: int, execution: str) -> str:
    return execution_prefix(job, attempt, index, execution) + "result.json"


def spend_prefix(day: date) -> str:
    return f"{SPEND}{day:%Y-%m-%d}/"


def spend_key(day: date, job: str, attempt: str, micros: int) -> str:
    """What an attempt has cost on a day, in millionths of a dollar; the name is all there is."""
    return f"{spend_prefix(day)}{job}/{attempt}/{micros}"


def reuse_prefix(shape: str) -> str:
    return f"{STATE}results/{shape}/"


def reuse_key(shape: str, finished_at: datetime, job: str) -> str:
    """Tells jobs whose graph has the same shape of this one; a listing has the newest first."""
    return f"{reuse_prefix(shape)}{10**11 - int(finished_at.timestamp()):011d}/{job}"


def notified_key(subject: str, event: str, notifier: str) -> str:
    """Stands where this was told, so that it is told once."""
    return f"{STATE}notified/{subject}/{event}.{notifier}"


def cancel_key(job: str) -> str:
    return CANCEL + job


def settled_prefix(outcome: Outcome, finished_at: datetime, job: str) -> str:
    """Where the drop goes: `done/` or `failed/`, the (UTC) day it finished, the job."""
    return f"{outcome.settles_in}/{finished_at:%Y-%m-%d}/{job}/"
