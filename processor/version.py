"""The version of Dropbatch that is running."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("dropbatch")
except PackageNotFoundError:  # a container that mounts the source without installing it
    VERSION = "source"
