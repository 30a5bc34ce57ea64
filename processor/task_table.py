"""All tasks of a job as a table: `tasks.csv` for spreadsheets, `tasks.jsonl` for programs. Pure."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from processor.records import Manifest, TaskResult
from processor.report import error_line

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins so is run as a formula by spreadsheets."""


def tasks_csv(manifest: Manifest) -> bytes:
    """One line a task, one column a parameter; UTF-8 with the mark that spreadsheets look for."""
    params = _columns(manifest)
    after = ["files", "seconds", "cost_usd", "gpu", "tries", "reused_from", "error"]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    own = ["task", "status", "seed"]
    named = (f"param.{name}" if name in (*own, *after) else name for name in params)
    writer.writerow([*own, *map(_cell, named), *after])
    for result in _ordered(manifest):
        facts = _facts(result)
        files = " ".join(file["key"] for file in facts["files"])
        row = [facts["task"], facts["status"], facts["seed"], *(result.params.get(name) for name in params)]
        writer.writerow([_cell(value) for value in [*row, files, *(facts[name] for name in after[1:])]])
    return b"\xef\xbb\xbf" + buffer.getvalue().encode()


def tasks_jsonl(manifest: Manifest) -> bytes:
    """One JSON object a task, with its parameters and the keys of its files."""
    lines = (json.dumps(_facts(result), ensure_ascii=False) for result in _ordered(manifest))
    return "".join(f"{line}\n" for line in lines).encode()


def _facts(result: TaskResult) -> dict[str, Any]:
    return {
        "task": result.index,
        "status": result.status,
        "seed": result.seed,
        "params": result.params,
        "files": [{"key": file.key, "name": file.name, "sha256": file.sha256} for file in result.files],
        "seconds": result.seconds,
        "cost_usd": result.cost_usd,
        "gpu": result.gpu,
        "tries": result.tries,
        "reused_from": result.reused_from,
        "error": error_line(result.error) if result.error else None,
    }


def _columns(manifest: Manifest) -> list[str]:
    """All parameters, but for a `seed` that says what the column of that name does."""
    names = dict.fromkeys(name for result in manifest.tasks for name in result.params)
    if all(str(result.params.get("seed", result.seed)) == str(result.seed) for result in manifest.tasks):
        names.pop("seed", None)
    return list(names)


def _ordered(manifest: Manifest) -> list[TaskResult]:
    return sorted(manifest.tasks, key=lambda result: result.index)


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
