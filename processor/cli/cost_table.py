"""`check --cost`: what a plan will cost, from what the bucket's jobs have taught."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from processor.cli import console

if TYPE_CHECKING:
    from processor.config import Settings
    from processor.models import JobBase
    from processor.records import Plan
    from processor.store import Store

_DAYS: Final = 30
_JOBS: Final = 60
"""Jobs that are learned from, the newest."""
_DEFAULT_GPU: Final = {"train": "A100-80GB"}
_SAID: Final = {
    "learned": "learned from {n} tasks like it",
    "similar": "from {n} tasks of the same graph, with other models or on another GPU",
    "declared": "as the workflow or preset says; nothing is learned yet",
    "guessed": "guessed: nothing is known of such tasks",
}


def cost_facts(plan: Plan, job: JobBase, settings: Settings, store: Store | None) -> dict[str, Any]:
    """An estimate as JSON, for the GPU that the job asks for, against the limit that it has.

    Cost: 60 requests for two months of days, and 1 a job learned from.
    """
    from processor.estimate import estimate, learn, seconds_on
    from processor.prices import prices
    from processor.settled import manifests, settled_jobs

    now = datetime.now(UTC)
    jobs: list[str] = []
    if store is not None:
        jobs = settled_jobs(store, since=now - timedelta(days=_DAYS), until=now)[-_JOBS:]
    history = learn(manifests(store, jobs)) if store is not None else learn(())
    gpu = job.gpu or plan.gpu or _DEFAULT_GPU.get(plan.kind, "L40S")
    made = estimate(plan, history, prices(), gpu=gpu)
    facts = made.model_dump(mode="json")
    seconds, basis, samples = seconds_on(plan, history, settings.machine_gpu)
    facts["here"] = {
        "seconds": round(seconds, 3),
        "usd": round(seconds * settings.machine_usd_per_h / 3600, 6),
        "basis": basis,
        "samples": samples,
    }
    facts["limit_usd"] = limit_usd = job.cap_usd(settings.max_job_cost_usd)
    facts["over_limit"] = made.usd > limit_usd
    return facts


def print_cost(facts: dict[str, Any]) -> None:
    """The estimate for people: the sum, what it rests on, and each class of GPU."""
    from rich.padding import Padding

    from processor.spelling import duration, money, plural

    out = console.out()
    said = _SAID[facts["basis"]].format(n=f"{facts['samples']:,}")
    out.print(
        f"  [bold]about {money(facts['usd'])}[/bold] on {facts['gpu']}: {plural(facts['tasks'], 'task')}, "
        f"{duration(facts['seconds'])} of engine time ({said}), "
        f"{plural(facts['cold_starts'], 'cold start')}; done in about {duration(facts['wall_seconds'])}"
    )
    rows = [
        [
            entry["gpu"],
            f"{entry['memory_gb']} GB",
            f"${entry['usd_per_h']:.2f}",
            duration(entry["seconds"]),
            money(entry["usd"]),
            _remark(entry),
        ]
        for entry in facts["classes"]
    ]
    out.print(Padding(console.table(["GPU", "memory", "an hour", "time", "cost", ""], rows), (0, 0, 0, 2)))
    here = facts["here"]
    if here["basis"] in ("learned", "similar"):
        said = _SAID[here["basis"]].format(n=f"{here['samples']:,}")
        price = f", {money(here['usd'])}" if here["usd"] else ""
        out.print(f"  on this machine {duration(here['seconds'])}{price} ({said})")
    out.print(f"  [dim]{_rent(facts)}[/dim]")
    if facts["over_limit"]:
        out.print(
            f"  [yellow]warning:[/yellow] the job stops fanning out at {money(facts['limit_usd'])} "
            "(max_cost_usd, or max_job_cost_usd in the settings)"
        )


def _remark(entry: dict[str, Any]) -> str:
    if not entry["fits"]:
        return "[yellow]less memory than the workflow asks for[/yellow]"
    return "" if entry["basis"] == "learned" else "[dim]at the same speed[/dim]"


def _rent(facts: dict[str, Any]) -> str:
    share = f"{facts['utilisation']:.0%}"
    if facts["cheaper"] == "modal":
        text = f"A rented machine would be busy {share} of its hours: Modal is cheaper (rule: below 30 %)"
    else:
        text = f"A rented machine would be busy {share} of its hours: Vast.ai is cheaper (rule: above 30 %)"
    if facts["vast_usd"]:
        low, high = facts["vast_usd"]
        text += f"; there {facts['gpu']} would cost ${low:.2f} to ${high:.2f}"
    return text
