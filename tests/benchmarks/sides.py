"""Both sides of a comparison: a machine with its engine, and the same engine's queue without the machine."""

from __future__ import annotations

import copy
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import requests
from websockets.sync.client import connect

from handlers.render.api import Api
from handlers.render.engine import Engine
from handlers.render.handler import RenderHandler
from processor.machine import Machine
from processor.run import run as run_machine
from processor.store.s3 import S3Store
from tests.benchmarks.machines import machine
from tests.benchmarks.measure import seconds
from tests.benchmarks.servers import make_bucket, rclone_server

RENDER = "handlers.render:RenderHandler"
JOBS = 12
"""In work at a time, so that while some are committed others wait in the engine's queue."""
NO_COMFYUI = "set COMFYUI_DIR (and COMFYUI_PYTHON) to a ComfyUI checkout"
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder for all files of both sides, in memory where there is a place for that: a disk that others
    use decides more than what is compared."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        yield Path(folder)


def comfyui() -> dict[str, str | None] | None:
    """The settings for the ComfyUI that is named in the environment; None without one."""
    folder = os.environ.get("COMFYUI_DIR")
    return {"comfyui_dir": folder, "comfyui_python": os.environ.get("COMFYUI_PYTHON")} if folder else None


@dataclass
class Side:
    """A machine with its engine running, and graphs that no cache has seen."""

    runner: Machine
    store: S3Store
    engine: Engine
    graph: dict[str, Any]
    numbers: Iterator[int]

    def graphs(self, tasks: int) -> list[dict[str, Any]]:
        """So many graphs, each with its own seed or colour, and its own file name."""
        made = []
        for number in (next(self.numbers) for _ in range(tasks)):
            graph = copy.deepcopy(self.graph)
            for node in graph.values():
                if "seed" in node["inputs"]:
                    node["inputs"]["seed"] = number
                if "color" in node["inputs"]:
                    node["inputs"]["color"] = number
                if "filename_prefix" in node["inputs"]:
                    node["inputs"]["filename_prefix"] = f"bench-{number}/out"
            made.append(graph)
        return made

    def through_the_machine(self, tasks: int) -> float:
        """From the inbox of an S3 server to the last manifest."""
        for number, graph in enumerate(self.graphs(tasks)):
            self.store.put(f"inbox/jobs/{number:04}.json", json.dumps(graph).encode())

        def work() -> None:
            report = run_machine(self.runner, concurrency=JOBS, once=True)
            assert report.all_well, report
            assert report.settled == tasks

        return seconds(work)

    def queue_kept_full(self, tasks: int) -> float:
        """The ceiling: everything queued at once, nothing fetched."""
        api, client_id = self.engine.api, self.engine.client.listener.client_id
        # Told by the socket when nothing is left: whoever asks for it, and often, costs what it measures.
        with connect(api.socket_url(uuid.uuid4().hex)) as socket:
            began = time.perf_counter()
            for graph in self.graphs(tasks):
                number = next(self.numbers)
                status, answer = api.submit(graph, prompt_id=f"ceiling-{number}", client_id=client_id)
                assert status == 200, answer
            # The first message comes with the connection, when nothing waits yet.
            while not _says_empty(socket.recv(timeout=600)) or self._waits():
                pass
            return time.perf_counter() - began

    def _waits(self) -> bool:
        return bool(self.engine.api._get("/prompt")["exec_info"]["queue_remaining"])

    def one_at_a_time(self, tasks: int) -> float:
        """As public workers do, one after the other; see `_like_a_public_worker`."""

        def work() -> None:
            for graph in self.graphs(tasks):
                assert _like_a_public_worker(self.engine.api, graph, self.store) == 1

        return seconds(work)


def _like_a_public_worker(api: Api, graph: dict[str, Any], store: S3Store) -> int:
    """What runpod-workers/worker-comfyui does with a job, in its `handler.py`: a socket of the job's
    own, `requests` without a session, the history, each file by /view, and its upload by boto3.

    Returns:
        How many files were uploaded.
    """
    url, client_id = api.url, uuid.uuid4().hex
    with connect(api.socket_url(client_id)) as socket:
        body: dict[str, Any] = {"prompt": graph, "client_id": client_id}
        prompt_id = requests.post(f"{url}/prompt", json=body, timeout=30).json()["prompt_id"]
        while not _says_ended(socket.recv(timeout=60), prompt_id):
            pass
    history = requests.get(f"{url}/history/{prompt_id}", timeout=30).json()[prompt_id]
    images = [image for output in history["outputs"].values() for image in output["images"]]
    for image in images:
        content = requests.get(f"{url}/view", params=image, timeout=60).content
        key = f"public/{prompt_id}/{image['filename']}"
        store._client.put_object(Bucket=store._bucket, Key=key, Body=content)
    return len(images)


def _says_empty(message: str | bytes) -> bool:
    data = _data(message, "status")
    return data is not None and data["status"]["exec_info"]["queue_remaining"] == 0


def _says_ended(message: str | bytes, prompt_id: str) -> bool:
    data = _data(message, "executing")
    return data is not None and data["node"] is None and data["prompt_id"] == prompt_id


def _data(message: str | bytes, kind: str) -> dict[str, Any] | None:
    """What a message of the engine tells; None for one of another kind, such as a preview picture."""
    told = {} if isinstance(message, bytes) else json.loads(message)
    return told["data"] if told.get("type") == kind else None


@contextmanager
def a_side(work: Path, graph: dict[str, Any], engine: dict[str, str | None]) -> Iterator[Side]:
    """A machine on an S3 server of its own, warmed up by one render"""
    work.mkdir()
    with rclone_server(work.parent / f"{work.name}-buckets") as url:
        store = make_bucket(url)
        with machine(store.url, work / "work", endpoint_url=url, render=RENDER, **engine) as runner:
            handler = runner.handlers["render"]
            assert isinstance(handler, RenderHandler)
            handler.warm()
            current = handler._engines.current
            assert current is not None
            side = Side(runner, store, current, graph, count(1))
            side.through_the_machine(1)
            side.one_at_a_time(1)
            yield side
