"""docs/security.md promises tests; each must be there."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def test_each_test_that_the_page_names_exists() -> None:
    page = (_ROOT / "docs" / "security.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    assert len(named) > 30
    missing = [
        f"{path}::{name}" for path, name in named if f"def {name}(" not in (_ROOT / path).read_text("utf-8")
    ]
    assert not missing
