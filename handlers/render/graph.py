"""An API graph: telling it from an editor's file, naming its inputs, changing them.

A graph is what ComfyUI's "Export (API)" writes: node id → `{"class_type", "inputs",
"_meta": {"title"}}`, where an input is a value or a link `[node id, output slot]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from handlers.render.catalog import (
    FILE_INPUTS,
    FOLDER_ALIASES,
    MODEL_INPUTS,
    NOT_MODELS,
    SEED_INPUTS,
    UPLOAD_FLAGS,
)
from processor.errors import JobInvalid

Graph = dict[str, dict[str, Any]]
"""Node id → node."""
Schema = dict[str, dict[str, Any]]
"""What `/object_info` answers: node class → its inputs, outputs and marks."""

MAX_NODES = 5_000
EXPORT_HOW_TO = 'In ComfyUI, choose Workflow → "Export (API)" and drop the file that it saves'


class Target(NamedTuple):
    """One input of one node."""

    node: str
    input: str

    def __str__(self) -> str:
        return f"{self.node}.{self.input}"


class Set(NamedTuple):
    """One change to a graph; a task's payload is a list of these."""

    node: str
    input: str
    value: Any


class NamedModel(NamedTuple):
    """A model file that a loader names: tried in each of `folders`."""

    folders: tuple[str, ...]
    name: str
    target: Target


def is_link(value: Any) -> bool:
    """Whether an input's value is a link to another node's output."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def unwrapped(value: Any) -> Any:
    """An input's value as the server will see it: out of `{"__value__": …}`, which it takes off
    before running. Only a list needs that, to tell it from a link; it keeps one."""
    if not isinstance(value, dict) or "__value__" not in value:
        return value
    inner: Any = value
    while isinstance(inner, dict) and "__value__" in inner:
        inner = inner["__value__"]
    return {"__value__": inner} if isinstance(inner, list) else inner


def is_ui_export(value: Any) -> bool:
    """Whether this is the editor's own format, which the server can't run."""
    return isinstance(value, dict) and isinstance(value.get("nodes"), list)


def is_api_graph(value: Any) -> bool:
    """Whether this looks like an API export: every entry is a node with a class."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in value.values())
    )


def read_graph(value: Any, *, where: str = "workflow") -> Graph:
    """Check the form of a graph and copy it, so that changes stay ours.

    Takes a bare export, or one still wrapped as the body of `POST /prompt`.

    Raises:
        JobInvalid: an editor's file, an empty graph, a node without a class.
    """
    if isinstance(value, dict) and is_api_graph(value.get("prompt")):
        value = value["prompt"]
    if is_ui_export(value):
        raise JobInvalid(
            "this is a workflow saved by the editor, not an API export", where=where, mend=EXPORT_HOW_TO
        )
    if not isinstance(value, dict) or not value:
        raise JobInvalid(
            "a graph is a JSON object of nodes, and this one has none", where=where, mend=EXPORT_HOW_TO
        )
    if len(value) > MAX_NODES:
        raise JobInvalid(f"{len(value):,} nodes; at most {MAX_NODES:,} are taken", where=where)
    graph: Graph = {}
    for node_id, node in value.items():
        place = f"{where}.{node_id}"
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise JobInvalid("this node has no class_type", where=place, mend=EXPORT_HOW_TO)
        inputs = node.get("inputs", {})
        if not isinstance(inputs, dict):
            raise JobInvalid("a node's inputs are a JSON object", where=place)
        meta = node.get("_meta")
        plain = {name: unwrapped(item) for name, item in inputs.items()}
        graph[node_id] = {"class_type": node["class_type"], "inputs": plain}
        if isinstance(meta, dict) and isinstance(meta.get("title"), str):
            graph[node_id]["_meta"] = {"title": meta["title"][:200]}
    return graph


def title_of(graph: Graph, node_id: str) -> str:
    """A node's title where it has one, else its class."""
    node = graph.get(node_id)
    if node is None:
        return node_id
    title = node.get("_meta", {}).get("title")
    return str(title or node["class_type"])


def target_of(graph: Graph, text: str) -> Target | None:
    """What `node id.input` means in this graph; None when it has no such node.

    Ids and inputs may hold dots themselves: of several readings, one with an input that is there.
    """
    cuts = [place for place, letter in enumerate(text) if letter == "."]
    found = [Target(text[:cut], text[cut + 1 :]) for cut in reversed(cuts) if text[:cut] in graph]
    found = [target for target in found if target.input]
    there = (target for target in found if target.input in graph[target.node]["inputs"])
    return next(there, found[0] if found else None)


def owner_of(graph: Graph, node_id: str, owners: Mapping[str, str] | None = None) -> str:
    """The node of this graph that a node of the engine's stands for; its own id if none is known.

    A loop, or a node that expands into others, runs as nodes that the graph does not have,
    `7.0.0.2` for one of node 7's.

    Args:
        owners: what the engine says, where it does.
    """
    known = (owners or {}).get(node_id, node_id)
    found = known
    while found not in graph and "." in found:
        found = found.rpartition(".")[0]
    return found if found in graph else known


