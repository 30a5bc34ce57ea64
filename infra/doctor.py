"""What `dropbatch doctor --modal` looks at: each thing that a first deploy can get wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import modal

from infra.commands.options import asking_modal, function
from infra.plan import plan_of
from infra.secrets import listed, needed, unmet, way_out
from infra.settings import Deployment, deployable
from processor.cli.findings import Finding
from processor.config import Settings
from processor.errors import DropbatchError
from processor.redact import redact

_DOORS = ("api", "ui", "webhook")


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything, in the order in which it would be mended. Never raises; rents no GPU."""
    try:
        deployed = deployable(settings)
    except DropbatchError as error:
        yield Finding("fail", "modal settings", redact(error.what), error.mend)
        return
    for name, look in (
        ("modal token", _token),
        ("modal plan", _plan),
        ("modal secrets", _secrets),
        ("modal app", _app),
        ("modal tick", _tick),
        ("modal volume", _volume),
        ("modal doors", _doors),
    ):
        found = _guarded(deployed, name, look)
        yield found
        if found.state == "fail" and name in ("modal token", "modal app"):
            return  # nothing after it can be well


def _guarded(deployed: Deployment, name: str, look: Callable[[Deployment], Finding]) -> Finding:
    try:
        with asking_modal(deployed.modal.app_name):
            return look(deployed)
    except DropbatchError as error:
        return Finding("fail", name, redact(error.what), error.mend)
    except Exception as error:  # noqa: BLE001 - what a container raised, or the network: it is a finding, too
        return Finding("fail", name, redact(f"{type(error).__name__}: {error}"))


def _token(deployed: Deployment) -> Finding:
    modal.Dict.from_name(deployed.modal.notes_name, create_if_missing=True).hydrate()
    return Finding("ok", "modal token", f"Modal knows it (client {modal.__version__})")


def _plan(deployed: Deployment) -> Finding:
    plan = plan_of(deployed)
    if over := list(plan.over()):
        return Finding("fail", "modal plan", "; ".join(over), "Lower the counts under [modal]")
    what = f"{plan.gpus} GPUs at once, {plan.crons} crons, idle about ${plan.idle_usd_a_month:.2f} a month"
    return Finding("ok", "modal plan", what)


def _secrets(deployed: Deployment) -> Finding:
    if lacking := unmet(deployed):
        return Finding("fail", "modal secrets", listed(lacking), way_out(lacking))
    used = [secret.name for secret in needed(deployed) if secret.setting is None]
    return Finding("ok", "modal secrets", ", ".join(used))


def _app(deployed: Deployment) -> Finding:
    name = deployed.modal.app_name
    stats = modal.Cls.from_name(name, "Dispatcher")().run.get_current_stats()
    what = f"{name} is deployed; {stats.num_running_inputs} jobs in work, {stats.backlog} wait"
    return Finding("ok", "modal app", what)


def _tick(deployed: Deployment) -> Finding:
    """A tick out of turn: the bucket's key, the leases and the authority, seen from a container."""
    summary: dict[str, Any] = function(deployed, "wake").spawn(0.0).get(timeout=180)
    if summary["problem"]:
        return Finding("fail", "modal tick", redact(str(summary["problem"])))
    settings = deployed.settings
    wanted = {"slack": settings.slack_channel, "webhook": settings.webhook_url}
    if silent := [name for name, set_ in wanted.items() if set_ and name not in summary.get("tells", [])]:
        mend = (
            "The value in their Modal Secret is none; `dropbatch logs --modal` has the reason at notices.off"
        )
        return Finding("fail", "modal tick", f"notices are not sent: {', '.join(silent)}", mend)
    return Finding("ok", "modal tick", f"{summary['pending']} pending, {summary['claimed']} claimed")


def _volume(deployed: Deployment) -> Finding:
    listed = function(deployed, "model_files").spawn("").get(timeout=180)
    size_gb = sum(each["size_bytes"] for each in listed["models"]) / 1e9
    return Finding("ok", "modal volume", f"{len(listed['models'])} models, {size_gb:.1f} GB")


def _doors(deployed: Deployment) -> Finding:
    """Each guarded door must refuse who has no key."""
    import urllib3

    on = [name for name in _DOORS if getattr(deployed.modal, name)]
    answers = {}
    for name in on:
        url = function(deployed, name).get_web_url() or ""
        answers[name] = urllib3.request("POST", url, body=b"{}", timeout=60, retries=False).status
    open_doors = [f"{name} answers {status}" for name, status in answers.items() if status != 401]
    if open_doors:
        return Finding("fail", "modal doors", "; ".join(open_doors), "They must answer 401 to a stranger")
    return Finding("ok", "modal doors", ", ".join(on) + ": closed to strangers")
