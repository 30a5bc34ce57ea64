"""Where a container keeps what: absolute paths, below one root.

On Modal the root is `/`. A control plane on one machine gives each container a folder and names
it in `DROPBATCH_MOUNT_ROOT` (docs/loopback.md).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_ROOT: Final = Path(os.environ.get("DROPBATCH_MOUNT_ROOT", "/"))

SOURCE: Final = "/root"
"""Our packages, as mounted."""
MODELS: Final = "/models"
"""The Volume with `comfy_models/` as its folders."""
CACHE: Final = f"{MODELS}/.cache"
"""Of what custom nodes download by themselves, on the same Volume."""
SCRATCH: Final = "/var/dropbatch"
"""Work in progress; gone with the container."""
BASE_MODELS: Final = f"{SCRATCH}/base_models"
"""The Volume with models in diffusers format, where the train handler looks for them."""
COMFYUI: Final = "/root/comfy/ComfyUI"
"""Where comfy-cli installs it."""
SLACK_NODES: Final = f"{COMFYUI}/custom_nodes/NV_Comfy_Utils"
"""Custom nodes that send messages themselves."""
AI_TOOLKIT: Final = "/opt/ai-toolkit"
USER: Final = "/user"
"""The Volume with the interactive ComfyUI's settings and workflows."""


def here(path: str) -> Path:
    """The path as this process sees it."""
    return _ROOT / path.lstrip("/")


def scratch() -> Path:
    """`SCRATCH` as this process sees it."""
    return here(SCRATCH)
