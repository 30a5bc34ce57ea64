"""Notices: signed, sent once, tried again, and never a job's undoing."""

from __future__ import annotations

import base64
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from standardwebhooks.webhooks import Webhook as Receiver
from urllib3.util import Retry

from processor.assembly import open_notices
from processor.config import load_without_file
from processor.contact_sheet import CELL, contact_sheet, thumbnail
from processor.errors import ConfigError
from processor.notify import Notice, Notices
from processor.run import run
from processor.slack import Slack
from processor.testing.handler import ScriptedHandler, write_text_file
from processor.testing.machine import Bench
from processor.webhook import NotDelivered, Webhook
from tests.support.receiver import server

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
QUICK = Retry(total=3, backoff_factor=0, status_forcelist=(503,), allowed_methods=None, raise_on_status=False)
NOW = datetime(2026, 5, 4, 7, tzinfo=UTC)


def notice(**more: Any) -> Notice:
    given = {
        "event": "done",
        "subject": "a-0123456789abcdef",
        "title": "✓ a: done",
        "text": "1 task",
        "at": NOW,
    }
    return Notice(**{**given, **more})


def bench_telling(tmp_path: Path, *notifiers: Any, events: tuple[str, ...] = ("done", "failed")) -> Bench:
    bench = Bench(tmp_path, ScriptedHandler(write_text_file))
    make = bench.machine

    def machine(**options: Any) -> Any:
        made = make(**options)
        object.__setattr__(made, "notices", Notices(notifiers, events))
        return made

    bench.machine = machine  # type: ignore[method-assign]
    return bench


def finish(bench: Bench) -> list[dict[str, Any]]:
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    return bench.manifests()


class TestWebhook:
    def test_a_receiver_that_follows_the_standard_verifies_it(self) -> None:
        """With the standard's own package, as anybody would."""
        with server() as received:
            Webhook(received.url, SECRET).send(notice(data={"tasks": 3}), lambda: None)
        ((_, headers, body),) = received.requests
        payload = Receiver(SECRET).verify(body, headers)
        assert payload["type"] == "job.done"
        assert payload["data"]["tasks"] == 3
        with pytest.raises(Exception, match="signature"):
            Receiver(SECRET).verify(body + b" ", headers)

    def test_what_may_pass_is_tried_again_under_the_same_id(self) -> None:
        with server() as received:
            received.answers = [503, 503]
            Webhook(received.url, SECRET, retries=QUICK).send(notice(), lambda: None)
        assert len(received.requests) == 3
        assert len({headers["webhook-id"] for _, headers, _ in received.requests}) == 1

    def test_a_receiver_that_refuses_is_an_error_once(self) -> None:
        with server() as received:
            received.answers = [400]
            with pytest.raises(NotDelivered, match="400"):
                Webhook(received.url, SECRET, retries=QUICK).send(notice(), lambda: None)
        assert len(received.requests) == 1

    @pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_%%%"])
    def test_a_weak_or_broken_secret_is_refused_at_once(self, secret: str) -> None:
        with pytest.raises(ConfigError, match="16 bytes"):
            Webhook("https://example.test/hook", secret)


class TestSlack:
    def test_a_job_is_a_message_whose_names_mention_nobody(self) -> None:
        with server(lambda _path, _body: {"ok": True, "ts": "1", "channel": "C1"}) as received:
            slack = Slack("xoxb-test", "C1", base_url=f"{received.url}/api/")
            slack.send(notice(title="<!channel> & co", url="https://pages.test/a/"), lambda: None)
        ((path, headers, body),) = received.requests
        assert path == "/api/chat.postMessage"
        assert headers["authorization"] == "Bearer xoxb-test"
        (block,) = json.loads(body)["blocks"]
        assert "&lt;!channel&gt; &amp; co" in block["text"]["text"]
        assert "<https://pages.test/a/|Open>" in block["text"]["text"]

    def test_a_night_comes_with_its_contact_sheet(self) -> None:
        """Asked for where to, uploaded, completed: three calls of Slack's."""

        def reply(path: str, _body: bytes) -> dict[str, Any]:
            upload = {"upload_url": f"{received.url}/upload", "file_id": "F1"}
            return {"ok": True, "files": [{"id": "F1"}], **upload}

        with server(reply) as received:
            slack = Slack("xoxb-test", "C1", base_url=f"{received.url}/api/")
            slack.send(notice(event="night", subject="2026-05-04"), lambda: b"jpeg bytes")
        paths = [path for path, _, _ in received.requests]
        assert paths == ["/api/files.getUploadURLExternal", "/upload", "/api/files.completeUploadExternal"]
        assert b"jpeg bytes" in received.requests[1][2]


