"""Which nodes may run: those that run code, read arbitrary files or call out may not."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, Final

from handlers.render.catalog import DENIED_NODES, FILE_LIKE_HINTS, PATH_INPUT_HINTS, URL_INPUT_HINTS
from handlers.render.graph import Graph, Schema, Set, describe, is_link
from handlers.render.outputs import PREFIX_INPUT
from processor.errors import ErrorKind, JobInvalid
from processor.task_inputs import texts_in

_ADDRESS: Final = re.compile(r"\s*([a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)


def check_nodes(
    graph: Graph, *, allow: Collection[str], deny: Collection[str], schema: Schema | None = None
) -> None:
    """Refuse a graph with denied nodes.

    Raises:
        JobInvalid: kind `refused`, naming every such node and the setting that permits it.
    """
    refused: list[str] = []
    classes: dict[str, None] = {}
    for node_id, node in graph.items():
        if (why := why_denied(node["class_type"], allow=allow, deny=deny, schema=schema)) is not None:
            refused.append(f"{describe(graph, node_id)} {why}")
            classes[node["class_type"]] = None
    if refused:
        raise JobInvalid(
            f"{refused[0]}, which is not permitted here",
            where="workflow",
            mend=f"Whoever runs this machine can permit it with allow_nodes: {', '.join(classes)}",
            kind=ErrorKind.REFUSED,
            details=refused,
        )


def why_denied(
    class_type: str, *, allow: Collection[str], deny: Collection[str], schema: Schema | None = None
) -> str | None:
    """Why a node class may not run; None when it may. Names may be `fnmatch` patterns; an exact
    name in `deny` beats `allow`, and `allow` beats all else."""
    if class_type in deny:
        return "is denied by deny_nodes"
    if allowed(class_type, allow):
        return None
    if any(fnmatchcase(class_type, pattern) for pattern in deny):
        return "is denied by deny_nodes"
    if schema and schema.get(class_type, {}).get("api_node"):
        return "calls a paid service"
    folded = class_type.casefold()
    return next((why for pattern, why in DENIED_NODES if fnmatchcase(folded, pattern)), None)


def allowed(class_type: str, allow: Collection[str]) -> bool:
    """Whether a class is permitted by name or pattern."""
    return any(fnmatchcase(class_type, pattern) for pattern in allow)


def check_paths(graph: Graph, sets: Iterable[Set], *, allow: Collection[str]) -> None:
    """Refuse values of path-like inputs that lead out of ComfyUI's directories, and addresses
    where a node would call them; also where they come over links from other nodes' texts.

    Raises:
        JobInvalid: kind `refused`.
    """
    values: list[tuple[str, str, Any]] = [
        (node_id, name, value) for node_id, node in graph.items() for name, value in node["inputs"].items()
    ]
    feeding: set[str] = set()
    for node_id, name, value in [*values, *sets]:
        class_type = graph[node_id]["class_type"]
        if allowed(class_type, allow):
            continue
        if (found := _danger(graph, name, value, feeding)) is not None:
            raise JobInvalid(
                f"{describe(graph, node_id)}: {name} {found}",
                where=f"{node_id}.{name}",
                mend=f"Whoever runs this machine can permit it with allow_nodes: {class_type}",
                kind=ErrorKind.REFUSED,
            )


def _danger(graph: Graph, name: str, value: Any, feeding: set[str]) -> str | None:
    """What is wrong with the value of an input of this name.

    Args:
        feeding: nodes whose texts were looked at already, as what may come over a link.
    """
    folded = name.casefold()
    if name == PREFIX_INPUT:
        return None  # made safe when it is run
    path_like = any(hint in folded for hint in PATH_INPUT_HINTS)
    calls = any(hint in folded for hint in URL_INPUT_HINTS)
    if is_link(value):
        # A picture's link has all prompts above it; only where a text is wanted do texts count.
        texts = _fed(graph, value[0], feeding) if path_like or calls else []
        path_like = calls = True  # each text is looked at once, whatever it feeds
    else:
        texts = list(texts_in(value))
        path_like = path_like or any(hint in folded for hint in FILE_LIKE_HINTS)
    if calls and any(_ADDRESS.match(text) for text in texts):
        return "holds an address, and the node would call it"
    if path_like and (out := next(filter(leads_out, texts), None)) is not None:
        return f"{out[:200]!r} leads out of ComfyUI's directories"
    return None


def _fed(graph: Graph, node_id: str, feeding: set[str]) -> list[str]:
    """The texts of a node and of all above it, but for those looked at before."""
    texts: list[str] = []
    waiting = [node_id]
    while waiting:
        node_id = waiting.pop()
        if node_id in feeding or node_id not in graph:
            continue
        feeding.add(node_id)
        for value in graph[node_id]["inputs"].values():
            if is_link(value):
                waiting.append(value[0])
            else:
                texts.extend(texts_in(value))
    return texts


def leads_out(path: str) -> bool:
    """Whether a path is absolute, a home folder, or climbs: on POSIX or Windows."""
    plain = path.strip().replace("\\", "/")
    if plain.casefold().startswith("file:"):
        return True
    drive = len(plain) > 1 and plain[1] == ":" and plain[0].isalpha()
    return plain.startswith(("/", "~")) or drive or ".." in PurePosixPath(plain).parts or "\0" in plain
