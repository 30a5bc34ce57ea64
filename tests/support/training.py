"""A whole machine that trains with the stand-in: datasets dropped, LoRAs published."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from handlers.ingest import IngestHandler
from handlers.train import TrainHandler, TrainSettings
from processor.dispatch import process
from processor.handler import Handler, Stores
from processor.launch import LocalConfig, LocalLauncher
from processor.machine import Machine
from processor.records import Manifest
from processor.store import Store
from processor.testing.machine import Bench
from processor.tick import tick
from tests.support import trainer
from tests.support.pictures import captioned, upload

DATASET = "zoe"
BASE = "tiny"
SETTINGS: dict[str, Any] = {
    "base_model": BASE,
    "steps": 10,
    "save_every": 3,
    "keep": 2,
    "resolution": 64,
    "optimizer": "adamw",
}


@dataclass
class Studio:
    """A bucket with a base model and a dataset, and a scripted trainer."""

    root: Path
    store: Store | None = None
    script: dict[str, Any] = field(default_factory=dict)
    rehearsal: bool = False
    usd_per_s: float = 0.0
    stop_grace_s: float = 5.0

    def __post_init__(self) -> None:
        self.bench = Bench(self.root / "work", IngestHandler(), store=self.store)
        self.toolkit = trainer.install(self.root / "toolkit", **self.script)
        for name in ("model_index.json", "unet/weights.bin"):
            self.main.put(f"models/{BASE}/{name}", b"{}")

    @property
    def main(self) -> Store:
        return self.bench.main

    def rescript(self, **script: Any) -> None:
        """Another script for the next run; what happened already may happen again."""
        for mark in self.toolkit.glob("happened-*"):
            mark.unlink()
        trainer.install(self.toolkit, **script)

    def machine(self) -> Machine:
        settings = TrainSettings(
            base_dir=self.root / "base",
            toolkit_dir=None if self.rehearsal else self.toolkit,
            toolkit_python=Path(sys.executable),
            hugging_face=False,
            stop_grace_s=self.stop_grace_s,
        )
        handlers: dict[str, Handler] = {"ingest": IngestHandler(), "train": TrainHandler(settings)}
        machine = self.bench.machine()
        stores = Stores.single(self.main)
        config = LocalConfig(self.root / "work", usd_per_s=self.usd_per_s)
        launcher = LocalLauncher(handlers, stores, config, self.bench.events.append)
        return replace(machine, handlers=handlers, launcher=launcher)

    def drop_dataset(self, *, pictures: int = 4, first: int = 0, **options: Any) -> None:
        """A complete folder, whose dataset.yaml has the small settings and these."""
        from ruamel.yaml import YAML

        stream = io.BytesIO()
        YAML(typ="safe", pure=True).dump({"preset": "sd15", "settings": SETTINGS, **options}, stream)
        files = {**captioned(pictures, first=first), "dataset.yaml": stream.getvalue(), "_READY": b""}
        upload(self.main, DATASET, files)

    def work(self, *, rounds: int = 12) -> None:
        """Run what is due until nothing is."""
        machine = self.machine()
        try:
            for _ in range(rounds):
                report = tick(machine, capacity=4)
                for claim in report.claims:
                    process(machine, claim)
                if not (report.claims or report.young or report.problem):
                    break
        finally:
            machine.close()

    def manifest(self, kind: str = "train") -> Manifest:
        """The one manifest of a kind."""
        (found,) = self.manifests(kind)
        return found

    def manifests(self, kind: str = "train") -> list[Manifest]:
        found = [each for each in self.bench.manifests() if each.get("kind") == kind]
        return [Manifest.model_validate(each) for each in sorted(found, key=lambda each: each["started_at"])]

    def loras(self) -> list[str]:
        keys = self.bench.keys("comfy_models/loras/")
        return [key.rpartition("/")[2] for key in keys if key.endswith(".safetensors")]

    def trained(self) -> list[int]:
        """Every step that the stand-in trained, in order, over all runs."""
        path = self.toolkit / "trained.log"
        return [int(line) for line in path.read_text().split()] if path.exists() else []
