"""Threads of the core as actors: pools of `processor.parallel` give way like everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from typing import Any

from processor import parallel
from tests.simulation.world import Actor, Killed, World

_POLL_S = 60.0
"""Who waits is woken; this only bounds how long a dead process keeps an entry in the queue."""


class _Call(Future[Any]):
    """One call; who asks for its result gives way until it is there."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._waiting: list[Actor] = []

    def run(self, function: Callable[..., Any], *args: Any, **named: Any) -> None:
        if not self.set_running_or_notify_cancel():
            return
        try:
            result = function(*args, **named)
        except Exception as error:  # noqa: BLE001 - as a pool does, for whoever asks
            self.set_exception(error)
        else:
            self.set_result(result)
        for actor in self._waiting:
            self._world.wake(actor)

    def wait(self) -> None:
        while not self.done():
            assert self._world.current is not None
            self._waiting.append(self._world.current)
            self._world.pause(_POLL_S)

    def result(self, timeout: float | None = None) -> Any:
        self.wait()
        return super().result(timeout)


class _Actors(Executor):
    """A pool in which every call is an actor of the process that asks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._calls: list[_Call] = []
        assert world.current is not None
        self._owner = world.current

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        call = _Call(self._world)
        self._calls.append(call)
        self._world.spawn(self._owner.process, self._owner.name, lambda: call.run(fn, *args, **kwargs))
        return call

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        # An abandoned generator gets here while it is thrown away, where an exception would be lost;
        # whoever was killed notices at its next call.
        with suppress(Killed):
            for call in self._calls:
                if self._owner.process.alive:
                    call.wait()


@contextmanager
def threads_as_actors(world: World) -> Iterator[None]:
    """While it is open, the core's pools call functions as actors of this world."""
    before = parallel.new_pool
    parallel.new_pool = lambda *_: _Actors(world)
    try:
        yield
    finally:
        parallel.new_pool = before
