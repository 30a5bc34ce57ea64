"""Named workflows as people choose them: the ready ones, and those in the bucket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from handlers.render.graph import Graph, named_models
from handlers.render.naming import Binder
from handlers.render.planning import find_workflow
from handlers.render.workflow import Parameter, Workflow, ready_names
from processor import layout
from processor.catalogue import ParameterFacts, WorkflowFacts
from processor.errors import JobInvalid
from processor.store import Store
from processor.store.memory import MemoryStore

MAX_SHOWN = 500
_THREADS = 16


def all_workflows(store: Store | None) -> list[WorkflowFacts]:
    """The ready workflows that the bucket replaces by none of its own, then at most `MAX_SHOWN` of
    the bucket's, each by name.

    One that can't be read is listed with its problem. Cost: see `processor.catalogue`.
    """
    keys = [
        entry.key
        for page in (store.list(layout.WORKFLOWS) if store is not None else ())
        for entry in page.objects
        if entry.key.endswith(".json")
    ]
    replaced = {_name_of(key) for key in keys}
    ready = [one_workflow(name, None) for name in ready_names() if name not in replaced]
    if store is None:
        return ready
    with ThreadPoolExecutor(_THREADS) as pool:
        return ready + list(pool.map(lambda key: _theirs(key, store), islice(keys, MAX_SHOWN)))


def one_workflow(name: str, store: Store | None) -> WorkflowFacts:
    """A workflow by name or key.

    Raises:
        JobInvalid: there is none, or it is no workflow.
    """
    source, workflow = find_workflow(name, store if store is not None else MemoryStore(), layout.INBOX)
    return _facts(name, source, workflow)


def _theirs(key: str, store: Store) -> WorkflowFacts:
    name = _name_of(key)
    try:
        return _facts(name, *find_workflow(key, store, layout.INBOX))
    except JobInvalid as error:
        return WorkflowFacts(name=name, source=key, problem=error.what)


def _name_of(key: str) -> str:
    return key.removeprefix(layout.WORKFLOWS).removesuffix(".json")


def _facts(name: str, source: str, workflow: Workflow) -> WorkflowFacts:
    graph: Graph = workflow.graph
    parameters = Binder(graph, workflow.parameters).parameters
    models = [f"{model.folders[0]}/{model.name}" for model in named_models(graph)]
    models += [f"{model.folder}/{model.name}" for model in workflow.models]
    return WorkflowFacts(
        name=name,
        title=workflow.title,
        description=workflow.description,
        source=source,
        gpu=workflow.gpu,
        typical_seconds=workflow.typical_seconds,
        parameters=[_parameter(label, parameter) for label, parameter in parameters.items()],
        found=not workflow.parameters,
        models=list(dict.fromkeys(models)),
        nodes=len(graph),
        example=workflow.example,
    )


def _parameter(name: str, parameter: Parameter) -> ParameterFacts:
    return ParameterFacts(name=name, **parameter.model_dump())
