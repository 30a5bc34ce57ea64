"""Printing: tables and lines for people, one JSON document for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

_PIPED_WIDTH = 240
_SHORT = 24
"""A column with no longer cells is not folded."""

Moved = Callable[[int], object]
"""Told how many more bytes have been moved. Thread-safe."""

STYLES = {
    "done": "green",
    "ok": "green",
    "partial": "yellow",
    "warn": "yellow",
    "running": "cyan",
    "failed": "red",
    "invalid": "red",
    "dead": "red",
    "fail": "red",
    "cancelled": "bright_black",
    "waiting": "bright_black",
}
"""The colour of each word that says how something stands."""


class SafeConsole(Console):
    """Texts of jobs are shown, and whoever may write to an inbox wrote them: none drives the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> NoReturn:
        """Leave it to the guard around the command; Rich would end it with 1."""
        raise BrokenPipeError


def printable(text: str) -> str:
    """A text without what a terminal would obey."""
    return "".join(character for character in text if character in "\n\t" or character.isprintable())


def out() -> Console:
    """Where results go: stdout as it is now. Piped, lines are not folded."""
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    return SafeConsole(file=sys.stdout, highlight=False, width=width)


@cache
def _stderr() -> Console:
    return SafeConsole(stderr=True, highlight=False)


def note(text: str) -> None:
    """A remark on stderr, so that results can be piped."""
    _stderr().print(f"[dim]{escape(text)}[/dim]", soft_wrap=True)


def warn(text: str) -> None:
    _stderr().print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True)


def word(state: str) -> str:
    """A state, coloured, as Rich markup."""
    style = STYLES.get(state)
    return f"[{style}]{escape(state)}[/{style}]" if style else escape(state)


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    out().print(table(columns, rows))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without rules. Cells are Rich markup: escape what users wrote.

    The first column and those of short words keep their content, the others are folded to fit.
    """
    made = Table(box=None, pad_edge=False, header_style="dim")
    filled = list(rows)
    for position, column in enumerate(columns):
        longest = max((Text.from_markup(row[position]).cell_len for row in filled), default=0)
        made.add_column(column, overflow="fold", no_wrap=position == 0 or longest <= _SHORT)
    for row in filled:
        made.add_row(*row)
    return made


def print_notes_below(columns: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]) -> None:
    """A table of short columns, in which a row may have a note, on a line of its own below it.

    Where a terminal is too narrow the first column has a line of its own, too: nothing is lost.
    """
    to = out()
    whole = table(columns, [row for row, _ in rows])
    narrow = to.measure(whole, options=to.options.update(width=_PIPED_WIDTH * 2)).maximum > to.width
    if narrow:
        whole = table(columns[1:], [row[1:] for row, _ in rows])
        to.print(columns[0], style="dim", soft_wrap=True)
    indent = [Segment("  ")] if narrow else []
    head, *lines = ([*indent, *line, Segment.line()] for line in to.render_lines(whole, pad=False))
    to.print(Segments(head), end="")
    for line, (row, below) in zip(lines, rows, strict=True):
        if narrow:
            to.print(row[0], soft_wrap=True)
        to.print(Segments(line), end="")
        if below:
            to.print(Padding(below, (0, 0, 0, 4), expand=False))


def ago(then: datetime, now: datetime) -> str:
    """How long before now, in one unit: `12 s ago`, `3 h ago`."""
    seconds = max(0, (now - then).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


@contextmanager
def transfer(what: str, total_bytes: int) -> Iterator[Moved]:
    """A progress bar of bytes on stderr, where that is a terminal."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=_stderr(),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda count: bar.advance(task, count)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