def describe(graph: Graph, node_id: str) -> str:
    """A node as errors name it: id, class, and title where that says more."""
    node = graph.get(node_id)
    if node is None:
        return f"node {node_id}"
    title = title_of(graph, node_id)
    extra = f' "{title}"' if title != node["class_type"] else ""
    return f"node {node_id} {node['class_type']}{extra}"


def applied(graph: Graph, sets: Iterable[Set | list[Any]]) -> Graph:
    """A copy of the graph with these inputs set; nodes that are not touched are shared."""
    changed = dict(graph)
    for node_id, name, value in sets:
        node = changed[node_id]
        if node is graph[node_id]:
            node = changed[node_id] = {**node, "inputs": dict(node["inputs"])}
        node["inputs"][name] = unwrapped(value)
    return changed


def seed_targets(graph: Graph) -> list[Target]:
    """Every seed input that holds a value; linked ones take theirs from elsewhere."""
    found: list[Target] = []
    for node_id, node in graph.items():
        for name in SEED_INPUTS:
            if name in node["inputs"] and not is_link(node["inputs"][name]):
                found.append(Target(node_id, name))
            elif name in node["inputs"]:
                found.extend(_linked_number(graph, node["inputs"][name]))
    return list(dict.fromkeys(found))


def _linked_number(graph: Graph, link: list[Any]) -> Iterator[Target]:
    # A PrimitiveInt titled "seed" often feeds several samplers: it is the seed, then.
    source = graph.get(link[0])
    if (
        source
        and source["class_type"].startswith("Primitive")
        and isinstance(source["inputs"].get("value"), int)
    ):
        yield Target(link[0], "value")


def named_models(graph: Graph) -> list[NamedModel]:
    """The model files that the graph's loaders name, in the order of its nodes."""
    found: list[NamedModel] = []
    for node_id, node in graph.items():
        for name, folder in MODEL_INPUTS.get(node["class_type"], {}).items():
            value = node["inputs"].get(name)
            if isinstance(value, str) and value not in NOT_MODELS:
                found.append(NamedModel(FOLDER_ALIASES.get(folder, (folder,)), value, Target(node_id, name)))
        for name, value in node["inputs"].items():
            lora = lora_of(name, value)
            if lora is not None and lora not in NOT_MODELS:
                found.append(NamedModel(("loras",), lora, Target(node_id, name)))
    return found


def lora_of(name: str, value: Any) -> str | None:
    """The LoRA of a row that is on in rgthree's Power Lora Loader; None where an input is no such row.

    A row is `{"on": true, "lora": "x.safetensors", "strength": 1}`. What the node doesn't find it leaves
    out, or takes one of a similar name: nothing fails.
    """
    if not name.casefold().startswith("lora_") or not isinstance(value, dict) or not value.get("on", True):
        return None
    lora = value.get("lora")
    return lora if isinstance(lora, str) else None


def file_inputs(class_type: str, schema: Schema | None = None) -> tuple[str, ...]:
    """The inputs of a class that name files, by what is known of it and by its schema."""
    return FILE_INPUTS.get(class_type) or _upload_inputs(class_type, schema)


def _upload_inputs(class_type: str, schema: Schema | None) -> tuple[str, ...]:
    if not schema or class_type not in schema:
        return ()
    return tuple(
        name
        for name, spec in input_specs(schema[class_type]).items()
        if len(spec) > 1 and isinstance(spec[1], dict) and any(spec[1].get(flag) for flag in UPLOAD_FLAGS)
    )


def input_specs(info: dict[str, Any]) -> dict[str, list[Any]]:
    """All inputs that a class declares, required and optional: name → `[type, options]`."""
    declared = info.get("input", {})
    return {**declared.get("required", {}), **declared.get("optional", {})}


def choices_of(spec: list[Any]) -> list[Any] | None:
    """The values that a declared input may take, in either generation's way of listing them."""
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    kind = spec[0] if spec else None
    choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
    return choices if isinstance(choices, list) else None


def find_nodes(graph: Graph, reference: str) -> list[str]:
    """The nodes that an id or a title means: an id first, then titles, exact before caseless."""
    if reference in graph:
        return [reference]
    exact = [node_id for node_id in graph if title_of(graph, node_id) == reference]
    folded = reference.casefold()
    return exact or [node_id for node_id in graph if title_of(graph, node_id).casefold() == folded]


def nearest(wanted: str, known: Iterable[str], *, what: str) -> str:
    """The sentence that names the nearest known name, or the first few of them."""
    names = list(dict.fromkeys(known))
    folded = {name.casefold(): name for name in reversed(names)}
    near = get_close_matches(wanted.casefold(), folded, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {folded[near[0]]!r}?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"The {what} are: {shown}" if names else f"There are no {what}"
