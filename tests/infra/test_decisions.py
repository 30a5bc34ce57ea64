"""Infra's pure parts: signatures, groups, GPUs, the Volume's limit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, time
from importlib import metadata
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import modal
import pytest

from handlers.model_cache import ModelCache
from handlers.render.settings import render_settings
from infra import mounts
from infra.asgi import status_of
from infra.containers import pull_in_time
from infra.desk import Desk
from infra.fleet import LONGEST_S, Pool, Pools, pools_of, studio_timeout_s, timeout_s
from infra.gpus import bigger, usd_per_s
from infra.handover import from_json
from infra.health import gpu_class, gpu_problem, in_modals_words
from infra.images import pins
from infra.models import listing, note_use, raise_problem, remove, trim
from infra.secrets import create, needed
from infra.settings import deployable, in_container
from infra.ticking import Load, morning_once, tick_once
from infra.webhook import events_of, is_signed, signature
from processor.config import load_without_file
from processor.errors import ConfigError, TaskFailed
from processor.execute import execute
from processor.handler import PlanContext, Stop, Stores, Work
from processor.models import JobBase, RenderJob
from processor.notify import Notices
from processor.records import ModelFile, Plan, Task
from processor.run import run
from processor.schedule import Night
from processor.store.directory import DirectoryStore
from processor.testing.clock import ManualClock
from processor.testing.handler import ScriptedHandler, write_text_file
from processor.testing.machine import Bench
from processor.webhook import Webhook
from tests.support.receiver import server


def test_the_signature_is_backblazes() -> None:
    """`v1=` and the HMAC-SHA256 of the raw body in lower-case hex, by RFC 4231's second case."""
    body = b"what do ya want for nothing?"
    expected = "v1=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert signature("Jefe", body) == expected
    assert is_signed("Jefe", body, expected)
    for wrong in (None, "", expected[3:], expected.upper(), expected + " ", "v1=ümlaut"):
        assert not is_signed("Jefe", body, wrong)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"events": {}}', b"\xff"])
def test_what_is_no_notification_is_refused(body: bytes) -> None:
    """ValueError, whatever it is instead."""
    with pytest.raises(ValueError, match=r"."):
        events_of(body)


def test_claims_that_no_dispatcher_takes_go_back_at_once(tmp_path: Path) -> None:
    """Modal out of reach between claim and spawn: the next tick has them again, without a wait."""
    bench = Bench(tmp_path, ScriptedHandler())
    settings = load_without_file(bucket="s3://a-bucket", modal={"claims_per_tick": 4})
    deployed = deployable(settings)
    for number in range(3):
        bench.drop({"kind": "render", "workflow": "w"}, f"inbox/jobs/{number}.json")

    def refuse(_claims: list[dict[str, Any]]) -> None:
        raise modal.exception.ServiceError("503")

    refused = tick_once(bench.machine(), deployed, spawn=refuse, load=Load)
    assert (refused["claimed"], "given back" in refused["problem"]) == (0, True)
    taken: list[dict[str, Any]] = []
    summary = tick_once(bench.machine(), deployed, spawn=taken.extend, load=Load)
    assert (summary["claimed"], summary["problem"], len(taken)) == (3, None, 3)
    assert {from_json(claim).lease.epoch for claim in taken} == {2}


def test_the_morning_tells_of_the_night(tmp_path: Path) -> None:
    """Its cron is the only one on Modal that looks at a night that has closed."""
    night = Night(time(1), time(7), ZoneInfo("UTC"))
    in_it = ManualClock(datetime(2026, 5, 5, 2, tzinfo=UTC))
    bench = Bench(tmp_path, ScriptedHandler(write_text_file), clock=in_it)
    bench.with_policy(night=night)
    bench.drop({"workflow": "noop", "overrides": {"tasks": 1}})
    run(bench.machine(), once=True)
    in_it.advance(6 * 3600)
    secret = "whsec_" + "0" * 32
    with server() as received:
        machine = replace(bench.machine(), notices=Notices([Webhook(received.url, secret)], {"night"}))
        morning_once(machine)
        morning_once(machine)
    ((_, _, body),) = received.requests
    assert json.loads(body)["type"] == "night.reported"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"slack_channel": "C1"}, "slack_secret"),
        ({"webhook_url": "ftp://example.test"}, "webhook_url"),
        ({"notify_on": ["doen"]}, "Did you mean 'done'?"),
    ],
)
def test_notices_that_could_not_be_sent_are_refused_at_deploy(settings: dict[str, Any], says: str) -> None:
    """Not by every container from then on; what is in the secrets is not looked at here."""
    with pytest.raises(ConfigError) as caught:
        deployable(load_without_file(bucket="s3://a-bucket", **settings))
    assert says in f"{caught.value} {caught.value.where} {caught.value.mend}"


