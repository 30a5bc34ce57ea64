"""Start-up: what people wait for each time they type `dropbatch`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.measure import Figure, alternate, ratio, seconds

_ROUNDS = 21
_SLOW = ("boto3", "botocore", "modal", "structlog", "PIL", "pydantic", "typer")
_ONE_FIELD = """
from pydantic import BaseModel, ConfigDict
class Model(BaseModel):
    model_config = ConfigDict(defer_build=True)
    field: int
"""


def run(_work: Path) -> list[Figure]:
    """Bare Python, the help and the models, in turn."""
    dropbatch = str(Path(sys.executable).parent / "dropbatch")
    found = alternate(
        {
            "bare": _command([sys.executable, "-c", "pass"]),
            "help": _command([dropbatch, "--help"]),
            "models": _command([sys.executable, "-c", "import processor.models"]),
            "pydantic": _command([sys.executable, "-c", "from pydantic import BaseModel"]),
            "one field": _command([sys.executable, "-c", _ONE_FIELD]),
        },
        rounds=_ROUNDS,
    )
    help_ratio = ratio(found["help"], found["bare"])
    models_ratio = ratio(found["models"], found["bare"])
    pydantic_ratio = ratio(found["pydantic"], found["bare"])
    one_field_ratio = ratio(found["one field"], found["bare"])
    slow = _imported_by_help()
    return [
        Figure(
            "`dropbatch --help`",
            f"{help_ratio:.1f} × bare Python ({1e3 * found['help'].median:.0f} ms)",
            "≤ 7 ×",
            help_ratio <= 7 and not slow,
            f"imports none of {', '.join(_SLOW)}" if not slow else f"imports {', '.join(slow)}",
        ),
        Figure(
            "`import processor.models`",
            f"{models_ratio:.1f} × bare Python ({1e3 * found['models'].median:.0f} ms)",
            "≤ 10 ×",
            models_ratio <= 10,
            f"`from pydantic import BaseModel` alone takes {pydantic_ratio:.1f} ×, "
            f"a model of one field {one_field_ratio:.1f} ×",
        ),
    ]


def _command(command: list[str]) -> Callable[[], float]:
    # As on most machines, what was imported once is compiled from then on.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def once() -> float:
        return seconds(
            lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        )

    return once


def _imported_by_help() -> list[str]:
    code = (
        "import sys\nfrom processor.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print('|', *[name for name in {_SLOW!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.rpartition("|")[2].split()
