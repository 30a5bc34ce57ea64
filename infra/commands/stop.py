"""`dropbatch stop`: take the app off Modal."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.commands.options import asking_modal, load_deployment
from processor.cli import console
from processor.cli.options import Bucket, Config, EndpointUrl


def command(
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Take the app off Modal. What runs is cut off; `dropbatch deploy` brings it back.

    The bucket, the Volumes and the leases stay. To finish what runs first, use `dropbatch pause`
    and wait.

    \b
    Example:
      dropbatch pause && dropbatch stop
    """
    import modal

    deployed = load_deployment(config, bucket, endpoint_url)
    name = deployed.modal.app_name
    if not yes:
        typer.confirm(f"Stop {name} and cut off what it runs?", abort=True)
    with asking_modal(name):
        modal.App.lookup(name).stop()
    console.note(f"{name} is stopped")
