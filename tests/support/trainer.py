"""A stand-in for ai-toolkit that keeps its contract, and fails where its script says.

`install` makes a folder with a `run.py` (this file), as a checkout has one. It reads the
same config, prints the same lines, saves the same files just as little atomically, and
resumes as the real one does: from the newest `<name>*` by change time, whatever that is.

The script is `script.json` beside it: what happens at which step, each once.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

_PAUSE_S = 30.0


def install(folder: Path, **script: Any) -> Path:
    """A checkout whose trainer follows a script.

    Args:
        script: `at={"5": "nan"}` (see `Stand.happen`), `step_s`, `optimizer_bytes`, `ends`
            (how it ends instead of well), `samples` (whether it makes pictures),
            `optimizer="full disk"` (it can't be saved), `resumes=False` (it overlooks checkpoints).
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(__file__, folder / "run.py")
    (folder / "script.json").write_text(json.dumps(script))
    return folder


def weights(step: int, *, value: float = 0.5) -> bytes:
    """A small LoRA as the trainer writes one: float16 tensors and its metadata."""
    data = struct.pack("<64e", *([value] * 64))
    header = {
        "__metadata__": {
            "format": "pt",
            "ss_output_name": "lora",
            "software": json.dumps({"name": "ai-toolkit", "version": "0.12.26"}),
            "training_info": json.dumps({"step": step, "epoch": 0}),
        },
        "lora_unet_down.weight": {"dtype": "F16", "shape": [8, 8], "data_offsets": [0, 128]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


class Stand:
    """One run of the stand-in."""

    def __init__(self, config: dict[str, Any], script: dict[str, Any], home: Path) -> None:
        process = config["config"]["process"][0]
        self.name: str = config["config"]["name"]
        self.root = Path(process["training_folder"]) / self.name
        self.steps: int = process["train"]["steps"]
        self.save_every: int = process["save"]["save_every"]
        self.keep: int = process["save"]["max_step_saves_to_keep"]
        self.dataset = Path(process["datasets"][0]["folder_path"])
        self.sampling = not process["train"].get("disable_sampling", False)
        self.script = script
        self.home = home

    def run(self) -> None:
        say("Running 1 job")
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "config.yaml").write_text("written: true\n")
        images = [
            path for path in sorted(self.dataset.rglob("*")) if path.suffix in (".png", ".jpg", ".webp")
        ]
        if not self.dataset.is_dir():
            raise FileNotFoundError(2, "No such file or directory", str(self.dataset))
        assert images, f"no images found in {self.dataset}"
        (self.dataset / ".aitk_size.json").write_text("{}")
        start = self.resume()
        bar("Loading weights: 100%|##########| 36/36 [00:00<00:00, 3732.69it/s]")
        bar(f"{self.name}:   0%|          | {start}/{self.steps} [00:00<?, ?it/s]")
        for step in range(start, self.steps):
            self.train(step, start)
        self.save(None)
        if self.script.get("ends") == "early":
            (self.root / f"{self.name}.safetensors").write_bytes(weights(self.steps - 1))
        if self.script.get("ends") == "cut":
            (self.root / f"{self.name}.safetensors").write_bytes(weights(self.steps)[:-9])
        if self.script.get("ends") == "nan":
            (self.root / f"{self.name}.safetensors").write_bytes(weights(self.steps, value=float("nan")))
        say("")

    def resume(self) -> int:
        """The newest file of the name by change time, as the real one takes it."""
        found = list(self.root.glob(f"{self.name}*"))
        if not found or self.script.get("resumes") is False:
            return 0
        newest = max(found, key=os.path.getctime)
        say(f"#### IMPORTANT RESUMING FROM {newest} ####")
        data = newest.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        if 8 + length + 128 != len(data):
            raise ValueError("load_weights: Error while deserializing header: incomplete metadata")
        step = int(json.loads(header["__metadata__"]["training_info"])["step"])
        say(f"Found step {step} in metadata, starting from there")
        return step

    def train(self, step: int, start: int) -> None:
        with (self.home / "trained.log").open("a") as stream:
            stream.write(f"{step}\n")
        self.happen(str(step))
        time.sleep(self.script.get("step_s", 0.0))
        loss = 1.0 / (1 + step)
        done = step - start + 1
        facts = f"[00:0{done % 10}<00:01,  {20.0:.2f}it/s, lr: 1.0e-04 loss: {loss:.3e}]"
        percent = int(100 * (step + 1) / self.steps)
        bar(f"{self.name}: {int(100 * step / self.steps):3d}%|##   | {step}/{self.steps} {facts}")
        if step % self.save_every == 0 and step != start:
            say(f"\nSaving at step {step}")
            self.save(step)
            if self.sampling and self.script.get("samples"):
                self.sample(step)
        bar(f"{self.name}: {percent:3d}%|##   | {step + 1}/{self.steps} {facts}")

    def save(self, step: int | None) -> None:
        suffix = "" if step is None else f"_{step:09d}"
        path = self.root / f"{self.name}{suffix}.safetensors"
        data = weights(self.steps if step is None else step)
        with path.open("wb") as stream:
            stream.write(data[:40])
            stream.flush()
            self.happen(f"save {step}")
            stream.write(data[40:])
        say(f"Saved checkpoint to {path}")
        self.happen(f"between {step}")
        if self.script.get("optimizer") == "full disk":
            (self.root / "optimizer.pt").write_bytes(b"cut")
            say("[Errno 28] No space left on device")
            say("Could not save optimizer")
        else:
            with (self.root / "optimizer.pt").open("wb") as stream:
                stream.write(bytes(self.script.get("optimizer_bytes", 64)))
            say(f"Saved optimizer to {self.root / 'optimizer.pt'}")
        self.happen(f"saved {step}")
        saves = sorted(self.root.glob(f"{self.name}_*.safetensors"), key=os.path.getctime)
        for old in saves[: -self.keep]:
            say(f"Removing old save: {old}")
            old.unlink()

    def sample(self, step: int) -> None:
        from PIL import Image

        folder = self.root / "samples"
        (folder / ".thumbs").mkdir(parents=True, exist_ok=True)
        for number in range(2):
            name = f"{int(time.time() * 1000)}__{step:09d}_{number}.jpg"
            stream = io.BytesIO()
            Image.new("RGB", (64, 64), (step * 20 % 256, 90, 120 * number)).save(stream, "JPEG")
            (folder / name).write_bytes(stream.getvalue())

    def happen(self, moment: str) -> None:
        """What the script has for this moment, the first time it comes."""
        action = self.script.get("at", {}).get(moment)
        mark = self.home / f"happened-{moment.replace(' ', '-')}"
        if action is None or (mark.exists() and not self.script.get("always")):
            return
        mark.touch()
        match action:
            case "nan":
                say("loss is nan")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit 0":
                sys.exit(0)
            case "oom":
                for number in (1, 2, 3):
                    skip_batch(number)
                raise RuntimeError("OOM during training step 3 times in a row, aborting training")
            case "skip a batch":
                skip_batch(1)
            case "caption":
                load_caption()
            case "hang":
                (self.home / "hangs").touch()
                time.sleep(600)
            case "pause":
                # Until the test has seen what it waited for; one that never does fails, and does not hang.
                (self.home / "paused").touch()
                until = time.monotonic() + _PAUSE_S
                while not (self.home / "go").exists() and time.monotonic() < until:
                    time.sleep(0.01)
            case _:
                raise RuntimeError(str(action))


def skip_batch(number: int) -> None:
    """What the real one prints of a step that ran out of memory."""
    text = f"# OOM during training step, skipping batch {number}/3 #"
    for line in ("", "#" * len(text), text, "#" * len(text), ""):
        say(line)


def load_caption() -> None:
    """Named as in the real traceback."""
    b"caf\xe9".decode("utf-8")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def bar(text: str) -> None:
    sys.stderr.write("\r" + text)
    sys.stderr.flush()


def main() -> None:
    from ruamel.yaml import YAML

    home = Path(__file__).parent
    (home / "environment.json").write_text(json.dumps(dict(os.environ)))
    config = YAML(typ="safe").load(Path(sys.argv[1]).read_text())
    (home / "config.json").write_text(json.dumps(config))
    script = json.loads((home / "script.json").read_text())
    Stand(config, script, home).run()


if __name__ == "__main__":
    main()
