"""`dropbatch init`: connect a bucket, and write dropbatch.toml without secrets."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit
from zoneinfo import available_timezones

import typer

from processor.cli import console
from processor.cli.exits import UsageError
from processor.errors import ConfigError

if TYPE_CHECKING:
    from processor.config import Credentials, Settings

_HEADER = """\
# Settings of Dropbatch; docs/settings.md lists them all.
# No secrets here: keys come from the environment.
"""


def command(
    *,
    bucket: Annotated[
        str | None,
        typer.Option(help="b2://bucket, s3://bucket, a folder, or B2's bucket name.", metavar="URL"),
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="Keep everything below this folder of it.")] = None,
    key_id: Annotated[str | None, typer.Option(help="The application key's id; its secret is asked.")] = None,
    region: Annotated[str | None, typer.Option(help="Found for B2, if left out.")] = None,
    endpoint_url: Annotated[str | None, typer.Option(help="Of another S3-compatible server.")] = None,
    zone: Annotated[str | None, typer.Option(help="Time zone of the night, e.g. Europe/Berlin.")] = None,
    day_cap: Annotated[float | None, typer.Option(min=0, help="Most dollars a day.")] = None,
    path: Annotated[Path, typer.Option("--config", help="The file to write.")] = Path("dropbatch.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Connect a bucket and write dropbatch.toml.

    Asks for what is not given. For B2, make an application key for this one bucket with
    listBuckets, listFiles, readFiles, writeFiles and deleteFiles; the master key does not work.

    \b
    Example:
      dropbatch init --bucket b2://renders --zone Europe/Berlin --day-cap 25
      dropbatch init --bucket ./my-bucket
    """
    if path.exists() and not force:
        raise ConfigError("exists already", where=str(path), mend="--force replaces it")
    url = _bucket_url(_asked(bucket, "Bucket (b2://name, s3://name or a folder)"), prefix)
    values: dict[str, Any] = {"bucket": url}
    key: Credentials | None = None
    if url.startswith(("b2:", "s3:")):
        key = _key(key_id, url)
        values |= _place(url, key, region, endpoint_url)
    values["zone"] = _asked(zone, "Time zone of the night", default=_zone_here())
    values["max_day_cost_usd"] = _cap(day_cap)
    settings = _valid(values)
    values["bucket"] = settings.store_url
    _try_out(settings, key)
    # TOML refuses what JSON makes of an emoji: two halves of a character.
    lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
    text = _HEADER + "".join(lines)
    path.write_text(text, "utf-8")
    console.note(f"wrote {path}")
    _say_next(key)


def _bucket_url(text: str, prefix: str | None) -> str:
    if "://" not in text and not text.startswith(("/", ".", "~")) and not Path(text).is_dir():
        text = f"b2://{text}"
    if prefix and text.startswith(("b2:", "s3:")):
        text = f"{text.rstrip('/')}/{prefix.strip('/')}"
    elif prefix and text:
        text = str(Path(text) / prefix)
    return text


def _key(key_id: str | None, url: str) -> Credentials | None:
    """The key from the environment, or asked for; it is used now and never stored.

    Without one, an S3 bucket is opened with what boto3 finds (a profile, an instance's role).
    """
    from processor.config import Credentials, credentials

    found = credentials(os.environ)
    if found and key_id in (None, found.key_id):
        return found
    if url.startswith("s3:") and key_id is None:
        return None
    key_id = _asked(key_id, "Application key id", hint="set DROPBATCH_KEY_ID and DROPBATCH_KEY")
    if not sys.stdin.isatty():
        raise UsageError("no key", mend="Set DROPBATCH_KEY_ID and DROPBATCH_KEY")
    secret = typer.prompt("Application key (not shown, not stored)", hide_input=True)
    return Credentials(key_id, secret, source="asked")


def _place(url: str, key: Credentials | None, region: str | None, endpoint_url: str | None) -> dict[str, str]:
    """Region and endpoint, as far as they have to stand in the file."""
    from processor.cli.regions import b2_endpoints, find_region

    if url.startswith("b2:") and key and not region and not endpoint_url:
        parts = urlsplit(url)
        console.note("looking for the bucket's region")
        region = find_region(parts.netloc, parts.path.strip("/"), key, b2_endpoints())
        console.note(f"found in {region}")
    given = {"region": region, "endpoint_url": endpoint_url}
    return {name: value for name, value in given.items() if value}


def _valid(values: dict[str, Any]) -> Settings:
    from processor.config import load_without_file

    return load_without_file(**values)


def _try_out(settings: Settings, key: Credentials | None) -> None:
    """Open the bucket with this very key, and write and remove one object.

    Raises:
        StoreError: with the usual mistake named.
    """
    from processor.cli.findings import check_writing
    from processor.store.directory import DirectoryStore
    from processor.store.opening import open_store

    url = settings.store_url
    if url.startswith("file:"):
        from urllib.parse import unquote

        DirectoryStore(Path(unquote(urlsplit(url).path)), create=True)
    store = open_store(
        url,
        endpoint_url=settings.endpoint_url,
        region=settings.region,
        key_id=key.key_id if key else None,
        secret=key.key if key else None,
    )
    for finding in check_writing(store):
        console.note(finding.what)


def _say_next(key: Credentials | None) -> None:
    from processor.config import KEY_VARIABLES

    if key is not None:
        console.note("the key is taken from the environment, from the first pair that is set:")
        for names in KEY_VARIABLES:
            console.note(f"  {names[0]} and {names[1]}")
    console.note("next: `dropbatch doctor`, then `dropbatch drop` and `dropbatch run`")


def _asked(given: str | None, question: str, *, default: str | None = None, hint: str | None = None) -> str:
    if given is not None:
        return given
    if sys.stdin.isatty():
        return str(typer.prompt(question, default=default))
    if default is not None:
        return default
    raise UsageError(
        f"nobody to ask for: {question}", mend=f"Give it as an option, or {hint}" if hint else None
    )


def _cap(given: float | None) -> float:
    from processor.config import Settings

    if given is not None:
        return given
    default = float(Settings.model_fields["max_day_cost_usd"].default)
    return float(typer.prompt("Most dollars a day", default=default)) if sys.stdin.isatty() else default


def _zone_here() -> str:
    """This machine's zone, if it says so in the usual way."""
    zone = os.environ.get("TZ", "").lstrip(":")
    if zone in available_timezones():  # it may also name a file, or spell a rule
        return zone
    target = str(Path("/etc/localtime").resolve())
    return target.partition("zoneinfo/")[2] or "UTC"
