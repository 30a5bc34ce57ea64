"""The soak's figures as they stand in docs/reliability.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- soak: begin -->\n", "<!-- soak: end -->\n"


def write(figures: list[dict[str, Any]]) -> None:
    """Put a run's figures into the page, in place of an earlier run's."""
    before, _, rest = _PAGE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    _PAGE.write_text(before + _BEGIN + as_markdown(figures) + _END + after)


def as_markdown(figures: list[dict[str, Any]]) -> str:
    """One column a kind of store."""
    rows = [
        ("seed", [str(each["seed"]) for each in figures]),
        ("rounds, each with a kill -9", _counts(figures, "rounds")),
        ("killed", [_told(each["killed"]) for each in figures]),
        ("requests", _counts(figures, "requests")),
        ("of them gone wrong", [_told(each["faults"]) for each in figures]),
        ("drops", _counts(figures, "drops")),
        ("outcomes", [_told(each["outcomes"]) for each in figures]),
        ("jobs taken over by another attempt", _counts(figures, "jobs_taken_over")),
        ("files compared with their manifest", _counts(figures, "files_compared")),
        ("objects left by losing attempts", _counts(figures, "objects_of_losing_attempts")),
        ("**violations**", [f"**{len(each['violations'])}**" for each in figures]),
    ]
    lines = [f"| | {' | '.join(each['store'] for each in figures)} |", "|---|" + "---|" * len(figures)]
    lines += [f"| {what} | {' | '.join(values)} |" for what, values in rows]
    return "\n".join(lines) + "\n"


def _counts(figures: list[dict[str, Any]], what: str) -> list[str]:
    return [f"{each[what]:,}" for each in figures]


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in counts.items()) or "none"
