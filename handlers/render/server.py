"""An engine as a child process: started, watched, stopped, never left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from handlers.model_cache import paths_yaml
from handlers.render import leftovers
from handlers.render.api import Api
from handlers.render.catalog import MODEL_FOLDERS, NESTED_FOLDERS, NO_MODEL_FOLDERS
from handlers.render.enginelog import EngineLog
from handlers.render.settings import RenderSettings
from processor.clock import Clock
from processor.errors import ConfigError, ErrorKind, TaskFailed

log = structlog.get_logger(__name__)

_POLL_S: Final = 0.1
_PORT_TRIES: Final = 3
_HEALTH_TIMEOUT_S: Final = 30.0
"""A node may hold Python's interpreter for long; that is not wedged yet."""
_ENV_NAMES: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD"),
        *("DYLD_LIBRARY_PATH", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "TORCH_HOME", "SSL_CERT_FILE"),
        *(
            "SSL_CERT_DIR",
            "REQUESTS_CA_BUNDLE",
            "VIRTUAL_ENV",
            "PYTHONUSERBASE",
        ),
    }
)
_ENV_PREFIXES: Final = (
    "LC_",
    *("OMP_", "GOMP_", "KMP_", "MKL_"),
    *("THP_", "MALLOC_", "GLIBC_TUNABLES"),
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "PYTORCH_",
    "TORCHINDUCTOR_",
    "TRITON_",
    "HSA_",
    "ROCM_",
    "HIP_",
)
"""What a child is given of our environment. Nothing else: it runs custom nodes' code, and
our environment holds the bucket's key."""


@dataclass(frozen=True)
class Directories:
    """The private folders of one engine process."""

    root: Path

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def input(self) -> Path:
        return self.root / "input"

    @property
    def temp(self) -> Path:
        return self.root / "temp"

    @property
    def user(self) -> Path:
        return self.root / "user"

    def make(self) -> None:
        for path in (self.output, self.input, self.temp, self.user):
            path.mkdir(parents=True, exist_ok=True)


