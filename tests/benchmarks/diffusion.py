"""Diffusion through the whole machine, against ComfyUI's own queue kept full."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from tests.benchmarks.measure import Figure, alternate, ratio, skipped
from tests.benchmarks.sides import NO_COMFYUI, a_side, comfyui, in_memory
from tests.support.graphs import diffusion_graph

_TURNS = 8
"""Long renders take turns this often: what else this machine does changes within minutes. Between some
of them ComfyUI collects garbage for half a second, so that a turn must not be too short either."""

DIFFUSION = diffusion_graph("random_sd15", "a red house", prefix="bench")
"""A random-weight SD 1.5 of full shape (its weights don't change how long it takes)."""


def run(_work: Path) -> list[Figure]:
    """Needs a ComfyUI with the random-weight model."""
    tasks = 8 if os.environ.get("DROPBATCH_BENCH_QUICK") else 120
    engine = comfyui()
    if engine is None:
        return [skipped("Diffusion renders, ComfyUI", "≥ 0.98", NO_COMFYUI)]
    if not Path(str(engine["comfyui_dir"]), "models/diffusers/random_sd15").is_dir():
        return [skipped("Diffusion renders, ComfyUI", "≥ 0.98", "no models/diffusers/random_sd15")]
    with in_memory() as work:
        return [_diffusion(work / "diffusion", tasks, engine), _huge_pages(work, max(4, tasks // 6), engine)]


def _diffusion(work: Path, tasks: int, engine: dict[str, str | None]) -> Figure:
    in_turn = tasks // _TURNS
    with a_side(work, DIFFUSION, engine) as side:
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
        ours = stack.enter_context(a_side(work / "ours", DIFFUSION, engine))
        with patch.dict(os.environ, THP_MEM_ALLOC_ENABLE="0"):
            plain = stack.enter_context(a_side(work / "plain", DIFFUSION, engine))
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
