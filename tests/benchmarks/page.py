"""docs/performance.md, written from the figures; the history in it is written by hand, in history.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

_HERE = Path(__file__).parent


def render_page(record: dict[str, Any], rows: Sequence[str]) -> str:
    """The page of what was measured last."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=False,  # noqa: S701 - Markdown of our own figures
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = _cell
    measured = [record["rows"][row] for row in rows if row in record["rows"]]
    history = (_HERE / "history.md").read_text()
    return environment.get_template("performance.md.j2").render(
        host=record["host"], rows=measured, history=history
    )


def _cell(text: str) -> str:
    """A text that may stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ")
