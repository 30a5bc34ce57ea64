"""The numbers the machine works by. `processor.config` fills them; defaults stand there and here once.

Every field has its unit in its name; docs/settings.md describes each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

from processor.models import JobKind
from processor.schedule import Night

MIB = 1024 * 1024

_UTC = ZoneInfo("UTC")


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient, how strict and how greedy the machine is."""

    lease_s: float = 600.0
    """How long a claim stands without renewal."""
    renew_s: float = 120.0
    margin_s: float = 30.0
    """Clocks may disagree by this: a holder stops this much early, a taker waits this much longer."""
    founding_grace_s: float = 20.0
    """After writing `state/authority.json` where the store can't put if absent: longer than any
    request of another founder may still be under way."""
    authority_max_age_s: float = 10.0
    """A commit trusts an authority check this fresh, so that tiny jobs don't pay for one each."""
    max_attempts: int = 3
    max_tasks: int = 10_000
    max_job_bytes: int = 8 * MIB
    max_record_bytes: int = 256 * MIB
    """The largest manifest or plan that is read."""
    task_timeout_s: dict[JobKind, float] = field(
        default_factory=lambda: {"render": 1200.0, "train": 86_400.0, "ingest": 3600.0}
    )
    max_task_tries: int = 3
    """Executions of one task within an attempt."""
    retry_delay_s: float = 2.0
    """The first pause before a task is tried again; doubled each time."""
    rest_s: float = 1.0
    """A runner leaves a job that it gave back alone for so long; twice as long each further time."""
    young_s: float = 10.0
    """On a folder, a younger file that doesn't parse may still be being written."""
    cancel_poll_s: float = 15.0
    stop_poll_s: float = 1.0
    """How often whoever waits for tasks looks whether this runner was asked to stop."""
    stop_grace_s: float = 20.0
    """How long running tasks get to end after they were asked to."""
    settle_s: float = 600.0
    """A dataset folder without `_READY` is complete once listings have agreed for this long."""
    dataset_deadline_s: float = 86_400.0
    """A dataset folder not complete after this long is given up, naming what is missing."""
    scan_keep: int = 5000
    """How many due drops one scan keeps, the oldest; the rest wait in the inbox."""
    night: Night | None = None
    """When drops under `inbox/nightly/` may begin; without one only a caller of `tick` opens it."""
    zone: ZoneInfo = _UTC
    """Of templates that name none, and of the days that costs are counted by."""
    max_job_cost_usd: float = 10.0
    max_day_cost_usd: float = 25.0
    priced: bool = False
    """Tasks cost money here: the day's sum is looked up before anything is claimed."""
    sweep_after_s: float = 25 * 3600.0
    """A manifest must have stood this long; no attempt outlives 24 hours."""
