"""The wire: Modal's gRPC service answered by plain async methods, one a remote procedure.

A *component* is any object with methods named after RPCs in snake case: `dict_get` answers
`DictGet`. A method takes the request and, where it names one, the `caller` (the container whose
socket it came by, None for clients outside) and returns the reply, or yields replies for a stream.
"""

import inspect
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count
from typing import TYPE_CHECKING, Any

from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from grpclib import GRPCError, Status
from modal_proto.api_grpc import ModalClientBase

if TYPE_CHECKING:
    from tests.loopback.containers import Container

Handler = Callable[..., Any]
EMPTY = Empty()
__all__ = ["EMPTY", "Empty", "Message", "Wire", "new_id", "not_found", "service"]

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_numbers = count(1)


def new_id(prefix: str) -> str:
    """A fresh object id in Modal's form: `fu-000001`."""
    return f"{prefix}-{next(_numbers):06d}"


class Wire:
    """Routes RPCs to components, injects faults, and keeps what went wrong.

    `unspoken` lists RPCs that a client asked for and that no component answers; `errors` holds
    tracebacks of components. Both mean that the loopback, not the code under test, is at fault.
    """

    def __init__(self, components: Iterable[object]) -> None:
        self.unspoken: list[str] = []
        self.errors: list[str] = []
        self.lose_reply: Counter[str] = Counter()
        self.refuse: Counter[str] = Counter()
        self.routes: dict[str, Handler] = {}
        self.asks_caller: set[str] = set()
        for component in components:
            for rpc in ModalClientBase.__abstractmethods__:
                if handler := getattr(component, _WORD.sub("_", rpc).lower(), None):
                    self.routes[rpc] = handler
                    if "caller" in inspect.signature(handler).parameters:
                        self.asks_caller.add(rpc)

    async def answer(self, rpc: str, stream: Any, caller: "Container | None") -> None:
        """Serve one call. A lost reply has had its effect, a refused call has not."""
        request = await stream.recv_message()
        if (handler := self.routes.get(rpc)) is None:
            self.unspoken.append(rpc)
            raise GRPCError(Status.UNIMPLEMENTED, f"the loopback does not speak {rpc}")
        _spend(self.refuse, rpc, "refused before any effect")
        try:
            reply = handler(request, caller) if rpc in self.asks_caller else handler(request)
            if inspect.isasyncgen(reply):
                async for message in reply:
                    await stream.send_message(message)
                return
            message = await reply
        except GRPCError:
            raise
        except Exception as error:
            self.errors.append(f"{rpc}\n{traceback.format_exc()}")
            raise GRPCError(Status.INTERNAL, f"loopback error in {rpc}: {error!r}") from error
        _spend(self.lose_reply, rpc, "reply lost after its effect")
        await stream.send_message(message)


def _spend(budget: Counter[str], rpc: str, why: str) -> None:
    if budget[rpc] > 0:
        budget[rpc] -= 1
        raise GRPCError(Status.UNAVAILABLE, f"injected fault: {why}")


def _method(rpc: str) -> Callable[..., Any]:
    async def serve(self: "_Service", stream: Any) -> None:
        await self.wire.answer(rpc, stream, self.caller)

    return serve


class _Service:
    def __init__(self, wire: Wire, caller: "Container | None") -> None:
        self.wire = wire
        self.caller = caller


def service(wire: Wire, caller: "Container | None" = None) -> Any:
    """The grpclib service of one socket; the caller is known by the socket, not by the request."""
    methods = {rpc: _method(rpc) for rpc in ModalClientBase.__abstractmethods__}
    return type("Service", (_Service, ModalClientBase), methods)(wire, caller)


def not_found(what: str) -> GRPCError:
    return GRPCError(Status.NOT_FOUND, what)
