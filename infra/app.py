"""The app: what runs on Modal, and on what. Declarations only; what they do is imported.

    modal deploy -m infra.app        (or `dropbatch deploy`, which shows the plan first)

The settings are read from dropbatch.toml and the environment when this module is imported by a
deploy, and travel with it: see `infra.settings`.
"""

from __future__ import annotations

import time
from typing import Any

import modal

from infra import capture as schema
from infra import containers, desk, dispatching, fleet, images, models, mounts, paths, studio, ticking
from infra import ui as interactive
from infra.settings import DEPLOYED, deployment

MINUTES = 60
HOURS = 60 * MINUTES
TICK_LIMIT_S = 30 * MINUTES
"""A look takes seconds, but minutes where a million drops lie in the inbox: one cut off claims nothing, and
neither does the next. No more than two look at once, however many the cron has begun meanwhile."""

deployed = deployment()
settings, options = deployed.settings, deployed.modal

app = modal.App(options.app_name, include_source=False)

told = modal.Secret.from_dict({DEPLOYED: deployed.baked()})
bucket_key = modal.Secret.from_name(
    options.bucket_secret, required_keys=["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
)
slack = (
    [modal.Secret.from_name(options.slack_secret, required_keys=["SLACK_BOT_TOKEN"])]
    if options.slack_secret
    else []
)
# By another secret than Backblaze's, which the webhook's function alone has under the same name.
signing = (
    [modal.Secret.from_name(options.notices_secret, required_keys=["DROPBATCH_WEBHOOK_SECRET"])]
    if settings.webhook_url
    else []
)
telling = [*slack, *signing]
"""Of those who tell how jobs end: dispatchers, the morning, and ticks, which settle what was replaced."""
hugging_face = (
    [modal.Secret.from_name(options.hf_secret, required_keys=["HF_TOKEN"])] if options.hf_secret else []
)

base = images.base()
engine = images.comfyui() if options.engine == "comfyui" else base
trainer = images.trainer() if options.engine == "comfyui" else base
render_gpus = options.render_gpus if options.engine == "comfyui" else None
api_gpus = options.api_gpus if options.engine == "comfyui" else None
train_gpus = options.train_gpus if options.engine == "comfyui" else None

# Without a version, which Modal would refuse where one of the other stands: see `infra.volumes`.
model_volume = modal.Volume.from_name(options.volume, create_if_missing=True)
training_volume = modal.Volume.from_name(options.training_volume, create_if_missing=True)


@app.function(
    image=base,
    secrets=[told, bucket_key],
    volumes={paths.MODELS: model_volume},
    cpu=2.0,
    memory=2048,
    timeout=6 * HOURS,
    scaledown_window=30,
    max_containers=1,
    retries=0,
)
def pull(wanted: list[dict[str, Any]]) -> models.Problem:
    """Bring models from the bucket to the Volume. One at a time: nobody else writes there."""
    return models.pull(deployed, wanted, commit=model_volume.commit, reload=model_volume.reload)


@app.function(
    image=trainer,
    secrets=[told, bucket_key, *hugging_face],
    volumes={paths.BASE_MODELS: training_volume},
    cpu=2.0,
    memory=4096,
    timeout=12 * HOURS,
    scaledown_window=30,
    max_containers=1,
    retries=0,
)
def pull_bases(tasks: list[dict[str, Any]]) -> models.Problem:
    """Bring base models from the bucket or Hugging Face. The only function that has HF_TOKEN."""
    return models.pull_bases(
        deployed,
        tasks,
        fetch=containers.fetch_bases(deployed),
        commit=training_volume.commit,
        reload=training_volume.reload,
    )


@app.function(
    image=base,
    secrets=[told, bucket_key],
    volumes={paths.MODELS: model_volume},
    cpu=4.0,
    memory=4096,
    timeout=24 * HOURS,
    max_containers=1,
    retries=0,
)
def sync_models(path: str = "", push: bool = False, progress_id: str = "") -> dict[str, Any]:
    """Copy `comfy_models/<path>` from the bucket to the Volume; with `push` back. Only what changed."""
    return models.sync(
        deployed,
        path,
        push=push,
        progress_id=progress_id,
        commit=model_volume.commit,
        reload=model_volume.reload,
    )


@app.function(
    image=base,
    secrets=[told],
    volumes={paths.MODELS: model_volume},
    cpu=0.25,
    memory=512,
    timeout=10 * MINUTES,
    max_containers=1,
    retries=0,
)
def model_files(remove: str = "") -> dict[str, Any]:
    """The models on the Volume, after one was removed; the bucket keeps it."""
    return models.files(deployed, remove, commit=model_volume.commit, reload=model_volume.reload)


@app.function(
    image=engine,
    secrets=[told, bucket_key],
    volumes={paths.MODELS: model_volume},
    cpu=4.0,
    memory=8192,
    timeout=30 * MINUTES,
    max_containers=1,
    retries=0,
)
def capture() -> dict[str, Any]:
    """Take ComfyUI's node schema, without a GPU. `dropbatch deploy` calls it."""
    return schema.capture(deployed)


@app.cls(
    image=engine,
    gpu=render_gpus,
    secrets=[told, bucket_key, *slack],
    volumes={paths.MODELS: model_volume},
    cpu=4.0,
    memory=16384,
    timeout=fleet.timeout_s(settings, options, "render"),
    startup_timeout=fleet.STARTUP_S,
    min_containers=0,
    max_containers=options.render_containers,
    scaledown_window=options.render_scaledown_s,
    enable_memory_snapshot=options.memory_snapshot,
    retries=0,
)
@modal.concurrent(max_inputs=options.render_concurrency, target_inputs=max(1, options.render_concurrency - 1))
class Renderer:
    """Runs render tasks: one ComfyUI a container, the next task prepared while one renders."""

    @modal.enter(snap=True)
    def load(self) -> None:
        containers.preload(deployed, "render")

    @modal.enter()
    def wake(self) -> None:
        self.worker = containers.open_worker(deployed, "render", gpus=render_gpus or (), volume=model_volume)
        self.worker.warm()

    @modal.method()
    def run(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        return self.worker.run(order)

    @modal.exit()
    def leave(self) -> None:
        self.worker.close()


@app.cls(
    image=trainer,
    gpu=train_gpus,
    secrets=[told, bucket_key],
    volumes={paths.BASE_MODELS: training_volume},
    cpu=4.0,
    memory=32768,
    timeout=fleet.LONGEST_S,
    startup_timeout=fleet.STARTUP_S,
    min_containers=0,
    max_containers=options.train_containers,
    scaledown_window=options.train_scaledown_s,
    retries=0,
)
class Trainer:
    """Runs trainings, one a container; checkpoints go to the bucket while it trains."""

    @modal.enter()
    def load(self) -> None:
        self.worker = containers.open_worker(deployed, "train", gpus=train_gpus or (), volume=training_volume)

    @modal.method()
    def run(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        return self.worker.run_aside(order)

    @modal.exit()
    def leave(self) -> None:
        self.worker.close()


@app.cls(
    image=base,
    secrets=[told, bucket_key],
    cpu=2.0,
    memory=4096,
    timeout=fleet.timeout_s(settings, options, "ingest"),
    max_containers=fleet.INGEST_CONTAINERS,
    scaledown_window=30,
    retries=0,
)
@modal.concurrent(max_inputs=fleet.INGEST_CONCURRENCY)
class Ingester:
    """Checks and archives dataset folders; no GPU."""

    @modal.enter()
    def load(self) -> None:
        self.worker = containers.open_worker(deployed, "ingest")

    @modal.method()
    def run(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        return self.worker.run(order)

    @modal.exit()
    def leave(self) -> None:
        self.worker.close()


pools = fleet.pools_of(deployed, render=Renderer, train=Trainer, ingest=Ingester)
pulls: dict[str, containers.Pull] = {}
if options.engine == "comfyui":  # a rehearsal needs no base model, the built-in engine no model at all
    pulls = {"render": pull.remote, "train": pull_bases.remote}


@app.cls(
    image=base,
    secrets=[told, bucket_key, *telling],
    cpu=1.0,
    memory=1024,
    timeout=fleet.LONGEST_S,
    max_containers=options.dispatch_containers,
    scaledown_window=30,
    retries=0,
)
@modal.concurrent(max_inputs=options.jobs_per_dispatch)
class Dispatcher:
    """Runs claimed jobs to their end, one a call. A preempted one's calls come back with their claims."""

    @modal.enter()
    def load(self) -> None:
        machine, _ = containers.open_machine(deployed, pools, pulls)
        self.dispatcher = dispatching.Dispatcher(machine, limit_s=fleet.LONGEST_S - dispatching.WIND_DOWN_S)

    @modal.method()
    def run(self, claims: list[dict[str, Any]]) -> dict[str, str | None]:
        return self.dispatcher.run(claims)

    @modal.exit()
    def leave(self) -> None:
        self.dispatcher.close()


def _tick() -> dict[str, Any]:
    machine, ours = containers.open_machine(deployed, pools, pulls)
    dispatch = Dispatcher().run
    try:
        return ticking.tick_once(
            machine, ours, spawn=dispatch.spawn, load=lambda: containers.load_of(dispatch)
        )
    finally:
        machine.close()


@app.function(
    image=base,
    schedule=modal.Cron("* * * * *"),
    secrets=[told, bucket_key, *telling],
    cpu=0.25,
    memory=512,
    timeout=TICK_LIMIT_S,
    max_containers=2,
    scaledown_window=2,
    retries=0,
)
def tick() -> dict[str, Any]:
    """Look at the inbox and hand over what is due. Seconds long; two at once are harmless."""
    return _tick()


@app.function(
    image=base,
    secrets=[told, bucket_key, *telling],
    cpu=0.25,
    memory=512,
    timeout=TICK_LIMIT_S,
    max_containers=2,
    scaledown_window=2,
    retries=0,
)
def wake(delay_s: float = 0.0) -> dict[str, Any]:
    """A tick out of turn, after a moment in which further news may come."""
    time.sleep(delay_s)
    return _tick()


@app.function(
    image=base,
    schedule=modal.Cron(
        f"{settings.night_start.minute} {settings.night_start.hour} * * *", timezone=settings.zone
    ),
    secrets=[told, bucket_key, *telling],
    cpu=0.25,
    memory=512,
    timeout=TICK_LIMIT_S,
    max_containers=1,
    scaledown_window=2,
    retries=0,
)
def nightly() -> dict[str, Any]:
    """Open the night at its first minute; the ticks go on with it."""
    return _tick()


@app.function(
    image=base,
    schedule=modal.Cron(
        f"{settings.night_end.minute} {settings.night_end.hour} * * *", timezone=settings.zone
    ),
    secrets=[told, bucket_key, *telling],
    cpu=0.25,
    memory=1024,
    timeout=2 * HOURS,
    max_containers=1,
    scaledown_window=2,
    retries=0,
)
def morning() -> dict[str, Any]:
    """Report the night, then sweep what losing attempts left."""
    machine, _ = containers.open_machine(deployed, pools, pulls)
    try:
        return ticking.morning_once(machine)
    finally:
        machine.close()


if options.api:

    @app.cls(
        image=engine,
        gpu=api_gpus,
        secrets=[told, bucket_key, *slack],
        volumes={paths.MODELS: model_volume},
        cpu=4.0,
        memory=16384,
        timeout=fleet.studio_timeout_s(settings, options, desk.MAX_TASKS),
        startup_timeout=fleet.STARTUP_S,
        min_containers=options.api_min_containers,
        max_containers=options.api_containers,
        buffer_containers=options.api_buffer_containers,
        scaledown_window=options.api_scaledown_s,
        enable_memory_snapshot=options.memory_snapshot,
        retries=0,
    )
    @modal.concurrent(max_inputs=2, target_inputs=1)
    class Studio:
        """Renders for the API, in a pool of its own that stays warm longer than the batch's."""

        @modal.enter(snap=True)
        def load(self) -> None:
            containers.preload(deployed, "render")

        @modal.enter()
        def wake(self) -> None:
            drain = modal.experimental.stop_fetching_inputs
            self.studio = studio.Studio.open(deployed, gpus=api_gpus or (), drain=drain)
            self.studio.warm()

        @modal.method()
        def render(self, order: dict[str, Any]) -> dict[str, Any]:
            return self.studio.render(order, model_volume.reload)

        @modal.exit()
        def leave(self) -> None:
            self.studio.close()

    @app.function(
        image=base,
        secrets=[told, bucket_key],
        volumes={paths.MODELS: model_volume},
        cpu=0.25,
        memory=1024,
        timeout=fleet.LONGEST_S,  # a request waits for a container of the Studio, and then for its files
        max_containers=2,
        scaledown_window=60,
    )
    @modal.concurrent(max_inputs=containers.API_INPUTS)
    @modal.asgi_app(requires_proxy_auth=True)
    def api() -> Any:
        """The headless API, with the status page of the bucket: see `infra.api`."""
        return containers.open_api(
            deployed,
            render=Studio().render.remote,
            gpus=api_gpus or (),
            pull=pull,
            volume=model_volume,
            spawn=wake.spawn,
        )


if options.webhook:

    @app.function(
        image=base,
        secrets=[
            told,
            modal.Secret.from_name(options.webhook_secret, required_keys=["DROPBATCH_WEBHOOK_SECRET"]),
        ],
        cpu=0.125,
        memory=256,
        timeout=1 * MINUTES,
        max_containers=2,
        scaledown_window=60,
    )
    @modal.concurrent(max_inputs=containers.WEBHOOK_INPUTS)
    @modal.asgi_app()
    def webhook() -> Any:
        """Backblaze's event notifications; each is signed, so the door itself is open."""
        return containers.open_webhook(deployed, spawn=wake.spawn)


if options.ui:
    user_volume = modal.Volume.from_name(options.user_volume, create_if_missing=True)

    @app.function(
        image=engine,
        gpu=options.ui_gpu if options.engine == "comfyui" else None,
        secrets=[told, bucket_key, *slack],
        volumes={paths.MODELS: model_volume, paths.USER: user_volume, **mounts.of(settings, options)},
        cpu=4.0,
        memory=16384,
        timeout=24 * HOURS,
        max_containers=1,
        scaledown_window=options.ui_idle_s,
    )
    @modal.concurrent(max_inputs=100)
    @modal.web_server(interactive.PORT, startup_timeout=5 * MINUTES, requires_proxy_auth=True)
    def ui() -> None:
        """ComfyUI in the browser; `dropbatch app` opens it."""
        interactive.start(deployed, end=modal.experimental.stop_fetching_inputs)
