"""`dropbatch check`: what a drop would do, without a GPU and without a bucket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from processor.cli import console
from processor.cli.exits import Exit
from processor.cli.options import Bucket, Config, EndpointUrl, Json, load_settings, open_main
from processor.errors import JobInvalid

if TYPE_CHECKING:
    from processor.config import Settings
    from processor.handler import Stores
    from processor.models import JobBase
    from processor.records import Plan

_SHOWN_TASKS = 12
_JOB_ID = "check-0000000000000000"


def command(
    paths: Annotated[
        list[Path], typer.Argument(help="Job files, PNGs or dataset folders, as for drop.", metavar="PATH…")
    ],
    *,
    cost: Annotated[
        bool, typer.Option("--cost", help="Estimate time and cost, learning from the bucket's jobs.")
    ] = False,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Say what a drop would do. Needs no GPU and no bucket.

    Workflows, prompts and pictures are looked for beside the file; with --bucket, in the
    bucket, and models, too. Nodes are checked against what the configured ComfyUI knows,
    or the one that the bucket's machine has.

    \b
    Example:
      dropbatch check portrait.json
      dropbatch check portrait.json --bucket b2://renders --cost
    """
    from processor.buckets import open_stores
    from processor.cli.job_files import find_sources

    settings = load_settings(config, bucket, endpoint_url)
    stores = open_stores(settings) if bucket else None
    found = []
    for path in paths:
        files, folders = find_sources(path)
        found += [check_file(file, settings, stores, cost=cost) for file in files]
        found += [check_dataset(folder, settings) for folder in folders]
    if as_json:
        console.print_json(found)
    else:
        for facts in found:
            _print(facts)
    if not all(facts["valid"] for facts in found):
        raise typer.Exit(Exit.FAILED)


def check_file(
    path: Path, settings: Settings, stores: Stores | None, *, cost: bool = False
) -> dict[str, Any]:
    """What a job file comes to: its plan in a few facts, or its error."""
    from processor.report import error_report

    try:
        job, plan = _plan(path, settings, stores)
    except JobInvalid as error:
        report = error_report(error).model_dump(mode="json")
        return {"path": str(path), "valid": False, "error": report}
    nodes = Counter(
        str(node["class_type"])
        for node in plan.shared.get("workflow", {}).values()
        if isinstance(node, Mapping) and "class_type" in node
    )
    estimate = {}
    if cost:
        from processor.cli.cost_table import cost_facts

        taught = stores.main if stores else (open_main(settings) if settings.bucket else None)
        estimate = {"cost": cost_facts(plan, job, settings, taught)}
    return {
        "path": str(path),
        "valid": True,
        "kind": plan.kind,
        "tasks": len(plan.tasks),
        "first_tasks": [
            {"index": task.index, "seed": task.seed, "params": task.params}
            for task in plan.tasks[:_SHOWN_TASKS]
        ],
        "nodes": dict(sorted(nodes.items())),
        "models": [f"{model.folder}/{model.name}" for model in plan.models],
        "files": [{"name": file.name, "source": file.source} for file in plan.inputs],
        "gpu": job.gpu or plan.gpu,
        "warnings": plan.warnings,
        **estimate,
    }


def _plan(path: Path, settings: Settings, at_hand: Stores | None) -> tuple[JobBase, Plan]:
    from processor.cli.job_files import graph_in_picture, read_limited
    from processor.config import resolve_handlers
    from processor.handler import PlanContext, Stores
    from processor.plan import planned
    from processor.recurring import read_file
    from processor.store.directory import DirectoryStore

    limit_bytes = settings.job_file_limit_bytes
    data = graph_in_picture(path) if path.suffix.lower() == ".png" else read_limited(path, limit_bytes)
    job, _ = read_file(data, key=path.name)
    handlers = resolve_handlers(settings)
    if job.kind not in handlers:
        raise JobInvalid(f"no handler for {job.kind} jobs is configured", where=path.name)
    stores = at_hand or Stores.single(DirectoryStore(path.resolve().parent))
    handler = handlers[job.kind].configured(settings, stores)
    try:
        plan: Plan = planned(
            handler,
            job,
            PlanContext(
                job_id=_JOB_ID,
                drop_key=path.name,
                stores=stores,
                now=datetime.now(UTC),
                max_tasks=settings.max_tasks,
                on_paper=True,
                bucketless=at_hand is None,
            ),
        )
    finally:
        handler.close()
    return job, plan


