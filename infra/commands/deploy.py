"""`dropbatch deploy`: show what will stand on Modal and what it costs, then put it there."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from infra.commands.options import asking_modal, function, load_deployment
from processor.cli import console
from processor.cli.exits import Exit, UsageError
from processor.cli.options import Bucket, Config, EndpointUrl
from processor.errors import ConfigError

if TYPE_CHECKING:
    from infra.plan import DeployPlan
    from infra.settings import Deployment


def command(
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan", help="Show the plan and end.")] = False,
    capture: Annotated[bool, typer.Option(help="Take ComfyUI's node schema afterwards, on a CPU.")] = True,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Put the app on Modal: the cron, the GPU pools and the doors.

    Shows first what that makes, against the limits of your plan, and what it costs idle.

    \b
    Example:
      dropbatch deploy --plan
      dropbatch deploy
    """
    from infra.plan import plan_of
    from infra.secrets import listed, unmet, way_out

    deployed = load_deployment(config, bucket, endpoint_url)
    plan = plan_of(deployed)
    _show(plan, deployed)
    if over := list(plan.over()):
        raise ConfigError(
            "; ".join(over), where=f"plan = {deployed.modal.plan!r}", mend="Lower the counts under [modal]"
        )
    if plan_only:
        return
    with asking_modal(deployed.modal.app_name):
        if lacking := unmet(deployed):
            raise ConfigError(listed(lacking), where="secrets", mend=way_out(lacking))
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody can be asked here; say --yes")
        typer.confirm("Deploy?", abort=True)
    _deploy(deployed)
    if capture and deployed.modal.engine == "comfyui":
        _capture(deployed)


def _show(plan: DeployPlan, deployed: Deployment) -> None:
    rows = [
        [row.name, ", ".join(row.gpus) or "CPU", str(row.containers), row.cron or row.door or "", row.what]
        for row in plan.rows
    ]
    console.print_table(["function", "on", "at most", "by", "what it does"], rows)
    limits = plan.limits
    out = console.out()
    out.print(
        f"\nPlan {deployed.modal.plan}: {plan.gpus} of {limits.gpus} GPUs at once, {plan.containers} of "
        f"{limits.containers} containers, {plan.crons} of {limits.crons or 'any'} crons, "
        f"{plan.doors} of {limits.doors or 'any'} web endpoints.",
        soft_wrap=True,
    )
    out.print(
        f"Idle it costs about ${plan.idle_usd_a_month:.2f} a month (a tick a minute); "
        f"the plan includes ${limits.usd_included:.0f}.",
        soft_wrap=True,
    )


def _deploy(deployed: Deployment) -> None:
    """As a user would type it, with the very settings that were shown."""
    from infra.settings import DEPLOYED
    from infra.volumes import make_missing

    with asking_modal(deployed.modal.app_name):
        make_missing(deployed)
    done = subprocess.run(
        [sys.executable, "-m", "modal", "deploy", "-m", "infra.app"],
        env={**os.environ, DEPLOYED: deployed.baked()},
        check=False,
    )
    if done.returncode != 0:
        console.warn("modal deploy failed; nothing was changed")
        raise typer.Exit(Exit.FAILED)


def _capture(deployed: Deployment) -> None:
    console.note("taking ComfyUI's node schema on a CPU (a minute or two)")
    with asking_modal(deployed.modal.app_name):
        found = function(deployed, "capture").remote()
    console.note(f"ComfyUI {found['version']}: {found['nodes']:,} node classes in state/object_info.json")
