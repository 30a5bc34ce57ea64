"""Graphs that tests and benches of a real ComfyUI render."""

from __future__ import annotations

from typing import Any


def diffusion_graph(
    model: str, text: str, *, prefix: str, negative: str = "", seed: int = 0, lora: str | None = None
) -> dict[str, Any]:
    """Text to image by a model in diffusers format, small enough for a CPU.

    Args:
        lora: put between the model and what uses it, by node `10`.
    """
    source = "10" if lora else "1"
    graph: dict[str, Any] = {
        "1": {"class_type": "DiffusersLoader", "inputs": {"model_path": model}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": [source, 1], "text": text}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": [source, 1], "text": negative}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": [source, 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": seed,
                "steps": 2,
                "cfg": 7.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": prefix}},
    }
    if lora:
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        inputs = {"model": ["1", 0], "clip": ["1", 1], "lora_name": lora, **strengths}
        graph["10"] = {"class_type": "LoraLoader", "inputs": inputs}
    return graph