def test_a_notice_secret_in_use_is_asked_for() -> None:
    """And not before; with the bot's where a channel is named."""
    plain = load_without_file(bucket="s3://a-bucket")
    told = load_without_file(
        bucket="s3://a-bucket",
        webhook_url="https://example.test",
        slack_channel="C1",
        modal={"slack_secret": "slack-credentials"},
    )
    used = [
        {secret.name for secret in needed(deployable(each)) if secret.setting is None}
        for each in (plain, told)
    ]
    assert used[1] - used[0] == {"dropbatch-notices", "slack-credentials"}
    assert not used[0] & {"dropbatch-notices", "slack-credentials"}


@pytest.mark.parametrize("name", ["dropbatch-notices", "dropbatch-webhook"])
def test_a_secret_that_could_sign_nothing_is_not_made(name: str) -> None:
    """Both lie in the environment under one name, but they are of different shapes."""
    settings = load_without_file(
        bucket="s3://a-bucket", webhook_url="https://example.test", modal={"webhook": True}
    )
    (secret,) = [each for each in needed(deployable(settings)) if each.name == name]
    with pytest.raises(ConfigError, match="DROPBATCH_WEBHOOK_SECRET"):
        create(secret, {"DROPBATCH_WEBHOOK_SECRET": "not quite"})


class Queued:
    """A function of Modal's whose only container is busy with somebody else's input."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def spawn(self, wanted: Any) -> Queued:
        self.waiting.append(wanted)
        return self

    def get(self, timeout: float) -> Any:
        assert timeout < 150, "then Modal answers for us"
        raise TimeoutError


def test_the_api_does_not_wait_behind_a_batchs_models() -> None:
    """The pull stays queued; who asked is told to come again, instead of holding the door open."""
    pull = Queued()
    wanted = [{"folder": "loras", "name": "a"}]
    problem = pull_in_time(pull, wanted)  # type: ignore[arg-type]  # as far as it is used
    assert pull.waiting == [wanted]
    with pytest.raises(TaskFailed) as caught:
        raise_problem(problem)
    assert status_of(caught.value.kind) == 503


class OneModel(ScriptedHandler):
    """Plans a task that needs this model."""

    model = ModelFile(folder="loras", name="a.safetensors")

    def plan(self, job: JobBase, context: PlanContext) -> Plan:
        return super().plan(job, context).model_copy(update={"models": [self.model]})


def test_the_api_pulls_what_lacks_before_it_rents_and_says_what_it_uses(tmp_path: Path) -> None:
    """A model that is there starts nothing but, once an hour, the note that keeps it on the Volume."""
    bench, told = Bench(tmp_path, OneModel()), list[str]()
    volume = ModelCache(tmp_path / "volume", bench.main)
    bench.main.put("comfy_models/loras/a.safetensors", b"weights")

    def pull(_wanted: list[dict[str, Any]]) -> None:
        told.append("pull")
        volume.ensure([OneModel.model])

    def rent(order: dict[str, Any]) -> dict[str, Any]:
        told.append("rent")
        return order

    def desk() -> Desk:
        return Desk(
            handler=bench.handler,
            stores=Stores.single(bench.main),
            budget=bench.machine().budget,
            max_job_cost_usd=10.0,
            gpus=["L40S"],
            timeout_s=1200,
            cache=volume,
            reload_models=lambda: told.append("reload"),
            pull=pull,
            note_use=lambda _wanted: told.append("note"),
            render=rent,
        )

    job = RenderJob.model_validate({"kind": "render", "workflow": "w", "max_cost_usd": 2})
    door = desk()
    order = door(job)
    assert (told, order["max_cost_usd"]) == (["reload", "pull", "rent"], 2)
    door(job)
    assert told[3:] == ["reload", "rent"]
    another = desk()
    another(job)
    another(job)
    assert told[5:] == ["reload", "note", "rent", "reload", "rent"]


@pytest.mark.parametrize(
    ("load", "claimed"),
    [(Load(0, 0), 3), (Load(30, 0), 2), (Load(32, 0), 0), (Load(40, 0), 0), (Load(3, 2), 0)],
)
def test_no_more_is_claimed_than_dispatchers_have_room_for(tmp_path: Path, load: Load, claimed: int) -> None:
    """And nothing while claims wait for one: they would only let their leases run out."""
    bench = Bench(tmp_path, ScriptedHandler())
    for number in range(3):
        bench.drop({"kind": "render", "workflow": "w"}, f"inbox/jobs/{number}.json")
    deployed = deployable(load_without_file(bucket="s3://a-bucket"))
    spawned: list[Any] = []
    summary = tick_once(bench.machine(), deployed, spawn=spawned.append, load=lambda: load)
    assert [len(claims) for claims in spawned] == [1] * claimed, "a call each: none waits for another's end"
    assert (summary["claimed"], summary["pending"], summary["waiting"]) == (claimed, 3, load.waiting)


@pytest.mark.parametrize(
    ("name", "larger"),
    [("L40S", "A100-80GB"), ("T4:2", "L4:2"), ("A100-40GB", "L40S"), ("H100", "H200"), ("B200", "B200")],
)
def test_a_bigger_gpu_has_more_memory(name: str, larger: str) -> None:
    """The next on the ladder, as many of them."""
    assert bigger(name) == larger


@pytest.mark.parametrize(
    ("smi", "expected"),
    [
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 3060", None),
    ],
)
def test_gpus_are_named_as_modal_does(smi: str, expected: str | None) -> None:
    """From what `nvidia-smi` calls them."""
    assert in_modals_words(smi) == expected


def test_a_comfyui_of_our_image_never_renders_on_the_cpu() -> None:
    """A GPU is paid for: one that can't be used fails the task, and nothing is billed for a slow render."""
    rented = render_settings(in_container(deployable(load_without_file(bucket="s3://a-bucket"))).settings)
    assert (rented.engine, rented.cpu) == ("comfyui", False)
    found = load_without_file(bucket="s3://a-bucket", comfyui_dir="/a/ComfyUI")
    own = render_settings(in_container(deployable(found)).settings)
    assert (own.engine, own.cpu) == ("comfyui", None), "another machine's: it looks for itself"


