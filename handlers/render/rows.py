"""A job's rows, and what each sets: names become inputs, wildcards are settled."""

from __future__ import annotations

from handlers.render.graph import Graph, Set, Target, describe, seed_targets
from handlers.render.naming import Binder
from handlers.render.prompts import read_prompts
from processor.errors import JobInvalid
from processor.expand import SEED, Row, cells, choose, expand
from processor.handler import PlanContext
from processor.models import RenderJob

_WILD = ("prompt", "negative")
"""Parameters on whose inputs a job's `{a|b}` are settled; a graph's own texts are left as they are."""


def rows_of(job: RenderJob, context: PlanContext) -> list[Row]:
    """Every combination that the job asks for. Cost: 1 request for a file of prompts."""
    # The product of matrix and seeds alone may already be too much: refuse before reading files.
    if not (job.matrix and job.matrix.exclude) and cells(job.matrix, None, job.seeds) > context.max_tasks:
        return expand(job.matrix, None, job.seeds, draw_key=context.job_id, max_tasks=context.max_tasks)
    rows = read_prompts(
        job.prompts, context.stores.main, drop_key=context.drop_key, max_rows=context.max_tasks
    )
    return expand(job.matrix, rows, job.seeds, draw_key=context.job_id, max_tasks=context.max_tasks)


def task_sets(
    job: RenderJob, rows: list[Row], binder: Binder, base: Graph, overrides: list[Set]
) -> list[list[Set]]:
    """What each row sets; `rows` get their settled wildcards, so that plans show what was drawn.

    Args:
        base: with the overrides applied.
    Raises:
        JobInvalid: a name that means nothing, a value that doesn't fit, or two names for one input.
    """
    if SEED in rows[0] and not binder.targets(SEED):
        raise JobInvalid("this graph has no seed input, so its tasks would all be the same", where="seeds")
    wild = {target for name in _WILD for target in binder.targets(name)}
    standing = _wild_overrides(job, binder, base, overrides)
    seeds = seed_targets(base)
    return [
        list(_row_sets(job, row, binder, base, wild=wild, standing=standing, seeds=seeds, index=index))
        for index, row in enumerate(rows)
    ]


def seed_of(graph: Graph) -> int | None:
    """The seed that a graph runs with; None where it has none."""
    return _final_seed(graph, {}, seed_targets(graph))


def _row_sets(
    job: RenderJob,
    row: Row,
    binder: Binder,
    base: Graph,
    *,
    wild: set[Target],
    standing: dict[Target, tuple[str, str]],
    seeds: list[Target],
    index: int,
) -> list[Set]:
    changes: dict[Target, Set] = {}
    names: dict[Target, str] = {}
    for name, value in row.items():
        for change in binder.bind(name, where=_place(job, name)).sets(value, where=_place(job, name)):
            target = Target(change.node, change.input)
            if target in names:
                raise _twice(base, target, names[target], name, where=_place(job, name))
            changes[target], names[target] = change, name
    # Drawn by the seed, so that a matrix over cfg compares like with like.
    seed = _final_seed(base, changes, seeds)
    key = f"{index if seed is None else seed}"
    for target, (name, text) in standing.items():
        if target not in changes:
            changes[target], names[target] = Set(*target, text), name
    for target, change in list(changes.items()):
        text = change.value
        if target in wild and isinstance(text, str) and "|" in text:
            row[names[target]] = chosen = choose(text, key)
            changes[target] = Set(*target, chosen)
    return list(changes.values())


def _wild_overrides(
    job: RenderJob, binder: Binder, base: Graph, overrides: list[Set]
) -> dict[Target, tuple[str, str]]:
    """Texts with wildcards that the job's overrides put where a prompt goes, and what to call each."""
    overridden = {Target(change.node, change.input) for change in overrides}
    found: dict[Target, tuple[str, str]] = {}
    for name in _WILD:
        for target in binder.targets(name):
            text = base[target.node]["inputs"].get(target.input)
            if target in overridden and isinstance(text, str) and "|" in text:
                found[target] = (name if name in job.overrides else str(target), text)
    return found


def _final_seed(base: Graph, changes: dict[Target, Set], seeds: list[Target]) -> int | None:
    for target in seeds:
        change = changes.get(target)
        value = base[target.node]["inputs"].get(target.input) if change is None else change.value
        if isinstance(value, int):
            return value
    return None


def _twice(base: Graph, target: Target, first: str, second: str, *, where: str) -> JobInvalid:
    return JobInvalid(
        f"{first!r} and {second!r} both set {target.input} of {describe(base, target.node)}",
        where=where,
        mend="One of them would do nothing: leave one out",
    )


def _place(job: RenderJob, name: str) -> str:
    if job.matrix and (name in job.matrix.product or name in job.matrix.zip):
        return f"matrix.{name}"
    return (
        "seeds"
        if name == SEED and job.seeds is not None
        else f"prompts: {name}"
        if job.prompts
        else f"matrix.{name}"
    )
