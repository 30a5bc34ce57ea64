"""`make modal-demo`: the example drops through the deployed app, without an account.

An S3 server that behaves as Backblaze B2 does, Modal's control plane, and the containers all run
on this machine; the client, the container entrypoint and our code are the real ones.
"""
# ruff: noqa: T201  # printing is what a demo does

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from processor.layout import gallery_key
from processor.store import Store
from tests.infra.deployed import Deployed, deployed
from tests.support.b2like import serve_b2like
from tests.support.moto import serve_moto
from workflows.examples import examples

_MARK: Final = ".dropbatch-demo"


def main() -> int:
    folder = Path(sys.argv[1]).absolute()
    if folder.exists() and not (folder / _MARK).exists():
        print(f"{folder} exists and is not this demo's", file=sys.stderr)
        return 2
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).write_text("Made by `make modal-demo`, which removes and makes this folder anew.\n")
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="dropbatch-") as scratch,
        serve_moto() as moto,
        serve_b2like(moto.url) as b2,
        deployed(Path(scratch), b2.url) as here,
    ):
        print(f"{time.monotonic() - began:5.1f} s  deployed by `modal deploy -m infra.app`")
        for example in examples():
            here.store.put(example.key, example.read())
        summary = here.tick()
        print(f"{time.monotonic() - began:5.1f} s  the cron fired: {summary['claimed']} drops claimed")
        kept = tuple(key for key in here.keys("inbox/") if key.startswith("inbox/datasets/"))
        here.run_until_empty(kept)
        print(f"{time.monotonic() - began:5.1f} s  all settled")
        _tell(here)
        _download(here.store, folder)
    page = max(folder.glob("comfy_outputs/*/index.html"), key=lambda path: path.stat().st_size)
    print(f"\nPictures: {page}")
    return 0


def _tell(here: Deployed) -> None:
    for key, manifest in sorted(here.manifests().items()):
        files = sum(len(result.files) for result in manifest.tasks)
        said = manifest.error.what[:60] if manifest.error else f"{files} pictures"
        print(f"         {key:<38} {manifest.outcome:<8} {said}")
    print("Containers:")
    for name in ("tick", "Dispatcher", "Renderer"):
        found = here.loopback.containers(name)
        cold_s = max((each.cold_start_s for each in found), default=0.0)
        served = sum(each.served for each in found)
        print(f"         {name:<10} {len(found)} started, {served} inputs, cold start up to {cold_s:.1f} s")


def _download(store: Store, folder: Path) -> None:
    for page in store.list("comfy_outputs/"):
        for item in page.objects:
            path = folder / item.key
            path.parent.mkdir(parents=True, exist_ok=True)
            with store.get(item.key) as download:
                path.write_bytes(download.body.read())
    assert any(folder.glob(gallery_key("*")))


if __name__ == "__main__":
    sys.exit(main())
