"""`docs/reliability.json`, what runs of the simulation came to, and the page's tables made of it.

Runs add up: a million schedules take more than one night. The crash points and the disabled
guards are those of the newest run that had them.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.simulation.report import Figures

_PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_LEDGER = _PAGE.with_suffix(".json")
_BEGIN, _END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"


def record(figures: Figures) -> None:
    """Add a run to the ledger, then make the page's tables anew."""
    ledger: dict[str, Any] = json.loads(_LEDGER.read_text()) if _LEDGER.exists() else {"runs": []}
    ledger["runs"] = _joined([*ledger["runs"], _run(figures)])
    if figures.crashes:
        ledger["crashes"] = [asdict(each) for each in figures.crashes]
        ledger["mutants"] = [asdict(each) for each in figures.mutants]
    _LEDGER.write_text(json.dumps(ledger, indent=1) + "\n")
    before, _, rest = _PAGE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    _PAGE.write_text(before + _BEGIN + as_markdown(ledger) + _END + after)


def of(figures: Figures) -> dict[str, Any]:
    """One run as a ledger of its own."""
    return {
        "runs": [_run(figures)],
        "crashes": [asdict(each) for each in figures.crashes],
        "mutants": [asdict(each) for each in figures.mutants],
    }


def _run(figures: Figures) -> dict[str, Any]:
    return {
        "revision": _revision(),
        "first_seed": figures.first_seed,
        "schedules": figures.schedules.total(),
        "calls": figures.calls,
        "seconds": round(figures.seconds, 1),
        "faults": dict(figures.faults.most_common()),
        "violations": len(figures.violations),
    }


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    told = subprocess.run(command, cwd=_PAGE.parent, capture_output=True, text=True, check=False)
    return told.stdout.strip()


def _joined(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of one revision whose seeds follow each other are one."""
    joined: list[dict[str, Any]] = []
    for run in sorted(runs, key=lambda each: (each["revision"], each["first_seed"])):
        last = joined[-1] if joined else None
        follows = last and last["first_seed"] + last["schedules"] == run["first_seed"]
        if last and follows and last["revision"] == run["revision"]:
            for what in ("schedules", "calls", "seconds", "violations"):
                last[what] += run[what]
            last["faults"] = dict((Counter(last["faults"]) + Counter(run["faults"])).most_common())
        else:
            joined.append(dict(run))
    return joined


def as_markdown(ledger: dict[str, Any]) -> str:
    """The tables of docs/reliability.md."""
    runs, crashes, mutants = ledger["runs"], ledger.get("crashes", []), ledger.get("mutants", [])
    faults: Counter[str] = sum((Counter(run["faults"]) for run in runs), Counter())
    schedules, calls = sum(run["schedules"] for run in runs), sum(run["calls"] for run in runs)
    seconds, violations = sum(run["seconds"] for run in runs), sum(run["violations"] for run in runs)
    caught = sum(each["violation"] is not None for each in mutants)
    lines = [
        "| | |",
        "|---|---|",
        f"| schedules | {schedules:,} |",
        f"| calls interleaved | {calls:,} |",
        f"| schedules a second, one core | {schedules / max(seconds, 1e-9):,.0f} |",
        f"| crash points | {sum(each['points'] for each in crashes):,} |",
        f"| guards disabled and noticed | {caught} of {len(mutants)} |",
        f"| **violations** | **{violations + sum(len(each['violations']) for each in crashes)}** |",
        "",
        "| seeds | revision | violations |",
        "|---|---|---|",
        *(
            f"| {run['first_seed']:,} to {run['first_seed'] + run['schedules'] - 1:,} "
            f"| {run['revision']} | {run['violations']} |"
            for run in runs
        ),
        "",
        "| what happened | times |",
        "|---|---|",
        *(f"| {what} | {times:,} |" for what, times in faults.most_common()),
        "",
        "| crash points | calls | runs | violations |",
        "|---|---|---|---|",
        *(
            f"| {each['scenario'].replace('_', ' ')} | {each['calls']} "
            f"| {each['points']:,} | {len(each['violations'])} |"
            for each in crashes
        ),
        "",
        "| guard disabled | noticed after | as a violation of |",
        "|---|---|---|",
        *(
            f"| {each['guard']} | {each['schedules']} schedule{'s' * (each['schedules'] != 1)} "
            f"| {each['violation'] or '**nothing**'} |"
            for each in mutants
        ),
    ]
    return "\n".join(lines) + "\n"
