"""Graphs whose pixels are compared with ComfyUI's, and the input pictures that they read.

`python -m tests.unit.engine.pictures URL INPUT_DIR` runs them on a real ComfyUI and rewrites goldens.json:
sha256 of the decoded pixels, and for what is only near, the pixels.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import sys
import zlib
from io import BytesIO
from itertools import product
from pathlib import Path

from PIL import Image

from tests.unit.engine.serving import Graph, Listener, Server, node, save

GOLDENS = Path(__file__).with_name("goldens.json")
METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
BLENDS = ("normal", "multiply", "screen", "overlay", "soft_light", "difference")
_KERNELS: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("Blur", "blur", {}),
    ("Sharpen", "sharpen", {"alpha": 0.5}),
)
DITHERS = ("none", "floyd-steinberg", "bayer-2", "bayer-4", "bayer-8", "bayer-16")


def write_inputs(folder: Path) -> None:
    """Small lossless pictures: noise, a gradient, transparency, palettes, 16 bits, several frames."""
    chance = random.Random(20251012)  # noqa: S311 - repeatable, not secret
    noise = Image.frombytes("RGB", (57, 41), chance.randbytes(57 * 41 * 3))
    noise.save(folder / "noise.png")
    slope = bytes(
        level % 256
        for y in range(50)
        for x in range(75)
        for level in (x * 255 // 75, y * 255 // 50, x * 3 + y * 5)
    )
    Image.frombytes("RGB", (75, 50), slope).save(folder / "slope.png")
    Image.frombytes("RGBA", (24, 32), chance.randbytes(24 * 32 * 4)).save(folder / "alpha.png")
    Image.frombytes("I;16", (30, 20), chance.randbytes(30 * 20 * 2)).save(folder / "grey16.png")
    Image.frombytes("LA", (30, 20), chance.randbytes(30 * 20 * 2)).save(folder / "grey-alpha.png")
    Image.frombytes("1", (32, 16), chance.randbytes(64)).save(folder / "bits.png")
    palette = Image.frombytes("P", (30, 20), bytes(chance.randrange(8) for _ in range(600)))
    palette.putpalette(chance.randbytes(24))
    palette.save(folder / "palette.png", transparency=3)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.save(folder / "turned.png", exif=turned)
    frames = [Image.frombytes("RGB", (20, 16), chance.randbytes(960)) for _ in range(3)]
    frames[0].save(folder / "frames.webp", save_all=True, append_images=frames[1:], lossless=True)


def graphs() -> dict[str, Graph]:
    """By name, graphs whose node "x" makes the pictures to compare."""
    made: dict[str, Graph] = {}
    for name in ("noise", "slope", "alpha", "grey16", "grey-alpha", "bits", "palette", "turned"):
        made[f"load {name}"] = {"x": _load(f"{name}.png")}
        made[f"load mask {name}"] = {"a": _load(f"{name}.png"), "x": node("MaskToImage", mask=["a", 1])}
    made["load frames"] = {"x": _load("frames.webp")}
    made |= _scales() | _pointwise() | _moves() | _filters() | _stitches()
    return made


def near() -> dict[str, Graph]:
    """Graphs whose pixels may differ by one level: kernels too large to add up in ComfyUI's order."""
    return {
        f"{kind} {radius}": _on("slope", f"Image{kind}", **{f"{verb}_radius": radius}, sigma=1.0, **more)
        for kind, verb, more in _KERNELS
        for radius in (3, 5, 20)
    }


def run(client: Listener, graph: Graph) -> list[Image.Image]:
    """The pictures that a graph saves."""
    entry = client.run({**graph, "save": save("x", "compared")})
    files = entry["outputs"]["save"]["images"]
    return [Image.open(BytesIO(client.server.view(file))).convert("RGB") for file in files]


def digest(pictures: list[Image.Image]) -> str:
    """Of sizes and pixels, not of how the files are packed."""
    total = hashlib.sha256()
    for picture in pictures:
        total.update(f"{picture.size}".encode() + picture.tobytes())
    return total.hexdigest()


def packed(picture: Image.Image) -> str:
    return base64.b85encode(zlib.compress(picture.tobytes(), 9)).decode()


def unpacked(text: str, size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, zlib.decompress(base64.b85decode(text)))


def _load(name: str) -> Graph:
    return node("LoadImage", image=name)


def _on(picture: str, class_type: str, **inputs: object) -> Graph:
    return {"a": _load(f"{picture}.png"), "x": node(class_type, image=["a", 0], **inputs)}


