"""The built-in engine says what ComfyUI 0.3.64 said, request by request and message by message.

The recordings are exchanges with a real server (tests/fixtures/comfyui: trimmed of tracebacks and tensors).
They are replayed in the order in which they were made, since each prompt meets the previous one's cache:
on the engine always, and on a real ComfyUI where `COMFYUI_DIR` or `COMFYUI_URL` names one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from handlers.engine.nodes import NODES
from tests.unit.engine.serving import Server, comfyui, engine

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "comfyui"
ORIGINALS = Path(__file__).parents[3] / "shared" / "recordings" / "comfyui-0.3.64"
REAL = bool(os.environ.get("COMFYUI_DIR") or os.environ.get("COMFYUI_URL"))

IN_ORDER = [
    "success",
    "success_again_cached",
    "batch_and_preview",
    "animated_webp",
    "invalid_unknown_class",
    "invalid_missing_input",
    "invalid_out_of_range",
    "invalid_bad_link",
    "invalid_no_outputs",
    "invalid_missing_image",
    "invalid_empty",
    "ui_format",
    "partly_valid",
    "runtime_error_bad_prefix",
    "runtime_error_size_mismatch",
]
NOT_ITS_NODES = {"invalid_missing_model", "video"}
"""Recordings that need a model loader or video nodes, which the engine does not have."""

_VOLATILE = {"timestamp": 0, "prompt_id": "id", "client_id": "me", "sid": "me", "number": 0}


@pytest.fixture(scope="module", params=["engine", "comfyui"] if REAL else ["engine"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    start = engine if request.param == "engine" else comfyui
    with start(tmp_path_factory.mktemp("comfy")) as started:
        yield started


@pytest.fixture(scope="module")
def replayed(server: Server) -> dict[str, dict[str, Any]]:
    """Every recording's request, sent again; what came back."""
    unique = f"t{uuid4().hex[:8]}"  # output folders of an attached server may hold earlier files
    return {name: _replay(server, _request(name, unique), unique) for name in IN_ORDER}


@pytest.mark.parametrize("name", IN_ORDER)
class TestReplay:
    def test_answer(self, name: str, replayed: dict[str, dict[str, Any]]) -> None:
        """The status and the body, down to the words of each validation error."""
        recorded = _recording(name)
        assert replayed[name]["response_status"] == recorded["response_status"]
        assert _plain(replayed[name]["response"]) == _plain(recorded["response"])

    def test_messages(self, server: Server, name: str, replayed: dict[str, dict[str, Any]]) -> None:
        """Every WebSocket message, in order; several outputs of a real server run in a random one."""
        got, recorded = (_plain(x["ws_messages"]) for x in (replayed[name], _recording(name)))
        if not server.is_engine and name == "batch_and_preview":
            got, recorded = (_without_order(messages) for messages in (got, recorded))
        assert got == recorded

    def test_history(self, name: str, replayed: dict[str, dict[str, Any]]) -> None:
        """The history entry; none for a prompt that was refused."""
        assert _plain(replayed[name]["history"]) == _plain(_entry(_recording(name)["history"]))


def test_interrupt_stops_the_named_prompt_only(server: Server) -> None:
    """As recorded, up to where it stops: a real ComfyUI ends its blur first, the engine stops in it."""
    recorded = _recording("interrupted")
    with server.listener() as client:
        reply = client.post(recorded["request"]["prompt"])
        client.until(lambda message: message["data"].get("node") == "2")
        queue = server.request("/queue").json
        assert _plain(queue) == _plain(recorded["queue_while_running"])
        assert server.request("/interrupt", {"prompt_id": "another"}).status == 200
        prompt_id = reply.json["prompt_id"]
        assert server.request("/interrupt", {"prompt_id": prompt_id}).status == recorded["interrupt_status"]
        client.until_idle()
    begun = [m["type"] for m in recorded["ws_messages"]].index("progress_state") + 5
    assert _plain(client.messages[:begun]) == _plain(recorded["ws_messages"][:begun])
    assert _plain(client.messages[-2:]) == _plain(recorded["ws_messages"][-2:])
    stopped = client.messages[-3]
    assert stopped["type"] == "execution_interrupted"
    assert stopped["data"]["node_id"] in {"2", "3"}
    assert stopped["data"]["executed"] in (["1"], ["1", "2"], ["2", "1"])
    entry = server.request(f"/history/{prompt_id}").json[prompt_id]
    expected = _entry(recorded["history"])
    assert entry["outputs"] == expected["outputs"] == {}
    assert entry["meta"] == expected["meta"] == {}
    assert {**entry["status"], "messages": []} == {**expected["status"], "messages": []}
    assert [name for name, _ in entry["status"]["messages"]] == [
        name for name, _ in expected["status"]["messages"]
    ]


def test_object_info_of_each_node_equals_comfyuis(server: Server) -> None:
    """The schema that a preflight or an editor reads; of LoadImage all but the folder's files."""
    recorded = json.loads((RECORDINGS / "object_info.json").read_text())
    assert set(recorded) == set(NODES)
    for name, expected in recorded.items():
        answer = server.request(f"/object_info/{name}").json[name]
        if name == "LoadImage":
            answer["input"]["required"]["image"][0] = expected["input"]["required"]["image"][0]
        assert answer == expected, name


