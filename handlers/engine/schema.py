"""What a node declares, and how `/object_info` tells it.

Declarations mirror ComfyUI 0.3.64's own, so that a workflow, a validator or a person sees the same node on
either server. ComfyUI has two generations of node classes, which print slightly differently and of which
only the first has its choices validated; `v3` marks the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from handlers.engine.batch import Batch
from handlers.engine.limits import Limits

Value = Batch | int | float | str
"""What travels along a link."""

MAX_RESOLUTION = 16_384


class Folders(Protocol):
    """Where a node reads and writes; see `files.Folders`."""

    def input_pictures(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Input:
    """One declared input.

    Args:
        kind: a link or value type such as IMAGE or INT, or the list of values to choose from.
        options: default, bounds, tooltip, as `/object_info` shows them. None where a V1 node gives none.
        from_inputs: the choices are the pictures in the input folder now.
    """

    kind: str | list[str]
    options: Mapping[str, Any] | None = None
    from_inputs: bool = False

    def declared(self, folders: Folders) -> list[Any]:
        """As `/object_info` lists it: the type, then its options where there are any."""
        kind = folders.input_pictures() if self.from_inputs else self.kind
        return [kind] if self.options is None else [kind, dict(self.options)]

    def config(self, folders: Folders) -> list[Any]:
        """As a validation error quotes it."""
        kind, *options = self.declared(folders)
        return [kind, options[0] if options else {}]


@dataclass(frozen=True, slots=True)
class Output:
    """What a run of a node gave: a value per output slot, and for output nodes what to show."""

    values: tuple[Value, ...] = ()
    ui: dict[str, list[Any]] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A node class: its declaration and its function.

    Args:
        run: called with the context, then every given input by name.
        fingerprint: of the same constants, what else the result depends on (a file's content).
        validate: checks the inputs that it names itself; True, or the sentence that refuses them.
        validates: the inputs that `validate` takes over from the general checks.
    """

    name: str
    display_name: str | None
    category: str
    module: str
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    run: Callable[..., Output]
    optional: Mapping[str, Input] = field(default_factory=dict)
    description: str = ""
    is_output: bool = False
    v3: bool = False
    fingerprint: Callable[..., str] | None = None
    validate: Callable[..., bool | str] | None = None
    validates: frozenset[str] = frozenset()

    def find_input(self, name: str) -> Input | None:
        """The declared input of that name."""
        return self.inputs.get(name) or self.optional.get(name)

    def object_info(self, folders: Folders) -> dict[str, Any]:
        """The node's entry in `/object_info`."""
        sections: dict[str, dict[str, Any]] = {
            "required": {name: spec.declared(folders) for name, spec in self.inputs.items()}
        }
        if self.optional:
            sections["optional"] = {name: spec.declared(folders) for name, spec in self.optional.items()}
        if self.is_output:
            sections["hidden"] = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
        info: dict[str, Any] = {
            "input": sections,
            "input_order": {section: list(names) for section, names in sections.items()},
            "output": list(self.outputs),
            "output_is_list": [False] * len(self.outputs),
            "output_name": list(self.outputs),
            "name": self.name,
            "display_name": self.display_name,
            "description": self.description,
            "python_module": self.module,
            "category": self.category,
            "output_node": self.is_output,
        }
        if self.v3:
            info["output_tooltips"] = [None] * len(self.outputs)
            info.update(deprecated=False, experimental=False, api_node=False)
        return info


def link(kind: str, options: Mapping[str, Any] | None = None) -> Input:
    """An input that takes a link, such as IMAGE."""
    return Input(kind, options)


def integer(default: int, low: int, high: int, step: int | None = None, **more: Any) -> Input:
    """A bounded INT."""
    return Input("INT", _number(default, low, high, step) | more)


def number(default: float, low: float, high: float, step: float) -> Input:
    """A bounded FLOAT."""
    return Input("FLOAT", _number(default, low, high, step))


def choice(*values: str, **options: Any) -> Input:
    """One of a few words, as a V1 node declares it."""
    return Input(list(values), options or None)


def choice_v3(*values: str) -> Input:
    """One of a few words, as a V3 node declares it. ComfyUI does not validate these."""
    return Input("COMBO", {"multiselect": False, "options": list(values)})


def _number(default: float, low: float, high: float, step: float | None) -> dict[str, Any]:
    bounds: dict[str, Any] = {"default": default, "min": low, "max": high}
    return bounds if step is None else bounds | {"step": step}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server was started with that changes what nodes do."""

    limits: Limits = field(default_factory=Limits)
    metadata: bool = True
    """Write the prompt into saved files."""
    pause_s: float = 0.0
    """Added to each node's time: rehearses long renders at no cost to the CPU."""
