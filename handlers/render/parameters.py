"""What can be turned on a graph that declares nothing: found by class, links and titles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from handlers.render.catalog import FILE_INPUTS, MODEL_INPUTS, TEXT_INPUTS
from handlers.render.graph import Graph, Target, is_link, seed_targets
from handlers.render.workflow import Parameter, ParameterType

_PLAIN = {
    "steps": "steps",
    "cfg": "cfg",
    "guidance": "guidance",
    "denoise": "denoise",
    "sampler_name": "sampler",
    "scheduler": "scheduler",
    "width": "width",
    "height": "height",
    "batch_size": "batch_size",
    "length": "frames",
    "fps": "fps",
    "strength_model": "lora_strength",
    "upscale_method": "upscale_method",
}
"""Input name → parameter name, on any node."""
_FOLDERS = {
    "checkpoints": "checkpoint",
    "diffusers": "checkpoint",
    "diffusion_models": "model",
    "loras": "lora",
    "vae": "vae",
    "controlnet": "controlnet",
    "upscale_models": "upscale_model",
}
_FILES = {"LoadVideo": "video", "VHS_LoadVideo": "video", "LoadAudio": "audio"}


def find_parameters(graph: Graph) -> dict[str, Parameter]:
    """The parameters of an export: `prompt`, `negative`, `seed`, `steps`, …, in a fixed order.

    Several inputs of one kind become one parameter while they hold the same value
    (two samplers with equal steps), else `name`, `name_2`, …
    """
    found: dict[str, Parameter] = {}
    for role, name in (("positive", "prompt"), ("negative", "negative")):
        _add(found, graph, name, text_targets(graph, role), together=True)
    _add(found, graph, "seed", seed_targets(graph), together=True)
    groups: dict[str, list[Target]] = defaultdict(list)
    for name, target in _plain_targets(graph):
        groups[name].append(target)
    for name, targets in groups.items():
        _add(found, graph, name, targets, together=False)
    return found


def text_targets(graph: Graph, role: str) -> list[Target]:
    """The text inputs that feed a sampler's `positive` or `negative`.

    Without a sampler (or without that role) a single text encoder is the positive one.
    """
    found: dict[Target, None] = {}
    for node in graph.values():
        for name in _role_inputs(node["inputs"], role):
            for target in _follow(graph, node["inputs"][name], role):
                found[target] = None
    if not found and role == "positive":
        encoders = [node_id for node_id, node in graph.items() if "TextEncode" in node["class_type"]]
        if len(encoders) == 1:
            found.update(dict.fromkeys(_texts_of(graph, encoders[0])))
    if role == "negative":
        # A ConditioningZeroOut of the positive text is no negative prompt of its own.
        for target in text_targets(graph, "positive"):
            found.pop(target, None)
    return list(found)


def _role_inputs(inputs: dict[str, Any], role: str) -> Iterator[str]:
    samples = "latent_image" in inputs or "sampler" in inputs or "cfg" in inputs or "sampler_name" in inputs
    if samples and is_link(inputs.get(role)):
        yield role
    # BasicGuider: one conditioning, for SamplerCustomAdvanced.
    if role == "positive" and is_link(inputs.get("conditioning")) and "model" in inputs and len(inputs) == 2:
        yield "conditioning"


def _follow(graph: Graph, link: list[Any], role: str) -> Iterator[Target]:
    """Up the conditioning from a sampler to the texts; each node once, so circles end."""
    seen: set[str] = set()
    waiting: list[str] = [link[0]]
    while waiting:
        node_id = waiting.pop()
        if node_id in seen or node_id not in graph:
            continue
        seen.add(node_id)
        inputs = graph[node_id]["inputs"]
        if "TextEncode" in graph[node_id]["class_type"] or (
            is_link(inputs.get("clip")) and any(name in inputs for name in TEXT_INPUTS)
        ):
            yield from _texts_of(graph, node_id)
        elif is_link(inputs.get(role)):
            waiting.append(inputs[role][0])
        else:
            above = [v[0] for name, v in inputs.items() if name.startswith("conditioning") and is_link(v)]
            waiting.extend(reversed(above))


def _texts_of(graph: Graph, node_id: str) -> Iterator[Target]:
    seen: set[str] = set()
    waiting: list[Target | str] = [node_id]
    while waiting:
        found = waiting.pop()
        if isinstance(found, Target):
            yield found
        elif found not in seen and found in graph:
            seen.add(found)
            inputs = graph[found]["inputs"]
            given = [(name, inputs[name]) for name in TEXT_INPUTS if name in inputs]
            waiting.extend(
                Target(found, name) if isinstance(value, str) else value[0]
                for name, value in reversed(given)
                if isinstance(value, str) or is_link(value)
            )


def _plain_targets(graph: Graph) -> Iterator[tuple[str, Target]]:
    for node_id, node in graph.items():
        class_type, inputs = node["class_type"], node["inputs"]
        for name, folder in MODEL_INPUTS.get(class_type, {}).items():
            if folder in _FOLDERS and isinstance(inputs.get(name), str):
                yield _FOLDERS[folder], Target(node_id, name)
        for name in FILE_INPUTS.get(class_type, ()):
            if isinstance(inputs.get(name), str):
                yield _FILES.get(class_type, "image"), Target(node_id, name)
        for name, parameter in _PLAIN.items():
            if name in inputs and not isinstance(inputs[name], (list, dict)):
                yield parameter, Target(node_id, name)


def _add(
    found: dict[str, Parameter], graph: Graph, name: str, targets: list[Target], *, together: bool
) -> None:
    if not targets:
        return
    values = [graph[target.node]["inputs"][target.input] for target in targets]
    # One checkpoint or LoRA each: two loaders with the same file are still two choices.
    alike = all(value == values[0] and type(value) is type(values[0]) for value in values)
    if together or (alike and name not in {"lora", "image", "video", "audio"}):
        found[name] = _parameter(name, targets, values[0])
        return
    for number, (target, value) in enumerate(zip(targets, values, strict=True), start=1):
        label = name if number == 1 else f"{name}_{number}"
        found[label] = _parameter(name, [target], value)


def _parameter(name: str, targets: list[Target], value: Any) -> Parameter:
    return Parameter(type=_type_of(name, value), default=value, targets=[str(target) for target in targets])


def _type_of(name: str, value: Any) -> ParameterType:
    if name == "seed":
        return "seed"
    if name in {"image", "video", "audio"}:
        return "file"
    match value:
        case bool():
            return "bool"
        case int():
            # A whole cfg or strength in an export (`8`) does not make it an integer.
            return "float" if name in {"cfg", "guidance", "denoise", "lora_strength", "fps"} else "int"
        case float():
            return "float"
        case _:
            return "string"
