"""`make bench`: run every row in a process of its own, print the table, write docs/performance.md.

Figures are kept in docs/performance.json, so that a row may be measured again by itself
(`make bench ROWS="startup cost"`); each has its own date and load.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.benchmarks import host
from tests.benchmarks.measure import Figure, skipped
from tests.benchmarks.page import render_page

ROWS: Final = ("startup", "cost", "fanout", "scanning", "latency", "uploading", "rendering", "diffusion")
"""Modules here with `run(work) -> list[Figure]`."""
_DOCS: Final = Path(__file__).parents[2] / "docs"
_ROW_S: Final = 3600


def main(arguments: list[str]) -> None:
    """Measure the rows named, or all."""
    if arguments[:1] == ["--one"]:
        _measure_here(arguments[1], Path(arguments[2]))
        return
    if unknown := set(arguments) - set(ROWS):
        sys.exit(f"no such row: {', '.join(sorted(unknown))}. There are {', '.join(ROWS)}")
    console = Console()
    kept = _DOCS / "performance.json"
    record: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {"rows": {}}
    for row in arguments or ROWS:
        console.print(f"measuring {row} …", highlight=False)
        record["rows"][row] = _measured(row)
        record["host"] = host.describe()
        kept.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    (_DOCS / "performance.md").write_text(render_page(record, ROWS))
    console.print(_table(record))


def _measured(row: str) -> dict[str, Any]:
    """One row, measured by a new process: no row inherits another's memory, imports or threads."""
    load = host.load()
    with tempfile.TemporaryDirectory(prefix="dropbatch-bench-") as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "tests.benchmarks", "--one", row, str(out)]
        try:
            subprocess.run(command, check=True, timeout=_ROW_S)
            figures = json.loads(out.read_text())
        except subprocess.SubprocessError as error:
            figures = [asdict(skipped(row, "", f"failed: {type(error).__name__}"))]
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    return {"date": now, "load": [round(load, 1), round(host.load(), 1)], "figures": figures}


def _measure_here(row: str, out: Path) -> None:
    run = importlib.import_module(f"tests.benchmarks.{row}").run
    work = out.parent / "work"
    work.mkdir()
    out.write_text(json.dumps([figure.to_json() for figure in run(work)]))


def _table(record: dict[str, Any]) -> Table:
    table = Table("What", "Result", "Target", "Met")
    for row in record["rows"].values():
        for values in row["figures"]:
            figure = Figure(**values)
            met = "" if figure.met is None else "yes" if figure.met else "no"
            table.add_row(figure.what, figure.result, figure.target, met)
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
