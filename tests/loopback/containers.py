"""Containers: real `modal._container_entrypoint` processes, and the pools that scale them."""

import asyncio
import json
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpclib.server
from modal_proto import api_pb2 as pb

from tests.loopback import warm
from tests.loopback.calls import Input, Signal, terminated
from tests.loopback.rpc import EMPTY, Empty, Message, Wire, new_id, service

if TYPE_CHECKING:
    from tests.loopback.apps import Registered
    from tests.loopback.files import Mounts, Volumes, WorkingCopy
    from tests.loopback.named import Images, Secrets

GUEST = Path(__file__).parent / "guest"
CHECKOUT = Path(__file__).parents[2]
CRASH_LIMIT = 3
SCALEDOWN_S = 60.0  # Modal's default window
HEARTBEAT_HOLD_S = 10.0  # below the client's limit of 15.1 s
STOP_GRACE_S = 5.0


@dataclass
class Host:
    """What a container needs of its machine."""

    root: Path
    sockets: Path
    wire: Wire
    mounts: "Mounts"
    volumes: "Volumes"
    secrets: "Secrets"
    images: "Images"
    layout: Callable[[str], pb.AppLayout]
    env: dict[str, str]
    max_containers: int
    changed: Callable[[], None]


class Container:
    """One process. Its own socket tells its calls from others': FunctionGetInputs names no task."""

    def __init__(self, pool: "Pool", host: Host) -> None:
        self.pool, self.host = pool, host
        self.task_id = new_id("ta")
        self.root = host.root / "containers" / self.task_id
        self.log_path = host.root / "logs" / f"{self.task_id}.log"
        self.accepting = True
        self.inputs: dict[str, Input] = {}
        self.served = 0
        self.checkpoints = 0
        self.volumes: dict[str, WorkingCopy] = {}
        self.pid = 0
        self.returncode: int | None = None
        self.reason = ""  # why it ended, once known
        self.start_failure: pb.GenericResult | None = None
        self.ready = False
        self.idle_since = time.monotonic()
        self.started_s = self.idle_since
        self.cold_start_s = 0.0
        self.signal = Signal()
        self.timers: dict[str, asyncio.TimerHandle] = {}
        self.task = asyncio.create_task(self._run())

    @property
    def state(self) -> str:
        if self.returncode is not None:
            return "exited"
        return "running" if self.ready else "starting"

    async def _run(self) -> None:
        server = grpclib.server.Server([service(self.host.wire, self)])
        socket = self.host.sockets / f"{self.task_id}.sock"
        self.log_path.touch()
        try:
            await self._lay_out()
            await server.start(path=str(socket))
            self.returncode = await self._process(f"unix://{socket}")
        except Exception as error:  # noqa: BLE001
            # A task's exception would be lost; a failed start must reach the caller like any crash.
            self.host.wire.errors.append(f"{self.task_id} could not start: {error!r}")
            self.returncode = -1
        finally:
            with suppress(RuntimeError):  # it never started
                server.close()
            self.accepting = False
            self.pool.exited(self)
            self.host.changed()

    async def _lay_out(self) -> None:
        (self.root / "root").mkdir(parents=True)
        (self.root / "tmp").mkdir()
        spec = self.pool.spec
        mounts = [*self.host.images.copied(spec.image_id), *spec.mount_ids]
        await asyncio.to_thread(self.host.mounts.lay_out, mounts, self.root)
        for mount in spec.volume_mounts:
            self.volumes[mount.volume_id] = await self.host.volumes.working_copy(mount, self.root)

    async def _process(self, server_url: str) -> int:
        arguments = self.root / "arguments.bin"
        arguments.write_bytes(self._arguments().SerializeToString())
        process = await warm.start(
            warm.Command(
                "modal._container_entrypoint",
                [],
                cwd=str(self.root / "root"),
                env=self._env(server_url, arguments),
                output=str(self.log_path),
            )
        )
        self.pid = process.pid
        if self.reason:  # stopped before there was a process to signal
            self.kill(self.reason)
        startup_s = self.pool.spec.startup_timeout_secs or 300
        late = asyncio.get_running_loop().call_later(startup_s, self._startup_is_late, startup_s)
        returncode = await process.wait()
        late.cancel()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return returncode

    def _startup_is_late(self, startup_s: int) -> None:
        if not self.ready:
            self.start_failure = pb.GenericResult(
                status=pb.GenericResult.GENERIC_STATUS_FAILURE,
                exception=f"the container did not start in {startup_s} s (startup_timeout, else timeout)",
            )
            self.kill("startup timeout")

    def _arguments(self) -> pb.ContainerArguments:
        registered = self.pool.registered
        spec = pb.Function()
        spec.CopyFrom(self.pool.spec)
        spec.is_checkpointing_function = spec.checkpointing_enabled
        return pb.ContainerArguments(
            task_id=self.task_id,
            function_id=registered.function_id,
            app_id=registered.app_id,
            function_def=spec,
            serialized_params=registered.serialized_params,
            environment_name="main",
            checkpoint_id=new_id("ch") if spec.checkpointing_enabled else None,
            app_layout=self.host.layout(registered.app_id),
        )

    def _env(self, server_url: str, arguments: Path) -> dict[str, str]:
        spec = self.pool.spec
        env = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.root / "root"),
            "TMPDIR": str(self.root / "tmp"),
            "PYTHONUNBUFFERED": "1",
            **self.host.images.env(spec.image_id),
            **self.host.env,
        }
        env.update(self._secrets())
        if spec.checkpointing_enabled:
            for secret_id in spec.secret_ids:
                env.update(self.host.secrets.in_snapshots.get(secret_id, {}))
        gpu = spec.resources.gpu_config
        return env | {
            "PYTHONPATH": os.pathsep.join([str(GUEST), str(self.root / "root"), str(self.root / "pkg")]),
            "LOOPBACK_HIDE": str(CHECKOUT),
            "DROPBATCH_MOUNT_ROOT": str(self.root),
            "MODAL_IS_REMOTE": "1",
            "MODAL_SERVER_URL": server_url,
            "MODAL_TASK_ID": self.task_id,
            "MODAL_IMAGE_ID": spec.image_id,
            "MODAL_ENVIRONMENT": "main",
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(arguments),
            "MODAL_ENABLE_SNAP_RESTORE": "1" if spec.checkpointing_enabled else "0",
            "MODAL_RESTORE_STATE_PATH": str(self.root / "restore-state.json"),
            "LOOPBACK_GPU": f"{gpu.gpu_type}:{gpu.count}" if gpu.count else "",
        }

    def _secrets(self) -> dict[str, str]:
        """What its secrets hold now."""
        held = [self.host.secrets.env[secret_id] for secret_id in self.pool.spec.secret_ids]
        return {name: value for each in held for name, value in each.items()}

    def write_environ(self) -> None:
        """Where a restored process looks for what its environment has become."""
        path = self.root / "proc" / "gvisor" / "spec_environ"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\0".join(f"{name}={value}" for name, value in self._secrets().items()))

    async def next_input(self) -> Input | None:
        """Wait for work; None tells the container to finish what it has and exit."""
        if not self.ready:
            self.ready = True
            self.cold_start_s = time.monotonic() - self.started_s
            self.idle_since = time.monotonic()
            self.host.changed()
        while self.accepting:
            if self.pool.queue:
                return self._take(self.pool.queue.popleft())
            if self.inputs or not self.pool.may_shrink():
                await self.pool.signal.wait()
            elif (left_s := self.idle_since + self.pool.scaledown_s - time.monotonic()) > 0:
                await self.pool.signal.wait(left_s)
            else:
                self.retire("scaled down")
        return None

    def _take(self, taken: Input) -> Input:
        self.inputs[taken.input_id] = taken
        self.served += 1
        taken.container = self
        taken.tried.append(self.task_id)
        timeout_s = self.pool.spec.timeout_secs
        loop = asyncio.get_running_loop()
        self.timers[taken.input_id] = loop.call_later(timeout_s, self._timed_out, taken, timeout_s)
        if self.pool.spec.single_use_containers:
            self.accepting = False
        self.host.changed()
        return taken

    def _timed_out(self, late: Input, timeout_s: int) -> None:
        status = pb.GenericResult.GENERIC_STATUS_TIMEOUT
        message = f"Task's current input hit its timeout of {timeout_s}s"
        late.call.fail(late, pb.GenericResult(status=status, exception=message))
        self.stop("input timeout", signal.SIGINT, STOP_GRACE_S)

    def release(self, done: Input) -> None:
        self.inputs.pop(done.input_id, None)
        if timer := self.timers.pop(done.input_id, None):
            timer.cancel()
        done.container = None
        self.idle_since = time.monotonic()
        self.pool.signal.fire()
        self.host.changed()

    def cancel(self, cancelled: Input) -> None:
        """Ask the process to end one input; a process that doesn't is killed.

        The client raises the cancellation in the user's thread by a signal, where a blocking Modal
        call can swallow it: seen in about one of three tries.
        """
        cancelled.cancelled = True
        self.signal.fire()

        def insist() -> None:
            if cancelled.input_id in self.inputs:
                self.kill("cancelled")

        asyncio.get_running_loop().call_later(STOP_GRACE_S, insist)

    def retire(self, reason: str) -> None:
        """Give it no more inputs; it exits after those it has."""
        self.accepting = False
        self.reason = self.reason or reason
        self.pool.signal.fire()

    def kill(self, reason: str = "killed") -> None:
        """SIGKILL, with everything that it started."""
        self.retire(reason)
        if self.pid and self.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def stop(self, reason: str, sig: int, grace_s: float) -> None:
        """A signal now, SIGKILL after the grace."""
        self.retire(reason)
        if self.pid and self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)
            asyncio.get_running_loop().call_later(grace_s, self.kill, reason)

    def to_cancel(self) -> list[str]:
        return [held.input_id for held in self.inputs.values() if held.cancelled]

    def requeue(self) -> None:
        """Put what it holds back at the head of the queue; what was cancelled has ended."""
        held = list(self.inputs.values())
        for moved in held:
            self.release(moved)
            if moved.cancelled:
                moved.call.fail(moved, terminated())
        self.pool.submit([moved for moved in held if not moved.cancelled], first=True)

    def open_files(self, below: Path) -> list[str]:
        """Files under a folder that this container's processes hold open (Linux only)."""
        held = []
        for fds in Path("/proc").glob("[0-9]*/fd"):
            with suppress(OSError):
                if os.getpgid(int(fds.parent.name)) == self.pid:
                    targets = (fd.readlink() for fd in fds.iterdir())
                    held += [str(path) for path in targets if path.is_relative_to(below)]
        return held


