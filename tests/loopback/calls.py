"""Function calls: inputs in, outputs out, retries and cancellation, as the client drives them."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modal_proto import api_pb2 as pb

from tests.loopback.rpc import EMPTY, Empty, Message, new_id, not_found

if TYPE_CHECKING:
    from tests.loopback.apps import Apps
    from tests.loopback.containers import Container, Pool

ASYNC = pb.FUNCTION_CALL_INVOCATION_TYPE_ASYNC
Result = pb.GenericResult
RETRIED = (Result.GENERIC_STATUS_FAILURE, Result.GENERIC_STATUS_TIMEOUT)
MAX_INPUTS_OUTSTANDING = 1000


class Signal:
    """Wakes whoever waits now; who looks later looks at the state itself."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float | None = None) -> None:
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except TimeoutError:
            return


class DataStream:
    """An ordered stream of chunks that can be read again from any index: web bodies, generators."""

    def __init__(self) -> None:
        self.chunks: list[pb.DataChunk] = []
        self.closed = False
        self.signal = Signal()

    def put(self, chunks: Iterable[pb.DataChunk]) -> None:
        known = {chunk.index for chunk in self.chunks}
        self.chunks.extend(chunk for chunk in chunks if chunk.index not in known)
        self.signal.fire()

    def close(self) -> None:
        self.closed = True
        self.signal.fire()

    async def read(self, after: int = 0) -> AsyncIterator[pb.DataChunk]:
        position = 0
        while True:
            for chunk in self.chunks[position:]:
                position += 1
                if chunk.index > after:
                    yield chunk
            if position == len(self.chunks):
                if self.closed:
                    return
                await self.signal.wait()


@dataclass(eq=False)
class Input:
    """One argument list on its way through containers. `tried` names each container that took it."""

    call: "Call"
    idx: int
    payload: pb.FunctionInput
    input_id: str = field(default_factory=lambda: new_id("in"))
    retry_count: int = 0
    crashes: int = 0
    cancelled: bool = False
    tried: list[str] = field(default_factory=list)
    container: "Container | None" = None
    output: pb.FunctionGetOutputsItem | None = None

    @property
    def jwt(self) -> str:
        """Unsigned; the client reads `idx` out of it."""
        parts = ({"alg": "none"}, {"idx": self.idx})
        head, body = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts)
        return f"{head.rstrip('=')}.{body.rstrip('=')}."


@dataclass(eq=False)
class Call:
    """One `.remote`, `.spawn`, `.map`, cron tick or web request."""

    pool: "Pool"
    invocation: int
    call_id: str = field(default_factory=lambda: new_id("fc"))
    inputs: dict[int, Input] = field(default_factory=dict)
    log: list[pb.FunctionGetOutputsItem] = field(default_factory=list)
    unfinished: int = 0
    signal: Signal = field(default_factory=Signal)
    data_in: DataStream = field(default_factory=DataStream)
    data_out: DataStream = field(default_factory=DataStream)

    def add(self, idx: int, payload: pb.FunctionInput) -> Input:
        added = self.inputs[idx] = Input(self, idx, payload)
        self.unfinished += 1
        return added

    def finish(self, done: Input, output: pb.FunctionPutOutputsItem, task_id: str = "") -> None:
        """Take an attempt's output; the first for a try stands, and Modal's retries apply to spawns."""
        if done.output is not None or output.retry_count != done.retry_count:
            return
        if done.container:
            done.container.release(done)
        policy = self.pool.spec.retry_policy
        if self.invocation == ASYNC and output.result.status in RETRIED and done.retry_count < policy.retries:
            delay_s = policy.initial_delay_ms / 1000 * policy.backoff_coefficient**done.retry_count
            done.retry_count += 1
            asyncio.get_running_loop().call_later(delay_s, self.pool.submit, [done])
            return
        done.output = pb.FunctionGetOutputsItem(
            idx=done.idx,
            input_id=done.input_id,
            task_id=task_id,
            result=output.result,
            data_format=output.data_format,
            retry_count=output.retry_count,
            input_started_at=output.input_started_at,
            output_created_at=output.output_created_at,
        )
        self.log.append(done.output)
        self.unfinished -= 1
        if not self.unfinished:
            self.data_out.close()
        self.signal.fire()

    def fail(self, failed: Input, result: pb.GenericResult) -> None:
        self.finish(
            failed, pb.FunctionPutOutputsItem(result=result, retry_count=failed.retry_count), "loopback"
        )

    def again(self, idx: int, retry_count: int) -> Input:
        """Open an input once more for the client's own retry."""
        retried = self.inputs[idx]
        retried.retry_count = retry_count or retried.retry_count + 1
        retried.output = None
        self.unfinished += 1
        return retried


def terminated() -> pb.GenericResult:
    return Result(status=Result.GENERIC_STATUS_TERMINATED, exception="the input was cancelled")


