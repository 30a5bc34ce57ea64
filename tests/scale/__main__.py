"""`make scale`: simulate nights, write docs/scale.md and docs/images/scale-night.svg."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import jinja2

from tests.scale.night import Choice, Modal, Night

CHOICES: Final = (
    Choice("default: 1 task an input, 60 s, by model"),
    Choice("inputs of 4 tasks", chunk=4),
    Choice("inputs of 16 tasks", chunk=16),
    Choice("inputs of 10 s of work", chunk=None),
    Choice("scaledown 10 s", scaledown_s=10),
    Choice("scaledown 30 s", scaledown_s=30),
    Choice("scaledown 300 s", scaledown_s=300),
    Choice("1 input a container", concurrency=1),
    Choice("not by model", grouped=False),
    Choice("2 jobs at once", jobs_at_once=2),
    Choice("32 jobs at once", jobs_at_once=32),
)
NIGHTS: Final = {"100": [20] * 5, "10,000": [250] * 40}
MILLION: Final = {"1,000,000": [10_000] * 100}
PLANS: Final = (10, 50)
LENGTHS: Final = {"short (0.6 s)": 0.6, "ordinary (6 s)": 6.0}
_HERE: Final = Path(__file__).parent
_DOCS: Final = _HERE.parents[1] / "docs"


def main(arguments: list[str]) -> None:
    """Simulate; with `--million` also the nights of a million tasks, which take minutes each."""
    kept = _DOCS / "scale.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
    nights, choices = (MILLION, CHOICES[:1]) if "--million" in arguments else (NIGHTS, CHOICES)
    rows = [row for row in rows if row["night"] not in nights]
    for night, jobs in nights.items():
        for length, task_s in LENGTHS.items():
            if night in MILLION and task_s < 1:
                continue
            for gpus in PLANS:
                for choice in choices:
                    report = Night(Modal(gpus=gpus, task_s=task_s), choice).run(jobs)
                    rows.append(
                        {
                            "night": night,
                            "length": length,
                            "gpus": gpus,
                            "choice": choice.name,
                            "utilisation": report.utilisation,
                            "cost_usd": report.cost_usd,
                            **asdict(report),
                        }
                    )
    kept.write_text(json.dumps(rows, indent=1) + "\n")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=jinja2.select_autoescape(("svg.j2",)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    shown = [row for row in rows if row["night"] == "10,000" and row["length"].startswith("ordinary")]
    (_DOCS / "scale.md").write_text(environment.get_template("scale.md.j2").render(rows=rows))
    (_DOCS / "images" / "scale-night.svg").write_text(
        environment.get_template("night.svg.j2").render(rows=shown, plans=PLANS)
    )


if __name__ == "__main__":
    main(sys.argv[1:])
