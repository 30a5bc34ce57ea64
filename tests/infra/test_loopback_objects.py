"""Classes, dicts, volumes and web endpoints on the loopback."""
# the client under test

import asyncio
import io
import os
import uuid
from typing import Any

import aiohttp
import modal
import pytest
import urllib3

from tests.loopback import Loopback

APP = "abilities"
AUTH = {"Modal-Key": "wk-loopback", "Modal-Secret": "ws-loopback"}


@pytest.fixture
def fresh(abilities: Loopback) -> "modal.Dict":
    return modal.Dict.from_name(f"dict-{uuid.uuid4().hex[:8]}", create_if_missing=True)


@pytest.fixture
def models(abilities: Loopback) -> "modal.Volume":
    return modal.Volume.from_name("models", version=2)


def renderer(**options: Any) -> Any:
    cls = modal.Cls.from_name(APP, "Renderer")
    return cls.with_options(**options) if options else cls


def test_a_class_enters_through_a_snapshot_and_serves_two_inputs_at_once(abilities: Loopback) -> None:
    answers = list(renderer(max_containers=1)(style="pair").render.map(["pair-a", "pair-b"]))
    assert answers[0]["steps"][:2] == ["snap", "enter"]
    assert sorted(answers[1]["steps"][2:4]) == ["pair-a", "pair-b"]
    container = abilities.containers("Renderer")[0]
    assert (container.served, container.checkpoints) == (2, 1)


def test_parameters_and_options_have_pools_of_their_own(abilities: Loopback) -> None:
    plain = renderer()().render.remote("a")
    bold = renderer()(style="bold").render.remote("a")
    large = renderer(gpu="H100:2", max_containers=1)().render.remote("a")
    assert [(a["style"], a["gpu"]) for a in (plain, bold, large)] == [
        ("plain", "L40S:1"),
        ("bold", "L40S:1"),
        ("plain", "H100:2"),
    ]
    assert all(answer["steps"][2:] == ["a"] for answer in (plain, bold, large))  # three instances
    variant = next(c for c in abilities.containers("Renderer") if c.gpus == ["H100:2"])
    assert variant.pool.settings.max_containers == 1


def test_exit_runs_when_a_container_is_preempted(abilities: Loopback) -> None:
    task_id = renderer()(style="left").render.remote("only")["task_id"]
    container = next(c for c in abilities.containers("Renderer") if c.task_id == task_id)
    container.preempt()
    container.wait_exited()
    notes = modal.Dict.from_name("notes")
    assert notes[f"exit of {container.task_id}"] == ["snap", "enter", "only"]


def test_a_sick_container_fetches_nothing_more(abilities: Loopback) -> None:
    sick = renderer()(style="sick").sick.remote()
    assert renderer()(style="sick").sick.remote() != sick
    container = next(c for c in abilities.containers("Renderer") if c.task_id == sick)
    assert container.wait_exited().reason == "stopped fetching"


def test_a_dict_puts_once_and_lists_what_it_holds(fresh: "modal.Dict") -> None:
    assert fresh.put("lease/1", "ours", skip_if_exists=True) is True
    assert fresh.put("lease/1", "theirs", skip_if_exists=True) is False
    fresh["beat"] = 1
    assert (fresh.get("lease/1"), fresh.get("none"), fresh.contains("beat"), fresh.len()) == (
        "ours",
        None,
        True,
        2,
    )
    assert dict(fresh.items()) == {"lease/1": "ours", "beat": 1}
    assert fresh.pop("beat") == 1
    assert list(fresh.keys()) == ["lease/1"]


def test_a_lost_reply_makes_the_winner_look_like_a_loser(abilities: Loopback, fresh: "modal.Dict") -> None:
    """The client repeats the request by itself, so that False may mean that our own value stands."""
    fresh.hydrate()
    abilities.lose_reply("DictUpdate")
    assert fresh.put("lease/1", "ours", skip_if_exists=True) is False
    assert fresh.get("lease/1") == "ours"


