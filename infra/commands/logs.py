"""`dropbatch logs --modal`: what the app's containers say, as they say it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from infra.settings import modal_settings

if TYPE_CHECKING:
    from processor.config import Settings


def follow(settings: Settings) -> int:
    """Follow the app's log until interrupted; Modal's own exit code."""
    name = modal_settings(settings).app_name
    return subprocess.run([sys.executable, "-m", "modal", "app", "logs", name, "-f"], check=False).returncode