class TestJobs:
    def test_a_finished_job_is_told_once_though_its_effects_are_redone(self, tmp_path: Path) -> None:
        from processor.effects import run_effects
        from processor.records import Manifest

        with server() as received:
            bench = bench_telling(tmp_path, Webhook(received.url, SECRET))
            bench.drop({"workflow": "noop", "name": "Portraits"})
            (manifest,) = finish(bench)
            run_effects(bench.machine(), Manifest.model_validate(manifest))
        ((_, _, body),) = received.requests
        data = json.loads(body)["data"]
        assert (data["name"], data["outcome"], data["tasks"]) == ("Portraits", "done", 1)

    def test_a_notifier_that_fails_fails_no_job(self, tmp_path: Path) -> None:
        """Nobody listens at that port; the other notifier is told all the same."""
        with server() as received:
            deaf = Webhook("http://127.0.0.1:9", SECRET, retries=Retry(total=0))
            deaf.name = "deaf"
            bench = bench_telling(tmp_path, deaf, Webhook(received.url, SECRET))
            bench.drop({"workflow": "noop"})
            (manifest,) = finish(bench)
        assert manifest["outcome"] == "done"
        assert len(received.requests) == 1
        assert [key for key in bench.keys("state/notified/") if key.endswith(".deaf")] == []

    @pytest.mark.parametrize(
        "job", [{"workflow": "noop", "notify": False}, {"workflow": "noop", "overrides": {"tasks": 0}}]
    )
    def test_silence_is_kept_where_it_is_asked_for(self, tmp_path: Path, job: dict[str, Any]) -> None:
        """`notify: false`, and an outcome (invalid) that the settings don't name."""
        with server() as received:
            bench = bench_telling(tmp_path, Webhook(received.url, SECRET))
            bench.drop(job)
            finish(bench)
        assert received.requests == []
        assert bench.keys("state/notified/") == []


class TestSettings:
    def test_slack_is_as_the_guide_has_it(self) -> None:
        """The bot's token and the channel from the environment."""
        notices = open_notices(
            load_without_file(), {"SLACK_BOT_TOKEN": "xoxb-1", "SLACK_ERROR_CHANNEL": "C1"}
        )
        assert notices is not None
        assert [notifier.name for notifier in notices.notifiers] == ["slack"]

    def test_nobody_is_told_by_default(self) -> None:
        assert open_notices(load_without_file(), {}) is None

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"slack_channel": "C1"}, "SLACK_BOT_TOKEN"),
            ({"webhook_url": "https://example.test"}, "16 bytes"),
            ({"notify_on": ["doen"]}, "Did you mean 'done'?"),
        ],
    )
    def test_half_a_setting_is_refused(self, settings: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError) as caught:
            open_notices(load_without_file(**settings), {})
        assert says in str(caught.value)


class TestContactSheet:
    def test_every_picture_is_on_it_in_order(self) -> None:
        """Six colours, three to a row; what is no picture is left out."""
        colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250)]
        pictures = [(f"task {n}", thumbnail(_png(colour), CELL)) for n, colour in enumerate(colours)]
        made = contact_sheet([*pictures, ("no picture", thumbnail(b"junk", CELL))], columns=3)
        assert made is not None
        with Image.open(io.BytesIO(made)) as sheet:
            width, height = sheet.width / 3, sheet.height / 2
            for place, colour in enumerate(colours):
                x, y = (place % 3 + 0.5) * width, (place // 3 + 0.4) * height
                seen = sheet.getpixel((int(x), int(y)))
                assert isinstance(seen, tuple)
                assert all(abs(a - b) < 24 for a, b in zip(seen, colour, strict=True))

    def test_nothing_makes_no_sheet(self) -> None:
        assert contact_sheet([("junk", None)]) is None


def _png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), colour).save(buffer, "PNG")
    return buffer.getvalue()
