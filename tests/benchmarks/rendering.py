"""Tiny renders through the whole machine, against the engine's own queue kept full."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.benchmarks.measure import Figure, alternate, ratio, seconds, skipped
from tests.benchmarks.peers import peer_python
from tests.benchmarks.sides import JOBS, NO_COMFYUI, Side, a_side, comfyui, in_memory

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
_CLI = "Against `comfy run --wait`, one process a job"


def run(_work: Path) -> list[Figure]:
    """Every engine that is here."""
    tasks = 60 if os.environ.get("DROPBATCH_BENCH_QUICK") else 300
    with in_memory() as work:
        figures = _tiny(work / "builtin", "built-in engine", tasks, {})
        engine = comfyui()
        if engine is None:
            for what, target in (("Tiny renders, ComfyUI", "≥ 0.80"), (_CLI, "≥ 25 ×")):
                figures.append(skipped(what, target, NO_COMFYUI))
            return figures
        figures += _tiny(work / "comfyui", "ComfyUI", tasks, engine, against_cli=True)
        # With a GPU an engine needs one core; on the CPU torch takes all there are, and then some.
        with patch.dict(os.environ, OMP_NUM_THREADS="1"):
            figures += _tiny(work / "one-thread", "ComfyUI, one torch thread", tasks, engine)
    return figures


def _tiny(
    work: Path, name: str, tasks: int, engine: dict[str, str | None], *, against_cli: bool = False
) -> list[Figure]:
    with a_side(work, copy.deepcopy(TINY), engine) as side:
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


def _against_cli(side: Side, work: Path, ours_s: float) -> Figure:
    python = peer_python("comfy-cli")
    if python is None:
        return skipped(_CLI, "≥ 25 ×", "comfy-cli 1.5.3 could not be installed here")
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
            return skipped(_CLI, "≥ 25 ×", f"comfy-cli failed ({type(error).__name__})")
    theirs = sorted(taken)[len(taken) // 2]
    return Figure(
        _CLI,
        f"{theirs / ours_s:.0f} × ({theirs:.2f} against {ours_s:.3f} s a job)",
        "≥ 25 ×",
        theirs / ours_s >= 25,
        "comfy-cli 1.5.3, same graphs, same server",
    )