@dataclass
class Calls:
    """Both ends of a call: the client's puts and gets, and the containers' fetches and results."""

    apps: "Apps"
    calls: dict[str, Call] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)

    def open(self, pool: "Pool", invocation: int) -> Call:
        call = Call(pool, invocation)
        self.calls[call.call_id] = call
        return call

    def put(
        self, call: Call, items: Iterable[pb.FunctionPutInputsItem]
    ) -> list[pb.FunctionPutInputsResponseItem]:
        """Queue inputs; the same idx again (the client repeats lost requests) is the same input."""
        new = [call.add(item.idx, item.input) for item in items if item.idx not in call.inputs]
        self.inputs.update({added.input_id: added for added in new})
        call.pool.submit(new)
        known = [call.inputs[item.idx] for item in items]
        return [
            pb.FunctionPutInputsResponseItem(idx=i.idx, input_id=i.input_id, input_jwt=i.jwt) for i in known
        ]

    def _call(self, call_id: str) -> Call:
        if call_id not in self.calls:
            raise not_found(f"function call {call_id}")
        return self.calls[call_id]

    async def function_map(self, request: pb.FunctionMapRequest) -> Message:
        pool = self.apps.pool(request.function_id)
        call = self.open(pool, request.function_call_invocation_type)
        return pb.FunctionMapResponse(
            function_call_id=call.call_id,
            function_call_jwt=call.call_id,
            pipelined_inputs=self.put(call, request.pipelined_inputs),
            retry_policy=pool.spec.retry_policy,
            sync_client_retries_enabled=True,
            max_inputs_outstanding=MAX_INPUTS_OUTSTANDING,
        )

    async def function_put_inputs(self, request: pb.FunctionPutInputsRequest) -> Message:
        call = self._call(request.function_call_id)
        return pb.FunctionPutInputsResponse(inputs=self.put(call, request.inputs))

    async def function_finish_inputs(self, _request: pb.FunctionFinishInputsRequest) -> Empty:
        return EMPTY

    async def function_retry_inputs(self, request: pb.FunctionRetryInputsRequest) -> Message:
        call = self._call(request.function_call_jwt)
        retried = []
        for item in request.inputs:
            body = item.input_jwt.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(body + "=="))
            retried.append(call.again(claims["idx"], item.retry_count))
        call.pool.submit(retried)
        return pb.FunctionRetryInputsResponse(input_jwts=[again.jwt for again in retried])

    async def function_get_outputs(self, request: pb.FunctionGetOutputsRequest) -> Message:
        call = self._call(request.function_call_id)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.timeout
        while True:
            if request.HasField("start_idx"):
                wanted = range(request.start_idx, request.end_idx + 1)
                found = [i.output for k in wanted if (i := call.inputs.get(k)) and i.output]
            else:
                found = call.log[int(request.last_entry_id.split("-")[0] or 0) :]
            if found or loop.time() >= deadline:
                return pb.FunctionGetOutputsResponse(
                    outputs=found,
                    idxs=[output.idx for output in found],
                    last_entry_id=f"{len(call.log)}-0",
                    num_unfinished_inputs=call.unfinished,
                )
            await call.signal.wait(deadline - loop.time())

    async def function_call_from_id(self, request: pb.FunctionCallFromIdRequest) -> Message:
        call = self._call(request.function_call_id)
        registered = call.pool.registered
        metadata = pb.FunctionCallHandleMetadata(app_id=registered.app_id, function_id=registered.function_id)
        return pb.FunctionCallFromIdResponse(
            function_call_id=call.call_id, num_inputs=len(call.inputs), metadata=metadata
        )

    async def function_call_cancel(self, request: pb.FunctionCallCancelRequest) -> Empty:
        call = self._call(request.function_call_id)
        for cancelled in call.inputs.values():
            if cancelled.output is not None:
                continue
            if cancelled in call.pool.queue:
                call.pool.queue.remove(cancelled)
            if (container := cancelled.container) and not request.terminate_containers:
                container.cancel(cancelled)  # the container reports the termination itself
                continue
            call.fail(cancelled, terminated())
            if container:
                container.kill("cancelled")
        return EMPTY

    async def function_get_inputs(
        self, _request: pb.FunctionGetInputsRequest, caller: "Container | None"
    ) -> Message:
        assert caller, "only containers fetch inputs"
        if (taken := await caller.next_input()) is None:
            stop = pb.FunctionGetInputsItem(kill_switch=True)
            return pb.FunctionGetInputsResponse(inputs=[stop])
        item = pb.FunctionGetInputsItem(
            input_id=taken.input_id,
            input=taken.payload,
            function_call_id=taken.call.call_id,
            function_call_invocation_type=taken.call.invocation,  # type: ignore[arg-type]  # an int on the wire
            retry_count=taken.retry_count,
            function_map_idx=taken.idx,
        )
        return pb.FunctionGetInputsResponse(inputs=[item])

    async def function_put_outputs(
        self, request: pb.FunctionPutOutputsRequest, caller: "Container | None"
    ) -> Empty:
        for output in request.outputs:
            done = self.inputs[output.input_id]
            done.call.finish(done, output, caller.task_id if caller else "")
        return EMPTY

    async def function_call_get_data_in(
        self, request: pb.FunctionCallGetDataRequest
    ) -> AsyncIterator[Message]:
        async for chunk in self._call(request.function_call_id).data_in.read(request.last_index):
            yield chunk

    async def function_call_get_data_out(
        self, request: pb.FunctionCallGetDataRequest
    ) -> AsyncIterator[Message]:
        async for chunk in self._call(request.function_call_id).data_out.read(request.last_index):
            yield chunk

    async def function_call_put_data_out(self, request: pb.FunctionCallPutDataRequest) -> Empty:
        self._call(request.function_call_id).data_out.put(request.data_chunks)
        return EMPTY
