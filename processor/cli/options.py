"""Options that several commands share, and what they lead to: settings and an open store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from processor.config import Settings
    from processor.store import Store

Config = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file; dropbatch.toml here otherwise.", metavar="FILE"),
]
Bucket = Annotated[
    str | None,
    typer.Option("--bucket", help="b2://bucket/prefix, s3://bucket/prefix or a folder.", metavar="URL"),
]
EndpointUrl = Annotated[
    str | None, typer.Option("--endpoint-url", help="Of an S3-compatible server.", metavar="URL")
]
Json = Annotated[bool, typer.Option("--json", help="For scripts: one JSON document on stdout.")]
JobRef = Annotated[
    str, typer.Argument(help="A job id, or the beginning of one.", metavar="JOB", show_default=False)
]


def load_settings(
    config: Path | None, bucket: str | None, endpoint_url: str | None, **flags: object
) -> Settings:
    """The settings as this command line has them; logging goes by them from now on.

    Raises:
        ConfigError: see `processor.config.load`.
    """
    from processor import log
    from processor.config import load

    settings = load(config, bucket=bucket, endpoint_url=endpoint_url, **flags)
    log.configure_from(settings)  # to stderr: what a command prints may be piped
    return settings


def open_main(settings: Settings) -> Store:
    """The main bucket, with the key that the environment has for it.

    Raises:
        ConfigError: no bucket is configured, or it can't be right.
    """
    from processor.buckets import open_bucket

    return open_bucket(settings, settings.store_url, "main")
