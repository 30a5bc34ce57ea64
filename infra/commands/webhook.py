"""`dropbatch webhook`: the rule that Backblaze needs, and a signed request that tries the door."""

from __future__ import annotations

import json
import os
import shlex
from typing import Annotated, Any

import typer

from infra.commands.options import asking_modal, function, load_deployment
from processor.cli import console
from processor.cli.exits import Exit
from processor.cli.options import Bucket, Config, EndpointUrl
from processor.errors import ConfigError

_SECRET = "DROPBATCH_WEBHOOK_SECRET"  # noqa: S105  # pragma: allowlist secret - a name
_TIMEOUT_S = 60.0


def command(
    *,
    test: Annotated[bool, typer.Option("--test", help="Send a signed and a forged request.")] = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Print the event rule to create at Backblaze; with --test try the endpoint.

    Event notifications have to be enabled by Backblaze's support once per account. The rule is
    for the inbox alone, so that our own writes wake nobody. Its secret, 32 characters, is what
    DROPBATCH_WEBHOOK_SECRET holds; it is not printed.

    \b
    Example:
      dropbatch webhook
      dropbatch webhook --test
    """
    from urllib.parse import urlsplit

    from infra.containers import inbox_in_bucket
    from infra.webhook import rule

    deployed = load_deployment(config, bucket, endpoint_url)
    if not deployed.modal.webhook:
        raise ConfigError("the webhook is off", where="[modal] webhook", mend="Set it to true, and deploy")
    with asking_modal(deployed.modal.app_name):
        url = function(deployed, "webhook").get_web_url() or ""
    if test:
        _try(url)
        return
    url_of_bucket = deployed.settings.store_url
    wanted = rule(name=deployed.modal.app_name, inbox=inbox_in_bucket(url_of_bucket), url=url)
    print(json.dumps(wanted, indent=2))  # noqa: T201 - the command's output
    console.note(f'{shlex.join(_create(urlsplit(url_of_bucket).netloc, wanted))} --sign-secret "${_SECRET}"')


def _create(bucket: str, wanted: dict[str, Any]) -> list[str]:
    """The b2 command that makes the rule; the prefix is its URI's path, to the letter."""
    return [
        *("b2", "bucket", "notification-rule", "create"),
        *(f"b2://{bucket}/{wanted['objectNamePrefix']}", wanted["name"]),
        *(part for each in wanted["eventTypes"] for part in ("--event-type", each)),
        *("--webhook-url", wanted["targetConfiguration"]["url"]),
    ]


def _try(url: str) -> None:
    import urllib3

    from infra.webhook import SIGNATURE_HEADER, signature, trial_body

    secret = os.environ.get(_SECRET, "")
    if len(secret) != 32:
        raise ConfigError("must hold the rule's secret, 32 characters", where=_SECRET)
    body, failed = trial_body(), False
    for what, header, wanted in (
        ("signed", signature(secret, body), 200),
        ("forged", signature("x" * 32, body), 401),
    ):
        reply = urllib3.request(
            "POST", url, body=body, headers={SIGNATURE_HEADER: header}, timeout=_TIMEOUT_S, retries=False
        )
        failed |= reply.status != wanted
        console.note(f"{what}: {reply.status}, should be {wanted}")
    if failed:
        raise typer.Exit(Exit.FAILED)
