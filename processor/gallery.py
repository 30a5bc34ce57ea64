"""The gallery: one static page a job, and one of jobs, made from manifests only.

A page is self-contained: its style is inline and pinned by hash in its own content
security policy, there is no script, and all links are relative to the job's folder. It
works from a disk, a web server or a bucket alike. Names, prompts and errors come from
users and engines: everything is escaped, and an output that a browser could execute
(SVG, HTML) is only ever offered for download.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from processor.layout import job_prefix
from processor.models import Scalar
from processor.records import ErrorReport, Manifest, OutputFile, TaskResult
from processor.redact import redact
from processor.spelling import duration, money, size

_TEMPLATES = Path(__file__).parent / "templates"

ShownAs = Literal["image", "video", "audio"]

SHOWN: dict[str, ShownAs] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".bmp"), "image"),
    **dict.fromkeys((".mp4", ".webm", ".m4v", ".mov", ".ogv"), "video"),
    **dict.fromkeys((".mp3", ".wav", ".flac", ".ogg", ".opus", ".m4a"), "audio"),
}
"""What a page plays, by suffix; the media type has to agree. Anything else is a download."""

_UNIQUE = re.compile(r"(?<=.)\.[0-9a-f]{6}$")
"""What `dropbatch drop` adds to a file's name to make the key new."""

_MAX_TEXT = 4_000
_FEW = 4
_MAX_COLUMNS = 6
_AT_ONCE = 12
"""Cards whose pictures are loaded with the page: about what a screen shows. The rest when scrolled to."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture, video or sound on a card."""

    shown_as: ShownAs
    href: str
    width: int | None
    height: int | None


@dataclass(frozen=True, slots=True)
class Link:
    """A file that is offered, not shown."""

    href: str | None
    name: str
    size: str


@dataclass(frozen=True, slots=True)
class Card:
    """One task's result, as the template shows it."""

    index: int
    alt: str
    tiles: list[Tile]
    links: list[Link]
    text: str
    params: list[tuple[str, str]]
    facts: list[str]
    taken: str
    error: ErrorReport | None


@dataclass(frozen=True, slots=True)
class JobEntry:
    """A job on the page of jobs. `href` and `thumbnails` are relative to that page."""

    job_id: str
    name: str
    outcome: str
    facts: list[str] = field(default_factory=list)
    href: str | None = None
    thumbnails: list[str] = field(default_factory=list)


def render_gallery(manifest: Manifest) -> str:
    """`comfy_outputs/<job-id>/index.html`: all of a job, for a browser. Pure.

    Pictures are the outputs themselves, scaled by the browser and loaded when scrolled
    to; a folder of thumbnails would double what is stored and what a crash can leave.
    """
    results = sorted(manifest.tasks, key=lambda result: result.index)
    common = _common_params(results)
    columns = _matrix_columns(results)
    total = len(manifest.plan.tasks) if manifest.plan else len(results)
    page = {
        "name": job_name(manifest),
        "outcome": manifest.outcome.value,
        "job_id": manifest.job_id,
        "facts": _facts(manifest, total),
        "error": manifest.error,
        "failed": [result.index for result in results if result.status == "failed"],
        "total": total,
        "not_run": max(0, total - len(results)),
        "warnings": manifest.plan.warnings if manifest.plan else [],
        "common": [(name, spell(value)) for name, value in common.items()],
        "density": _density(len(results), columns),
        "at_once": _AT_ONCE,
        "cards": [_card(manifest, result, common) for result in results],
        "beside": beside_names(manifest),
        "source": manifest.drop.key,
        "training": manifest.kind == "train" and bool(results),
        "engine": " · ".join(f"{name} {spell(value)}" for name, value in manifest.engine.items()),
    }
    shape = f":root {{ --ratio: {_usual_ratio(results)}; --columns: {columns or 1}; }}"
    css = styles("base.css", "job.css") + shape
    return make_page("job.html.j2", css, page=page)


def beside_names(manifest: Manifest) -> list[str]:
    """What `processor.beside` puts beside this job's page, as far as the manifest tells. Pure."""
    names = ["tasks.csv", "tasks.jsonl"] if len(manifest.tasks) > 1 else []
    output = (manifest.job or {}).get("output") or {}
    pictures = sum(shown_as_of(file) == "image" for result in manifest.tasks for file in result.files)
    if pictures and output.get("contact_sheet"):
        names.append("contact-sheet.jpg")
    if pictures > 1 and output.get("sequence"):
        names.append(f"sequence.{output['sequence']}")
    return names


def render_index(entries: Iterable[JobEntry], *, title: str, place: str) -> str:
    """A page of jobs, in the order given. Pure."""
    return make_page(
        "index.html.j2", styles("base.css", "index.css"), entries=list(entries), title=title, place=place
    )


def job_entry(manifest: Manifest, *, root: str = "", thumbnails: int = 4) -> JobEntry:
    """A finished job for the page of jobs; `root` leads from that page to `comfy_outputs/`."""
    folder = root + quote(manifest.job_id) + "/"
    pictures = [
        folder + href
        for result in manifest.tasks
        for file in result.files
        if shown_as_of(file) == "image" and (href := file_href(manifest.job_id, file.key))
    ]
    facts = [f"{label.lower()} {value}" for label, value in _facts(manifest, _total(manifest))]
    return JobEntry(
        manifest.job_id, job_name(manifest), manifest.outcome.value, facts, folder, pictures[:thumbnails]
    )


