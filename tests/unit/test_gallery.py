"""Pages: all of a job, for a browser, and nothing that a browser could execute."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from processor.errors import ErrorKind
from processor.gallery import job_entry, job_name, render_gallery, render_index
from processor.models import Scalar
from processor.records import (
    DropRef,
    ErrorReport,
    Manifest,
    Outcome,
    OutputFile,
    Plan,
    Task,
    TaskResult,
)

JOB = "cats-0123456789abcdef"
NOW = datetime(2026, 11, 23, 22, 10, tzinfo=UTC)
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'"


def output(name: str, media_type: str = "image/png", key: str | None = None) -> OutputFile:
    key = key or f"comfy_outputs/{JOB}/1-ab/00000-cd/{name}"
    return OutputFile(
        key=key, name=name, size_bytes=1200, sha256="0" * 64, media_type=media_type, width=640, height=400
    )


def result(index: int = 0, *files: OutputFile, **fields: Any) -> TaskResult:
    values: dict[str, Any] = {"status": "done", "seconds": 1.5, **fields}
    return TaskResult(
        index=index, hash="h", files=list(files), attempt="1-ab", execution="cd", started_at=NOW, **values
    )


def manifest(*tasks: TaskResult, **fields: Any) -> Manifest:
    values: dict[str, Any] = {
        "outcome": Outcome.DONE,
        "drop": DropRef(key="inbox/jobs/cats.3f9a2c.json", version="v"),
        "plan": Plan(job_id=JOB, kind="render", tasks=[Task(index=t.index, hash="h") for t in tasks]),
        **fields,
    }
    return Manifest(
        schema_version=1,
        job_id=JOB,
        kind="render",
        tasks=list(tasks),
        attempt="1-ab",
        started_at=NOW,
        finished_at=NOW,
        **values,
    )


class Tags(HTMLParser):
    """All start tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_a_picture_with_its_parameters_and_seed() -> None:
    """Relative to the page, of known shape."""
    params: dict[str, Scalar] = {"6.text": "a cat", "3.cfg": 7.5}
    page = render_gallery(manifest(result(0, output("a b#1.png"), params=params, seed=42)))
    [image] = Tags(page).of("img")
    assert image["src"] == "./1-ab/00000-cd/a%20b%231.png"
    assert image["width"] == "640"
    assert all(text in page for text in ("a cat", "7.5", "seed 42", "1.5 s"))


def test_what_nodes_say_is_on_the_card() -> None:
    """Text outputs come by their nodes' titles, and are all that some jobs make."""
    said = {"Show caption": "a cat on a mat", "Count": [1, 2], "Nothing": ""}
    page = render_gallery(manifest(result(0, data=said), result(1, data={"Show caption": "two dogs"})))
    assert "Show caption: a cat on a mat\nCount: 1\n2" in page
    assert ">two dogs<" in page
    assert "Nothing" not in page


def test_what_users_wrote_is_never_markup() -> None:
    """Names, parameters, errors and texts come from anywhere."""
    error = ErrorReport(kind=ErrorKind.NODE_FAILED, what=EVIL, where=EVIL, mend=EVIL, details=[EVIL])
    page = render_gallery(
        manifest(
            result(0, output(EVIL.replace("/", "") + ".png"), params={EVIL: EVIL}, data={"text": [EVIL]}),
            result(1, status="failed", error=error),
            outcome=Outcome.PARTIAL,
            job={"name": EVIL},
            error=error,
            engine={"name": EVIL},
        )
    )
    tags = Tags(page)
    assert tags.of("script") == []
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
    index = render_index([job_entry(manifest(result(), job={"name": EVIL}))], title=EVIL, place=EVIL)
    assert Tags(index).of("script") == []


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("drawing.svg", "image/svg+xml"),
        ("drawing.svg", "image/png"),
        ("page.html", "text/html"),
        ("fake.png", "image/svg+xml"),
        ("fake.png", "text/html"),
        ("data.latent", "application/octet-stream"),
    ],
)
def test_what_a_browser_could_execute_is_only_a_download(name: str, media_type: str) -> None:
    """Name and media type must both be those of something that plays."""
    tags = Tags(render_gallery(manifest(result(0, output(name, media_type)))))
    assert tags.of("img") == []
    [link] = [a for a in tags.of("a") if "download" in a]
    assert str(link["href"]).endswith(name)


def test_videos_and_sounds_play() -> None:
    """Without loading more than their beginnings."""
    tags = Tags(
        render_gallery(manifest(result(0, output("v.mp4", "video/mp4"), output("s.flac", "audio/flac"))))
    )
    [video], [audio] = tags.of("video"), tags.of("audio")
    assert "controls" in video
    assert video["preload"] == audio["preload"] == "metadata"


