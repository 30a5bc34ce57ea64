"""From a render job to its plan: one base graph, and for each task the inputs it sets."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.render import policy
from handlers.render.checking import Elsewhere, problems_of
from handlers.render.graph import (
    Graph,
    Schema,
    Set,
    Target,
    applied,
    nearest,
    read_graph,
)
from handlers.render.inputs import InputResolver, digest_of, file_targets
from handlers.render.models import ModelFinder, Spelling
from handlers.render.naming import Binder
from handlers.render.preflight import passing, raise_problems, without_outputs
from handlers.render.rows import rows_of, seed_of
from handlers.render.rows import task_sets as sets_of_rows
from handlers.render.schema import SchemaSource
from handlers.render.settings import RenderSettings
from handlers.render.weight import WEIGHTY, shape_of, weight_of
from handlers.render.workflow import (
    READY,
    Workflow,
    is_workflow_file,
    load_ready,
    parse_workflow,
    ready_names,
)
from processor import layout
from processor.errors import ErrorKind, InvalidKey, JobInvalid, NotFound, TooLarge
from processor.expand import Row
from processor.handler import PlanContext
from processor.models import RenderJob
from processor.reading import parse_json
from processor.records import InputFile, ModelFile, Plan, Task
from processor.shaping import check_template
from processor.store import Store, check_key, read_bytes

MAX_WORKFLOW_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class _Draft:
    """A task before its place in the order is known."""

    row: Row
    sets: list[Set]
    seed: int | None
    models: tuple[ModelFile, ...]
    hash: str
    weight: float


def plan_render(
    job: RenderJob, context: PlanContext, settings: RenderSettings, schemas: SchemaSource
) -> Plan:
    """Resolve a render job; see `processor.handler.Handler.plan`.

    Raises:
        JobInvalid: all that can be known to be wrong without an engine.
    Cost: 1 request each per workflow key, prompt file, input file and model. A job that is to
        be refused costs 1 more, for a fresh schema, and is planned again if that says otherwise.
    """
    _, workflow = find_workflow(job.workflow, context.stores.main, context.drop_key)
    graph = read_graph(workflow.graph)
    began_at = time.monotonic()
    schema = _schema(schemas, context, graph)
    try:
        return _planned(job, workflow, graph, context, settings=settings, schema=schema)
    except JobInvalid as error:
        # Whoever drops a job again has perhaps just added the model or the node that it lacked.
        fresh = _schema(schemas, context, graph, newer_than=began_at)
        if fresh == schema or (fresh is None and error.kind is ErrorKind.REFUSED):
            raise
    return _planned(job, workflow, graph, context, settings=settings, schema=fresh)


def _schema(
    schemas: SchemaSource, context: PlanContext, graph: Graph, *, newer_than: float = float("-inf")
) -> Schema | None:
    main = context.stores.main
    if context.on_paper:
        return schemas.elsewhere(main, _classes(graph), newer_than=newer_than)
    return schemas.get(main, newer_than=newer_than)


def _planned(
    job: RenderJob,
    workflow: Workflow,
    graph: Graph,
    context: PlanContext,
    *,
    settings: RenderSettings,
    schema: Schema | None,
) -> Plan:
    """The plan by what this schema says."""
    policy.check_nodes(graph, allow=settings.allow_nodes, deny=settings.deny_nodes, schema=schema)
    binder = Binder(graph, workflow.parameters, schema)
    defaults = [
        change
        for name, parameter in workflow.parameters.items()
        if parameter.default is not None
        for change in binder.bind(name, where=f"parameters.{name}").sets(
            parameter.default, where=f"parameters.{name}"
        )
    ]
    # Three layers: the workflow's own defaults, the job's overrides, each task's row.
    overrides = binder.overrides(job.overrides)
    spelling = Spelling(schema, settings)
    base = spelling.of_graph(applied(graph, [*defaults, *overrides]))
    rows = rows_of(job, context)
    task_sets = [spelling.of_sets(base, sets) for sets in sets_of_rows(job, rows, binder, base, overrides)]
    _check_required(workflow, binder, overrides, task_sets)
    check_template(job.output, [name for row in rows for name in row])
    targets = file_targets(base, task_sets, job.inputs, schema)
    elsewhere = Elsewhere(base, frozenset(targets), workflow.models)
    problems = problems_of(base, task_sets, schema, elsewhere, allow=settings.allow_nodes)
    if job.allow_invalid_outputs:
        problems = without_outputs(problems, base, schema)
    raise_problems(problems)

    resolver = InputResolver(job.inputs, context.stores.main, drop_key=context.drop_key, settings=settings)
    finder = ModelFinder(context.stores.models, settings, schema, bucketless=context.bucketless)
    values = _all_values(base, task_sets, targets)
    resolver.look_up(values, context.keep_alive)
    finder.declared(workflow.models)
    drafts = []
    for draft in _drafts(base, rows, task_sets, targets, resolver=resolver, finder=finder):
        context.keep_alive()
        drafts.append(draft)
    finder.raise_missing()
    resolver.check_all_used(values)
    named = (model for draft in drafts for model in draft.models)
    models = list(dict.fromkeys((*workflow.models, *named, *finder.embeddings)))
    return Plan(
        job_id=context.job_id,
        kind="render",
        shared={
            "workflow": base,
            "files": [list(target) for target in targets],
            "models": [[model.folder, model.name] for model in workflow.models],
            "allow_invalid_outputs": job.allow_invalid_outputs,
        },
        tasks=_ordered(drafts),
        inputs=resolver.files,
        models=models,
        gpu=job.gpu or workflow.gpu,
        shape=shape_of(base),
        typical_seconds=workflow.typical_seconds,
        warnings=[*_warnings(schema, settings, finder.not_here), *finder.warnings, *passing(problems)],
    )


def find_workflow(reference: dict[str, Any] | str, store: Store, drop_key: str) -> tuple[str, Workflow]:
    """A workflow given inline, by name, or by store key; and where it was: its key, or `READY`.

    A key is tried as it is, under `comfy_workflows/` and next to the drop. The bucket's workflow of a
    name goes before the ready one, so that one which is added later changes no job of anybody's.

    Raises:
        JobInvalid: no such workflow, with the nearest known name; or not a graph.
    Cost: 1 request per place looked at; of a ready one's name there is one.
    """
    if isinstance(reference, dict):
        return "", _as_workflow(reference, "workflow")
    ready = load_ready(reference)
    named = f"{layout.WORKFLOWS}{reference}.json"
    folder = drop_key.rpartition("/")[0]
    places = [
        reference,
        layout.WORKFLOWS + reference,
        named,
        f"{folder}/{reference}" if folder else reference,
    ]
    for key in [named] if ready is not None else dict.fromkeys(places):
        try:
            data = read_bytes(store, check_key(key), limit_bytes=MAX_WORKFLOW_BYTES)
        except NotFound:
            continue
        except (InvalidKey, TooLarge) as error:
            raise JobInvalid(error.what, where=f"workflow: {reference[:200]}") from None
        return key, _as_workflow(parse_json(data, key=key), key)
    if ready is not None:
        return READY, ready
    raise _no_workflow(reference, store)


def graph_hash_parts(graph: Graph) -> dict[str, str]:
    """Node id → its canonical JSON without its title, which decides nothing."""
    return {
        node_id: _canonical({key: node[key] for key in ("class_type", "inputs")})
        for node_id, node in graph.items()
    }


def task_hash(parts: Mapping[str, str], digests: Mapping[str, str]) -> str:
    """The hash of a final graph and of the files it reads: equal tasks, equal hashes.

    Equal to `canonical_hash` of the whole, but nodes that a task does not change are
    serialised once a job, not once a task.
    """
    text = "{" + ",".join(f"{_canonical(node_id)}:{parts[node_id]}" for node_id in sorted(parts)) + "}"
    return hashlib.sha256(f'{{"graph":{text},"inputs":{_canonical(dict(digests))}}}'.encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _as_workflow(value: Any, where: str) -> Workflow:
    if is_workflow_file(value):
        return parse_workflow(
            {**value, "graph": read_graph(value["graph"], where=f"{where}: graph")}, where=where
        )
    return Workflow(graph=read_graph(value, where=where))


def _no_workflow(reference: str, store: Store) -> JobInvalid:
    page = next(iter(store.list(layout.WORKFLOWS)))
    theirs = [entry.key.removeprefix(layout.WORKFLOWS).removesuffix(".json") for entry in page.objects]
    return JobInvalid(
        f"there is no workflow {reference[:200]!r}",
        where="workflow",
        mend=nearest(reference, [*ready_names(), *theirs], what="workflows"),
        kind=ErrorKind.INVALID,
    )


def _check_required(
    workflow: Workflow, binder: Binder, overrides: list[Set], task_sets: list[list[Set]]
) -> None:
    """Refuse a job that leaves a placeholder standing in any of its tasks."""
    everywhere = {(change.node, change.input) for change in overrides}
    for name, parameter in workflow.parameters.items():
        wanted = set(binder.targets(name))
        if parameter.required and not all(
            wanted <= everywhere | {(change.node, change.input) for change in sets} for sets in task_sets
        ):
            raise JobInvalid(
                f"this workflow needs {name!r}",
                where="overrides",
                mend=f'Add "overrides": {{"{name}": …}}. {parameter.description}'.rstrip(". "),
            )


def _drafts(
    base: Graph,
    rows: list[Row],
    task_sets: list[list[Set]],
    targets: list[Target],
    *,
    resolver: InputResolver,
    finder: ModelFinder,
) -> Iterator[_Draft]:
    parts, base_weight = graph_hash_parts(base), weight_of(base)
    for row, sets in zip(rows, task_sets, strict=True):
        graph = applied(base, sets)
        changed = {change.node for change in sets}
        files: dict[str, InputFile | None] = {}
        for target in targets:
            value = graph[target.node]["inputs"].get(target.input)
            if isinstance(value, str) and value:
                files[value] = resolver.resolve(value, target)
        digests = {name: digest_of(file) for name, file in files.items() if file is not None}
        own = parts | graph_hash_parts({node_id: graph[node_id] for node_id in changed})
        weight = weight_of(graph) if any(change.input in WEIGHTY for change in sets) else base_weight
        models = tuple(finder.find(graph))
        yield _Draft(row, sets, seed_of(graph), models, task_hash(own, digests), weight)


def _ordered(drafts: list[_Draft]) -> list[Task]:
    """Tasks that share models side by side, so that a warm engine does not reload; else as given."""
    groups: dict[str, list[_Draft]] = {}
    for draft in drafts:
        label = " + ".join(f"{model.folder}/{model.name}" for model in draft.models)
        groups.setdefault(label, []).append(draft)
    ordered = [(label, draft) for label, members in groups.items() for draft in members]
    return [
        Task(
            index=index,
            hash=draft.hash,
            params=draft.row,
            seed=draft.seed,
            payload={"sets": [list(change) for change in draft.sets]},
            group=label,
            weight=draft.weight,
        )
        for index, (label, draft) in enumerate(ordered)
    ]


def _all_values(base: Graph, task_sets: list[list[Set]], targets: list[Target]) -> list[str]:
    values = [base[target.node]["inputs"].get(target.input) for target in targets]
    wanted = set(targets)
    values += [
        change.value
        for changes in task_sets
        for change in changes
        if Target(change.node, change.input) in wanted
    ]
    return [value for value in values if isinstance(value, str)]


def _classes(graph: Graph) -> set[str]:
    return {node["class_type"] for node in graph.values()}


def _warnings(schema: Schema | None, settings: RenderSettings, not_here: Sequence[str]) -> list[str]:
    found = [f"{key} is not on this machine: it must be in the bucket" for key in not_here]
    if schema is None and settings.engine == "builtin":
        found.append("it needs a ComfyUI, and none is known here: nodes and values are checked where it runs")
    elif schema is None:
        found.append("no object_info is known, so nodes and values are checked only when the engine runs")
    return found
