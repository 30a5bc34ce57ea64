"""`dropbatch pause`: begin no further jobs in this bucket, wherever its runners are."""

from __future__ import annotations

from processor.cli import console
from processor.cli.options import Bucket, Config, EndpointUrl, load_settings, open_main


def command(bucket: Bucket = None, endpoint_url: EndpointUrl = None, config: Config = None) -> None:
    """Begin no further jobs in this bucket.

    Jobs that run go on to their end; drops wait in the inbox.

    \b
    Example:
      dropbatch pause
    """
    from processor.layout import PAUSED

    store = open_main(load_settings(config, bucket, endpoint_url))
    store.put(PAUSED, b"{}", media_type="application/json")
    console.note(f"{store.url} is paused; `dropbatch resume` lets it go on")