class Variants:
    """A class of workers that notes with which options it was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.run = object()

    def with_options(self, **options: Any) -> Variants:
        self.asked.append(options)
        return self

    def __call__(self) -> Variants:
        return self


@pytest.mark.parametrize(
    ("options", "expected_s"),
    [
        ({}, 3 * 1200 + 600),
        ({"render_concurrency": 1}, 3 * 1200 + 600),
        ({"render_concurrency": 8}, 8 * 1200 + 600),
        ({"chunk_tasks": 4}, 4 * (3 * 1200 + 600)),
        ({"chunk_tasks": 100}, LONGEST_S),
    ],
)
def test_modal_waits_longer_than_the_worker_does(options: dict[str, Any], expected_s: int) -> None:
    """A task may wait for all others of its container; Modal counts that time and then kills them all,
    so the worker is first to say that something takes too long."""
    ours = deployable(load_without_file(bucket="s3://a-bucket", modal=options))
    limit_s = timeout_s(ours.settings, ours.modal, "render")
    assert limit_s == min(LONGEST_S, expected_s + 600)
    assert studio_timeout_s(ours.settings, ours.modal, 8) >= min(LONGEST_S, 8 * 2 * 1200 + 600)


@pytest.mark.parametrize(
    ("kind", "limit_s", "options"),
    [
        ("render", 1200, []),
        ("render", 1201, [{"max_containers": 6, "timeout": LONGEST_S}]),
        ("train", 24 * 3600, []),
        ("ingest", 3600, []),
        ("ingest", 3601, [{"max_containers": 2, "timeout": LONGEST_S}]),
    ],
)
def test_a_longer_limit_has_containers_of_its_own(
    kind: str, limit_s: float, options: list[dict[str, Any]]
) -> None:
    """Where the pool's timeout was reckoned from a shorter one; else the pool's, whose snapshot and
    warmth a variant lacks."""
    workers = Variants()
    fleet = pools_of(
        deployable(load_without_file(bucket="s3://a-bucket")), render=workers, train=workers, ingest=workers
    )
    assert fleet.pool(kind, None, limit_s) is workers.run
    assert workers.asked == options


def test_a_worker_lets_a_task_wait_for_its_neighbours(tmp_path: Path) -> None:
    """As many as Modal may send to its container, and the handler's own if that is more."""
    limits_s: list[float] = []

    class Noted:
        @contextmanager
        def limit(self, _stop: Stop, timeout_s: float) -> Iterator[None]:
            limits_s.append(timeout_s)
            yield

    store = DirectoryStore(tmp_path / "bucket", create=True)
    task = Task(index=0, hash="0" * 64)
    work = Work(job_id="job", attempt="1-a", kind="render", task=task, shared={}, timeout_s=1200)
    for sharing in (1, 8):
        execute(
            ScriptedHandler(concurrency=3),
            work,
            Stores(store, store, store),
            stop=Stop(),
            watchdog=Noted(),
            progress=lambda _progress: None,
            work_dir=tmp_path / "work",
            gpu=None,
            usd_per_s=0.0,
            sharing=sharing,
        )
    assert limits_s == [3 * 1200 + 600, 8 * 1200 + 600]


