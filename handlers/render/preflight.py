"""Checking a graph against a server's `/object_info`, before anything is queued.

It finds what ComfyUI's own validation would (execution.py, validate_inputs), without a
server, for the nodes that feed an output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from handlers.render.graph import (
    Graph,
    Schema,
    Set,
    Target,
    choices_of,
    describe,
    input_specs,
    is_link,
    nearest,
    target_of,
)
from processor.errors import ErrorKind, JobInvalid

CONNECT_HOW_TO = (
    "Connect a ComfyUI that has it: COMFYUI_URL=http://host:8188 for a running one, "
    "or COMFYUI_DIR=/path/to/ComfyUI to have one started. "
    "Nodes that are installed there later count once it, or the runner that started it, is restarted"
)

WHOLE_HOW_TO = (
    "Leave the batch manager out; what is too long to be held whole is rendered in parts, one a task, "
    "by a matrix over the loader's skip_first_frames with a frame_load_cap"
)
PREVIEWS = frozenset({"PreviewImage", "MaskPreview", "PreviewAudio", "SaveImageWebsocket"})
"""Output nodes whose files are temporary, or only sent."""
_LINK_TYPES = frozenset(
    (
        *("MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "IMAGE", "MASK", "VIDEO", "AUDIO", "CONTROL_NET"),
        *("CLIP_VISION", "UPSCALE_MODEL", "STYLE_MODEL", "SAMPLER", "SIGMAS", "NOISE", "GUIDER"),
    )
)
"""Types that are never converted into each other. Others are left to the server."""
_ORDER = (
    ErrorKind.REFUSED,
    ErrorKind.MISSING_NODE,
    ErrorKind.MISSING_MODEL,
    ErrorKind.BAD_INPUT,
    ErrorKind.INVALID,
)


Exempt = Callable[[Target, Any], bool]
"""Whether an input's value is checked elsewhere (models, files)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a graph."""

    kind: ErrorKind
    where: str
    what: str
    mend: str | None = None
    passing: bool = False
    """The server may take it all the same, and has the word."""

    def __str__(self) -> str:
        return f"{self.what}. {self.mend}" if self.mend else self.what


def check_graph(graph: Graph, schema: Schema | None, *, exempt: Exempt = lambda *_: False) -> list[Problem]:
    """All problems of a graph, those that no server could accept even without a schema.

    Args:
        schema: `/object_info`; None checks the links only.
    """
    problems = list(_batch_managers(graph))
    if schema is None:
        return [*problems, *_broken_links(graph, graph)]
    unknown = [problem for node_id in graph for problem in _unknown_class(graph, node_id, schema)]
    if unknown:
        return problems + unknown
    outputs = _outputs(graph, schema)
    if not outputs:
        what = "no node of this graph saves anything"
        return [
            *problems,
            Problem(ErrorKind.INVALID, "workflow", what, "Add a SaveImage (or another save node)"),
        ]
    shown = dict.fromkeys(graph[node_id]["class_type"] for node_id in outputs)
    if shown.keys() <= PREVIEWS:
        what = "this graph only previews, so nothing would be kept"
        mend = f"Replace {' and '.join(shown)} by a node that saves, like SaveImage"
        return [*problems, Problem(ErrorKind.INVALID, "workflow", what, mend)]
    needed = upstream(graph, outputs)
    problems.extend(_broken_links(graph, needed))
    for node_id in needed:
        problems.extend(_node_problems(graph, node_id, schema, exempt))
    return problems


def check_sets(graph: Graph, sets: Iterable[Set], schema: Schema | None) -> list[Problem]:
    """The problems of values that tasks set, each distinct one once."""
    if schema is None:
        return []
    seen: set[tuple[str, str, str]] = set()
    problems: list[Problem] = []
    for node_id, name, value in sets:
        key = (node_id, name, repr(value))
        target = Target(node_id, name)
        if key in seen or is_link(value):
            continue
        seen.add(key)
        info = schema.get(graph[node_id]["class_type"], {})
        spec = input_specs(info).get(name)
        if spec and (problem := _value_problem(graph, target, value, spec, lenient=_judges_itself(info))):
            problems.append(problem)
    return problems