class Pool:
    """The containers of one function id; a variant (parameters, `with_options`) has its own."""

    def __init__(self, registered: "Registered", host: Host) -> None:
        self.registered, self.host = registered, host
        self.queue: deque[Input] = deque()
        self.containers: list[Container] = []
        self.overrides = pb.AutoscalerSettings()
        self.failures = 0  # containers in a row that ended before they asked for work
        self.signal = Signal()
        self.stopped = False

    @property
    def spec(self) -> pb.Function:
        return self.registered.spec

    @property
    def settings(self) -> pb.AutoscalerSettings:
        merged = pb.AutoscalerSettings()
        merged.CopyFrom(self.spec.autoscaler_settings)
        merged.MergeFrom(self.overrides)
        return merged

    @property
    def scaledown_s(self) -> float:
        return self.settings.scaledown_window or SCALEDOWN_S

    def accepting(self) -> list[Container]:
        return [container for container in self.containers if container.accepting]

    def may_shrink(self) -> bool:
        return len(self.accepting()) > self.settings.min_containers

    def submit(self, inputs: list[Input], first: bool = False) -> None:
        if self.stopped:
            for refused in inputs:
                refused.call.fail(refused, terminated())
            return
        if inputs:
            self.failures = 0
            (self.queue.extendleft(reversed(inputs)) if first else self.queue.extend(inputs))
        self.reconcile()
        self.signal.fire()

    def reconcile(self) -> None:
        """Start what the load needs, between min and max containers."""
        settings, accepting = self.settings, self.accepting()
        load = len(self.queue) + sum(len(container.inputs) for container in accepting)
        wanted = math.ceil(load / max(1, self.spec.max_concurrent_inputs))
        wanted = max(wanted + (settings.buffer_containers if load else 0), settings.min_containers)
        wanted = min(wanted, settings.max_containers or self.host.max_containers)
        if not self.stopped and self.failures < CRASH_LIMIT:
            self.containers += [Container(self, self.host) for _ in range(wanted - len(accepting))]

    def exited(self, container: Container) -> None:
        """Restart what a container held; give up on inputs that keep killing theirs."""
        crashed = not container.reason and container.returncode != 0
        if container.start_failure or (crashed and not container.ready):
            self.failures += 1
        container.reason = container.reason or (
            "failed to start" if container.start_failure else "crashed" if crashed else "finished"
        )
        message = f"Runner failed with exit code: {container.returncode}"
        result = container.start_failure or pb.GenericResult(
            status=pb.GenericResult.GENERIC_STATUS_FAILURE, exception=message
        )
        for held in list(container.inputs.values()):
            held.crashes += crashed
            if held.crashes >= CRASH_LIMIT:
                held.call.fail(held, result)
        if self.failures >= CRASH_LIMIT:
            for waiting in [*self.queue, *container.inputs.values()]:
                waiting.call.fail(waiting, result)
            self.queue.clear()
        container.requeue()

    def redeployed(self) -> None:
        for container in self.accepting():
            container.retire("redeployed")
        self.stopped = False
        self.failures = 0
        self.reconcile()

    def stop(self) -> None:
        self.stopped = True
        for waiting in self.queue:
            waiting.call.fail(waiting, terminated())
        self.queue.clear()
        for container in self.containers:
            container.stop("app stopped", signal.SIGINT, STOP_GRACE_S)


