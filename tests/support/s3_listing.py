"""Listings in S3's XML, with some of their entries left out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

_S3: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
_ENTRIES: Final = ("Contents", "Version", "DeleteMarker")


class Entry(NamedTuple):
    """One version of one object."""

    key: str
    version: str


def without(listing: bytes, late: Collection[Entry]) -> tuple[bytes, set[Entry]]:
    """The listing as if the late entries weren't there yet, and which ones it left out.

    What was the newest before a late version is listed as the newest still.
    """
    ET.register_namespace("", _S3)
    root = ET.fromstring(listing)  # noqa: S314 - our own moto wrote it
    space = root.tag[: root.tag.index("}") + 1] if root.tag.startswith("{") else ""
    encoded = root.findtext(f"{space}EncodingType") == "url"
    left_out: set[Entry] = set()
    newest_gone: set[str] = set()
    for element in list(root):
        if element.tag.removeprefix(space) not in _ENTRIES:
            continue
        text = element.findtext(f"{space}Key") or ""
        key = unquote_plus(text) if encoded else text
        version = element.findtext(f"{space}VersionId")
        hits = {each for each in late if each.key == key and version in (None, each.version)}
        latest = element.find(f"{space}IsLatest")
        if hits:
            root.remove(element)
            left_out |= hits
            if latest is not None and latest.text == "true":
                newest_gone.add(key)
        elif key in newest_gone and latest is not None:
            latest.text = "true"
            newest_gone.remove(key)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True), left_out
