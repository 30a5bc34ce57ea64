"""ComfyUI in the browser, on a GPU: the same models and nodes as the batch's.

What is run there is kept: the graph of every finished prompt lands under `comfy_workflows/ui/`,
ready to be named in a job, and its files under `comfy_outputs/ui/`. An open tab holds a WebSocket,
so Modal would never see the container idle; it is ended from inside.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog
import urllib3

from handlers.render.outputs import media_type
from handlers.render.server import Directories, child_environment, engine_command
from handlers.render.settings import RenderSettings, render_settings
from infra import paths
from infra.machine import container_start, open_stores
from infra.settings import Deployment
from processor.layout import OUTPUTS, WORKFLOWS, cut, slug
from processor.store import Store

log = structlog.get_logger(__name__)

PORT: Final = 8000
_EVERY_S: Final = 10.0
_TIMEOUT_S: Final = 10.0
_MAX_HISTORY: Final = 100
_ENDED_S: Final = 10.0
_STARTED_S: Final = 600.0
"""Twice what Modal waits for the port: a server that answered nobody by then hangs."""
_MAX_NAME_BYTES: Final = 700
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass
class Keeper:
    """Watches a running ComfyUI: keeps what it made, and tells when nobody uses it.

    Args:
        url: of the server.
        output: its output directory; nothing outside is read.
    """

    url: str
    output: Path
    store: Store
    now: Callable[[], float] = time.monotonic
    _active_at: float = field(init=False)
    _silent_since: float | None = field(init=False)
    _has_answered: bool = False
    _seen: set[str] = field(default_factory=set)
    _kept: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._active_at = self.now()
        self._silent_since = self._active_at + _STARTED_S

    def look(self) -> float:
        """Keep what finished since the last look; seconds since anything was run.

        One that does not answer (it starts, or is busy) counts as used for as long again: the GPU
        that a hung one holds costs as much.
        """
        try:
            busy = any(self._get("/queue").values())
            history = self._get(f"/history?max_items={_MAX_HISTORY}")
        except (urllib3.exceptions.HTTPError, ValueError):
            if self._silent_since is None:
                self._silent_since = self.now()
            return max(0.0, self.now() - self._silent_since)
        self._silent_since = None
        for prompt_id in history.keys() - self._kept:
            self._keep(prompt_id, history[prompt_id])
        # One that can't be kept is tried again, which is no use of the GPU.
        if busy or history.keys() - self._seen or not self._has_answered:
            self._active_at = self.now()
        self._has_answered = True
        self._seen |= history.keys()
        return self.now() - self._active_at

    def _keep(self, prompt_id: str, entry: dict[str, Any]) -> None:
        try:
            graph = entry.get("prompt", [None, None, None])[2]
            if isinstance(graph, dict):
                # Whatever it holds: a browser sends half an emoji, which is no text of a job.
                digest = hashlib.sha256(json.dumps(graph, sort_keys=True).encode()).hexdigest()[:16]
                name = f"{WORKFLOWS}ui/{digest}.json"
                self.store.put(name, json.dumps(graph).encode(), media_type="application/json")
            folder = f"{OUTPUTS}ui/{datetime.now(UTC).date().isoformat()}/{slug(prompt_id)}"
            for path in self._files(entry.get("outputs", {})):
                name = _name(path.relative_to(self.output.resolve()))
                self.store.put(f"{folder}/{name}", path, media_type=media_type(name))
        except Exception as error:  # noqa: BLE001 - nobody else gives the GPU back
            log.warning("ui.not_kept", prompt=prompt_id, why=str(error) or type(error).__name__)
            return  # tried again at the next look
        self._kept.add(prompt_id)

    def _files(self, outputs: dict[str, Any]) -> Iterator[Path]:
        root = self.output.resolve()
        lists = (value for node in outputs.values() for value in node.values() if isinstance(value, list))
        for item in (item for value in lists for item in value if isinstance(item, dict)):
            if item.get("type") != "output" or not item.get("filename"):
                continue
            path = (root / str(item.get("subfolder", "")) / str(item["filename"])).resolve()
            if path.is_relative_to(root) and path.is_file():
                yield path

    def _get(self, path: str) -> dict[str, Any]:
        reply = urllib3.request("GET", self.url + path, timeout=_TIMEOUT_S, retries=False)
        value = reply.json()
        if reply.status != 200 or not isinstance(value, dict):
            raise ValueError(f"{path} answered {reply.status}")
        return value


def start(deployed: Deployment, *, end: Callable[[], None]) -> subprocess.Popen[bytes]:
    """Start ComfyUI for the browser, and the thread that keeps what it makes.

    Args:
        end: has Modal send this container nothing more, once nobody uses it.
    """
    ours = container_start(deployed)
    settings, directories = _settings(ours)
    directories.make()
    user = paths.here(paths.USER)
    user.mkdir(parents=True, exist_ok=True)
    command, folder = engine_command(_reachable(settings, user), directories, PORT)
    process = subprocess.Popen(
        command, cwd=folder, env=child_environment(dict(os.environ)), stdin=subprocess.DEVNULL
    )
    keeper = Keeper(f"http://127.0.0.1:{PORT}", directories.output, open_stores(ours).main)
    threading.Thread(
        target=_watch, args=(keeper, process, ours.modal.ui_idle_s, end), name="keeper", daemon=True
    ).start()
    return process


def _watch(keeper: Keeper, process: subprocess.Popen[bytes], idle_s: float, end: Callable[[], None]) -> None:
    stopped = threading.Event()
    while process.poll() is None:
        if keeper.look() > idle_s:
            log.info("ui.idle", seconds=idle_s)
            try:
                end()
            finally:  # whatever Modal answers, or does not
                _terminate(process)
            return
        stopped.wait(min(_EVERY_S, max(1.0, idle_s / 3)))


def _terminate(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_ENDED_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _name(relative: Path) -> str:
    """A file's subfolder and name as they are, which no other of its prompt has; cut, a hash tells it."""
    text = relative.as_posix()
    name = cut(_CONTROL.sub("_", text), _MAX_NAME_BYTES)
    if name == text:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{name}-{digest}{cut(_CONTROL.sub('_', relative.suffix), 12)}"


def _reachable(settings: RenderSettings, user: Path) -> RenderSettings:
    """With flags that let Modal's front in from outside, and keep what the user sets in the browser.

    After the deployment's own: the last of a flag's values holds.
    """
    ours = ("--listen", "0.0.0.0", "--user-directory", str(user))  # noqa: S104
    return replace(settings, extra_args=(*settings.extra_args, *ours))


def _settings(ours: Deployment) -> tuple[RenderSettings, Directories]:
    return render_settings(ours.settings), Directories(paths.scratch() / "ui")
