"""Renders through the whole machine, against the engine's own queue kept full."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import requests
from websockets.sync.client import connect

from handlers.render.api import Api
from handlers.render.engine import Engine
from handlers.render.handler import RenderHandler
from processor.machine import Machine
from processor.run import run as run_machine
from processor.store.s3 import S3Store
from tests.benchmarks.machines import machine
from tests.benchmarks.measure import Figure, alternate, ratio, seconds, skipped
from tests.benchmarks.peers import peer_python
from tests.benchmarks.servers import make_bucket, rclone_server

RENDER = "handlers.render:RenderHandler"
JOBS = 12
"""In work at a time, so that while some are committed others wait in the engine's queue."""
_TURNS = 8
"""Long renders take turns this often: what else this machine does changes within minutes. Between some
of them ComfyUI collects garbage for half a second, so that a turn must not be too short either."""
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it

TINY: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 256, "height": 256, "batch_size": 1, "color": 0}},
    "2": {
        "class_type": "ImageScale",
        "inputs": {
            "image": ["1", 0],
            "upscale_method": "lanczos",
            "width": 640,
            "height": 640,
            "crop": "disabled",
        },
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "bench"}},
}
"""Made as large as takes some 30 ms here."""
_TINY_S = 0.030
_SIZES = range(384, 2049, 64)

DIFFUSION: dict[str, Any] = {
    "1": {"class_type": "DiffusersLoader", "inputs": {"model_path": "random_sd15"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red house"}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
            "seed": 0,
            "steps": 2,
            "cfg": 7.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "bench"}},
}
"""A random-weight SD 1.5 of full shape (its weights don't change how long it takes)."""


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
        api, client_id = self.engine.api, self.engine.client.client_id
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


def run(_work: Path) -> list[Figure]:
    """Every engine that is here. All files of both sides lie in memory, where there is a place for that:
    a disk that others use decides more than what is compared."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        return _all(Path(folder))


def _all(work: Path) -> list[Figure]:
    quick = bool(os.environ.get("DROPBATCH_BENCH_QUICK"))
    tiny, real = (60, 8) if quick else (300, 120)
    figures = _tiny(work / "builtin", "built-in engine", tiny, {})
    comfyui = os.environ.get("COMFYUI_DIR")
    if comfyui is None:
        why = "set COMFYUI_DIR (and COMFYUI_PYTHON) to a ComfyUI checkout"
        for what, target in (
            ("Tiny renders, ComfyUI", "≥ 0.80"),
            ("Diffusion renders, ComfyUI", "≥ 0.98"),
            ("Against `comfy run --wait`", "≥ 25 ×"),
        ):
            figures.append(skipped(what, target, why))
        return figures
    engine = {"comfyui_dir": comfyui, "comfyui_python": os.environ.get("COMFYUI_PYTHON")}
    figures += _tiny(work / "comfyui", "ComfyUI", tiny, engine, against_cli=True)
    # With a GPU an engine needs one core; on the CPU torch takes all there are, and then some.
    with patch.dict(os.environ, OMP_NUM_THREADS="1"):
        figures += _tiny(work / "one-thread", "ComfyUI, one torch thread", tiny, engine)
    if (Path(comfyui) / "models" / "diffusers" / "random_sd15").is_dir():
        figures.append(_diffusion(work / "diffusion", real, engine))
        figures.append(_huge_pages(work / "pages", max(4, real // 6), engine))
    else:
        figures.append(skipped("Diffusion renders, ComfyUI", "≥ 0.98", "no models/diffusers/random_sd15"))
    return figures


def _tiny(
    work: Path, name: str, tasks: int, engine: dict[str, str | None], *, against_cli: bool = False
) -> list[Figure]:
    with _side(work, copy.deepcopy(TINY), engine) as side:
        size = _fit(side)
        found = alternate(
            {
                "ours": lambda: side.through_the_machine(tasks) / tasks,
                "ceiling": lambda: side.queue_kept_full(tasks) / tasks,
                "one": lambda: side.one_at_a_time(tasks // 3) / (tasks // 3),
            },
            rounds=5,
        )
        share, one_share = ratio(found["ceiling"], found["ours"]), ratio(found["ceiling"], found["one"])
        figures = [
            Figure(
                f"{tasks} tiny renders, {name}",
                f"{share:.2f} of the queue's ceiling ({1 / found['ours'].median:.1f} of "
                f"{1 / found['ceiling'].median:.1f} jobs/s); one at a time {one_share:.2f}",
                "≥ 0.80, ahead of one at a time",
                share >= 0.8 and share > one_share,
                f"one drop each, {size} px, `rclone serve s3`, {JOBS} jobs in work, inbox to manifests",
            )
        ]
        if against_cli:
            figures.append(_against_cli(side, work, found["ours"].median))
    return figures


def _fit(side: Side) -> int:
    """Make the side's pictures as large as take `_TINY_S` in a full queue."""
    scale = side.graph["2"]["inputs"]
    for size in _SIZES:
        scale["width"] = scale["height"] = size
        if side.queue_kept_full(20) / 20 >= _TINY_S:
            break
    return size