def _scales() -> Graph:
    made = {}
    sizes = ((114, 82), (200, 77), (30, 20), (64, 64), (58, 41), (0, 90), (1, 1), (150, 3))
    for picture, method, (width, height) in product(("noise", "slope"), METHODS, sizes):
        sides = {"width": width, "height": height}
        crop = "center" if width > height else "disabled"
        made[f"scale {method} {picture} {width}x{height} {crop}"] = _on(
            picture, "ImageScale", upscale_method=method, crop=crop, **sides
        )
    for method, factor in product(METHODS, (0.37, 1.0, 2.0)):
        made[f"scale {method} by {factor}"] = _on(
            "slope", "ImageScaleBy", upscale_method=method, scale_by=factor
        )
    for method in METHODS:
        flat = node("EmptyImage", width=64, height=48, batch_size=2, color=0x639921)
        size: dict[str, object] = {"width": 100, "height": 90, "crop": "disabled"}
        scale = node("ImageScale", image=["a", 0], upscale_method=method, **size)
        made[f"scale {method} of one colour"] = {"a": flat, "x": scale}
        twice = node("ImageScale", image=["x1", 0], upscale_method=method, width=75, height=90, crop="center")
        made[f"scale {method} twice"] = {"a": _load("noise.png"), "x1": scale, "x": twice}
    return made


def _pointwise() -> Graph:
    made = {"invert": _on("noise", "ImageInvert")}
    for mode, factor in product(BLENDS, (0.3, 1.0)):
        blend = node("ImageBlend", image1=["a", 0], image2=["b", 0], blend_factor=factor, blend_mode=mode)
        made[f"blend {mode} {factor}"] = {"a": _load("noise.png"), "b": _load("slope.png"), "x": blend}
    for value in (0.0, 0.333, 0.5, 0.77, 1.0):
        solid = node("SolidMask", value=value, width=9, height=5)
        made[f"mask {value}"] = {"a": solid, "x": node("MaskToImage", mask=["a", 0])}
    for channel in ("red", "blue"):
        mask = node("ImageToMask", image=["a", 0], channel=channel)
        made[f"mask of {channel}"] = {
            "a": _load("noise.png"),
            "b": mask,
            "x": node("MaskToImage", mask=["b", 0]),
        }
    made["colour"] = {"x": node("EmptyImage", width=9, height=5, batch_size=2, color=0x123456)}
    return made


def _moves() -> Graph:
    made = {}
    for way in ("x-axis: vertically", "y-axis: horizontally"):
        made[f"flip {way}"] = _on("noise", "ImageFlip", flip_method=way)
    for turn in ("none", "90 degrees", "180 degrees", "270 degrees"):
        made[f"rotate {turn}"] = _on("noise", "ImageRotate", rotation=turn)
    for width, height, x, y in ((10, 12, 3, 4), (1000, 1000, 5, 6), (10, 10, 1000, 1000)):
        made[f"crop {width}x{height} at {x},{y}"] = _on(
            "noise", "ImageCrop", width=width, height=height, x=x, y=y
        )
    for left, top, right, bottom, feathering in ((0, 0, 0, 0, 40), (8, 16, 24, 0, 5), (8, 8, 8, 8, 20)):
        pad = {"left": left, "top": top, "right": right, "bottom": bottom, "feathering": feathering}
        graph = _on("noise", "ImagePadForOutpaint", **pad)
        made[f"pad {left},{top},{right},{bottom}"] = graph
        mask = node("MaskToImage", mask=["p", 1])
        made[f"pad mask {left},{top},{right},{bottom}"] = {"a": graph["a"], "p": graph["x"], "x": mask}
    return made


def _filters() -> Graph:
    made = {}
    for radius, sigma in product((1, 2), (0.3, 1.0, 5.0)):
        made[f"blur {radius} {sigma}"] = _on("slope", "ImageBlur", blur_radius=radius, sigma=sigma)
    for radius, alpha in product((1, 2), (0.5, 2.0)):
        made[f"sharpen {radius} {alpha}"] = _on(
            "slope", "ImageSharpen", sharpen_radius=radius, sigma=1.0, alpha=alpha
        )
    for dither, colors in product(DITHERS, (7, 256)):
        made[f"quantize {dither} {colors}"] = _on("noise", "ImageQuantize", colors=colors, dither=dither)
    return made


def _stitches() -> Graph:
    made = {}
    for direction, match, (width, color) in product(
        ("right", "down", "left", "up"), (True, False), ((0, "white"), (4, "red"), (3, "black"))
    ):
        stitch = node(
            "ImageStitch",
            image1=["a", 0],
            image2=["b", 0],
            direction=direction,
            match_image_size=match,
            spacing_width=width,
            spacing_color=color,
        )
        name = f"stitch {direction} {'matched' if match else 'as they are'} {width} {color}"
        made[name] = {"a": _load("noise.png"), "b": _load("slope.png"), "x": stitch}
    both = {"a": _load("frames.webp"), "b": _load("noise.png")}
    made["batch"] = {**both, "x": node("ImageBatch", image1=["a", 0], image2=["b", 0])}
    made["repeat"] = {**both, "x": node("RepeatImageBatch", image=["a", 0], amount=2)}
    return made


def main(url: str, folder: str) -> None:
    """Ask a real ComfyUI, whose input folder that is."""
    write_inputs(Path(folder))
    with Server(url, None, is_engine=False).listener() as client:
        exact = {name: digest(run(client, graph)) for name, graph in graphs().items()}
        close = {name: packed(run(client, graph)[0]) for name, graph in near().items()}
        system = client.server.request("/system_stats").json["system"]
    source = {key: system[key] for key in ("comfyui_version", "pytorch_version")}
    GOLDENS.write_text(json.dumps({"source": source, "exact": exact, "near": close}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
