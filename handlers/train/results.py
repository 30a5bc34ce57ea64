"""What a finished run hands over: the LoRA with its metadata, curve, samples, config, facts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from handlers.train.checkpoints import CheckpointStore
from handlers.train.config_file import to_yaml
from handlers.train.curve import Curve, draw_curve, thinned
from handlers.train.planning import Run
from handlers.train.verdict import unfinished
from handlers.train.weights import BadWeights, add_metadata, find_non_finite, read_header
from processor.errors import ErrorKind, TaskFailed
from processor.handler import LocalFile, TaskOutput
from processor.redact import redact
from processor.spelling import plural
from processor.version import VERSION

_SAMPLE: Final = re.compile(r"\d+__(?P<step>\d{9})_(?P<number>\d+)\.(?P<suffix>jpg|jpeg|png|webp|webm|mp4)")
_MEDIA: Final = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "webm": "video/webm",
    "mp4": "video/mp4",
}
_SHOWN_POINTS: Final = 200
_ARCHITECTURES: Final = {
    "sd1": "stable-diffusion-v1",
    "sdxl": "stable-diffusion-xl-v1-base",
    "flux": "flux-1-dev",
    "wan21": "wan2.1",
    "qwen_image": "qwen-image",
}


def finished_weights(folder: Path, run: Run) -> Path:
    """The final weights, if they are what was asked for: whole, at the last step, finite.

    Raises:
        TaskFailed: exit 0 proved nothing.
    """
    path = folder / f"{run.trainer_name}.safetensors"
    if not path.is_file():
        raise unfinished(None, run.steps)
    try:
        header = read_header(path)
    except BadWeights as error:
        raise TaskFailed(ErrorKind.CRASHED, f"the final weights do not open: {error}") from None
    if header.step is None or header.step < run.steps:
        raise unfinished(header.step, run.steps)
    if (tensor := find_non_finite(path, header)) is not None:
        raise TaskFailed(
            ErrorKind.NODE_FAILED,
            f"the weights are no numbers ({tensor})",
            where="settings.lr",
            mend="Lower lr, or train in bf16 instead of fp16",
        )
    return path


class Results:
    """The files of a finished run.

    Args:
        name: of the LoRA, without suffix.
    """

    def __init__(
        self, run: Run, curve: Curve, checkpoints: CheckpointStore, folder: Path, *, name: str
    ) -> None:
        self._run = run
        self._name = name
        self._curve = curve
        self._checkpoints = checkpoints
        self._folder = folder
        folder.mkdir()

    def output(
        self,
        weights: Path,
        *,
        samples: Path,
        seconds: float,
        total_seconds: float,
        resumed_from: int | None,
        skipped: int,
        log: str,
    ) -> TaskOutput:
        run, curve = self._run, self._curve
        lora = self._folder / f"{self._name}.safetensors"
        add_metadata(weights, lora, self._metadata())
        files = [LocalFile(lora, lora.name, "application/octet-stream")]
        points = curve.points
        if points:
            chart = self._folder / "loss.png"
            draw_curve(points, chart, title=f"{self._name}: loss over {run.steps} steps")
            files.append(LocalFile(chart, chart.name, "image/png"))
        files += self._samples(samples)
        files.append(self._text("config.yaml", self._config(), "application/yaml"))
        files.append(self._text("losses.json", json.dumps(points), "application/json"))
        final = None if curve.last is None else round(curve.last, 6)
        data: dict[str, Any] = {
            "base_model": run.base.repo or run.base.name,
            "dataset": run.dataset,
            "fingerprint": run.fingerprint,
            "config_hash": run.config_hash,
            "trigger": run.trigger,
            "steps": run.steps,
            "final_loss": final,
            "loss_level": None if curve.level is None else round(curve.level, 6),
            "losses": thinned(points, _SHOWN_POINTS),
            "train_seconds": round(total_seconds, 1),
            "resumed_from": resumed_from,
            "skipped_steps": skipped,
            "lora": lora.name,
            "text": f"{lora.name}: {run.steps} steps on {run.dataset} {run.fingerprint}, final loss {final}",
        }
        if skipped:
            data["text"] += (
                f". WARNING: for {plural(skipped, 'step')} the GPU had too little memory, and they taught "
                "nothing: set low_vram, quantize, a lower resolution or batch_size, or a bigger gpu"
            )
        return TaskOutput(files, seconds, data=data, log=log, engine={"trainer": "ai-toolkit"})

    def _config(self) -> str:
        """The config as it is kept: this machine's paths say nothing elsewhere."""
        run = self._run
        model = {**run.process.get("model", {}), "name_or_path": run.base.repo or run.base.name}
        return to_yaml(run.trainer_name, {**run.process, "model": model}).decode()

    def _metadata(self) -> dict[str, str]:
        """What programs that list LoRAs show; keys of the modelspec standard, and our own."""
        run = self._run
        arch = str(run.process["model"].get("arch", ""))
        found = {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.title": self._name,
            "modelspec.architecture": f"{_ARCHITECTURES.get(arch, arch)}/lora",
            "modelspec.trigger_phrase": run.trigger,
            "dropbatch.version": VERSION,
            "dropbatch.base_model": run.base.repo or run.base.name,
            "dropbatch.dataset": f"{run.dataset}/{run.fingerprint}",
            "dropbatch.config_hash": run.config_hash,
            "dropbatch.steps": str(run.steps),
        }
        if self._curve.last is not None:
            found["dropbatch.final_loss"] = f"{self._curve.last:.6g}"
        return found

    def _samples(self, folder: Path) -> Iterator[LocalFile]:
        """Sample pictures of all attempts, by step and number."""
        here = {path.name: path for path in folder.glob("*.*") if path.is_file()} if folder.is_dir() else {}
        for kept in self._checkpoints.samples:
            if kept.name not in here:
                path = self._folder / kept.name
                if self._checkpoints.fetch_sample(kept, path):
                    here[kept.name] = path
        matches = sorted(
            (match["step"], match["number"], match["suffix"], path)
            for name, path in here.items()
            if (match := _SAMPLE.fullmatch(name))
        )
        named = {
            f"samples/step-{step}-{number}.{suffix}": (path, suffix) for step, number, suffix, path in matches
        }
        for name, (path, suffix) in named.items():
            yield LocalFile(path, name, _MEDIA[suffix], node=name.rpartition("-")[0].rpartition("/")[2])

    def _text(self, name: str, text: str, media_type: str) -> LocalFile:
        path = self._folder / name
        path.write_text(redact(text), encoding="utf-8")
        return LocalFile(path, name, media_type)