def _diffusion(work: Path, tasks: int, engine: dict[str, str | None]) -> Figure:
    in_turn = tasks // _TURNS
    with _side(work, DIFFUSION, engine) as side:
        found = alternate(
            {
                "ours": lambda: side.through_the_machine(in_turn) / in_turn,
                "ceiling": lambda: side.queue_kept_full(in_turn) / in_turn,
            },
            rounds=_TURNS,
        )
    ours_s, ceiling_s = found["ours"].mean, found["ceiling"].mean
    share = ceiling_s / ours_s
    return Figure(
        f"{tasks} diffusion renders, ComfyUI",
        f"{share:.3f} of the queue's ceiling ({ours_s:.2f} against {ceiling_s:.2f} s each)",
        "≥ 0.98",
        share >= 0.98,
        f"random-weight SD 1.5, 64×64, 2 steps, on the CPU; {_TURNS} rounds of {in_turn}, either side: all "
        f"of ours against all of theirs (single rounds: {found['ours'].low:.2f} to "
        f"{found['ours'].high:.2f}, {found['ceiling'].low:.2f} to {found['ceiling'].high:.2f} s)",
    )


def _huge_pages(work: Path, tasks: int, engine: dict[str, str | None]) -> Figure:
    """The ComfyUI that we start against one that is started as its README does."""
    in_turn = tasks // 4
    with ExitStack() as stack:
        ours = stack.enter_context(_side(work / "ours", DIFFUSION, engine))
        with patch.dict(os.environ, THP_MEM_ALLOC_ENABLE="0"):
            plain = stack.enter_context(_side(work / "plain", DIFFUSION, engine))
        found = alternate(
            {
                "ours": lambda: ours.queue_kept_full(in_turn) / in_turn,
                "plain": lambda: plain.queue_kept_full(in_turn) / in_turn,
            },
            rounds=4,
        )
    share = ratio(found["plain"], found["ours"])
    return Figure(
        "Diffusion on a CPU, with torch's tensors in pages of 2 MiB",
        f"{share:.2f} × ({found['ours'].median:.2f} against {found['plain'].median:.2f} s each)",
        note=f"the same graphs in two full queues; 4 rounds of {in_turn} in turn; "
        f"transparent huge pages: {_transparent_huge_pages()}",
    )


def _transparent_huge_pages() -> str:
    """This Linux's setting: with `never` there are none, with `always` everybody has them."""
    try:
        line = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return "unknown"
    return line.partition("[")[2].partition("]")[0]


def _against_cli(side: Side, work: Path, ours_s: float) -> Figure:
    what = "Against `comfy run --wait`, one process a job"
    python = peer_python("comfy-cli")
    if python is None:
        return skipped(what, "≥ 25 ×", "comfy-cli 1.5.3 could not be installed here")
    host, port = side.engine.api.url.removeprefix("http://").split(":")
    environment = {"PATH": os.environ["PATH"], "HOME": str(work), "DO_NOT_TRACK": "1"}
    taken = []
    for graph in side.graphs(4):
        file = work / "graph.json"
        file.write_text(json.dumps(graph))
        command = [str(python.parent / "comfy"), "--skip-prompt", "run", "--workflow", str(file)]
        command += ["--wait", "--host", host, "--port", port]
        try:
            taken.append(
                seconds(
                    lambda command=command: subprocess.run(  # type: ignore[misc]
                        command, check=True, capture_output=True, timeout=120, env=environment, cwd=work
                    )
                )
            )
        except subprocess.SubprocessError as error:
            return skipped(what, "≥ 25 ×", f"comfy-cli failed ({type(error).__name__})")
    theirs = sorted(taken)[len(taken) // 2]
    return Figure(
        what,
        f"{theirs / ours_s:.0f} × ({theirs:.2f} against {ours_s:.3f} s a job)",
        "≥ 25 ×",
        theirs / ours_s >= 25,
        "comfy-cli 1.5.3, same graphs, same server",
    )


@contextmanager
def _side(work: Path, graph: dict[str, Any], engine: dict[str, str | None]) -> Iterator[Side]:
    """A machine on an S3 server of its own, warmed up by one render."""
    with rclone_server(work.parent / f"{work.name}-buckets") as url:
        work.mkdir(parents=True)
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
