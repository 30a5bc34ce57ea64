"""Render jobs: ComfyUI graphs, planned on a CPU and run on an engine."""

from handlers.render.handler import RenderHandler
from handlers.render.settings import RenderSettings

__all__ = ["RenderHandler", "RenderSettings"]