class Server:
    """One engine process and its folders, from `start` to `stop`. Not restarted: a new one is.

    Args:
        settings: which engine, and with what flags.
    """

    def __init__(self, settings: RenderSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        settings.work_dir.mkdir(parents=True, exist_ok=True)
        leftovers.sweep(settings.work_dir.resolve())
        root = Path(tempfile.mkdtemp(prefix=leftovers.PREFIX, dir=settings.work_dir)).resolve()
        self._owned = leftovers.own(root)
        self.directories = Directories(root)
        self.log = EngineLog(settings.work_dir / "engine.log")
        self._custom_nodes = custom_nodes(settings)
        self._folders = frozenset(model_folders(settings))
        self.api: Api

    def start(self) -> dict[str, Any]:
        """Start the engine and wait until it answers; its `/system_stats`.

        Raises:
            TaskFailed: CRASHED, if it ends or stays silent for `start_timeout_s`; with the
                last lines of its log.
            ConfigError: there is no such ComfyUI or interpreter.
        """
        self.directories.make()
        for attempt in range(1, _PORT_TRIES + 1):
            port = _free_port()
            self._spawn(port)
            try:
                return self._wait_ready()
            except TaskFailed:
                self.stop()
                # Someone else took the port between our look and the child's bind.
                if attempt == _PORT_TRIES or not any("in use" in line for line in self.log.tail()):
                    raise
        raise AssertionError("unreachable")

    def is_alive(self) -> bool:
        """Whether the process runs; whether it answers is for `is_healthy`."""
        return self._process is not None and self._process.poll() is None

    def is_healthy(self) -> bool:
        """Whether it runs and answers within half a minute."""
        if not self.is_alive():
            return False
        try:
            self.api.system_stats(timeout_s=_HEALTH_TIMEOUT_S)
        except TaskFailed:
            return False
        return True

    def lacks_custom_nodes(self) -> bool:
        """Whether custom nodes were installed since it started, which it can't know."""
        return not custom_nodes(self._settings) <= self._custom_nodes

    def lacks_folders(self, folders: Collection[str]) -> bool:
        """Whether one of these model folders was not there when it started: it is told of them only then."""
        return not self._folders.issuperset(folders)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """End the whole process group: asked first, then killed. Idempotent."""
        process = self._process
        if process is None:
            return
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._settings.stop_timeout_s)
        # The group may outlive its leader: nodes start processes of their own.
        _signal_group(process, signal.SIGKILL)
        process.wait()
        if self._guard is not None:
            leftovers.dismiss(self._guard)
        self.log.join(1.0)
        self._process = self._guard = None
        if hasattr(self, "api"):
            self.api.close()

    def remove(self) -> None:
        """Stop, and delete the private folders."""
        self.stop()
        shutil.rmtree(self.directories.root, ignore_errors=True)
        self._owned.close()

    def _spawn(self, port: int) -> None:
        command, directory = engine_command(self._settings, self.directories, port)
        try:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env=child_environment(dict(os.environ)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(f"can't start the engine: {error.strerror}", where=command[0]) from None
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        leftovers.note_pid(self.directories.root, self._process.pid)
        self._guard = leftovers.guard(self._process.pid)
        self.log.follow(self._process.stdout)
        self.api = Api(f"http://127.0.0.1:{port}")
        log.info("engine.start", engine=self._settings.engine, pid=self._process.pid, port=port)

    def _wait_ready(self) -> dict[str, Any]:
        began = self._clock.monotonic()
        while self.is_alive():
            try:
                stats = self.api.system_stats()
            except TaskFailed:
                if self._clock.monotonic() - began > self._settings.start_timeout_s:
                    raise self._failed(
                        f"does not answer within {self._settings.start_timeout_s:g} s"
                    ) from None
                self._clock.sleep(_POLL_S)
            else:
                log.info("engine.ready", seconds=round(self._clock.monotonic() - began, 2))
                return stats
        raise self._failed("ended while it started")

    def _failed(self, what: str) -> TaskFailed:
        code = None if self._process is None else self._process.poll()
        self.log.join(1.0)
        return TaskFailed(
            ErrorKind.CRASHED,
            f"the engine {what}" + (f" (exit status {code})" if code is not None else ""),
            where=str(self._settings.comfyui_dir or "built-in engine"),
            mend=f"Its log is {self.log.path}",
            details=self.log.tail(),
        )


def engine_command(
    settings: RenderSettings, directories: Directories, port: int
) -> tuple[list[str], Path | None]:
    """The command line of the configured engine, and the directory to run it in."""
    flags = [
        *("--listen", "127.0.0.1", "--port", str(port)),
        *("--output-directory", str(directories.output), "--input-directory", str(directories.input)),
        *("--temp-directory", str(directories.temp), "--user-directory", str(directories.user)),
    ]
    if settings.comfyui_dir is None:
        return [sys.executable, "-m", "handlers.engine", *flags, *settings.extra_args], None
    root = settings.comfyui_dir.expanduser().resolve()
    if not (root / "main.py").is_file():
        raise ConfigError(
            "this folder has no main.py", where=f"COMFYUI_DIR={root}", mend="Name a ComfyUI checkout"
        )
    paths = directories.root / "extra_model_paths.yaml"
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    paths.write_text(paths_yaml(settings.models_dir.resolve(), model_folders(settings)), encoding="utf-8")
    flags += ["--extra-model-paths-config", str(paths), "--disable-api-nodes", "--disable-auto-launch"]
    if _takes(root, "--database-url"):
        flags += ["--database-url", "sqlite:///:memory:"]
    if not settings.custom_nodes:
        flags.append("--disable-all-custom-nodes")
    if settings.cpu if settings.cpu is not None else not has_cuda():
        flags.append("--cpu")
    return [str(find_python(settings)), "main.py", *flags, *settings.extra_args], root


def find_python(settings: RenderSettings) -> Path:
    """The interpreter of a ComfyUI: the one named, its folder's own environment, or ours."""
    if settings.comfyui_python is not None:
        # Not resolved: a virtual environment's python is a link, and the link is what matters.
        return settings.comfyui_python.expanduser().absolute()
    root = (settings.comfyui_dir or Path()).expanduser().absolute()
    candidates = [root / name / "bin" / "python" for name in (".venv", "venv")]
    return next((path for path in candidates if path.exists()), Path(sys.executable))


def model_folders(settings: RenderSettings) -> dict[str, str]:
    """The model folders that a ComfyUI started now is told of: name → paths, one a line.

    Beside its own those that lie here. Packs of nodes register theirs by name (`ipadapter`, `sams`),
    and many only if nobody did before: so the checkout's own folder of that name is told as well.
    """
    here = {path.name for path in _entries(settings.models_dir) if path.is_dir()}
    custom = {name for name in here - NO_MODEL_FOLDERS - {*MODEL_FOLDERS} if not name.startswith(".")}
    paths = {name: name for name in custom}
    paths |= {name: path for name, path in NESTED_FOLDERS.items() if path.split("/")[0] in custom}
    own = (settings.comfyui_dir or Path()).expanduser().resolve() / "models"
    return {name: name for name in MODEL_FOLDERS} | {
        name: f"{own / path}\n{path}" for name, path in sorted(paths.items())
    }


def custom_nodes(settings: RenderSettings) -> frozenset[str]:
    """The names of what a ComfyUI that is started now would load as custom nodes."""
    if settings.comfyui_dir is None or not settings.custom_nodes:
        return frozenset()
    paths = _entries(settings.comfyui_dir.expanduser() / "custom_nodes")
    # What nodes.py of ComfyUI takes; its caches it makes itself.
    return frozenset(
        path.name
        for path in paths
        if (path.suffix == ".py" or path.is_dir())
        and path.suffix != ".disabled"
        and path.name != "__pycache__"
    )


def has_cuda(devices: Path = Path("/dev")) -> bool:
    """Whether a CUDA device is likely here; cheap, without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    # By any number: a container may get only the sixth of its host's GPUs, and under its host's name.
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()


def child_environment(environment: dict[str, str]) -> dict[str, str]:
    """What an engine may know of our environment."""
    kept = {
        name: value
        for name, value in environment.items()
        if name in _ENV_NAMES or name.startswith(_ENV_PREFIXES)
    }
    return {
        "HF_HUB_OFFLINE": "1",
        # torch's threads else spin for milliseconds after each operation, on cores that the next
        # task's upload could use: docs/performance.md.
        "OMP_WAIT_POLICY": "passive",
        # torch (since 2.2) then asks Linux for pages of 2 MiB: else a third of a CPU's time goes into
        # faulting in pages of 4 KiB for each step's tensors. PyTorch's c10/core/impl/alloc_cpu.cpp.
        "THP_MEM_ALLOC_ENABLE": "1",
        **kept,
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "NO_COLOR": "1",
    }


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _takes(root: Path, flag: str) -> bool:
    try:
        return flag in (root / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # The group's id is its leader's pid; it stays reserved while any member lives.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
