"""The example drops that `dropbatch demo` puts in a bucket: where each belongs, and its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal

Kind = Literal["input", "job", "broken", "dataset"]
"""`input`: a photograph that jobs refer to. `job`: renders without a model. `broken`: ends in an error
that says how to mend it. `dataset`: a folder without `_READY`, which waits in the inbox until it settles."""

_PLACES: dict[Kind, tuple[str, str]] = {
    "input": ("photos", "inputs/"),
    "dataset": ("dataset", "inbox/datasets/redcup/"),
    "job": ("jobs", "inbox/"),
    "broken": ("broken", "inbox/"),
}
"""Kind → its folder here, its prefix in the bucket; in the order in which they can be uploaded."""


@dataclass(frozen=True, slots=True)
class Example:
    """One object to put in a bucket."""

    kind: Kind
    key: str
    """Its store key, relative to the root prefix."""
    file: Traversable

    def read(self) -> bytes:
        """Its bytes; less than 120 kB."""
        return self.file.read_bytes()


def examples() -> Iterator[Example]:
    """All examples, inputs before the jobs that name them; sorted by name within a kind."""
    here = files(__name__)
    for kind, (folder, prefix) in _PLACES.items():
        for file in sorted((here / folder).iterdir(), key=lambda entry: entry.name):
            yield Example(kind, prefix + file.name, file)
