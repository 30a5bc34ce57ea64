"""Texts and quantities as people read them, the same on pages and terminals."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(size_bytes: int) -> str:
    """`812 B`, `1.4 MB`."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def money(usd: float) -> str:
    """`$1,204.50`; what is less than a cent says so."""
    return "under 1 ¢" if 0 < usd < 0.01 else f"${usd:,.2f}"


def plural(count: int, noun: str) -> str:
    """`1 task`, `12,000 tasks`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def readable(text: str) -> str:
    """`text` with a question mark for each lone surrogate (part of a name that is no UTF-8), which no
    record and no terminal can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
