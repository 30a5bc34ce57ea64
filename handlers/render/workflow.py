"""Named workflows: a graph with declared parameters, as a JSON file.

Ours lie in `workflows/render/<name>.json`; users' lie in the store under
`comfy_workflows/`, either in this form or as a bare API export whose parameters are found
automatically. The form, by example::

    {
      "title": "Text to image, SD 1.5",
      "description": "One picture from one prompt.",
      "graph": {"3": {"class_type": "KSampler", "inputs": {…}}, …},
      "parameters": {
        "prompt": {"type": "string", "targets": ["6.text"], "description": "What to show"},
        "steps": {"type": "int", "default": 20, "min": 1, "max": 150, "targets": ["3.steps"]}
      },
      "gpu": "L40S",
      "typical_seconds": 6
    }

A target is `node id.input`. A default is what the graph holds where none is declared. The
models needed are read off the graph's loaders; `models` adds what can't be seen there.
"""

from __future__ import annotations

import json
import math
import re
from importlib import resources
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from handlers.render.graph import target_of
from processor.errors import JobInvalid
from processor.models import MAX_SEED, Gpu, Model, Name, Scalar
from processor.records import ModelFile

ParameterType = Literal["string", "int", "float", "bool", "seed", "file", "model", "color"]
"""`file`: a name in `inputs`, a store key or a URL. `model`: a file under `comfy_models/`.
`color`: `#rrggbb`, or the number that nodes take."""

_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,80}")


class Parameter(Model):
    """Something a job may set by name."""

    type: ParameterType
    targets: list[str] = Field(min_length=1, max_length=200)
    """Inputs it sets, each `node id.input`; all get the same value."""
    default: Any = None
    min: float | None = None
    max: float | None = None
    choices: list[Scalar] | None = None
    description: str = ""
    required: bool = False
    """What the graph holds is a placeholder: a job must set it."""

    def coerce(self, value: Any, *, where: str) -> Scalar:
        """The value as this parameter's type; texts from a CSV become numbers where they must.

        Raises:
            JobInvalid: wrong type, out of range, or no valid choice.
        """
        result = coerce(value, "int" if self.type == "seed" else self.type, where=where)
        if self.choices is not None and result not in self.choices:
            shown = ", ".join(map(str, self.choices[:20]))
            raise JobInvalid(
                f"{result!r} is not one of the choices", where=where, mend=f"Choose one of: {shown}"
            )
        low = 0 if self.type == "seed" and self.min is None else self.min
        high = MAX_SEED if self.type == "seed" and self.max is None else self.max
        if isinstance(result, (int, float)) and not isinstance(result, bool):
            if low is not None and result < low:
                raise JobInvalid(f"{result} is below the smallest allowed, {low:g}", where=where)
            if high is not None and result > high:
                raise JobInvalid(f"{result} is above the largest allowed, {high:g}", where=where)
        return result


class Workflow(Model):
    """A workflow with a name."""

    title: str = ""
    description: str = ""
    graph: dict[str, dict[str, Any]]
    parameters: dict[Name, Parameter] = {}
    models: list[ModelFile] = []
    """Beyond those that the graph's loaders name."""
    gpu: Gpu | None = None
    typical_seconds: float | None = Field(default=None, gt=0)
    """Of one task on `gpu`, once models are loaded."""
    example: dict[str, Any] = {}
    """Fields of a job that shows what it is for: what `dropbatch new` writes."""

    @model_validator(mode="after")
    def _targets_exist(self) -> Self:
        for name, parameter in self.parameters.items():
            for target in parameter.targets:
                if target_of(self.graph, target) is None:
                    raise ValueError(f"parameter {name!r}: target {target!r} is not in the graph")
        return self


def coerce(value: Any, type_: str, *, where: str) -> Scalar:
    """A JSON or CSV value as one of the parameter types, or JobInvalid."""
    match type_, value:
        case (("string" | "file" | "model"), str()):
            return value
        case (("string" | "file" | "model"), bool() | None | list() | dict()):
            pass
        case (("string" | "file" | "model"), _):
            return str(value)
        case "color", _:
            return _color(value, where=where)
        case "bool", bool():
            return value
        case "bool", str() if value.strip().casefold() in {
            "true",
            "yes",
            "on",
            "1",
            "false",
            "no",
            "off",
            "0",
        }:
            return value.strip().casefold() in {"true", "yes", "on", "1"}
        case (("int" | "float"), bool()):
            pass
        case "int", int():
            return value
        case "int", float() if value.is_integer():
            return int(value)
        case "float", int() | float():
            return float(value)
        case (("int" | "float"), str()):
            return _number(value, type_, where=where)
    raise _unexpected(type_, value, where)


_WORDS = {
    **dict.fromkeys(("string", "file", "model"), "a text"),
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "color": "a colour like #d9532c",
}


def _number(text: str, type_: str, *, where: str) -> Scalar:
    try:
        number = int(text) if type_ == "int" else float(text)
    except ValueError:
        raise _unexpected(type_, text, where) from None
    if not math.isfinite(number):
        raise _unexpected(type_, text, where)
    return number


def _color(value: Any, *, where: str) -> int:
    if isinstance(value, str) and _COLOR.fullmatch(value):
        return int(value[1:], 16)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0xFFFFFF:
        return value
    raise _unexpected("color", value, where)


def _unexpected(type_: str, value: Any, where: str) -> JobInvalid:
    return JobInvalid(f"expected {_WORDS[type_]}, got {value!r}", where=where)


READY = "ready"
"""Where a workflow is found that comes with the package."""


def ready_names() -> list[str]:
    """The names of the workflows that come with the package, sorted."""
    folder = resources.files("workflows") / "render"
    if not folder.is_dir():
        return []
    return sorted(
        entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")
    )


def load_ready(name: str) -> Workflow | None:
    """The workflow of this name that comes with the package; None when there is none."""
    if not _NAME.fullmatch(name) or name not in ready_names():
        return None
    text = (resources.files("workflows") / "render" / f"{name}.json").read_text(encoding="utf-8")
    return parse_workflow(json.loads(text), where=f"workflows/render/{name}.json")


def is_workflow_file(value: Any) -> bool:
    """Whether this is our form, not a bare graph."""
    return isinstance(value, dict) and isinstance(value.get("graph"), dict)


def parse_workflow(value: Any, *, where: str) -> Workflow:
    """Read our form.

    Raises:
        JobInvalid: naming the field that is wrong.
    """
    try:
        return Workflow.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise JobInvalid(first["msg"], where=f"{where}: {field}" if field else where) from None