def test_of_many_videos_most_load_nothing() -> None:
    """Each would cost a request as the page opens."""
    page = render_gallery(manifest(*(result(k, output(f"{k}.mp4", "video/mp4")) for k in range(200))))
    assert [video["preload"] for video in Tags(page).of("video")] == ["metadata"] * 12 + ["none"] * 188


def test_links_stay_in_the_folder() -> None:
    """A key of another job is shown by name only; a colon is no scheme."""
    strange = output("x.png", key="comfy_outputs/other-0123456789abcdef/x.png")
    colon = output("javascript:alert(1).png", key=f"comfy_outputs/{JOB}/javascript:alert(1).png")
    tags = Tags(render_gallery(manifest(result(0, strange, colon))))
    targets = [a["href"] for a in tags.of("a") if a.get("href")] + [i["src"] for i in tags.of("img")]
    assert all(str(target).startswith(("./", "#", "manifest.json")) for target in targets)
    assert not any("other-" in str(target) for target in targets)


def test_the_policy_allows_this_style_and_no_script() -> None:
    """The page carries its own content security policy."""
    page = render_gallery(manifest(result(0, output("a.png"))))
    [policy] = [m["content"] for m in Tags(page).of("meta") if m.get("http-equiv")]
    assert policy is not None
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert 'style="' not in page


def test_failures_and_what_did_not_run_are_said() -> None:
    """A page never looks better than the job was."""
    error = ErrorReport(kind=ErrorKind.OUT_OF_MEMORY, what="not enough memory", mend="Use a bigger GPU")
    plan = Plan(job_id=JOB, kind="render", tasks=[Task(index=n, hash="h") for n in range(5)])
    failed = result(3, status="failed", error=error)
    page = render_gallery(manifest(result(0, output("a.png")), failed, outcome=Outcome.PARTIAL, plan=plan))
    assert "1 of 5 tasks failed" in page
    assert "3 of 5 tasks did not run" in page
    assert all(text in page for text in ("out of memory", "not enough memory", "Use a bigger GPU"))


def test_an_invalid_drop_has_a_page_too() -> None:
    """Without plan, job or tasks."""
    error = ErrorReport(kind=ErrorKind.INVALID, what="unknown key 'matrx'", mend="Did you mean 'matrix'?")
    page = render_gallery(manifest(outcome=Outcome.INVALID, plan=None, error=error))
    assert "unknown key &#39;matrx&#39;" in page


def test_what_is_the_same_everywhere_is_said_once() -> None:
    """Cards show what distinguishes them."""
    page = render_gallery(
        manifest(*(result(n, params={"steps": "twenty-five", "effect": f"no {n}"}) for n in range(3)))
    )
    assert page.count("twenty-five") == 1
    assert page.count("<dt>effect</dt>") == 3


def test_a_matrix_keeps_its_rows() -> None:
    """Columns are the innermost axis, on whatever width of screen has room for them."""

    def columns(*params: dict[str, Scalar]) -> bool:
        page = render_gallery(manifest(*(result(n, params=each) for n, each in enumerate(params))))
        return 'class="grid matrix"' in page and "--columns: 3" in page

    grid: list[dict[str, Scalar]] = [
        {"photo": photo, "light": light, "steps": 20} for photo in "ab" for light in "xyz"
    ]
    assert columns(*grid)
    assert not columns(*grid[:-1])
    assert not columns(*reversed(grid[:3]), *grid[3:])


def test_the_same_manifest_gives_the_same_bytes() -> None:
    """The page can be made again by whoever repairs a crash."""
    one = manifest(result(0, output("a.png"), params={"b": 1, "a": 2}))
    assert render_gallery(one) == render_gallery(one)


def test_a_name_for_people() -> None:
    """The job's own; else the file's, without what `drop` added to make its key new."""
    assert job_name(manifest()) == "cats"
    assert job_name(manifest(job={"name": "My cats"})) == "My cats"
    assert job_name(manifest(drop=DropRef(key="inbox/v1.json", version="v"))) == "v1"


def test_ten_thousand_tasks_make_a_page_that_can_still_be_opened() -> None:
    """Bounded bytes a card, and each card skipped by the browser until it is in view."""
    tasks = [
        result(n, output(f"{n}.png"), params={"seed": n, "text": "a lighthouse at dusk"}, seed=n)
        for n in range(10_000)
    ]
    page = render_gallery(manifest(*tasks))
    assert len(page) < 10_000 * 900
    assert sum("loading" not in image for image in Tags(page).of("img")) == 12
    assert "content-visibility: auto" in page
