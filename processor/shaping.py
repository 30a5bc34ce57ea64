"""What becomes of a task's files before they go up: names from a template, conversion.

Works on local files only, in the worker that made them. A picture that can't be converted
stays as it is: what was rendered is worth more than its format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import structlog

from processor.errors import JobInvalid
from processor.handler import LocalFile
from processor.layout import cut
from processor.models import Output, Scalar
from processor.problems import did_you_mean
from processor.records import Task

if TYPE_CHECKING:
    from PIL import Image

log = structlog.get_logger(__name__)

_FIELD = re.compile(r"\{([^{}]*)\}")
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\/]+')
_OWN = ("task", "seed", "name")
_MAX_VALUE = 60
_MAX_NAME_BYTES = 180
_SUFFIX = {"webp": ".webp", "jpeg": ".jpg"}
_EXIF_PROMPT, _EXIF_WORKFLOW = 0x0110, 0x010F
"""Where ComfyUI's own SaveAnimatedWEBP puts them (nodes_images.py), so that it can read them back."""
_MAX_JPEG_EXIF_BYTES = 60_000


def check_template(output: Output | None, params: Iterable[str]) -> None:
    """Refuse a name template with a field that no task has.

    Raises:
        JobInvalid: naming the field, and the nearest one.
    """
    known = [*_OWN, *dict.fromkeys(params)]
    for name in _FIELD.findall(output.name) if output and output.name else ():
        if name not in known:
            raise JobInvalid(
                f"{{{name}}} is no field of a name", where="output.name", mend=did_you_mean(name, known)
            )


def shaped(files: list[LocalFile], task: Task, output: Output | None, directory: Path) -> list[LocalFile]:
    """The files as a job wants them, in their order; `directory` takes what is converted."""
    if output is None:
        return files
    names = _Names()
    made: list[LocalFile] = []
    for place, file in enumerate(files):
        for each in _converted(file, output, directory / f"converted-{place:05d}"):
            name = named(output.name, task, each.name) if output.name else each.name
            made.append(LocalFile(each.path, names.free(name), each.media_type, each.node))
    return made


def named(template: str, task: Task, own: str) -> str:
    """A file's name by a template. Safe as a relative path, whatever the values hold. Pure."""
    path = PurePosixPath(own)
    values: dict[str, Scalar] = {
        **task.params,
        "task": f"{task.index:04d}",
        "seed": "" if task.seed is None else task.seed,
        "name": path.stem,
    }

    def value(match: re.Match[str]) -> str:
        text = _UNSAFE.sub("_", str(values.get(match[1], "")))
        return " ".join(text.split())[:_MAX_VALUE].strip(" .")

    parts = [_FIELD.sub(value, part).strip(" .") for part in template.replace("\\", "/").split("/")]
    clean = "/".join(part for part in (_UNSAFE.sub("_", part) for part in parts) if part)
    return _bounded(clean or path.stem, path.suffix)


def _bounded(stem: str, suffix: str) -> str:
    return cut(stem, _MAX_NAME_BYTES - len(suffix)).rstrip(" ./") + suffix


def _converted(file: LocalFile, output: Output, target: Path) -> Iterator[LocalFile]:
    converted = _convert(file, output, target) if output.format else None
    if converted is not None:
        yield converted
    if converted is None or output.keep_original:
        yield file


def _convert(file: LocalFile, output: Output, target: Path) -> LocalFile | None:
    """The still picture in the wanted format; None where it is none, or has it already."""
    from processor.contact_sheet import is_deep  # late: only workers that make pictures need it
    from processor.pictures import open_picture

    wanted = f"image/{output.format}"
    if not file.media_type.startswith("image/") or file.media_type in (wanted, "image/svg+xml"):
        return None
    name = str(PurePosixPath(file.name).with_suffix(_SUFFIX[output.format or "webp"]))
    try:
        with open_picture(file.path) as image:
            if getattr(image, "is_animated", False):
                return None
            if is_deep(image):
                # A depth map of 16 bits is data: in 8 bits it would be another one.
                log.info("output.not_converted", name=file.name, why=f"8 bits don't hold {image.mode}")
                return None
            _save(image, target, output)
    except Exception as error:  # noqa: BLE001 - a picture's maker chose every byte; it is kept as it is
        log.warning("output.not_converted", name=file.name, why=str(error))
        return None
    return LocalFile(target, name, wanted, file.node)


def _save(image: Image.Image, target: Path, output: Output) -> None:
    from PIL import Image

    exif = image.getexif()
    for tag, key in ((_EXIF_PROMPT, "prompt"), (_EXIF_WORKFLOW, "workflow")):
        if isinstance(text := image.info.get(key), str):
            exif[tag] = f"{key}:{text}"
    options: dict[str, Any] = {"quality": output.quality}
    if output.format == "webp":
        mode = "RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"
        image.convert(mode).save(target, "WEBP", method=4, exif=exif, **options)
        return
    if len(exif.tobytes()) <= _MAX_JPEG_EXIF_BYTES:
        options["exif"] = exif
    flat = image.convert("RGBA")
    paper = Image.new("RGB", flat.size, "white")
    paper.paste(flat, mask=flat.getchannel("A"))
    paper.save(target, "JPEG", optimize=True, **options)


class _Names:
    """Gives each file of a task a name of its own."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def free(self, name: str) -> str:
        path, number, result = PurePosixPath(name), 1, name
        while result.casefold() in self._taken:
            number += 1
            result = str(path.with_name(f"{path.stem}_{number}{path.suffix}"))
        self._taken.add(result.casefold())
        return result
