"""The documentation's own examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from processor.cli.jobs_page import jobs_page
from processor.handler import Stores
from processor.run import run
from processor.testing.machine import Bench

_DOCS = Path(__file__).parents[2] / "docs"
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#]+)")


def test_the_example_handler_runs_a_job(tmp_path: Path) -> None:
    """docs/handlers.md shows a handler that works as it stands."""
    (source,) = re.findall(r"```python\n(.*?)```", (_DOCS / "handlers.md").read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(compile(source, "handlers.md", "exec"), namespace)  # noqa: S102 - our own page
    bench = Bench(tmp_path, namespace["Shout"].configured(None, Stores))
    bench.drop({"workflow": "hello"})
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    (manifest,) = bench.manifests()
    key = manifest["tasks"][0]["files"][0]["key"]
    with bench.main.get(key) as download:
        assert download.body.read() == b"HELLO"


def test_the_page_of_jobs_is_what_the_models_say() -> None:
    """docs/jobs.md is generated; `dropbatch schema --jobs > docs/jobs.md` makes it anew."""
    assert (_DOCS / "jobs.md").read_text() == jobs_page()


@pytest.mark.parametrize(
    "page", [*sorted(_DOCS.rglob("*.md")), _DOCS.parent / "README.md"], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """No relative link in the docs is dead."""
    dead = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert dead == []