def raise_problems(problems: list[Problem]) -> None:
    """Raise the gravest problem as JobInvalid, with all of them as details; return when none stands."""
    problems = [problem for problem in problems if not problem.passing]
    if not problems:
        return
    gravest = min(problems, key=lambda problem: _ORDER.index(problem.kind))
    raise JobInvalid(
        gravest.what,
        where=gravest.where,
        mend=gravest.mend,
        kind=gravest.kind,
        details=[str(problem) for problem in problems[:100]] if len(problems) > 1 else None,
    )


def without_outputs(problems: list[Problem], graph: Graph, schema: Schema | None) -> list[Problem]:
    """The problems of a job that lets the engine leave outputs out (`allow_invalid_outputs`): inputs stop
    it only if no output that keeps something is free of them.

    Args:
        schema: None: which nodes are outputs is for the server to say.
    """
    standing = [each for each in problems if each.kind is ErrorKind.INVALID and not each.passing]
    loose = {each: target.node for each in standing if (target := target_of(graph, each.where)) is not None}
    spoilt = set(loose.values())
    if schema is not None:
        kept = (each for each in _outputs(graph, schema) if graph[each]["class_type"] not in PREVIEWS)
        if not any(spoilt.isdisjoint(upstream(graph, [node_id])) for node_id in kept):
            return problems
    return [replace(problem, passing=True) if problem in loose else problem for problem in problems]


def passing(problems: Iterable[Problem]) -> list[str]:
    """What a plan says of the problems that don't stop it."""
    return [str(problem) for problem in problems if problem.passing]


def upstream(graph: Graph, outputs: Iterable[str]) -> list[str]:
    """The nodes that these need, themselves included."""
    reached: dict[str, None] = {}
    waiting = list(outputs)
    while waiting:
        node_id = waiting.pop()
        if node_id in reached or node_id not in graph:
            continue
        reached[node_id] = None
        waiting.extend(value[0] for value in graph[node_id]["inputs"].values() if is_link(value))
    return list(reached)


def missing_node(graph: Graph, node_id: str, known: Iterable[str]) -> Problem:
    """The problem of a node class that a server lacks."""
    class_type = graph[node_id]["class_type"]
    near = nearest(class_type, known, what="nodes")
    hint = f"{near} " if near.startswith("Did") else ""
    what = f"{describe(graph, node_id)}: the engine has no node of this class"
    return Problem(ErrorKind.MISSING_NODE, node_id, what, hint + CONNECT_HOW_TO)


def _unknown_class(graph: Graph, node_id: str, schema: Schema) -> Iterator[Problem]:
    if graph[node_id]["class_type"] not in schema:
        yield missing_node(graph, node_id, schema)


def _outputs(graph: Graph, schema: Schema) -> list[str]:
    return [
        node_id for node_id, node in graph.items() if schema.get(node["class_type"], {}).get("output_node")
    ]


def _batch_managers(graph: Graph) -> Iterator[Problem]:
    """Nodes that have their prompt queued again until a video ends, under an id that we don't know."""
    links = (value for node in graph.values() for value in node["inputs"].values() if is_link(value))
    for manager in dict.fromkeys(value[0] for value in links):
        if graph.get(manager, {}).get("class_type") == "VHS_BatchManager":
            what = f"{describe(graph, manager)} queues prompts of its own, which nobody here would follow"
            yield Problem(ErrorKind.REFUSED, manager, what, WHOLE_HOW_TO)


def _broken_links(graph: Graph, node_ids: Iterable[str]) -> Iterator[Problem]:
    for node_id in node_ids:
        for name, value in graph[node_id]["inputs"].items():
            if is_link(value) and value[0] not in graph:
                what = (
                    f"{describe(graph, node_id)}: {name} is linked to node {value[0]}, which does not exist"
                )
                yield Problem(ErrorKind.INVALID, f"{node_id}.{name}", what, "Export the workflow again")


