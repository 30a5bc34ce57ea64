"""Which nodes may run: those that run code, read arbitrary files or call out may not."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from handlers.render.catalog import DENIED_NODES, PATH_INPUT_HINTS
from handlers.render.graph import Graph, Schema, Set, describe
from processor.errors import ErrorKind, JobInvalid


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
    return next((why for pattern, why in DENIED_NODES if fnmatchcase(class_type, pattern)), None)


def allowed(class_type: str, allow: Collection[str]) -> bool:
    """Whether a class is permitted by name or pattern."""
    return any(fnmatchcase(class_type, pattern) for pattern in allow)


def check_paths(graph: Graph, sets: Iterable[Set], *, allow: Collection[str]) -> None:
    """Refuse values of path-like inputs that lead out of ComfyUI's directories.

    Raises:
        JobInvalid: kind `refused`.
    """
    values: list[tuple[str, str, Any]] = [
        (node_id, name, value) for node_id, node in graph.items() for name, value in node["inputs"].items()
    ]
    for node_id, name, value in [*values, *sets]:
        class_type = graph[node_id]["class_type"]
        hinted = any(hint in name.casefold() for hint in PATH_INPUT_HINTS) and name != "filename_prefix"
        if hinted and isinstance(value, str) and leads_out(value) and not allowed(class_type, allow):
            raise JobInvalid(
                f"{describe(graph, node_id)}: {name} {value[:200]!r} leads out of ComfyUI's directories",
                where=f"{node_id}.{name}",
                mend=f"Whoever runs this machine can permit it with allow_nodes: {class_type}",
                kind=ErrorKind.REFUSED,
            )


def leads_out(path: str) -> bool:
    """Whether a path is absolute, a home folder, or climbs: on POSIX or Windows."""
    plain = path.strip().replace("\\", "/")
    drive = len(plain) > 1 and plain[1] == ":" and plain[0].isalpha()
    return plain.startswith(("/", "~")) or drive or ".." in PurePosixPath(plain).parts or "\0" in plain
