"""The doors of the app: Backblaze's webhook and the headless API, over HTTP."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator

import pytest
import urllib3
from PIL import Image

from infra.webhook import SIGNATURE_HEADER, signature, trial_body
from tests.acceptance.drops import graph
from tests.infra.deployed import Deployed, ask, deadline, deployed
from tests.support.moto import SerialMotoServer

HOOK_SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    with deadline(120):
        yield


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, moto: SerialMotoServer) -> Iterator[Deployed]:
    """One deployment with all doors."""
    secrets = {"dropbatch-webhook": {"DROPBATCH_WEBHOOK_SECRET": HOOK_SECRET}}
    root = tmp_path_factory.mktemp("doors")
    with deployed(root, moto.url, secrets=secrets, webhook=True) as running:
        yield running


def notify(here: Deployed, body: bytes, header: str | None = None) -> urllib3.BaseHTTPResponse:
    headers = {SIGNATURE_HEADER: header or signature(HOOK_SECRET, body)}
    return urllib3.request("POST", here.loopback.url_of("webhook"), body=body, headers=headers, timeout=60)


def created(*keys: str, batch: str, kind: str = "b2:ObjectCreated:Upload") -> bytes:
    events = [
        {"eventId": f"{batch}-{n}", "eventType": kind, "objectName": key, "eventVersion": 1}
        for n, key in enumerate(keys)
    ]
    return json.dumps({"events": events}).encode()


def woken(here: Deployed) -> int:
    return sum(container.served for container in here.loopback.containers("wake"))


def test_a_signed_burst_wakes_one_tick_that_finds_the_drop(here: Deployed) -> None:
    """Many events, one tick; the drop is worked although no cron ever fired."""
    key = here.put_job("woken", {"workflow": graph()})
    first = notify(here, created(*[key] * 50, batch="burst"))
    assert (first.status, first.json()["fresh"], first.json()["woke"]) == (200, 50, True)
    again = notify(here, created(key, batch="burst-2"))
    assert again.status == 200
    here.loopback.wait_until(lambda: key in here.manifests(), 60, "the drop is done")
    assert woken(here) == 1 + again.json()["woke"]


def test_a_replayed_notification_wakes_nobody(here: Deployed) -> None:
    """At least once, says Backblaze: the second time its events are known."""
    body = created("inbox/jobs/replayed.json", batch="replayed")
    assert notify(here, body).json()["fresh"] == 1
    assert notify(here, body).json() == {"events": 1, "fresh": 0, "woke": False}


@pytest.mark.parametrize("header", ["v1=" + "0" * 64, "v2=x", "nonsense"])
def test_a_bad_signature_is_refused(here: Deployed, header: str) -> None:
    """401, and nothing is read of the body."""
    assert notify(here, created("inbox/a.json", batch="bad"), header).status == 401


def test_events_that_are_no_drops_are_ignored(here: Deployed) -> None:
    """Our own outputs, hidden files, unknown types and Backblaze's test: all fine, none wakes."""
    for body in (
        created("comfy_outputs/x/manifest.json", "state/authority.json", batch="own"),
        created("inbox/a.json", batch="hidden", kind="b2:HideMarkerCreated:Hide"),
        created("inbox/a.json", batch="new-type", kind="b2:SomethingNew"),
        trial_body(),
    ):
        reply = notify(here, body)
        assert (reply.status, reply.json()["woke"]) == (200, False)
    assert notify(here, b"[]").status == 400


def picture(color: str = "teal") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return out.getvalue()


def test_the_api_is_behind_modals_proxy_auth(here: Deployed) -> None:
    """Without the key pair nothing starts."""
    assert ask(here, "GET", "/status", auth=False).status == 401
    assert not here.loopback.containers("api")


def test_post_a_workflow_get_the_picture(here: Deployed) -> None:
    """As the guide's client does it: workflow and overrides in, PNG out."""
    job = {"kind": "render", "workflow": graph(), "overrides": {"1": {"inputs": {"width": 40}}}}
    reply = ask(here, "POST", "/render", job)
    assert (reply.status, reply.headers["content-type"]) == (200, "image/png"), reply.data
    assert Image.open(io.BytesIO(reply.data)).size == (40, 32)


def test_post_a_picture_along_and_several_come_back(here: Deployed) -> None:
    """Inputs travel in the request; more than one file is answered in JSON."""
    loading = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "mine.png"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "b"}},
    }
    files = {"mine.png": base64.b64encode(picture()).decode()}
    reply = ask(here, "POST", "/render", {"kind": "render", "workflow": loading, "files": files})
    made = [Image.open(io.BytesIO(base64.b64decode(file["data"]))) for file in reply.json()["files"]]
    colours = {image.convert("RGB").getpixel((0, 0)) for image in made}
    assert colours == {(0, 128, 128), (255, 126, 126)}


def test_a_bad_request_says_what_is_wrong(here: Deployed) -> None:
    """The same words as a drop's report, with 4xx."""
    wrong = ask(here, "POST", "/render", {"1": {"class_type": "SaveImagee", "inputs": {}}})
    assert (wrong.status, "SaveImage" in wrong.json()["error"]) == (422, True), wrong.json()
    typo = ask(here, "POST", "/jobs", {"kind": "render", "workflow": graph(), "seedz": 1})
    assert (typo.status, "seeds" in typo.json()["error"]) == (422, True)
    assert ask(here, "GET", "/jobs/nope").status == 404
    assert ask(here, "DELETE", "/jobs/nope").status == 404


def test_post_a_job_ask_for_it_and_fetch_its_files(here: Deployed) -> None:
    """A job through the inbox: an id at once, the state later, then the files."""
    job = {"kind": "render", "name": "later", "workflow": graph(), "matrix": {"1.color": [1, 2]}}
    posted = ask(here, "POST", "/jobs", job)
    assert posted.status == 202
    where = posted.json()["status"]
    here.loopback.wait_until(lambda: ask(here, "GET", where).json()["state"] == "done", 60, "the job is done")
    summary = ask(here, "GET", where).json()
    assert (summary["tasks"], len(summary["files"])) == (2, 2)
    file = ask(here, "GET", summary["files"][1]["url"])
    assert (file.status, file.headers["content-type"]) == (200, "image/png")
    assert ask(here, "GET", f"{where}/files/2").status == 404


def test_the_status_page_tells_the_bucket_at_a_glance(here: Deployed) -> None:
    """For a monitor: what waits, since when, and who keeps the leases."""
    here.put_job("waits", {"kind": "render", "workflow": graph(), "not_before": "2999-01-01T00:00:00Z"})
    status = ask(here, "GET", "/status").json()
    assert (status["pending"], status["paused"], status["leases"]) == (
        1,
        False,
        "modal-dict:dropbatch-leases",
    )
