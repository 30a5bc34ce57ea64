"""`dropbatch resume`: go on after a pause."""

from __future__ import annotations

from processor.cli import console
from processor.cli.options import Bucket, Config, EndpointUrl, load_settings, open_main
from processor.errors import NotFound


def command(bucket: Bucket = None, endpoint_url: EndpointUrl = None, config: Config = None) -> None:
    """Go on after a pause.

    \b
    Example:
      dropbatch resume
    """
    from processor.layout import PAUSED

    store = open_main(load_settings(config, bucket, endpoint_url))
    found = [
        item for page in store.list(PAUSED, versions=store.capabilities.versions) for item in page.objects
    ]
    for item in found:
        if item.key != PAUSED:
            continue
        try:
            store.delete(PAUSED, version=item.version or store.stat(PAUSED).version)
        except NotFound:
            continue
    console.note(f"{store.url} goes on" if found else f"{store.url} was not paused")
