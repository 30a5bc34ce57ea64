"""From the bytes of a drop to a validated job, or to an error that names field, value and mend."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

from pydantic import ValidationError

from processor.errors import JobInvalid
from processor.layout import EMITTED
from processor.models import IngestJob, JobBase, RenderJob, TrainJob
from processor.problems import did_you_mean, find_problems

_MAX_DEPTH = 64
_MAX_DIGITS = 100
"""Of a whole number; every limit there is has twenty at most."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MODELS: dict[str, type[JobBase]] = {"render": RenderJob, "train": TrainJob, "ingest": IngestJob}

EXPORT_API_HINT = (
    "In ComfyUI choose Workflow > Export (API) (older versions: enable Dev mode, then Save (API Format)) "
    "and drop that file"
)


def read_job(data: bytes, *, key: str) -> JobBase:
    """Validate a drop's bytes.

    A bare ComfyUI API export becomes a render job of that graph.

    Raises:
        JobInvalid: broken JSON, a UI export, unknown or wrong fields; the error names them all.
    """
    value = parse_json(data, key=key)
    if not isinstance(value, dict):
        raise JobInvalid(f"a job is a JSON object, this is {_json_type(value)}", where=key)
    if is_ui_export(value):
        raise JobInvalid(
            "this is ComfyUI's UI format, which only its browser page can run",
            where=key,
            mend=EXPORT_API_HINT,
        )
    if is_api_export(value):
        return RenderJob(kind="render", workflow=value)
    return _validated(_with_kind(value, key), key)


def parse_json(data: bytes, *, key: str) -> Any:
    """Parse JSON strictly: UTF-8, no duplicate keys, finite numbers, whole characters, bounded depth.

    Raises:
        JobInvalid: with line and column.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobInvalid(f"not UTF-8 text (byte {error.start})", where=key) from None
    try:
        value = _STRICT.decode(text)
    except json.JSONDecodeError as error:
        said = error.msg.removesuffix(" at")
        raise JobInvalid(
            f"not valid JSON: {said} at line {error.lineno}, column {error.colno}",
            where=key,
            mend="Check for a missing comma or bracket there, or a cut-off upload",
        ) from None
    except _Refused as error:
        raise JobInvalid(str(error), where=key) from None
    except (RecursionError, ValueError) as error:
        raise JobInvalid(_why(error), where=key) from None
    if _deeper_than(value, _MAX_DEPTH):
        raise JobInvalid(f"nested deeper than {_MAX_DEPTH} levels", where=key)
    if _SURROGATE.search(text) and not _is_encodable(value):
        raise JobInvalid("half a character (a lone surrogate) in a text", where=key)
    return value


def prompt_lines(text: str) -> Iterator[str]:
    """The prompts of a .txt, one a line; what begins with `#` is a remark."""
    for line in text.split("\n"):
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def is_ui_export(value: dict[str, Any]) -> bool:
    return isinstance(value.get("nodes"), list) and "links" in value


def is_api_export(value: dict[str, Any]) -> bool:
    """Every value is a node: `{"class_type": …, "inputs": {…}}`. An empty object is none."""
    return bool(value) and all(
        isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in value.values()
    )


def _with_kind(value: dict[str, Any], key: str) -> dict[str, Any]:
    if "kind" in value:
        if value["kind"] == "ingest" and not key.startswith(EMITTED):
            raise JobInvalid(
                "ingest jobs can't be dropped as JSON",
                where=f"{key}: kind",
                mend="Drop the pictures as a folder under inbox/datasets/<name>/",
            )
        return value
    if "dataset" in value:
        return {"kind": "train", **value}
    if "workflow" in value:
        return {"kind": "render", **value}
    if looks_like_graph := [
        name for name, node in value.items() if isinstance(node, dict) and "inputs" in node
    ]:
        raise JobInvalid(
            f"looks like a ComfyUI graph, but node {looks_like_graph[0]!r} has no class_type"
            if "class_type" not in value[looks_like_graph[0]]
            else "looks like a ComfyUI graph with something else beside its nodes",
            where=key,
            mend=EXPORT_API_HINT,
        )
    raise JobInvalid(
        "neither a job nor a ComfyUI graph: it has no `workflow`, `dataset` or `kind`",
        where=key,
        mend='A render job needs "workflow", a train job "dataset"; `dropbatch schema` has the whole form',
    )


def _validated(value: dict[str, Any], key: str) -> JobBase:
    kind = value["kind"]
    model = _MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        mend = did_you_mean(str(kind), _MODELS)
        raise JobInvalid(f"{kind!r} is no kind of job", where=f"{key}: kind", mend=mend)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [str(problem) for problem in find_problems(error, value, model)]
        first = problems[0] if len(problems) == 1 else f"{problems[0]} (and {len(problems) - 1} more)"
        raise JobInvalid(first, where=key, details=problems) from None
    except RecursionError:
        raise JobInvalid("nested too deeply", where=key) from None


class _Refused(ValueError):
    """JSON that parses but that we do not take."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name in counts if counts[name] > 1)
        raise _Refused(f"the key {twice[:200]!r} is given twice in one object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _Refused(f"{digits[:40]} is larger than any number a computer holds")
    return number


def _bounded(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _Refused(f"a number of {len(digits):,} digits")
    return int(digits)


_STRICT = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded
)


def _is_encodable(value: Any) -> bool:
    """No store, log or page could hold a text that UTF-8 can't."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth + 1):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


def _why(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else f"not valid JSON: {error}"


def _json_type(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