def job_name(manifest: Manifest) -> str:
    """A job's title: its own name, else the name of the file it was dropped as."""
    named = (manifest.job or {}).get("name")
    return redact(str(named) if named else _UNIQUE.sub("", PurePosixPath(manifest.drop.key).stem))


def _total(manifest: Manifest) -> int:
    return len(manifest.plan.tasks) if manifest.plan else len(manifest.tasks)


def _facts(manifest: Manifest, total: int) -> list[tuple[str, str]]:
    done = sum(result.status == "done" for result in manifest.tasks)
    files = sum(len(result.files) for result in manifest.tasks)
    facts = [("Finished", f"{manifest.finished_at:%Y-%m-%d %H:%M} UTC")]
    if total:
        facts.insert(0, ("Tasks", f"{done:,}" if done == total else f"{done:,} of {total:,}"))
        facts.insert(1, ("Files", f"{files:,}"))
        facts.append(("Engine time", duration(manifest.seconds)))
    if manifest.cost_usd:
        facts.append(("Cost", money(manifest.cost_usd)))
    return facts


def _card(manifest: Manifest, result: TaskResult, common: dict[str, Scalar]) -> Card:
    tiles, links = [], []
    job_id = manifest.job_id
    for file in result.files:
        href, shown_as = file_href(job_id, file.key), shown_as_of(file)
        if href and shown_as:
            tiles.append(Tile(shown_as, href, file.width, file.height))
        else:
            links.append(Link(href, file.name, size(file.size_bytes)))
    params = [(name, spell(value)) for name, value in result.params.items() if name not in common]
    facts = [f"seed {result.seed}"] if result.seed is not None else []
    if result.tries > 1:
        facts.append(f"{result.tries} tries")
    if result.reused_from:
        facts.append(f"from {result.reused_from}")
    alt = ", ".join(f"{name} {value}" for name, value in params) or f"task {result.index}"
    return Card(
        index=result.index,
        alt=alt[:200],
        tiles=tiles,
        links=links,
        text=_text(shown_texts(manifest, result)),
        params=params,
        facts=facts,
        taken=duration(result.seconds),
        error=result.error,
    )


def shown_texts(manifest: Manifest, result: TaskResult) -> list[tuple[str, str]]:
    """What a task says in words or numbers: of a render, all that its nodes show, by their titles."""
    data = result.data if manifest.kind == "render" else {"text": result.data.get("text")}
    lines = ((label, value if isinstance(value, list) else [value]) for label, value in data.items())
    texts = ((label, "\n".join(str(line) for line in value if line is not None)) for label, value in lines)
    return [(label, text) for label, text in texts if text]


def _text(texts: Sequence[tuple[str, str]]) -> str:
    only = len(texts) == 1
    return redact("\n".join(text if only else f"{label}: {text}" for label, text in texts)[:_MAX_TEXT])


def _common_params(results: Sequence[TaskResult]) -> dict[str, Scalar]:
    """Parameters that are the same in every task: said once, not on each card."""
    if len(results) < 2:
        return {}
    first = results[0].params
    return {
        name: value
        for name, value in first.items()
        if all(name in result.params and result.params[name] == value for result in results)
    }


def _matrix_columns(results: Sequence[TaskResult]) -> int | None:
    """How many tasks make a row, if the innermost axis of a matrix is short enough for one.

    Then each column has one value of that axis, and each row one of the outer axes'.
    """
    names = {name for result in results for name in result.params} - _common_params(results).keys()
    for columns in range(_MAX_COLUMNS, 1, -1):
        rows = [results[start : start + columns] for start in range(0, len(results), columns)]
        if len(rows) > 1 and len(rows[-1]) == columns and all(_lies_in(rows, name) for name in names):
            return columns
    return None


def _lies_in(rows: list[Sequence[TaskResult]], name: str) -> bool:
    """Whether a parameter is the same all along each row, or all down each column."""
    values = [[result.params.get(name) for result in row] for row in rows]
    return all(len(set(row)) == 1 for row in values) or all(row == values[0] for row in values)


def _density(count: int, columns: int | None) -> str:
    if columns:
        return "matrix"
    return "one" if count == 1 else "few" if count <= _FEW else "many"


def _usual_ratio(results: Sequence[TaskResult]) -> str:
    """The most frequent shape of the pictures, which every tile takes; others are fitted in."""
    shapes = Counter(
        (file.width, file.height)
        for result in results
        for file in result.files
        if file.width and file.height and shown_as_of(file) == "image"
    )
    if not shapes:
        return "3 / 2"
    (width, height), _ = shapes.most_common(1)[0]
    return f"{int(width or 1)} / {int(height or 1)}"


def shown_as_of(file: OutputFile) -> ShownAs | None:
    shown_as = SHOWN.get(PurePosixPath(file.key).suffix.lower())
    kind = file.media_type.partition("/")[0]
    return shown_as if shown_as == kind and "svg" not in file.media_type else None


def file_href(job_id: str, key: str) -> str | None:
    """A link from the job's page to one of its files; None for a key outside its folder."""
    prefix = job_prefix(job_id)
    if not key.startswith(prefix):
        return None
    # The dot keeps a name with a colon from being read as a scheme.
    return "./" + quote(key[len(prefix) :])


def spell(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else redact(str(value))


@cache
def styles(*names: str) -> str:
    return "".join((_TEMPLATES / name).read_text("utf-8") for name in names)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def make_page(template: str, css: str, **values: object) -> str:
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src 'self'; media-src 'self'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # The style is ours and holds nothing of a user's; escaping would change its hash.
    return _environment().get_template(template).render(css=Markup(css), policy=policy, **values)  # noqa: S704
