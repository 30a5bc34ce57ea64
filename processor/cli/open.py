"""`dropbatch open`: results in the browser, whatever the bucket."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from processor.cli import console
from processor.cli.exits import UsageError
from processor.cli.options import Bucket, Config, EndpointUrl, load_settings, open_main


def command(
    job: Annotated[
        str | None, typer.Argument(help="A job id, or the beginning of one; all lately finished otherwise.")
    ] = None,
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="A free one, if 0.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Look at results in the browser, whatever the bucket.

    Serves the bucket's pages on loopback, to this machine alone, until Ctrl-C.

    \b
    Example:
      dropbatch open
      dropbatch open portrait-3f9a --no-browser --port 8000
    """
    import asyncio

    from processor.cli.jobs import find_job
    from processor.cli.serving import serve
    from processor.layout import job_prefix

    store = open_main(load_settings(config, bucket, endpoint_url))
    path = job_prefix(find_job(store, job)) if job else ""

    def ready(listening: int) -> None:
        url = f"http://127.0.0.1:{listening}/{path}"
        print(url, flush=True)
        console.note("Ctrl-C ends it")
        if browser:
            webbrowser.open(url)

    try:
        asyncio.run(serve(store, port=port, ready=ready))
    except OSError as error:
        raise UsageError(error.strerror or str(error), where=f"--port {port}") from None
