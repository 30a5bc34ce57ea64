"""The control plane in a thread, and the handle by which tests drive and inspect it."""

import asyncio
import os
import pickle
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpclib.server
import modal  # the client under test
from aiohttp import web
from modal.client import _Client
from modal_proto import api_pb2 as pb

from tests.loopback import warm
from tests.loopback.apps import Apps, Registered
from tests.loopback.calls import ASYNC, Calls
from tests.loopback.containers import CHECKOUT, GUEST, Container, Host, Lifecycle
from tests.loopback.files import Blobs, Mounts, Volumes
from tests.loopback.named import Dicts, Environments, Images, Secrets
from tests.loopback.rpc import Wire, service
from tests.loopback.web import Front, Store, listen

T = TypeVar("T")
CALL_TIMEOUT_S = 30.0


class ContainerHandle:
    """One container, seen from a test's thread."""

    def __init__(self, loopback: "Loopback", container: Container) -> None:
        self._loopback, self._container = loopback, container

    def __getattr__(self, name: str) -> Any:
        """Everything that `Container` knows: task_id, state, reason, served, pid, checkpoints, …"""
        return getattr(self._container, name)

    @property
    def function_name(self) -> str:
        return self._container.pool.registered.name

    @property
    def gpus(self) -> list[str]:
        return self._container.pool.registered.gpus

    @property
    def log(self) -> str:
        return self._container.log_path.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL without warning: a machine lost. Its inputs restart elsewhere."""
        self._loopback.call(self._container.kill)

    def preempt(self, *, sig: int = 2, grace_s: float = 5.0, overlap: bool = False) -> None:
        """Take the machine away as Modal does: SIGINT, `@modal.exit`, SIGKILL after the grace.

        Args:
            sig: SIGINT as Modal sends; SIGTERM for code that must bear it.
            overlap: restart its inputs elsewhere at once, so that two executions run side by side.
        """
        self._loopback.call(self._container.stop, "preempted", sig, grace_s)
        if overlap:
            self._loopback.call(self._container.requeue)

    def wait_exited(self, timeout_s: float = 10.0) -> "ContainerHandle":
        self._loopback.wait_until(lambda: self.returncode is not None, timeout_s, f"{self.task_id} ends")
        return self


class Loopback:
    """Modal's control plane on this machine: `with Loopback(folder) as modal_here: …`.

    Inside the block this process's environment makes every Modal client, here and in child processes,
    talk to it. See `tests.loopback` for a tour and docs/loopback.md for what it proves.

    Args:
        root: an empty folder for everything it writes, logs included.
        container_env: variables that every container gets.
        max_containers: processes of a function that sets no `max_containers` itself.
        proxy_auth: the Modal-Key and Modal-Secret that guarded endpoints accept.
    """

    def __init__(
        self,
        root: Path,
        *,
        container_env: dict[str, str] | None = None,
        max_containers: int = 4,
        proxy_auth: tuple[str, str] = ("wk-loopback", "ws-loopback"),
    ) -> None:
        self.root = root
        self.proxy_auth = proxy_auth
        self.url = ""
        self.store_url = ""
        self._changed = threading.Condition()
        self._runners: list[web.AppRunner] = []
        self._saved: dict[str, str | None] = {}
        (root / "logs").mkdir(parents=True)
        # Paths of unix sockets have at most 107 bytes; pytest's folders are longer.
        self._sockets = Path(tempfile.mkdtemp(prefix="lb-", dir="/tmp"))
        self.dicts, self.secrets, self.images = Dicts(), Secrets(), Images()
        self.blobs = Blobs(root / "blobs")
        self.volumes, self.mounts = Volumes(root / "volumes", self.blobs), Mounts(self.blobs)
        host = Host(
            root=root,
            sockets=self._sockets,
            wire=Wire([]),
            mounts=self.mounts,
            volumes=self.volumes,
            secrets=self.secrets,
            images=self.images,
            layout=self._layout,
            env=dict(container_env or {}),
            max_containers=max_containers,
            changed=self._notify,
        )
        self.apps = Apps(host, self._open_web)
        self.calls = Calls(self.apps)
        self.front = Front(self.calls, proxy_auth, self._runners)
        lifecycle = Lifecycle(self.apps.container)
        objects = (self.dicts, self.secrets, self.images, self.blobs, self.volumes, self.mounts)
        self.wire = host.wire = Wire([Environments(), self.apps, self.calls, lifecycle, *objects])

    # -- life ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loopback", daemon=True)
        self._thread.start()
        self._run(self._start())
        self._saved = {name: os.environ.get(name) for name in self.env}
        os.environ.update(self.env)
        # The process's client is a singleton: one made before would go on talking to its own server.
        self._outer_client, _Client._client_from_env = _Client._client_from_env, None
        self._client = modal.Client.from_env()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        _Client._client_from_env = self._outer_client
        for name, value in self._saved.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()
        shutil.rmtree(self._sockets)
        problems = [*self.wire.errors, *(f"RPC not spoken: {rpc}" for rpc in self.wire.unspoken)]
        if problems and error is None:
            raise AssertionError("the loopback itself failed:\n" + "\n".join(problems))

    async def _start(self) -> None:
        self._server = grpclib.server.Server([service(self.wire)])
        await self._server.start("127.0.0.1", 0)
        assert self._server._server is not None
        port = self._server._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]  # asyncio's Server
        self.url = f"http://127.0.0.1:{port}"
        store = Store(self.blobs, self.volumes, self._trigger)
        self.store_url = self.blobs.url = await listen(store.app(), self._runners)

    async def _stop(self) -> None:
        containers = self.apps.containers()
        for pool in self.apps.pools.values():
            pool.stopped = True
        for container in containers:
            container.kill("loopback closed")
        await asyncio.gather(*(container.task for container in containers))
        self._server.close()
        for runner in self._runners:
            await runner.cleanup()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function in the loopback's own thread, where all its state lives."""

        async def run() -> T:
            return function(*args)

        return self._run(run())

    def _layout(self, app_id: str) -> pb.AppLayout:
        return self.apps.layout(app_id)

    async def _open_web(self, registered: Registered, method: str, config: pb.WebhookConfig) -> str:
        return await self.front.open(registered, method, config)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # -- for tests -------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment; already set in this process inside the block."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": "ak-loopback",
            "MODAL_TOKEN_SECRET": "as-loopback",
            "MODAL_CONFIG_PATH": "/dev/null",
            "LOOPBACK_URL": self.store_url,
        }

    def deploy(
        self, *target: str, command: str = "deploy", cwd: Path = CHECKOUT, env: dict[str, str] | None = None
    ) -> str:
        """Run `modal deploy TARGET` (`-m infra.app`) as a user would; deprecations are errors.

        Returns:
            What it printed.
        Raises:
            AssertionError: with the command's output, where it fails.
        """
        path = os.pathsep.join([str(GUEST), *filter(None, [os.environ.get("PYTHONPATH")])])
        with tempfile.NamedTemporaryFile(prefix="deploy-") as output:
            returncode = warm.run(
                warm.Command(
                    "modal",
                    [command, *target],
                    cwd=str(cwd),
                    env=os.environ | self.env | {"PYTHONPATH": path} | (env or {}),
                    output=output.name,
                ),
                timeout_s=120,
            )
            printed = output.read().decode()
        assert returncode == 0, f"modal {command} failed:\n{printed}"
        return printed

    @property
    def registered(self) -> dict[str, Registered]:
        """What is deployed, by name: functions as `tick`, classes as `Renderer.*`. See `Registered`."""
        live = (app for app in self.apps.apps.values() if app.state != pb.APP_STATE_STOPPED)
        return {name: registered for app in live for name, registered in app.functions.items()}

    def secrets_of(self, name: str) -> dict[str, set[str]]:
        """The function's secrets by name, each with the keys it requires."""
        ids = self.registered[name].spec.secret_ids
        return {self.secrets.names.name_of(known): self.secrets.required.get(known, set()) for known in ids}

    def volumes_of(self, name: str) -> dict[str, pb.VolumeMetadata]:
        """The function's volumes by mount path, with name and version."""
        mounts = self.registered[name].spec.volume_mounts
        return {mount.mount_path: self.volumes.metadata(mount.volume_id) for mount in mounts}

    def files_of(self, name: str) -> set[str]:
        """Every path that the function's mounts put into its container."""
        mounts = self.registered[name].spec.mount_ids
        return {file.filename for mount_id in mounts for file in self.mounts.files[mount_id]}

    def image_of(self, name: str) -> list[str]:
        """The Dockerfile commands of the function's image, lowest layer first."""
        return self.images.commands(self.registered[name].spec.image_id)

    def url_of(self, name: str, method: str = "") -> str:
        """The URL of a web function, or of a web method of the class `name` (`Api.*`)."""
        return self.registered[name].web_urls[method]

    def set_secret(
        self, name: str, env: dict[str, str], *, in_snapshots: dict[str, str] | None = None
    ) -> None:
        """Make or replace a secret.

        Args:
            in_snapshots: what it held when snapshots were taken; restored containers begin with that.
        """
        self.call(self.secrets.set, name, env, in_snapshots or {})

    def trigger(self, function_name: str) -> "modal.FunctionCall[Any]":
        """Let a schedule fire now: the function runs with no arguments. `.get(timeout=…)` waits."""
        return modal.FunctionCall.from_id(self.call(self._trigger, function_name))

    def _trigger(self, name: str) -> str:
        call = self.calls.open(self.apps.pool(self.registered[name].function_id), ASYNC)
        self.calls.put(call, [pb.FunctionPutInputsItem(idx=0)])
        return call.call_id

    def containers(self, function_name: str = "", *, state: str = "") -> list[ContainerHandle]:
        """Containers ever started, oldest first, of a function and in a state: starting, running, exited."""
        handles = (ContainerHandle(self, container) for container in self.call(self.apps.containers))
        named = (
            h for h in handles if function_name in ("", h.function_name, h.function_name.removesuffix(".*"))
        )
        return sorted((h for h in named if state in ("", h.state)), key=lambda h: str(h.task_id))

    def busy(self, function_name: str, timeout_s: float = 10.0) -> ContainerHandle:
        """Wait for a container that holds an input, and return it."""

        def holding() -> list[ContainerHandle]:
            return [h for h in self.containers(function_name, state="running") if h.inputs]

        return self.wait_until(holding, timeout_s, f"a busy {function_name}")[0]

    def wait_until(self, condition: Callable[[], T], timeout_s: float = 10.0, what: str = "a condition") -> T:
        """Wait for a truthy value and return it; looked at on each change and at least every 50 ms.

        Raises:
            AssertionError: on time-out, with the tail of each container's log.
        """
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}\n{self.logs()}"
            with self._changed:
                self._changed.wait(0.05)
        return value

    def logs(self, tail_bytes: int = 2000) -> str:
        """The end of every container's log, for failure messages."""
        return "\n".join(
            f"--- {h.function_name} {h.task_id} {h.state} {h.reason}\n{h.log[-tail_bytes:]}"
            for h in self.containers()
        )

    # -- faults ----------------------------------------------------------------------------------

    def lose_reply(self, rpc: str, times: int = 1) -> None:
        """Let the next calls of an RPC (`DictUpdate`) have their effect and answer UNAVAILABLE.

        The client repeats a call 3 times, so 4 losses are what the caller sees as an error.
        """
        self.wire.lose_reply[rpc] += times

    def refuse(self, rpc: str, times: int = 1) -> None:
        """Let the next calls of an RPC fail with UNAVAILABLE before any effect."""
        self.wire.refuse[rpc] += times

    def expire(self, dict_name: str, keys: Iterable[object] | None = None) -> None:
        """Forget entries of a Dict as Modal does after 7 idle days: those keys, or all."""
        entries = self.dicts.entries[self.dicts.names.ids[dict_name]]
        if keys is None:
            self.call(entries.clear)
        for key in keys or ():
            gone = [known for known in entries if pickle.loads(known) == key]  # noqa: S301  # our own client's bytes
            assert gone, f"{key!r} is not in {dict_name}"
            for known in gone:
                self.call(entries.pop, known)
