"""Drops through the whole of it: tick, dispatch, map, renderers, bucket, manifests."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from standardwebhooks.webhooks import Webhook as Receiver

from processor.records import Outcome
from tests.acceptance.drops import EXAMPLES, IGNORED, graph
from tests.infra.deployed import Deployed, ask, deadline, deployed
from tests.support.b2like import B2Like, Kind
from tests.support.fixtures import KEY_ID, SECRET
from tests.support.moto import SerialMotoServer
from tests.support.receiver import server
from tests.support.rendering import slow_graph

_MORE = 20
"""Beside the thirty examples: small matrices, so that jobs of several tasks are among the fifty."""


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    with deadline(400):
        yield


@pytest.fixture
def here(tmp_path: Path, b2: B2Like) -> Iterator[Deployed]:
    with deployed(tmp_path, b2.url) as running:
        yield running


def test_one_drop_becomes_pictures_and_a_manifest(here: Deployed) -> None:
    """The smallest story, on a bucket that behaves as B2 does; nothing of it is left idle."""
    key = here.put_job("first", {"workflow": graph(), "matrix": {"1.color": [1, 2, 3]}})
    summary = here.tick()
    assert (summary["claimed"], summary["problem"]) == (1, None), here.loopback.logs()
    here.run_until_empty()
    manifest = here.manifests()[key]
    assert (manifest.outcome, len(manifest.tasks)) == (Outcome.DONE, 3)
    assert manifest.attempts[0].host.startswith("modal:")
    assert here.keys("done/")
    here.check_whole()
    assert here.tick()["claimed"] == 0


def test_a_short_job_waits_for_no_long_one(tmp_path: Path, moto: SerialMotoServer) -> None:
    """However far apart they were dropped: a dispatcher with a long job has room for others."""
    sizes: dict[str, Any] = {"dispatch_containers": 1, "render_containers": 3, "render_concurrency": 1}
    with deployed(tmp_path, moto.url, engine_args=["--pause-s", "0.05"], **sizes) as here:
        for number in range(2):
            here.put_job(f"long-{number}", {"workflow": slow_graph(2000, size=16)})
            assert here.tick()["claimed"] == 1
            here.loopback.busy("Dispatcher", timeout_s=30)
        short = here.put_job("short", {"workflow": graph()})
        assert here.tick()["claimed"] == 1
        (dispatcher,) = here.loopback.containers("Dispatcher")
        here.loopback.wait_until(lambda: short in here.manifests(), 60, "the short one is done")
        here.loopback.wait_until(lambda: len(dispatcher.inputs) == 2, 20, "its call has ended")
        assert (list(here.manifests()), dispatcher.served) == ([short], 3)


def test_a_restored_container_uses_the_key_of_today(here: Deployed, b2: B2Like) -> None:
    """A snapshot outlives the key that it was taken under: both pools open the bucket after it."""
    now = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}
    then = {"AWS_ACCESS_KEY_ID": "key-of-yesterday", "AWS_SECRET_ACCESS_KEY": SECRET}
    here.loopback.set_secret("b2-credentials", now, in_snapshots=then)
    b2.decide = lambda request: (
        Kind.DENIED if any("key-of-yesterday" in value for value in request.headers.values()) else None
    )
    key = here.put_job("rotated", {"workflow": graph()})
    here.tick()
    here.run_until_empty()
    assert here.manifests()[key].outcome is Outcome.DONE, here.manifests()[key].tasks
    rendered = ask(here, "POST", "/render", {"kind": "render", "workflow": graph()})
    assert rendered.status == 200, rendered.data
    assert {name for name in ("Renderer", "Studio") if here.loopback.containers(name)[0].checkpoints} == {
        "Renderer",
        "Studio",
    }
    assert b2.struck == []


def test_who_wants_to_know_is_told_and_a_secret_that_is_none_stops_no_tick(
    tmp_path: Path, moto: SerialMotoServer
) -> None:
    """Once a job, signed with the secret that ticks and dispatchers are given for it."""
    secret = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
    with (
        server() as received,
        deployed(
            tmp_path,
            moto.url,
            secrets={"dropbatch-notices": {"DROPBATCH_WEBHOOK_SECRET": secret}},
            more={"DROPBATCH_WEBHOOK_URL": received.url},
        ) as here,
    ):
        here.put_job("told", {"workflow": graph(), "name": "Told"})
        assert here.tick()["tells"] == ["webhook"]
        here.run_until_empty()
        ((_, headers, body),) = received.requests
        payload = Receiver(secret).verify(body, headers)
        assert (payload["type"], payload["data"]["name"]) == ("job.done", "Told")
        here.loopback.set_secret("dropbatch-notices", {"DROPBATCH_WEBHOOK_SECRET": "short"})
        here.loopback.wait_until(
            lambda: not here.loopback.containers("tick", state="running"), 30, "the tick's container ends"
        )
        summary = here.tick()
        assert (summary["tells"], summary["problem"]) == ([], None)
        assert "notices.off" in here.loopback.logs()


def test_fifty_mixed_drops_end_as_they_deserve(here: Deployed) -> None:
    """The thirty of the acceptance test and twenty matrices, two ticks at once: each drop has
    one manifest with the outcome it deserves, and nothing else is left in the inbox."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(picture, "PNG")
    here.store.put("inputs/a.png", picture.getvalue())
    for key in IGNORED:
        here.store.put(key, b"not a job")
    for example in EXAMPLES:
        here.store.put(example.key, example.data)
    more = [
        here.put_job(f"more-{number}", {"workflow": graph(number), "matrix": {"1.width": [16, 24, 32]}})
        for number in range(_MORE)
    ]
    together = [here.loopback.trigger("tick") for _ in range(2)]
    claimed = sum(call.get(timeout=60)["claimed"] for call in together)
    assert 16 <= claimed <= 32, "whatever they race for, each drop is claimed by one"
    here.run_until_empty(IGNORED, timeout_s=340)
    manifests = here.manifests()
    assert manifests.keys() == {example.key for example in EXAMPLES} | set(more)
    for example in EXAMPLES:
        manifest = manifests[example.key]
        said = json.dumps(manifest.model_dump(mode="json")["error"], ensure_ascii=False)
        assert (manifest.outcome, len(manifest.tasks)) == (example.outcome, example.tasks), said
        assert example.says in said
    assert all((manifests[key].outcome, len(manifests[key].tasks)) == (Outcome.DONE, 3) for key in more)
    attempts = [manifest.attempts for manifest in manifests.values()]
    assert max(map(len, attempts)) <= 1, "nothing was run twice"
    here.check_whole()
