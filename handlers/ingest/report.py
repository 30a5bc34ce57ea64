"""What a check found: JSON for machines, text for people; every line names its file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about one file, or about the folder as a whole (`file` is "")."""

    level: Literal["error", "warning"]
    what: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.what}" if self.file else self.what


@dataclass
class Report:
    """A dataset as a check saw it."""

    dataset: str
    pictures: int = 0
    videos: int = 0
    captions: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    """How many pictures of each size, `1024x768`."""
    findings: list[Finding] = field(default_factory=list)
    options_of: str | None = None
    """The version whose options stand, where the folder brought none of its own."""

    def error(self, what: str, file: str = "") -> None:
        self.findings.append(Finding("error", what, file))

    def warn(self, what: str, file: str = "") -> None:
        self.findings.append(Finding("warning", what, file))

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "warning"]

    def summary(self, *, shown: int = 50) -> list[str]:
        """The warnings for a terminal: what many files have in common is said once."""
        alike: dict[str, list[str]] = {}
        for finding in self.warnings:
            alike.setdefault(finding.what, []).append(finding.file)
        told = []
        for what, files in alike.items():
            if len(files) == 1:
                told.append(f"{files[0]}: {what}" if files[0] else what)
            else:
                told.append(f"{len(files):,} files, {files[0]} first: {what}")
        return told[:shown]

    def to_json(self) -> bytes:
        document = {
            "dataset": self.dataset,
            "ok": not self.errors,
            "pictures": self.pictures,
            "videos": self.videos,
            "captions": self.captions,
            "options_of": self.options_of,
            "sizes": dict(self.sizes.most_common()),
            "errors": [asdict(finding) for finding in self.errors],
            "warnings": [asdict(finding) for finding in self.warnings],
        }
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()

    def to_text(self) -> str:
        lines = [
            f"Dataset {self.dataset}: {'ready to train' if not self.errors else 'NOT ready'}",
            f"{self.pictures} pictures, {self.videos} videos, {self.captions} captions",
        ]
        if self.options_of:
            lines.append(f"Options: as version {self.options_of} had them; there is no dataset.yaml here")
        if self.sizes:
            common = ", ".join(f"{size} ({count})" for size, count in self.sizes.most_common(8))
            lines.append(f"Sizes: {common}")
        for title, findings in (("Errors", self.errors), ("Warnings", self.warnings)):
            if findings:
                lines += ["", f"{title} ({len(findings)})", *(f"  {finding}" for finding in findings)]
        return "\n".join(lines) + "\n"
