"""Where the engine reads and writes, and the rule that nothing leaves its folder.

Containment is lexical, as in ComfyUI: the engine makes no symlink, so one that an operator has put inside a
folder is meant to be followed.
"""

from __future__ import annotations

import mimetypes
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ANNOTATIONS = {"[output]": "output", "[input]": "input", "[temp]": "temp"}


@dataclass(frozen=True, slots=True)
class Folders:
    """The three folders of a ComfyUI server, as absolute paths."""

    input: Path
    output: Path
    temp: Path

    def named(self, kind: str) -> Path | None:
        """The folder of that type, as `/view` and `/upload/image` name them."""
        return {"input": self.input, "output": self.output, "temp": self.temp}.get(kind)

    def input_pictures(self) -> list[str]:
        """Names of the pictures at the top of the input folder, sorted."""
        names = [entry.name for entry in os.scandir(self.input) if entry.is_file()]
        return sorted(name for name in names if _is_picture(name))

    def annotated(self, name: str) -> Path | None:
        """The file that `name.png` or `name.png [output]` means; None when it would leave its folder."""
        for suffix, kind in ANNOTATIONS.items():
            if name.endswith(suffix):
                # ComfyUI cuts the annotation and the space before it, whatever stands there
                return inside(getattr(self, kind), name[: -len(suffix) - 1])
        return inside(self.input, name)


def inside(folder: Path, relative: str) -> Path | None:
    """`folder/relative` when that lies in the folder, else None."""
    if "\0" in relative:
        return None
    path = Path(os.path.normpath(folder / relative))
    return path if path.is_relative_to(folder) else None


class SavePath(NamedTuple):
    """Where a save node writes next."""

    folder: Path
    stem: str
    counter: int
    subfolder: str

    def name(self, offset: int, suffix: str, *, batch_number: int | None = None) -> str:
        """The file name of the picture `offset` after the first."""
        stem = self.stem if batch_number is None else self.stem.replace("%batch_num%", str(batch_number))
        return f"{stem}_{self.counter + offset:05}_{suffix}"


def save_path(folder: Path, prefix: str, width: int, height: int) -> SavePath:
    """The next free counter for a `filename_prefix`; makes its subfolder.

    Raises:
        Exception: the prefix leaves the folder; the words are ComfyUI's, since clients know them.
    """
    prefix = os.path.normpath(_filled_in(prefix, width, height))
    subfolder, stem = os.path.split(prefix)
    target = Path(os.path.normpath(folder / subfolder))
    common = os.path.commonpath((folder, target))
    if common != str(folder):
        raise Exception(  # noqa: TRY002 - `exception_type` is part of the protocol
            "**** ERROR: Saving image outside the output folder is not allowed."
            f"\n full_output_folder: {target}\n         output_dir: {folder}\n         commonpath: {common}"
        )
    target.mkdir(parents=True, exist_ok=True)
    return SavePath(target, stem, _next_counter(target, stem), subfolder)


def _next_counter(folder: Path, stem: str) -> int:
    """One more than the highest `<stem>_<digits>_…` in the folder."""
    highest = 0
    for name in os.listdir(folder):  # noqa: PTH208 - names only; folders hold thousands of outputs
        if name[: len(stem) + 1] == f"{stem}_":
            digits = name[len(stem) + 1 :].split("_")[0]
            if digits.isascii() and digits.isdigit():
                highest = max(highest, int(digits[:18]))
    return highest + 1


def _filled_in(prefix: str, width: int, height: int) -> str:
    """Replace %width%, %height% and the parts of the local time."""
    if "%" not in prefix:
        return prefix
    now = time.localtime()
    values = {
        "width": f"{width}",
        "height": f"{height}",
        "year": f"{now.tm_year}",
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", value)
    return prefix


def _is_picture(name: str) -> bool:
    kind, _ = mimetypes.guess_type(name)
    return (kind is not None and kind.startswith("image/")) or name.lower().endswith(".webp")
