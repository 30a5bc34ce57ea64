"""What lies beside a job's gallery: the table of its tasks, and on request a contact sheet and a sequence.

Made from the manifest that stands and the files it names, so each can be made again. A picture
that can't be read is left out; an ornament that can't be made is logged, and costs the job nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from processor.errors import StoreError
from processor.gallery import shown_as_of, spell
from processor.layout import beside_key
from processor.models import Output
from processor.parallel import each
from processor.records import Manifest, OutputFile, TaskResult
from processor.store import Store
from processor.task_table import tasks_csv, tasks_jsonl

if TYPE_CHECKING:
    from PIL import Image

    from processor.machine import Machine

log = structlog.get_logger(__name__)

CONTACT_SHEET = "contact-sheet.jpg"
SEQUENCES = {"webp": "image/webp", "gif": "image/gif", "mp4": "video/mp4"}


def beside(machine: Machine, manifest: Manifest) -> None:
    """Write them. Cost: 2 requests for a job of several tasks; 1 and 1 a picture for each ornament."""
    store = machine.stores.main
    if len(manifest.tasks) > 1:
        _put(store, manifest, "tasks.csv", tasks_csv(manifest), "text/csv; charset=utf-8")
        _put(store, manifest, "tasks.jsonl", tasks_jsonl(manifest), "application/jsonl")
    output = _output(manifest)
    if output is None or not (output.contact_sheet or output.sequence):
        return
    if output.contact_sheet:
        _ornament(store, manifest, CONTACT_SHEET, "image/jpeg", lambda: _sheet(store, manifest))
    if output.sequence:
        kind = output.sequence
        _ornament(
            store, manifest, f"sequence.{kind}", SEQUENCES[kind], lambda: _sequence(store, manifest, output)
        )


def _ornament(
    store: Store, manifest: Manifest, name: str, media_type: str, make: Callable[[], bytes | None]
) -> None:
    try:
        data = make()
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - else the drop would stay, and all its effects be done again for ever
        log.warning("ornament.not_made", job_id=manifest.job_id, name=name, why=str(error) or repr(error))
        return
    if data is not None:
        _put(store, manifest, name, data, media_type)


def _put(store: Store, manifest: Manifest, name: str, data: bytes, media_type: str) -> None:
    store.put(beside_key(manifest.job_id, name), data, media_type=media_type)


def _sheet(store: Store, manifest: Manifest) -> bytes | None:
    from processor.contact_sheet import CELL, MAX_PICTURES, contact_sheet  # late: it needs Pillow

    chosen = _pictures(manifest)[:MAX_PICTURES]
    captions = [_caption(result) for result, _ in chosen]
    read = _thumbnails(store, [file for _, file in chosen], CELL)
    return contact_sheet(zip(captions, read, strict=True))


def _sequence(store: Store, manifest: Manifest, output: Output) -> bytes | None:
    from processor.sequence import MAX_FRAMES, frame_side, sequence  # late: it needs Pillow

    firsts = {result.index: file for result, file in reversed(_pictures(manifest))}
    files = [firsts[index] for index in sorted(firsts)][:MAX_FRAMES]
    read = _thumbnails(store, files, frame_side(len(files)))
    return sequence(read, kind=output.sequence or "webp", fps=output.fps)


def _pictures(manifest: Manifest) -> list[tuple[TaskResult, OutputFile]]:
    """Every picture with its task, in the gallery's order."""
    return [
        (result, file)
        for result in sorted(manifest.tasks, key=lambda result: result.index)
        for file in result.files
        if shown_as_of(file) == "image"
    ]


def _caption(result: TaskResult) -> str:
    params = (f"{name.rpartition('.')[2]} {spell(value)}" for name, value in result.params.items())
    return ", ".join((f"{result.index}", *params))


def _thumbnails(store: Store, files: list[OutputFile], side: int) -> Iterator[Image.Image | None]:
    from processor.contact_sheet import READERS, stored_thumbnail

    def read(file: OutputFile) -> Image.Image | None:
        return stored_thumbnail(store, file.key, side)

    return (small for _, small in each(read, files, threads=READERS))


def _output(manifest: Manifest) -> Output | None:
    given = (manifest.job or {}).get("output")
    try:
        return Output.model_validate(given) if given else None
    except ValidationError as error:  # dropped under other rules than today's
        log.warning("ornament.not_made", job_id=manifest.job_id, name="output", why=str(error))
        return None
