"""The routes that give files out and take them in: `/view` and `/upload/image`."""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path

from aiohttp import web

from handlers.engine.files import ANNOTATIONS, Folders, inside

_NEVER_SHOWN = {"text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css"}


def add_storage_routes(app: web.Application, prefix: str, folders: Folders) -> None:
    """Add both routes."""

    async def view(request: web.Request) -> web.StreamResponse:
        return _view(folders, request)

    async def upload(request: web.Request) -> web.StreamResponse:
        return await _upload(folders, request)

    app.router.add_get(f"{prefix}/view", view)
    app.router.add_post(f"{prefix}/upload/image", upload)


def _view(folders: Folders, request: web.Request) -> web.StreamResponse:
    """A file by `filename`, `subfolder` and `type`; 400 or 403 for one outside its folder."""
    query = request.query
    if "filename" not in query:
        return web.Response(status=404)
    name, kind = query["filename"], query.get("type", "output")
    for suffix, annotated in ANNOTATIONS.items():
        if name.endswith(suffix):
            name, kind = name[: -len(suffix) - 1], annotated
    folder = folders.named(kind)
    if not name or name.startswith("/") or ".." in name or "\0" in name or folder is None:
        return web.Response(status=400)
    within = inside(folder, query.get("subfolder", ""))
    if within is None:
        return web.Response(status=403)
    path = within / Path(name).name
    if not path.is_file():
        return web.Response(status=404)
    content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if content_type in _NEVER_SHOWN:
        content_type = "application/octet-stream"
    shown_name = path.name.replace('"', "").replace("\r", "").replace("\n", "")
    headers = {"Content-Disposition": f'filename="{shown_name}"', "Content-Type": content_type}
    return web.FileResponse(path, headers=headers)


async def _upload(folders: Folders, request: web.Request) -> web.StreamResponse:
    """Keep an uploaded file under its name, or the next free one when another has it.

    The same content again is kept once. `overwrite` replaces. The file appears whole or not at all.
    """
    form = await request.post()
    image = form.get("image")
    if not isinstance(image, web.FileField) or not image.filename:
        return web.Response(status=400)
    kind, subfolder = str(form.get("type", "input")), str(form.get("subfolder", ""))
    folder = folders.named(kind)
    if folder is None or inside(folder, subfolder) is None:
        return web.Response(status=400)
    target = inside(folder, f"{subfolder}/{image.filename}" if subfolder else image.filename)
    if target is None or target == folder:
        return web.Response(status=400)
    content = image.file.read()
    name = image.filename
    if form.get("overwrite") not in ("true", "1"):
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - names with a leading dot as ComfyUI splits them
        number = 0
        while target.exists() and target.read_bytes() != content:
            number += 1
            name = f"{stem} ({number}){suffix}"
            target = target.with_name(Path(name).name)
    if not target.exists() or target.read_bytes() != content:
        _write_whole(target, content)
    return web.json_response({"name": name, "subfolder": subfolder, "type": kind})


def _write_whole(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(content)
    partial.replace(target)
