"""`dropbatch app`: the interactive ComfyUI in the browser of this machine."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from infra.commands.options import asking_modal, function, load_deployment
from processor.cli import console
from processor.cli.options import Bucket, Config, EndpointUrl
from processor.errors import ConfigError

# The names of the variables, not what they hold.
_KEY, _SECRET = "MODAL_PROXY_KEY", "MODAL_PROXY_SECRET"  # pragma: allowlist secret


def command(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On this machine.")] = 8188,
    browser: Annotated[bool, typer.Option(help="Open it in the browser.")] = True,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Open the interactive ComfyUI that runs on Modal.

    It stands behind Modal's proxy auth, whose headers a browser can't send: this command listens
    on 127.0.0.1 and adds them. Make the pair under Settings > Proxy Auth Tokens at modal.com, and
    put it in MODAL_PROXY_KEY and MODAL_PROXY_SECRET. The GPU ends 15 minutes after the last prompt, and
    starts again when the page is loaded anew, not by a tab that is merely open.

    \b
    Example:
      MODAL_PROXY_KEY=wk-… MODAL_PROXY_SECRET=ws-… dropbatch app
    """
    from infra.proxy import serve

    deployed = load_deployment(config, bucket, endpoint_url)
    if not deployed.modal.ui:
        raise ConfigError("the interactive ComfyUI is off", where="[modal] ui", mend="Set it, and deploy")
    key, secret = os.environ.get(_KEY), os.environ.get(_SECRET)
    if not key or not secret:
        raise ConfigError(
            "the proxy auth token is not in the environment",
            where=f"{_KEY}, {_SECRET}",
            mend="Make one at modal.com under Settings > Proxy Auth Tokens",
        )
    with asking_modal(deployed.modal.app_name):
        url = function(deployed, "ui").get_web_url() or ""

    def ready(local: str) -> None:
        console.note(f"ComfyUI: {local} (Ctrl-C ends this door, not the GPU)")
        if browser:
            typer.launch(local)

    def ended() -> None:
        console.note("ComfyUI has ended, and its GPU with it; reload the page to start it again")

    serve(url, port=port, headers={"Modal-Key": key, "Modal-Secret": secret}, ready=ready, ended=ended)
