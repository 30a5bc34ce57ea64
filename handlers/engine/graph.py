"""A prompt as a graph: what a link is, in which order nodes run, which results can be reused."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from handlers.engine.schema import Node

Prompt = dict[str, Any]
"""The `prompt` of a request: node id -> {"class_type", "inputs"}."""


class GraphError(Exception):
    """The graph cannot be run in any order.

    Validation looks only at declared inputs, so such links can hide in one that is not. ComfyUI's worker
    dies of the first kind; here both are errors of the prompt.
    """

    def __init__(self, message: str, node_id: str) -> None:
        super().__init__(message)
        self.node_id = node_id


class NodeNotFoundError(GraphError):
    """A link leads to a node that is not there."""


class DependencyCycleError(GraphError):
    """Nodes wait for each other."""


def is_link(value: object) -> bool:
    """Whether an input's value is `[node id, output slot]`."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int | float)
    )


def inputs_of(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """A node's inputs. Nodes that no valid output needs were never checked, and may have none."""
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def links(node: Mapping[str, Any]) -> list[str]:
    """The ids of the nodes that a node reads, in the order of its inputs."""
    return [value[0] for value in inputs_of(node).values() if is_link(value)]


class RunOrder:
    """Which node runs next: of those that are ready, the one nearest to an output that people wait for.

    Args:
        outputs: the output nodes to run; what they need is found from them.
        is_cached: nodes that need not run again. An output node runs even so: it reports its files.

    Raises:
        NodeNotFoundError: a link to a node that is not in the prompt.
    """

    def __init__(
        self,
        prompt: Prompt,
        outputs: Iterable[str],
        nodes: Mapping[str, Node],
        is_cached: Callable[[str], bool],
    ) -> None:
        needed: dict[str, int] = {}
        self._readers: dict[str, set[str]] = {}
        for output in outputs:
            stack = [output]
            while stack:
                node_id = stack.pop()
                if node_id in needed:
                    continue
                needed[node_id] = len(needed)
                self._readers.setdefault(node_id, set())
                for source in links(prompt[node_id]):
                    if source not in prompt:
                        raise NodeNotFoundError(f"Node {source} not found", node_id)
                    if not is_cached(source):
                        stack.append(source)
                        self._readers.setdefault(source, set()).add(node_id)
        self._needed = dict.fromkeys(needed)
        self._place = needed
        self._waiting = dict.fromkeys(needed, 0)
        for readers in self._readers.values():
            for reader in readers:
                self._waiting[reader] += 1
        self._rank = {
            node_id: self._distance(node_id, lambda i: nodes[prompt[i]["class_type"]].is_output)
            for node_id in needed
        }
        self._ready: list[tuple[int, int, str]] = []
        for node_id, count in self._waiting.items():
            if count == 0:
                self._push(node_id)

    def __bool__(self) -> bool:
        """Whether anything is left to run."""
        return bool(self._needed)

    def next(self) -> str:
        """The id of the node to run now; it stays so until it is `done`.

        Raises:
            DependencyCycleError: none is ready.
        """
        if not self._ready:
            raise DependencyCycleError("Dependency cycle detected", next(iter(self._needed)))
        return self._ready[0][2]

    def done(self, node_id: str) -> None:
        """Take a node that has run out, and what waited only for it in."""
        heapq.heappop(self._ready)
        del self._needed[node_id]
        for reader in self._readers[node_id]:
            self._waiting[reader] -= 1
            if self._waiting[reader] == 0:
                self._push(reader)

    def _push(self, node_id: str) -> None:
        heapq.heappush(self._ready, (self._rank[node_id], self._place[node_id], node_id))

    def _distance(self, node_id: str, is_output: Callable[[str], bool]) -> int:
        """0 for an output, 1 for what feeds one, 2 for what feeds that, 3 for the rest."""
        level = {node_id}
        for distance in range(3):
            if any(map(is_output, level)):
                return distance
            level = {reader for i in level for reader in self._readers[i]}
        return 3


def signatures(prompt: Prompt, fingerprint: Callable[[str], str]) -> dict[str, str]:
    """What each node's result depends on: equal signatures, equal results.

    Args:
        fingerprint: of a node id, what its result depends on besides its inputs.
    """
    done: dict[str, str] = {}
    opened: set[str] = set()
    stack = list(prompt)
    while stack:
        node_id = stack[-1]
        if node_id not in opened:
            opened.add(node_id)
            stack += [
                source for source in links(prompt[node_id]) if source in prompt and source not in opened
            ]
            continue
        if node_id not in done:
            # a source that is open here and not done is this node's own reader: a cycle, which never runs
            done[node_id] = _signature(prompt[node_id], done, fingerprint(node_id))
        stack.pop()
    return done


def _signature(node: Mapping[str, Any], done: Mapping[str, str], fingerprint: str) -> str:
    inputs = [
        [name, "link", done.get(value[0], "none"), value[1]] if is_link(value) else [name, "value", value]
        for name, value in sorted(inputs_of(node).items())
    ]
    text = json.dumps([node["class_type"], fingerprint, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
