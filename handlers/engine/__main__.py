"""Starts the engine with the command line of ComfyUI's `main.py`, so that one supervisor starts either."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

from aiohttp import web

from handlers.engine import VERSION
from handlers.engine.files import Folders
from handlers.engine.schema import Settings
from handlers.engine.server import EngineServer

log = logging.getLogger(__name__)

_NODE_DEPTH = 20_000  # validation walks a graph's links by recursion; a chain of the largest graph fits


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit code; 2 for a port that is taken."""
    options, ignored = _parser().parse_known_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if ignored:
        log.info("ignored: %s", " ".join(ignored))
    sys.setrecursionlimit(_NODE_DEPTH)
    base = Path(options.base_directory).absolute()
    folders = Folders(
        input=_folder(options.input_directory or base / "input"),
        output=_folder(options.output_directory or base / "output"),
        # ComfyUI keeps previews in a folder `temp` below this one, emptied at start
        temp=_emptied(Path(options.temp_directory or base).absolute() / "temp"),
    )
    settings = Settings(metadata=not options.disable_metadata, pause_s=options.pause_s)
    try:
        asyncio.run(_serve(options.listen, options.port, folders, settings, options.port_file))
    except OSError as error:
        log.error("cannot listen on %s port %s: %s", options.listen, options.port, error)  # noqa: TRY400
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m handlers.engine",
        description="A small server that speaks ComfyUI's protocol. Other flags of ComfyUI are ignored.",
        allow_abbrev=False,
    )
    parser.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS")
    parser.add_argument("--port", type=int, default=8188, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="write the port here once the server answers")
    parser.add_argument("--base-directory", default=".", help="where input, output and temp are by default")
    parser.add_argument("--input-directory")
    parser.add_argument("--output-directory")
    parser.add_argument("--temp-directory")
    parser.add_argument("--disable-metadata", action="store_true", help="write no prompt into files")
    parser.add_argument(
        "--pause-s",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="rest after each node: rehearse long renders",
    )
    return parser


def _folder(path: str | Path) -> Path:
    folder = Path(path).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return Path(os.path.normpath(folder))


def _emptied(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return _folder(path)


async def _serve(host: str, port: int, folders: Folders, settings: Settings, port_file: Path | None) -> None:
    runner = web.AppRunner(EngineServer(folders, settings).app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        taken = runner.addresses[0][1]
        if port_file is not None:
            partial = port_file.with_name(f".{port_file.name}.partial")
            partial.write_text(f"{taken}\n")
            partial.replace(port_file)
        print(f"Dropbatch engine {VERSION} listening on http://{host}:{taken}", flush=True)  # noqa: T201
        await stopped.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