def test_system_stats_tell_the_engine_from_comfyui(server: Server) -> None:
    """The same shape; the engine claims no ComfyUI version."""
    system = server.request("/system_stats").json["system"]
    assert ("dropbatch_engine" in system) == server.is_engine
    assert ("comfyui_version" in system) != server.is_engine


def test_fixtures_are_the_recordings() -> None:
    """Nobody has adjusted what the engine is held against."""
    if not ORIGINALS.is_dir():
        pytest.skip(f"the original recordings are not here ({ORIGINALS})")
    recorded = {path.stem for path in ORIGINALS.glob("*.json")}
    elsewhere = {"object_info.names", "object_info.subset", "system_stats", "interrupted"}
    assert recorded == {*IN_ORDER, *NOT_ITS_NODES, *elsewhere}
    for name in [*IN_ORDER, "interrupted"]:
        original = json.loads((ORIGINALS / f"{name}.json").read_text())
        assert json.loads((RECORDINGS / f"{name}.json").read_text()) == _trimmed(original)
    schema = json.loads((ORIGINALS / "object_info.subset.json").read_text())
    for name, entry in json.loads((RECORDINGS / "object_info.json").read_text()).items():
        assert entry == schema[name]


def _recording(name: str) -> dict[str, Any]:
    recorded: dict[str, Any] = _without_latents(json.loads((RECORDINGS / f"{name}.json").read_text()))
    return recorded


def _without_latents(recorded: dict[str, Any]) -> dict[str, Any]:
    """One recording has a latent beside its graph, which nothing reads and the engine does not have."""
    prompts = [recorded["request"]["prompt"]]
    prompts += [entry["prompt"][2] for entry in (recorded["history"] or {}).values()]
    for prompt in prompts:
        for node_id in [i for i, n in prompt.items() if isinstance(n, dict) and "Latent" in str(n)]:
            del prompt[node_id]
    return recorded


def _trimmed(value: Any) -> Any:
    """As the fixtures were made of the originals."""
    if isinstance(value, dict):
        emptied: dict[str, Any] = {"traceback": [], "current_inputs": {}}
        return {key: emptied[key] if key in emptied else _trimmed(item) for key, item in value.items()}
    return [_trimmed(item) for item in value] if isinstance(value, list) else value


def _entry(history: dict[str, Any] | None) -> Any:
    """The only entry of an answer by prompt id."""
    return next(iter(history.values())) if history else None


def _request(name: str, unique: str) -> Any:
    """The recorded prompt, writing below a name of this test's own."""
    text = json.dumps(_recording(name)["request"]["prompt"])
    text = text.replace('"rec/', f'"{unique}/').replace(
        '"filename_prefix": "x"', f'"filename_prefix": "{unique}x"'
    )
    return json.loads(text)


def _replay(server: Server, prompt: Any, unique: str) -> dict[str, Any]:
    with server.listener() as client:
        client.until(lambda message: message["type"] == "status")
        reply = client.post(prompt)
        history = None
        if reply.status == 200:
            client.until_idle()
            history = _entry(server.request(f"/history/{reply.json['prompt_id']}").json)
    result = {
        "response_status": reply.status,
        "response": reply.json if reply.status < 500 else reply.body.decode(),
        "ws_messages": client.messages,
        "history": history,
    }
    text = json.dumps(result).replace(f'"{unique}x', '"x').replace(f'"{unique}', '"rec')
    replayed: dict[str, Any] = json.loads(text)
    return replayed


def _plain(value: Any) -> Any:
    """Without ids, times, tracebacks and tensors; what ComfyUI keeps in sets, sorted."""
    if isinstance(value, dict):
        plain: dict[str, Any] = {key: _VOLATILE.get(key, _plain(item)) for key, item in value.items()}
        for key in ("traceback", "current_inputs"):
            plain.pop(key, None)
        for key in ("current_outputs", "executed"):
            if isinstance(plain.get(key), list):
                plain[key] = sorted(plain[key])
        if "errors" in plain:
            plain["errors"] = sorted(plain["errors"], key=lambda error: str(error["details"]))
        if "filename" in plain:
            plain["filename"] = re.sub("temp_[a-z]{5}_", "temp_random_", plain["filename"])
        if "exception_message" in plain:
            plain["exception_message"] = _without_paths(plain["exception_message"])
        return plain
    if isinstance(value, list) and len(value) == 5 and isinstance(value[2], dict):  # number, id, prompt, …
        return [0, "id", _plain(value[2]), _plain(value[3]), sorted(value[4])]
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _without_order(messages: list[Any]) -> list[str]:
    """All but the progress, which tells of all nodes at once."""
    return sorted(json.dumps(message) for message in messages if message["type"] != "progress_state")


def _without_paths(message: str) -> str:
    return "\n".join(line.split(": /")[0] for line in message.splitlines())
