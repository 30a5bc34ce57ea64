"""The same small thing for many: a few threads, results in order, memory that stays flat."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 16
"""Requests to an object store wait for its answers; so many fit one connection pool."""
FEW = 8
"""Up to here threads cost more than they save where the store is near."""


def _threads(count: int, name: str) -> Executor:
    return ThreadPoolExecutor(count, thread_name_prefix=name)


new_pool: Callable[[int, str], Executor] = _threads
"""Makes the pool of so many threads, so called. A simulation, whose threads are no threads, sets its own."""


def each_of(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
    """As `each`, but a few items are done one after the other, as they are asked for."""
    if len(items) > FEW:
        yield from each(function, items)
    else:
        yield from ((item, function(item)) for item in items)


def each(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int = THREADS
) -> Iterator[tuple[Item, Result]]:
    """Call a function for every item, several at a time; yield item and result in order.

    Only a few calls run ahead of the consumer. The first exception is raised where its
    result would have come; what was not begun by then never is.
    """
    ahead: deque[tuple[Item, Future[Result]]] = deque()
    with new_pool(threads, "each") as pool:
        try:
            for item in items:
                ahead.append((item, pool.submit(function, item)))
                if len(ahead) >= 2 * threads:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()
