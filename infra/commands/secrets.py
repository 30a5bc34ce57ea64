"""`dropbatch secrets`: check the Modal Secrets that the app needs, or make them; print none."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from infra.commands.options import asking_modal, load_deployment
from processor.cli import console
from processor.cli.exits import Exit
from processor.cli.options import Bucket, Config, EndpointUrl


def command(
    *,
    create: Annotated[
        bool, typer.Option("--create", help="Make those that are missing, from the environment.")
    ] = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Check the secrets on Modal, or make them from the environment. Values are never shown.

    \b
    Example:
      dropbatch secrets
      DROPBATCH_KEY_ID=… DROPBATCH_KEY=… HF_TOKEN=… dropbatch secrets --create
    """
    from infra.secrets import Unmet, needed, state, way_out
    from infra.secrets import create as make
    from processor.errors import ConfigError

    deployed = load_deployment(config, bucket, endpoint_url)
    rows, lacking, incomplete = [], False, list[Unmet]()
    with asking_modal(deployed.modal.app_name):
        for secret in needed(deployed):
            found = state(secret)
            used = secret.setting is None
            if used and found not in ("ok", "missing"):
                incomplete.append((secret, found))
            if create and found == "missing":
                try:
                    found = f"made: {', '.join(make(secret, os.environ))}"
                except ConfigError as error:
                    found = error.what
            lacking |= used and not (found == "ok" or found.startswith("made"))
            hint = "" if used else f"off; `{secret.setting}` under [modal] turns it on"
            rows.append([secret.name, found, secret.what, hint])
    console.print_table(["secret", "", "for", ""], rows)
    if incomplete:
        console.warn(way_out(incomplete))
    if lacking:
        raise typer.Exit(Exit.FAILED)
