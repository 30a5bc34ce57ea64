"""What a setting's value may be: types that check, and say how it is written."""

from __future__ import annotations

import json
import re
from datetime import time
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

_TIME_OF_DAY = re.compile(r"\d\d?:\d\d(:\d\d(\.\d+)?)?")


def _as_url(value: str) -> str:
    """A bucket is a URL; a path is taken for a folder-bucket."""
    if not value.strip():  # a variable that a script left empty: the current directory is not meant
        raise ValueError("a bucket's name is empty; the current directory is `.`")
    if re.match(r"^[a-z][a-z0-9+.-]*:", value):
        scheme = value.partition(":")[0]
        if scheme not in ("file", "b2", "s3", "memory"):
            raise ValueError(
                f"a bucket is file:///path, b2://bucket/prefix or s3://bucket/prefix, not {scheme}:"
            )
        return value
    return Path(value).expanduser().absolute().as_uri()


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _as_time_of_day(value: object) -> object:
    """A window is local to `zone`, and a number would be taken for seconds."""
    if isinstance(value, time) or (isinstance(value, str) and _TIME_OF_DAY.fullmatch(value)):
        return value
    raise ValueError(f"{json.dumps(value, default=str)} is not a time of day; write it like 01:00")


def _as_http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError(f"{value!r} is not an http(s) URL; write it like http://127.0.0.1:8188")
    return value


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"no such time zone: {value!r}; write it like Europe/Berlin") from None
    return value


BucketUrl = Annotated[str, AfterValidator(_as_url)]
Zone = Annotated[str, AfterValidator(_known_zone)]
TimeOfDay = Annotated[time, BeforeValidator(_as_time_of_day)]
HttpUrl = Annotated[str, AfterValidator(_as_http_url)]
Names = Annotated[list[str], NoDecode, BeforeValidator(_split_commas)]
"""A list; in the environment its items are separated by commas."""
LeaseBackend = Literal["auto", "directory", "store", "modal", "memory"]
