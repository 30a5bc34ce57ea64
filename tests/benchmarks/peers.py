"""Other people's programs that we compare with, each in a virtual environment of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

PACKAGES = {
    "prefect": ["prefect>=3,<4"],
    "dask": ["dask", "distributed"],
    "huey": ["huey"],
    "comfy-cli": ["comfy-cli==1.5.3"],
}
_HOME = Path(tempfile.gettempdir()) / "dropbatch-bench-peers"
_INSTALL_S = 300


@cache
def peer_python(name: str) -> Path | None:
    """The interpreter that has the peer, installed when first asked for; None if it can't be.

    Kept between runs: what is measured is never the installation.
    """
    folder = _HOME / name
    python = folder / "bin" / "python"
    done = folder / "installed"
    if done.is_file():
        return python
    uv = Path(sys.executable).parent / "uv"
    install = [str(uv), "pip", "install", "--quiet", "--python", str(python), *PACKAGES[name]]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=_INSTALL_S)
        subprocess.run(install, check=True, timeout=_INSTALL_S, capture_output=True)
    except (OSError, subprocess.SubprocessError):
        return None
    done.touch()
    return python
