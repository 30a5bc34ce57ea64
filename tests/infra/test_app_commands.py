"""The commands about Modal, as a person calls them, in the order of a first deploy."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import modal  # the client under test
import pytest
import urllib3
from aiohttp import web
from aiohttp.test_utils import TestServer

from infra.proxy import Door
from tests.acceptance.drops import graph
from tests.infra.deployed import Deployed, deadline, deployed
from tests.loopback import Loopback
from tests.support.fixtures import KEY_ID, SECRET, make_bucket
from tests.support.moto import SerialMotoServer

HOOK_SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    with deadline(150):
        yield


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, moto: SerialMotoServer) -> Iterator[Deployed]:
    """A deployment with all doors and an interactive ComfyUI that is soon idle."""
    secrets = {"dropbatch-webhook": {"DROPBATCH_WEBHOOK_SECRET": HOOK_SECRET}}
    with deployed(
        tmp_path_factory.mktemp("commands"), moto.url, secrets=secrets, webhook=True, ui_idle_s=8
    ) as running:
        yield running


def environment(here_env: dict[str, str], **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        **{name: value for name, value in os.environ.items() if name.startswith(("MODAL_", "LOOPBACK_"))},
        **here_env,
        **more,
    }


def run(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "processor.cli", *args],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_first_deploy(tmp_path: Path, moto: SerialMotoServer) -> None:
    """Nothing is there: the deploy says which secret is missing, `secrets --create` makes it from the
    environment without a word of its value, and then the plan is carried out."""
    store = make_bucket(moto.url, versions=True)
    settings = {
        "DROPBATCH_BUCKET": store.url,
        "DROPBATCH_ENDPOINT_URL": moto.url,
        "DROPBATCH_REGION": "us-east-1",
        "DROPBATCH_MODAL": json.dumps({"engine": "builtin"}),
    }
    with Loopback(tmp_path / "modal") as loopback:
        env = environment(settings, DROPBATCH_KEY_ID=KEY_ID, DROPBATCH_KEY=SECRET)
        shown = run(env, "deploy", "--plan")
        assert shown.returncode == 0, shown.stderr
        assert "3 of 5 crons" in shown.stdout
        assert re.search(r"about \$\d\.\d\d a month", shown.stdout)
        refused = run(env, "deploy", "--yes")
        assert (refused.returncode, "b2-credentials: missing" in refused.stderr) == (3, True), refused.stderr
        loopback.set_secret("guides", {"B2_KEY_ID": "x"})
        guides = {"DROPBATCH_MODAL": json.dumps({"engine": "builtin", "bucket_secret": "guides"})}
        for command in (("deploy", "--yes"), ("secrets", "--create")):
            told = run(env | guides, *command).stderr.replace("\n", " ")
            assert "modal secret create --force guides AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…" in told
            assert "dropbatch secrets --create" not in told
        modal.Volume.objects.create("comfy-models")  # as the guide has it
        made = run(env, "secrets", "--create")
        assert "made: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in made.stdout
        assert SECRET not in made.stdout + made.stderr
        again = run(env, "secrets")
        assert (again.returncode, "ok" in again.stdout) == (0, True)
        done = run(env, "deploy", "--yes")
        assert done.returncode == 0, done.stderr
        assert "tick" in loopback.registered
        versions = [volume.version for volume in loopback.volumes_of("ui").values()]
        assert sorted(versions) == [1, 2], "what stands is taken, what does not is made as new"
        stopped = run(env, "stop", "--yes")
        assert (stopped.returncode, loopback.registered) == (0, {}), stopped.stderr
    store.close()


def test_too_much_for_the_plan_is_refused(here: Deployed) -> None:
    """Before anything is sent."""
    env = environment(here.env | {"DROPBATCH_MODAL": json.dumps({"render_containers": 20})})
    done = run(env, "deploy", "--yes")
    assert (done.returncode, "24 GPUs at once, the plan allows 10" in done.stderr) == (3, True), done.stderr


def test_a_typo_in_the_table_is_named(here: Deployed) -> None:
    """With the nearest known key."""
    env = environment(here.env | {"DROPBATCH_MODAL": json.dumps({"render_gpu": ["L40S"]})})
    done = run(env, "deploy", "--plan")
    assert (done.returncode, "render_gpus" in done.stderr) == (3, True), done.stderr


def test_models_are_synced_listed_pushed_and_removed(here: Deployed) -> None:
    """By rclone, both ways; only what changed; nothing leads out of the folder."""
    env = environment(here.env)
    for name, size in (("loras/a.safetensors", 1000), ("loras/b.safetensors", 2000), ("vae/v.pt", 500)):
        here.store.put(f"comfy_models/{name}", os.urandom(size))
    first = run(env, "models", "sync", "loras", "--json")
    assert first.returncode == 0, first.stderr + here.loopback.logs()
    assert json.loads(first.stdout)["stats"]["transfers"] == 2
    listed = json.loads(run(env, "models", "ls", "--json").stdout)["models"]
    assert [(each["name"], each["size_bytes"]) for each in listed] == [
        ("loras/a.safetensors", 1000),
        ("loras/b.safetensors", 2000),
    ]
    here.store.put("comfy_models/loras/a.safetensors", os.urandom(1500))
    changed = json.loads(run(env, "models", "sync", "--json").stdout)["stats"]
    assert changed["transfers"] == 2, "the changed LoRA and the VAE"
    assert json.loads(run(env, "models", "rm", "loras/b.safetensors", "--json").stdout)
    names = [each["name"] for each in json.loads(run(env, "models", "ls", "--json").stdout)["models"]]
    assert names == ["loras/a.safetensors", "vae/v.pt"]
    pushed = run(env, "models", "push", "vae", "--json")
    assert json.loads(pushed.stdout)["stats"]["errors"] == 0
    outside = run(env, "models", "rm", "../../etc/passwd")
    assert outside.returncode != 0
    assert run(env, "models", "sync", "../x").returncode != 0


def test_plain_modal_run_works_as_the_guides_readers_are_used_to(here: Deployed) -> None:
    """A function of the app by name, with its arguments as flags; the deployed one is left alone."""
    before = here.loopback.registered["tick"].function_id
    printed = here.loopback.deploy("-m", "infra.app::sync_models", command="run", env=here.env)
    assert '"event": "sync"' in printed
    assert here.loopback.registered["tick"].function_id == before


def test_a_desk_joins_the_same_bucket(here: Deployed, tmp_path: Path) -> None:
    """`dropbatch run` anywhere takes its leases through the same Dict: a job for this place runs here,
    one for Modal waits for Modal. With leases of its own it claims nothing, and says why."""
    assert here.tick()["problem"] is None
    local = here.put_job("for-the-desk", {"kind": "render", "workflow": graph(), "where": "local"})
    remote = here.put_job("for-modal", {"kind": "render", "workflow": graph(), "where": "modal"})
    env = environment(
        here.env,
        AWS_ACCESS_KEY_ID=KEY_ID,
        AWS_SECRET_ACCESS_KEY=SECRET,
        DROPBATCH_WORK_DIR=str(tmp_path),
        HOME=str(tmp_path),
    )
    stranger = run(env | {"DROPBATCH_LEASE_BACKEND": "directory"}, "run", "--once", "--json")
    assert "modal-dict:dropbatch-leases" in json.loads(stranger.stdout)["problem"]
    desk = run(env | {"DROPBATCH_LEASE_BACKEND": "modal"}, "run", "--once", "--json")
    assert json.loads(desk.stdout)["outcomes"] == {"done": 1}, desk.stderr
    assert not here.manifests()[local].attempts[0].host.startswith("modal:")
    here.tick()
    here.loopback.wait_until(lambda: remote in here.manifests(), 60, "Modal takes its own")
    assert here.manifests()[remote].attempts[0].host.startswith("modal:")


def test_doctor_looks_at_modal_too(here: Deployed, tmp_path: Path) -> None:
    """Token, app, secrets, crons and doors, each on a line; nothing of a secret."""
    env = environment(here.env, AWS_ACCESS_KEY_ID=KEY_ID, AWS_SECRET_ACCESS_KEY=SECRET, HOME=str(tmp_path))
    done = run(env | {"DROPBATCH_LEASE_BACKEND": "modal"}, "doctor", "--modal", "--json")
    found = {each["name"]: each for each in json.loads(done.stdout)}
    for name in ("modal token", "modal secrets", "modal app", "modal tick", "modal doors"):
        assert found[name]["state"] == "ok", found[name]
    assert SECRET not in done.stdout + done.stderr
    nowhere = env | {"DROPBATCH_MODAL": json.dumps({"app_name": "nowhere"})}
    lost = {each["name"]: each for each in json.loads(run(nowhere, "doctor", "--modal", "--json").stdout)}
    assert (lost["modal app"]["state"], lost["modal app"]["mend"]) == ("fail", "Run `dropbatch deploy`")


def test_the_webhooks_rule_and_its_trial(here: Deployed) -> None:
    """The rule names inbox and URL but never the secret; the trial sends a signed and a forged request."""
    env = environment(here.env, DROPBATCH_WEBHOOK_SECRET=HOOK_SECRET)
    printed = run(env, "webhook")
    rule = json.loads(printed.stdout)
    assert rule["objectNamePrefix"] == "inbox/"
    assert rule["targetConfiguration"]["url"] == here.loopback.url_of("webhook")
    assert HOOK_SECRET not in printed.stdout + printed.stderr
    bucket = here.env["DROPBATCH_BUCKET"].removeprefix("s3://").rstrip("/")
    assert shlex.split(printed.stderr) == [
        *("b2", "bucket", "notification-rule", "create", f"b2://{bucket}/inbox/", rule["name"]),
        *("--event-type", "b2:ObjectCreated:*", "--webhook-url", here.loopback.url_of("webhook")),
        *("--sign-secret", "$DROPBATCH_WEBHOOK_SECRET"),
    ]
    tried = run(env, "webhook", "--test")
    assert tried.returncode == 0, tried.stderr
    wrong = run(environment(here.env, DROPBATCH_WEBHOOK_SECRET="f" * 32), "webhook", "--test")
    assert wrong.returncode == 1


def test_the_browsers_comfyui_through_the_local_door(here: Deployed) -> None:
    """HTTP and WebSocket with the headers added; what was run is kept in the bucket; other sites are
    kept out; an idle one ends although a tab is open, and comes back for a person only."""
    key, secret = here.loopback.proxy_auth
    env = environment(here.env, MODAL_PROXY_KEY=key, MODAL_PROXY_SECRET=secret)
    command = [sys.executable, "-m", "processor.cli", "app", "--port", "0", "--no-browser"]
    door = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    assert door.stderr is not None
    try:
        found = re.search(r"http://127\.0\.0\.1:\d+", door.stderr.readline())
        assert found
        _use(here, found[0])
    finally:
        door.send_signal(signal.SIGINT)
        door.wait(timeout=20)
        door.stderr.close()


def _use(here: Deployed, local: str) -> None:
    stats = urllib3.request("GET", f"{local}/system_stats", timeout=60, retries=False)
    assert stats.status == 200, stats.data
    foreign = {"Host": "evil.example"}
    assert urllib3.request("GET", f"{local}/system_stats", headers=foreign).status == 403
    body = json.dumps({"prompt": graph(42), "client_id": "tab"}).encode()
    stranger = {"Origin": "https://evil.example"}
    assert urllib3.request("POST", f"{local}/prompt", body=body, headers=stranger).status == 403
    seen = asyncio.run(_run_in_a_tab(local, body))
    assert "execution_success" in seen
    here.loopback.wait_until(lambda: here.keys("comfy_outputs/ui/"), 30, "the picture is kept")
    (exported,) = here.keys("comfy_workflows/ui/")
    assert json.loads(here.read(exported))["1"]["class_type"] == "EmptyImage"
    (container,) = here.loopback.containers("ui")
    assert "ui.idle" in container.log
    page = urllib3.request("GET", f"{local}/queue", headers={"Sec-Fetch-Mode": "navigate"}, timeout=60)
    assert page.status == 200, page.data
    assert len(here.loopback.containers("ui")) == 2


async def _run_in_a_tab(local: str, body: bytes) -> set[str]:
    """Run a prompt as ComfyUI's page does, and leave the tab open until the server ends and for some
    time after; the types of what it was told meanwhile.

    As the page's `api.js` has it: a socket that closed is opened again for ever, and one that can't be
    has it ask for the queue instead.
    """
    seen: set[str] = set()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{local}/ws?clientId=tab") as socket:
        headers = {"Content-Type": "application/json", "Origin": local}
        async with session.post(f"{local}/prompt", data=body, headers=headers) as posted:
            assert posted.status == 200, await posted.text()
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                told: dict[str, Any] = json.loads(message.data)
                seen.add(told["type"])
        for _ in range(20):  # without the page's 300 ms between them
            with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                await session.ws_connect(f"{local}/ws?clientId=tab", headers={"Sec-Fetch-Mode": "websocket"})
            async with session.get(f"{local}/prompt", headers={"Sec-Fetch-Mode": "cors"}) as polled:
                assert polled.status == 503
    return seen


def test_a_late_farewell_ends_no_later_start() -> None:
    """Two tabs: the second hears of the end only after the first was loaded anew."""
    asyncio.run(_two_tabs())


async def _two_tabs() -> None:
    sockets: list[web.WebSocketResponse] = []

    async def comfyui(request: web.Request) -> web.StreamResponse:
        if request.path != "/ws":
            return web.Response(text="here")
        sockets.append(web.WebSocketResponse())
        await sockets[-1].prepare(request)
        await sockets[-1].receive()
        return sockets[-1]

    async def asked(path: str, mode: str) -> int:
        async with session.get(door.make_url(path), headers={"Sec-Fetch-Mode": mode}) as answer:
            return answer.status

    app = web.Application()
    app.router.add_get("/{path:.*}", comfyui)
    ended: list[None] = []
    async with TestServer(app) as far:
        app_of_door = Door(str(far.make_url("")), {}, ended=lambda: ended.append(None)).app()
        async with TestServer(app_of_door) as door, aiohttp.ClientSession() as session:
            tabs = [await session.ws_connect(door.make_url("/ws")) for _ in range(2)]
            await sockets[0].close()
            assert (await tabs[0].receive()).type is aiohttp.WSMsgType.CLOSE
            assert (await asked("/prompt", "cors"), len(ended)) == (503, 1)
            assert await asked("/", "navigate") == 200
            await sockets[1].close()
            assert (await tabs[1].receive()).type is aiohttp.WSMsgType.CLOSE
            assert (await asked("/prompt", "cors"), len(ended)) == (200, 1)
