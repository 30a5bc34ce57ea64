"""The node schema of the very ComfyUI that renders, taken once a deploy: preflight needs no GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from handlers.render.server import Server
from handlers.render.settings import render_settings
from infra.machine import container_start, open_stores
from infra.settings import Deployment
from processor.clock import SystemClock
from processor.layout import OBJECT_INFO


def capture(deployed: Deployment) -> dict[str, Any]:
    """Start the engine without a GPU, ask for `/object_info`, store it under `state/`.

    Raises:
        TaskFailed: the engine does not start; with the last lines of its log.
    """
    ours = container_start(deployed)
    settings = replace(render_settings(ours.settings), cpu=True, start_timeout_s=600)
    server = Server(settings, SystemClock())
    try:
        stats = server.start()
        schema = server.api.object_info()
    finally:
        server.remove()
    data = json.dumps(schema, sort_keys=True).encode()
    open_stores(ours).main.put(OBJECT_INFO, data, media_type="application/json")
    return {"version": stats.get("system", {}).get("comfyui_version"), "nodes": len(schema)}