def check_dataset(folder: Path, settings: Settings) -> dict[str, Any]:
    """What a dataset folder holds, and what would be in the way of an ingest."""
    from processor.cli.job_files import dataset_files
    from processor.config import resolve_handlers
    from processor.report import error_report

    path = str(folder)
    try:
        # What is not configured checks nothing, and finds nothing.
        checker = getattr(resolve_handlers(settings).get("ingest"), "check_folder", _unchecked)
        report = checker(folder)
    except JobInvalid as error:
        return {"path": path, "valid": False, "error": error_report(error).model_dump(mode="json")}
    if report["errors"]:
        bad = JobInvalid(
            f"this folder can't be trained on: {report['errors'][0]}",
            mend="Mend the files that are named",
            details=report["errors"],
        )
        failed = error_report(bad).model_dump(mode="json")
        return {"path": path, "valid": False, "error": failed, "warnings": report["warnings"]}
    return {
        "path": path,
        "valid": True,
        "kind": "ingest",
        "pictures": report["pictures"],
        "videos": report["videos"],
        "captions": report["captions"],
        "size_bytes": sum(file.stat().st_size for file in dataset_files(folder)),
        "warnings": report["warnings"],
    }


def _unchecked(_folder: Path) -> dict[str, Any]:
    warnings = ["no handler that checks datasets is configured"]
    return {"pictures": 0, "videos": 0, "captions": 0, "errors": [], "warnings": warnings}


def _print(facts: dict[str, Any]) -> None:
    from processor.spelling import plural, size

    out = console.out()
    if not facts["valid"]:
        error = facts["error"]
        out.print(f"[red]✗[/red] {escape(facts['path'])}")
        where = f"{error['where']}: " if error["where"] else ""
        out.print(f"  {escape(where + error['what'])}")
        if error["mend"]:
            out.print(f"  [dim]{escape(error['mend'])}[/dim]")
        for detail in error["details"]:
            out.print(f"  - {escape(detail)}")
        return
    if facts["kind"] == "ingest":
        videos = f"{plural(facts['videos'], 'video')}, " if facts["videos"] else ""
        counts = f"{plural(facts['pictures'], 'picture')}, {videos}{plural(facts['captions'], 'caption')}"
        out.print(f"[green]✓[/green] {escape(facts['path'])}  dataset: {counts}, {size(facts['size_bytes'])}")
    else:
        out.print(f"[green]✓[/green] {escape(facts['path'])}  {plural(facts['tasks'], 'task')}")
        _print_plan(facts)
        if "cost" in facts:
            from processor.cli.cost_table import print_cost

            print_cost(facts["cost"])
    for warning in facts["warnings"]:
        out.print(f"  [yellow]warning:[/yellow] {escape(warning)}")


def _print_plan(facts: dict[str, Any]) -> None:
    from rich.padding import Padding

    out = console.out()
    axes = list(dict.fromkeys(axis for task in facts["first_tasks"] for axis in task["params"]))
    seeded = "seed" not in axes and any(task["seed"] is not None for task in facts["first_tasks"])
    if axes or facts["tasks"] > 1:
        rows = [
            [
                str(task["index"]),
                *([str(task["seed"])] if seeded else []),
                *(escape(str(task["params"].get(axis, ""))) for axis in axes),
            ]
            for task in facts["first_tasks"]
        ]
        columns = ["task", *(["seed"] if seeded else []), *axes]
        out.print(Padding(console.table(columns, rows), (0, 0, 0, 2), expand=False))
        if facts["tasks"] > len(rows):
            out.print(f"  [dim]and {facts['tasks'] - len(rows):,} more[/dim]")
    nodes = ", ".join(f"{name} x {n}" if n > 1 else name for name, n in facts["nodes"].items())
    for label, value in (
        ("nodes", nodes),
        ("models", ", ".join(facts["models"])),
        ("files", ", ".join(file["source"] for file in facts["files"])),
        ("gpu", facts["gpu"] or ""),
    ):
        if value:
            out.print(f"  [dim]{label:<7}[/dim] {escape(value)}")