def nvidia_smi(folder: Path, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver's tool that says this, on the PATH."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{says}'\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    gpu_class.cache_clear()


@pytest.fixture
def _ask_smi_anew() -> Iterator[None]:
    yield
    gpu_class.cache_clear()


@pytest.mark.usefixtures("_ask_smi_anew")
def test_every_gpu_of_a_container_is_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`H100:2` costs two; what the container got says so, whatever it was asked for."""
    one = "NVIDIA H100 80GB HBM3\\n"
    nvidia_smi(tmp_path, one, monkeypatch)
    assert gpu_class() == "H100"
    nvidia_smi(tmp_path, one * 2, monkeypatch)
    assert gpu_class() == "H100:2"
    assert usd_per_s(gpu_class()) == pytest.approx(2 * usd_per_s("H100"))
    assert gpu_problem() is None
    nvidia_smi(tmp_path, one + "Unable to determine the device handle: Unknown Error\\n", monkeypatch)
    assert "Unknown Error" in str(gpu_problem())


def test_chunks_never_leave_a_container_idle() -> None:
    """Many waiting tasks travel together; few are spread."""
    fleet = Pools({"render": Pool(None, (), containers=4, concurrency=1, timeout_s=60, chunk_tasks=10)})
    assert [fleet.chunk("render", waiting) for waiting in (1, 4, 8, 39, 400)] == [1, 1, 2, 9, 10]


@pytest.mark.parametrize(
    ("url", "region", "endpoint"),
    [
        ("s3://a-bucket", "eu-west-1", None),
        ("b2://a-bucket", "us-west-004", "https://s3.us-west-004.backblazeb2.com"),
    ],
)
def test_a_mounted_bucket_is_where_the_store_finds_it(
    monkeypatch: pytest.MonkeyPatch, url: str, region: str, endpoint: str | None
) -> None:
    """A region alone is AWS's for s3://: its mount is sent to no server of Backblaze's."""
    ours = deployable(load_without_file(bucket=url, region=region, modal={"mount_bucket": True}))
    monkeypatch.setattr(modal, "CloudBucketMount", dict)  # Modal's own does not say what it was given
    found: Any = mounts.of(ours.settings, ours.modal).values()
    assert [mount["bucket_endpoint_url"] for mount in found] == [endpoint, endpoint]


def test_the_volume_lets_go_what_was_not_used_for_longest(tmp_path: Path) -> None:
    """Down to its limit, but never what is wanted now; a diffusers folder goes as one."""
    for name in (
        "loras/old",
        "loras/new",
        "checkpoints/deep/in",
        "diffusers/tree/unet/w",
        "diffusers/tree/i",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(100))
    (tmp_path / ".cache").mkdir()
    note_use(tmp_path, ["loras/old"], now=1.0)
    note_use(tmp_path, ["diffusers/tree"], now=2.0)
    note_use(tmp_path, ["checkpoints/deep/in", "loras/new"], now=3.0)
    names = [each["name"] for each in listing(tmp_path)]
    assert names == ["checkpoints/deep/in", "diffusers/tree", "loras/new", "loras/old"]
    assert trim(tmp_path, 500, keep=set()) == []
    assert trim(tmp_path, 300, keep={"loras/old"}) == ["diffusers/tree"]
    assert not (tmp_path / "diffusers" / "tree").exists()
    assert trim(tmp_path, 250, keep=set()) == ["loras/old"]
    with pytest.raises(TaskFailed, match="not on the Volume"):
        remove(tmp_path, "../outside")


def test_an_extra_that_containers_need_is_missed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the image would be built all the same, and a notice fail in the middle of a night."""
    real = metadata.version

    def version(name: str) -> str:
        if name == "slack-sdk":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ConfigError, match="slack-sdk is not installed here"):
        pins()
