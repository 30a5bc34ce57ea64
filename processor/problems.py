"""What is wrong with a document: pydantic's errors, told as a person would.

One mistake is one problem: a value that fits no member of a union gives pydantic one
error a member; here only the member that came closest speaks.
"""

from __future__ import annotations

import difflib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ForwardRef, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_SHOWN = 60
_MAX_ERRORS = 200
"""Looked at: what a small file can be wrong in has no bound, what a person reads has."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: where in the document, what, and the mend if one is known."""

    path: str
    """Dotted, as a person would write it: `matrix.zip.6.text`; "" for the whole."""
    what: str
    mend: str | None = None
    unknown_key: bool = False

    def __str__(self) -> str:
        text = f"{self.path}: {self.what}" if self.path else self.what
        return f"{text}. {self.mend}" if self.mend else text


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was most likely meant to be, or None if none is close."""
    by_folded = {option.casefold(): option for option in sorted(known)}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str], *, listed: int = 12) -> str | None:
    """A mend for a wrong name: the nearest one, else the known ones if they are few."""
    options = sorted(known)
    if near := nearest(name, options):
        return f"Did you mean {near!r}?"
    if 0 < len(options) <= listed:
        return f"Known: {', '.join(options)}"
    return None


def find_problems(error: ValidationError, document: object, model: Any) -> list[Problem]:
    """What a person has to change in `document` so that it fits; unknown keys first, 200 at most.

    Args:
        document: what was validated; tells keys from the names that pydantic adds for unions.
        model: the model class, or an annotation of several, whose keys are the known ones.
    """
    located = [_locate(detail, document) for detail in error.errors(include_url=False)[:_MAX_ERRORS]]
    problems = [_tell(kept, model) for group in _groups(located) for kept in [_closest(group)]]
    flat = [problem for several in problems for problem in several]
    return sorted(dict.fromkeys(flat), key=lambda problem: not problem.unknown_key)


@dataclass(frozen=True, slots=True)
class _Located:
    detail: ErrorDetails
    path: tuple[str, ...]
    """In the document."""
    union: tuple[str, ...] | None
    """Where the first union above it stands, and …"""
    member: str = ""
    """… which of its members is speaking."""


def _locate(detail: ErrorDetails, document: object) -> _Located:
    path: list[str] = []
    union: tuple[str, ...] | None = None
    member = ""
    loc = detail["loc"]
    here: Any = document
    for position, part in enumerate(loc):
        ends_at_key = position == len(loc) - 1 and detail["type"] in ("missing", "extra_forbidden")
        if isinstance(here, dict) and (part in here or ends_at_key):
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            if union is None and not _is_kind(part, here):
                union, member = tuple(path), str(part)
            continue
        path.append(str(part))
    return _Located(detail, tuple(path), union, member)


def _is_kind(part: int | str, value: object) -> bool:
    """The tag of a union that `kind` decides is no choice."""
    return isinstance(value, dict) and value.get("kind", "render") == part


def _groups(located: list[_Located]) -> Iterator[list[_Located]]:
    """Errors of one union together, each other one alone."""
    unions: dict[tuple[str, ...], list[_Located]] = defaultdict(list)
    for item in located:
        if item.union is None:
            yield [item]
        else:
            unions[item.union].append(item)
    yield from unions.values()


def _closest(group: list[_Located]) -> list[_Located]:
    """Of a union's errors those of the member that fits best; all if none has the right shape."""
    if group[0].union is None:
        return group
    members: dict[str, list[_Located]] = defaultdict(list)
    for item in group:
        members[item.member].append(item)
    shaped = [items for items in members.values() if all(item.path != item.union for item in items)]
    return min(shaped, key=len) if shaped else group


def _tell(items: list[_Located], model: Any) -> list[Problem]:
    first = items[0]
    path = ".".join(first.path)
    if len(items) > 1 and first.union is not None and all(item.path == first.union for item in items):
        expected = dict.fromkeys(_expected(item.detail) for item in items)
        return [Problem(path, f"{_show(first.detail['input'])} is none of: {'; '.join(expected)}")]
    return [_tell_one(item.detail, item.path, model) for item in items]


def _tell_one(detail: ErrorDetails, parts: tuple[str, ...], model: Any) -> Problem:
    path, kind, value = ".".join(parts), detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        mend = did_you_mean(parts[-1], _known_keys(model, parts[:-1]))
        return Problem(".".join(parts[:-1]), f"unknown key {parts[-1]!r}", mend, unknown_key=True)
    if kind == "missing":
        return Problem(".".join(parts[:-1]), f"{parts[-1]!r} is missing")
    if kind == "union_tag_not_found":
        return Problem(path, "'kind' is missing")
    if kind == "union_tag_invalid":
        return _wrong_word(f"{path}.kind".lstrip("."), context["tag"], str(context["expected_tags"]))
    if kind in ("literal_error", "enum"):
        return _wrong_word(path, value, str(context["expected"]))
    if kind == "value_error":
        return Problem(path, str(context["error"]))
    return Problem(path, f"{_show(value)} is not {_expected(detail)}")


def _wrong_word(path: str, value: object, expected: str) -> Problem:
    options = [option.strip("' ") for option in expected.replace(" or ", ", ").split(",")]
    near = nearest(str(value), options)
    mend = f"Did you mean {near!r}?" if near else None
    return Problem(path, f"{_show(value)} is none of: {', '.join(options)}", mend)


def _expected(detail: ErrorDetails) -> str:
    if class_name := detail.get("ctx", {}).get("class_name"):
        return f"an object ({class_name})"
    message = detail["msg"].removeprefix("Input should be ")
    return (message[:1].lower() + message[1:]).replace("dictionary", "object")


def _known_keys(model: Any, path: tuple[str, ...]) -> set[str]:
    """The keys that the models at a path of the document have."""
    here = list(_models_in(model, model))
    for part in path:
        fields = [found.model_fields[part].annotation for found in here if part in found.model_fields]
        here = [found for annotation in fields for found in _models_in(annotation, model)] or here
    return {key for found in here for key in found.model_fields}


def _models_in(annotation: Any, root: Any) -> Iterator[type[BaseModel]]:
    """The model classes of an annotation; a forward reference is the root itself (`on_success`)."""
    if isinstance(annotation, ForwardRef):
        annotation = root
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument, root)


def _show(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