@dataclass
class Lifecycle:
    """What containers say about themselves."""

    tasks: Callable[[str], Container]
    checkpoints: list[str] = field(default_factory=list)

    async def container_hello(self, _request: Empty) -> Empty:
        return EMPTY

    async def container_heartbeat(
        self, _request: pb.ContainerHeartbeatRequest, caller: Container | None
    ) -> Message:
        """Held open, so that a cancellation arrives at once and not with the next beat."""
        assert caller, "only containers beat"
        if not caller.to_cancel():
            await caller.signal.wait(HEARTBEAT_HOLD_S)
        # Named in each beat until the output comes: the client drops a cancellation that meets an
        # input between fetch and start.
        if not (ids := caller.to_cancel()):
            return pb.ContainerHeartbeatResponse()
        event = pb.CancelInputEvent(input_ids=ids)
        return pb.ContainerHeartbeatResponse(cancel_input_event=event)

    async def container_checkpoint(
        self, request: pb.ContainerCheckpointRequest, caller: Container | None
    ) -> Empty:
        """Snapshot and restore in place: the same process goes on, its connections closed and reopened."""
        assert caller, "only containers are snapshotted"
        caller.checkpoints += 1
        caller.write_environ()
        self.checkpoints.append(request.checkpoint_id)
        state = {"task_id": caller.task_id, "function_id": caller.pool.registered.function_id}
        partial = caller.root / "restore-state.part"
        partial.write_text(json.dumps(state))
        partial.replace(caller.root / "restore-state.json")
        return EMPTY

    async def container_stop(self, request: pb.ContainerStopRequest, caller: Container | None) -> Message:
        container = caller or self.tasks(request.task_id)
        if request.graceful:
            container.retire("stopped fetching")
        else:
            container.stop("stopped", signal.SIGINT, STOP_GRACE_S)
        container.pool.reconcile()
        return pb.ContainerStopResponse()

    async def task_result(self, request: pb.TaskResultRequest, caller: Container | None) -> Empty:
        assert caller, "only containers have task results"
        if request.result.status != pb.GenericResult.GENERIC_STATUS_SUCCESS:
            caller.start_failure = request.result
        return EMPTY

    async def function_get_dynamic_concurrency(
        self, request: pb.FunctionGetDynamicConcurrencyRequest, caller: Container | None
    ) -> Message:
        backlog = bool(caller and caller.pool.queue)
        slots = request.max_concurrency if backlog else request.target_concurrency
        return pb.FunctionGetDynamicConcurrencyResponse(concurrency=slots)