def test_a_lasting_fault_reaches_the_caller(abilities: Loopback, fresh: "modal.Dict") -> None:
    fresh.hydrate()
    abilities.refuse("DictUpdate", times=4)
    with pytest.raises(modal.exception.ServiceError):
        fresh.put("key", 1)
    assert fresh.get("key") is None


def test_entries_expire(abilities: Loopback, fresh: "modal.Dict") -> None:
    fresh.update({"a": 1, "b": 2})
    name = next(n for n, known in abilities.dicts.names.ids.items() if known == fresh.object_id)
    abilities.expire(name, ["a"])
    assert dict(fresh.items()) == {"b": 2}
    abilities.expire(name)
    assert fresh.len() == 0


def test_a_volume_is_uploaded_listed_read_and_removed(models: "modal.Volume") -> None:
    data = os.urandom(9 << 20) + bytes(1000)  # two blocks; trailing zeros are not sent
    with models.batch_upload() as batch:
        batch.put_file(io.BytesIO(data), "/loras/big.bin")
        batch.put_file(io.BytesIO(b""), "/loras/empty.txt")
    assert b"".join(models.read_file("loras/big.bin")) == data
    listed = {entry.path: entry.size for entry in models.listdir("/loras")}
    assert listed == {"loras/big.bin": len(data), "loras/empty.txt": 0}
    with pytest.raises(FileExistsError), models.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"other"), "/loras/big.bin")
    models.remove_file("/loras", recursive=True)
    with pytest.raises(FileNotFoundError):
        list(models.read_file("loras/big.bin"))


def test_a_container_sees_a_volume_as_of_its_last_reload(models: "modal.Volume") -> None:
    volume = modal.Function.from_name(APP, "volume")
    assert volume.remote("write", "mine.txt", "from the container") == "from the container"
    assert b"".join(models.read_file("mine.txt")) == b"from the container"
    with models.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"from outside"), "/theirs.txt")
    assert volume.remote("read", "theirs.txt") is None
    with pytest.raises(RuntimeError, match="open files"):
        volume.remote("reload-open", "mine.txt")
    assert volume.remote("reload", "theirs.txt") == "from outside"


def test_a_volume_of_another_version_is_refused(abilities: Loopback) -> None:
    with pytest.raises(modal.exception.InvalidError):
        modal.Volume.from_name("models", version=1).hydrate()


@pytest.mark.parametrize("headers", [{}, {"Modal-Key": "wk-loopback", "Modal-Secret": "wrong"}])
def test_a_guarded_endpoint_answers_401_without_its_key(abilities: Loopback, headers: dict[str, str]) -> None:
    with urllib3.PoolManager() as http:
        assert http.request("GET", abilities.url_of("site"), headers=headers).status == 401


def test_an_asgi_endpoint_takes_and_streams_bodies(abilities: Loopback) -> None:
    body = os.urandom(300_000)
    with urllib3.PoolManager() as http:
        answer = http.request("POST", f"{abilities.url_of('site')}/jobs/7?x=1", body=body, headers=AUTH)
    assert (answer.status, answer.data) == (201, body)
    assert (answer.headers["x-path"], answer.headers["x-query"]) == ("/jobs/7", "x=1")


async def _talk(url: str, text: str) -> str:
    async with aiohttp.ClientSession(headers=AUTH) as session, session.ws_connect(url) as socket:
        await socket.send_str(text)
        return await socket.receive_str()


def test_an_asgi_endpoint_speaks_websocket(abilities: Loopback) -> None:
    assert asyncio.run(_talk(f"{abilities.url_of('site')}/ws", "hello")) == "HELLO"


def test_a_web_server_is_proxied(abilities: Loopback) -> None:
    with urllib3.PoolManager() as http:
        answer = http.request("GET", f"{abilities.url_of('served')}/page.txt")
    assert (answer.status, answer.data) == (200, b"served")
