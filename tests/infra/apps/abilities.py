"""An app with one small function for each thing that the loopback must carry."""
# apps for Modal import modal

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import modal

APP_NAME = "abilities"
ROOT = Path(os.environ.get("DROPBATCH_MOUNT_ROOT", "/"))

app = modal.App(APP_NAME)
image = (
    modal.Image.debian_slim()
    .env({"FROM_IMAGE": "yes"})
    .add_local_file(__file__, "/opt/baked.txt", copy=True)
    .add_local_file(__file__, "/opt/abilities.txt")
)
bucket = modal.Secret.from_name("bucket", required_keys=["BUCKET_KEY"])
models = modal.Volume.from_name("models", create_if_missing=True, version=2)
notes = modal.Dict.from_name("notes", create_if_missing=True)


@app.function(image=image, schedule=modal.Cron("*/5 1-7 * * *", timezone="Europe/Berlin"), secrets=[bucket])
def tick() -> dict[str, str]:
    """Answer with what a container sees of its image, secret and mounts."""
    return {
        "secret": os.environ["BUCKET_KEY"],
        "image": os.environ["FROM_IMAGE"],
        "baked": str((ROOT / "opt/baked.txt").stat().st_size),
        "mounted": str((ROOT / "opt/abilities.txt").stat().st_size),
        "module": str(Path(__file__).relative_to(ROOT)),
    }


@app.function(image=image, max_containers=2, scaledown_window=2)
def square(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number * number


@app.function(image=image)
def echo(payload: bytes) -> bytes:
    return payload


@app.function(image=image, retries=modal.Retries(max_retries=2, initial_delay=0.0))
def third_time_lucky(name: str) -> int:
    tries = notes.get(name, 0) + 1
    notes.put(name, tries)
    if tries < 3:
        raise RuntimeError(f"try {tries}")
    return int(tries)


@app.function(image=image, timeout=1, startup_timeout=60)
def endless() -> None:
    while True:
        time.sleep(0.05)


@app.function(image=image, timeout=60, max_containers=2)
def gated(name: str) -> str:
    """Say that it runs, then wait for its gate; the answer names the container that finished."""
    task = os.environ["MODAL_TASK_ID"]
    notes.put(f"{name} began on {task}", True)
    while not notes.get(name):
        time.sleep(0.02)
    return task


@app.function(image=image, timeout=60)
def nap(seconds: float, name: str = "") -> str:
    if name:
        notes.put(f"{name} began", True)
    time.sleep(seconds)
    return os.environ["MODAL_TASK_ID"]


@app.function(image=image, timeout=60)
def fan_out(name: str) -> list[str]:
    """Call another function of the app from inside a container, as a dispatcher does."""
    answers = gated.map([name, name], order_outputs=False, return_exceptions=True)
    return sorted(str(answer) for answer in answers)


@app.function(image=image)
def poison() -> None:
    os._exit(7)


@app.function(image=image, single_use_containers=True)
def once() -> int:
    return os.getpid()


@app.local_entrypoint()
def entry() -> None:
    """What `modal run` runs."""
    print("six squared is", square.remote(6))  # noqa: T201


@app.function(image=image, volumes={"/models": models}, max_containers=1)
def volume(action: str, name: str, text: str = "") -> str | None:
    path = ROOT / "models" / name
    if action == "write":
        path.write_text(text)
        models.commit()
    elif action == "reload":
        models.reload()
    elif action == "reload-open":
        with path.open():
            models.reload()
    return path.read_text() if path.exists() else None


@app.cls(
    image=image,
    gpu=["L40S", "A100-80GB:2"],
    timeout=600,
    startup_timeout=120,
    min_containers=0,
    max_containers=3,
    buffer_containers=1,
    scaledown_window=60,
    enable_memory_snapshot=True,
    secrets=[bucket],
    volumes={"/models": models},
)
@modal.concurrent(max_inputs=2)
class Renderer:
    style: str = modal.parameter(default="plain")

    @modal.enter(snap=True)
    def before_snapshot(self) -> None:
        self.steps = ["snap"]
        self.pair = 0

    @modal.enter()
    def after_restore(self) -> None:
        self.steps.append("enter")
        self.met = asyncio.Event()

    @modal.exit()
    def leave(self) -> None:
        notes.put(f"exit of {os.environ['MODAL_TASK_ID']}", self.steps)

    @modal.method()
    async def render(self, name: str) -> dict[str, Any]:
        """Two calls meet here when the container takes them side by side."""
        self.steps.append(name)
        if name.startswith("pair"):
            self.pair += 1
            (self.met.set() if self.pair == 2 else await asyncio.wait_for(self.met.wait(), 20))
        where = {"task_id": os.environ["MODAL_TASK_ID"], "gpu": os.environ["LOOPBACK_GPU"]}
        return {"style": self.style, "steps": self.steps, **where}

    @modal.method()
    def sick(self) -> str:
        modal.experimental.stop_fetching_inputs()
        return os.environ["MODAL_TASK_ID"]


Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def _site(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        raise NotImplementedError(scope["type"])  # how ASGI says that an app has no lifespan
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        text = (await receive())["text"]
        await send({"type": "websocket.send", "text": text.upper()})
        await send({"type": "websocket.close"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = [(b"x-path", scope["path"].encode()), (b"x-query", scope["query_string"])]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    for half in (body[: len(body) // 2], body[len(body) // 2 :]):
        await send({"type": "http.response.body", "body": half, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@app.function(image=image)
@modal.concurrent(max_inputs=10)
@modal.asgi_app(requires_proxy_auth=True)
def site() -> Callable[[dict[str, Any], Receive, Send], Awaitable[None]]:
    return _site


@app.function(image=image)
@modal.web_server(port=48217, startup_timeout=10)
def served() -> None:
    import subprocess
    import sys

    (Path(os.environ["TMPDIR"]) / "page.txt").write_text("served")
    command = [sys.executable, "-m", "http.server", "48217", "--bind", "127.0.0.1"]
    subprocess.Popen(command, cwd=os.environ["TMPDIR"])  # ends with the container