def _node_problems(graph: Graph, node_id: str, schema: Schema, exempt: Exempt) -> Iterator[Problem]:
    node = graph[node_id]
    info = schema[node["class_type"]]
    for name, spec in info.get("input", {}).get("required", {}).items():
        if name not in node["inputs"] and not str(spec[0] if spec else "").startswith("COMFY_"):
            yield Problem(
                ErrorKind.INVALID,
                f"{node_id}.{name}",
                f"{describe(graph, node_id)}: the required input {name} is missing",
            )
    for name, spec in input_specs(info).items():
        if name not in node["inputs"] or exempt(Target(node_id, name), node["inputs"][name]):
            continue
        value = node["inputs"][name]
        problem = (
            _link_problem(graph, Target(node_id, name), value, spec, schema)
            if isinstance(value, list)
            else _value_problem(graph, Target(node_id, name), value, spec, lenient=_judges_itself(info))
        )
        if problem:
            yield problem


def _link_problem(
    graph: Graph, target: Target, value: list[Any], spec: list[Any], schema: Schema
) -> Problem | None:
    place = f"{describe(graph, target.node)}: {target.input}"
    if not is_link(value):
        return Problem(
            ErrorKind.INVALID, str(target), f"{place} is {value!r}, which is no link [node id, output]"
        )
    if value[0] not in graph:
        return None
    source = describe(graph, value[0])
    info = schema.get(graph[value[0]]["class_type"], {})
    given = info.get("output", [])
    if not 0 <= value[1] < len(given):
        what = f"{place} is linked to output {value[1]} of {source}, which has {len(given)}"
        # Those that a custom node grows in the browser, its schema does not count.
        return Problem(ErrorKind.INVALID, str(target), what, passing=value[1] >= 0 and _judges_itself(info))
    wanted, got = spec[0] if spec else None, given[value[1]]
    if isinstance(wanted, str) and isinstance(got, str) and {wanted, got} <= _LINK_TYPES and wanted != got:
        return Problem(ErrorKind.INVALID, str(target), f"{place} takes {wanted}, and {source} gives {got}")
    return None


def _judges_itself(info: dict[str, Any]) -> bool:
    """Whether a class may take values, or give outputs, that it does not list: by a `VALIDATE_INPUTS` of
    its own, of which the schema says nothing, custom nodes fill their lists in the browser."""
    return str(info.get("python_module", "")).startswith("custom_nodes")


def _value_problem(
    graph: Graph, target: Target, value: Any, spec: list[Any], *, lenient: bool
) -> Problem | None:
    options: dict[str, Any] = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    kind = spec[0] if spec else None
    place = f"{describe(graph, target.node)}: {target.input}"
    if (choices := choices_of(spec)) is not None:
        # Upload inputs list what lies in that server's input folder just then.
        if value in choices or isinstance(value, dict) or options.get("multiselect"):
            return None
        mend = nearest(str(value), map(str, choices), what="allowed values")
        what = f"{place} {value!r} is not an allowed value"
        return Problem(ErrorKind.INVALID, str(target), what, mend, passing=lenient)
    if kind in ("INT", "FLOAT"):
        return _number_problem(place, target, value, kind, options)
    if kind in _LINK_TYPES:
        return Problem(ErrorKind.INVALID, str(target), f"{place} takes a link to {kind}, not {value!r}")
    return None


def _number_problem(
    place: str, target: Target, value: Any, kind: str, options: dict[str, Any]
) -> Problem | None:
    try:
        number = int(value) if kind == "INT" else float(value)
    except (TypeError, ValueError, OverflowError):
        word = "a whole number" if kind == "INT" else "a number"
        return Problem(ErrorKind.INVALID, str(target), f"{place} takes {word}, not {value!r}")
    low, high = options.get("min"), options.get("max")
    if low is not None and number < low:
        return Problem(
            ErrorKind.INVALID, str(target), f"{place} {value} is below the smallest allowed, {low}"
        )
    if high is not None and number > high:
        return Problem(
            ErrorKind.INVALID, str(target), f"{place} {value} is above the largest allowed, {high}"
        )
    return None
