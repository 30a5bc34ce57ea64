"""Our errors cross processes as they are: from a container to whoever called it."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from typing import Any

import pytest

import handlers
import processor
from processor.errors import DropbatchError, ErrorKind, TaskFailed


def _all() -> list[type[DropbatchError]]:
    for package in (processor, handlers):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found: list[type[DropbatchError]] = []
    left = [DropbatchError]
    while left:
        found.append(kind := left.pop())
        left += kind.__subclasses__()
    return sorted(set(found), key=lambda kind: f"{kind.__module__}.{kind.__name__}")


def _made(kind: type[DropbatchError]) -> DropbatchError:
    """With whatever it requires, and a mend where it takes one."""
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in ("where", "mend"):
            given[name] = f"the {name}"
        elif parameter.default is parameter.empty:
            given[name] = ErrorKind.TIMED_OUT if name == "kind" else f"the {name}"
    return kind(**given)


def _sent(error: DropbatchError) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes


@pytest.mark.parametrize("kind", _all(), ids=lambda kind: kind.__name__)
def test_an_error_is_whole_on_the_other_side(kind: type[DropbatchError]) -> None:
    """Modal pickles what a container raised: one that can't be made again tells nothing."""
    error = _made(kind)
    there = _sent(error)
    assert type(there) is kind
    assert str(there) == str(error)
    assert (there.args, vars(there)) == (error.args, vars(error))


def test_what_was_added_to_an_error_goes_with_it() -> None:
    """The engine's log, which is set where it is known."""
    error = TaskFailed(ErrorKind.CRASHED, "ended", details=["a line"])
    error.log = "all lines"
    there = _sent(error)
    assert (there.kind, there.details, there.log) == (ErrorKind.CRASHED, ["a line"], "all lines")
