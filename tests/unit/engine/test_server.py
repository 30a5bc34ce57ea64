"""The protocol beyond the recordings: queue, interrupt, files, sockets, limits."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence

from handlers.engine.limits import Limits
from tests.unit.engine.serving import Listener, Server, empty, engine, node, save

SLOW = {
    "1": empty(5, side=2048),
    "2": node("ImageBlur", image=["1", 0], blur_radius=31, sigma=5.0),
    "3": save("2", "slow"),
}


def picture(color: int, prefix: str = "picture") -> dict[str, Any]:
    return {"1": empty(color), "3": save("1", prefix)}


def is_running(prompt_id: str) -> Any:
    return lambda m: m["type"] == "executing" and m["data"].get("prompt_id") == prompt_id


def queue_is(remaining: int) -> Any:
    status = {"status": {"exec_info": {"queue_remaining": remaining}}}
    return lambda m: m["type"] == "status" and m["data"] == status


class TestQueue:
    def test_front_delete_and_clear(self, client: Listener) -> None:
        """While one runs: the front goes first, deleted and cleared prompts never run."""
        slow = client.post(SLOW).json["prompt_id"]
        client.until(is_running(slow))
        second = client.post(picture(2)).json
        first = client.post(picture(1), front=True).json
        assert first["number"] < 0 < second["number"]
        dropped = client.post(picture(3)).json["prompt_id"]
        client.server.request("/queue", {"delete": [dropped, "no such"]})
        listed = client.server.request("/queue").json
        assert [item[1] for item in listed["queue_running"]] == [slow]
        assert sorted(item[1] for item in listed["queue_pending"]) == sorted(
            [first["prompt_id"], second["prompt_id"]]
        )
        client.server.request("/interrupt", raw=b"")
        ended = []
        for _ in range(3):
            client.until_idle()
            ended.append(client.messages[-1]["data"]["prompt_id"])
        assert ended == [slow, first["prompt_id"], second["prompt_id"]]
        history = client.server.request("/history").json
        assert dropped not in history
        assert history[slow]["status"]["messages"][-1][0] == "execution_interrupted"

    def test_clear_drops_what_waits(self, client: Listener) -> None:
        """Not what runs."""
        slow = client.post(SLOW).json["prompt_id"]
        client.until(is_running(slow))
        client.post(picture(2))
        client.server.request("/queue", {"clear": True})
        assert client.server.request("/prompt").json == {"exec_info": {"queue_remaining": 1}}
        client.server.request("/interrupt", {"prompt_id": slow})
        client.until_idle()

    def test_a_client_that_comes_back_learns_what_runs(self, client: Listener) -> None:
        """A second socket of the same client takes over from the first."""
        slow = client.post(SLOW).json["prompt_id"]
        client.until(lambda m: m["data"].get("node") == "2")
        with client.server.listener(client.client_id) as again:
            again.until(lambda m: m["type"] == "executing")
            assert again.messages[-1]["data"] == {"node": "2"}
            client.server.request("/interrupt", {"prompt_id": slow})
            again.until_idle()

    def test_many_clients_at_once(self, server: Server) -> None:
        """Each gets its own prompt's messages, each picture once."""

        def one(color: int) -> str:
            with server.listener() as client:
                entry = client.run(picture(color, "many/x"))
                own = {m["data"].get("prompt_id") for m in client.messages} - {None}
                assert len(own) == 1
                (image,) = entry["outputs"]["3"]["images"]
                return str(image["filename"])

        with ThreadPoolExecutor(8) as pool:
            names = list(pool.map(one, range(100, 124)))
        assert sorted(names) == [f"x_{i:05}_.png" for i in range(1, 25)]


class TestHistory:
    def test_entries_can_be_listed_and_forgotten(self, client: Listener) -> None:
        """All, the last few, or from an offset; one removed, or all."""
        ids = [client.run(picture(color))["prompt"][1] for color in (11, 12, 13)]
        listed = list(client.server.request("/history?max_items=2").json)
        assert listed == ids[1:]
        client.server.request("/history", {"delete": [ids[2]]})
        assert client.server.request(f"/history/{ids[2]}").json == {}
        client.server.request("/history", {"clear": True})
        assert client.server.request("/history").json == {}

    def test_secrets_are_not_kept(self, client: Listener) -> None:
        """Keys to paid nodes, which a frontend sends along with every prompt."""
        entry = client.run(picture(14), extra_data={"api_key_comfy_org": "s", "extra_pnginfo": {"a": 1}})
        assert entry["prompt"][3] == {"client_id": client.client_id, "extra_pnginfo": {"a": 1}}


class TestCache:
    def test_a_new_prefix_runs_only_the_save(self, client: Listener) -> None:
        """And a prompt in between makes the server forget."""
        client.run(picture(21, "a"))
        entry = client.run(picture(21, "b"))
        assert entry["status"]["messages"][1][1]["nodes"] == ["1"]
        client.run(picture(22))
        assert client.run(picture(21, "c"))["status"]["messages"][1][1]["nodes"] == []

    def test_free_forgets(self, client: Listener) -> None:
        """`free_memory` drops what is kept."""
        client.run(picture(23, "a"))
        client.server.request("/free", {"free_memory": True})
        assert client.run(picture(23, "b"))["status"]["messages"][1][1]["nodes"] == []

    def test_a_changed_input_file_is_read_again(self, client: Listener) -> None:
        """Under the same name."""
        graph = {"1": node("LoadImage", image="changing.png"), "3": save("1")}
        shown = []
        for color in ("red", "blue"):
            assert client.server.folder is not None
            Image.new("RGB", (4, 4), color).save(client.server.folder / "input" / "changing.png")
            (image,) = client.run(graph)["outputs"]["3"]["images"]
            shown.append(Image.open(BytesIO(client.server.view(image))).getpixel((0, 0)))
        assert shown == [(255, 0, 0), (0, 0, 255)]

    def test_equal_save_nodes_save_once(self, client: Listener) -> None:
        """The second shows the first one's file, and says whose it is."""
        entry = client.run({"1": empty(24), "3": save("1", "twin"), "4": save("1", "twin")})
        assert entry["outputs"]["3"] == entry["outputs"]["4"]
        assert entry["meta"]["4"]["node_id"] == "3"


class TestFiles:
    def test_metadata_is_in_the_picture(self, client: Listener) -> None:
        """The prompt and what the client adds, as ComfyUI writes them: an editor can load the file."""
        entry = client.run(picture(31), extra_data={"extra_pnginfo": {"workflow": {"nodes": []}}})
        (file,) = entry["outputs"]["3"]["images"]
        saved = Image.open(BytesIO(client.server.view(file)))
        assert json.loads(saved.info["prompt"]) == picture(31)
        assert json.loads(saved.info["workflow"]) == {"nodes": []}

    def test_animations_carry_it_too(self, client: Listener) -> None:
        """WebP in EXIF, PNG in its own chunk."""
        graph = {
            "1": node("LoadImage", image="moving.gif"),
            "2": node(
                "SaveAnimatedWEBP",
                images=["1", 0],
                filename_prefix="m",
                fps=5.0,
                lossless=True,
                quality=80,
                method="fastest",
            ),
            "3": node("SaveAnimatedPNG", images=["1", 0], filename_prefix="m", fps=5.0, compress_level=4),
        }
        assert client.server.folder is not None
        frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
        frames[0].save(
            client.server.folder / "input" / "moving.gif",
            save_all=True,
            append_images=frames[1:],
            duration=100,
        )
        outputs = client.run(graph)["outputs"]
        webp = Image.open(BytesIO(client.server.view(outputs["2"]["images"][0])))
        assert [_load(frame).info["duration"] for frame in ImageSequence.Iterator(webp)] == [200, 200, 200]
        assert json.loads(webp.getexif()[0x0110].removeprefix("prompt:")) == graph
        content = client.server.view(outputs["3"]["images"][0])
        assert len(list(ImageSequence.Iterator(Image.open(BytesIO(content))))) == 3
        assert b"comfprompt\0" + json.dumps(graph).encode() in content

    def test_metadata_can_be_turned_off(self, tmp_path: Path) -> None:
        """With ComfyUI's own flag."""
        with engine(tmp_path, "--disable-metadata", "--cpu") as server, server.listener() as client:
            (file,) = client.run(picture(1))["outputs"]["3"]["images"]
            assert Image.open(BytesIO(server.view(file))).info == {}

    @pytest.mark.parametrize(
        ("query", "status"),
        [
            ("", 404),
            ("?filename=absent.png", 404),
            ("?filename=../x.png", 400),
            ("?filename=/etc/passwd", 400),
            ("?filename=x.png&type=nowhere", 400),
            ("?filename=passwd&subfolder=../../../etc", 403),
            ("?filename=passwd&subfolder=/etc", 403),
        ],
    )
    def test_view_gives_nothing_else_out(self, server: Server, query: str, status: int) -> None:
        """The statuses of ComfyUI."""
        assert server.request("/view" + query).status == status

    def test_upload_and_view(self, server: Server) -> None:
        """Another content under a taken name gets a number; the same again, or overwritten, does not."""
        assert _upload(server, "up.png", b"one") == "up.png"
        assert _upload(server, "up.png", b"two") == "up (1).png"
        assert _upload(server, "up.png", b"one") == "up.png"
        assert _upload(server, "up.png", b"two", overwrite="true") == "up.png"
        assert server.request("/view?filename=up.png&type=input").body == b"two"
        assert _upload(server, "a.png", b"x", subfolder="deep/er") == "a.png"
        assert server.request("/view?filename=a.png&subfolder=deep/er&type=input").body == b"x"

    @pytest.mark.parametrize(
        ("name", "subfolder"), [("../x.png", ""), ("x.png", "../out"), ("x.png", "/etc")]
    )
    def test_upload_stays_in_its_folder(self, server: Server, name: str, subfolder: str) -> None:
        """400, and nothing written."""
        assert _upload(server, name, b"x", subfolder=subfolder) == "400"


class TestLimits:
    def test_a_picture_that_is_too_large(self, client: Listener) -> None:
        """Refused before it is made; the next prompt runs."""
        entry = client.run({"1": empty(1, side=16_384), "3": save("1")})
        name, data = entry["status"]["messages"][-1]
        assert name == "execution_error"
        assert data["exception_type"] == "LimitExceeded"
        assert f"({Limits().frame_pixels} pixels)" in data["exception_message"]
        assert client.run(picture(41))["status"]["completed"]

    def test_more_than_a_save_may_encode(self, client: Listener) -> None:
        """A repeated batch is small in memory and large on disk."""
        repeat = node("RepeatImageBatch", image=["1", 0], amount=4096)
        entry = client.run({"1": empty(1, side=2048), "2": repeat, "3": save("2")})
        assert "are more than one node" in entry["status"]["messages"][-1][1]["exception_message"]

    def test_a_bomb_is_not_decoded(self, client: Listener) -> None:
        """A PNG of a few bytes that says it is huge."""
        assert client.server.folder is not None
        bomb = Image.new("1", (20_000, 20_000))
        bomb.save(client.server.folder / "input" / "bomb.png")
        entry = client.run({"1": node("LoadImage", image="bomb.png"), "3": save("1")})
        assert entry["status"]["messages"][-1][0] == "execution_error"

    def test_what_is_no_picture(self, client: Listener) -> None:
        """Nor is a format whose reader starts another program."""
        assert client.server.folder is not None
        for name, content in (
            ("not.png", b"hello"),
            ("ps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ):
            (client.server.folder / "input" / name).write_bytes(content)
            entry = client.run({"1": node("LoadImage", image=name), "3": save("1")})
            assert entry["status"]["messages"][-1][1]["exception_type"] == "UnidentifiedImageError"

    def test_a_deep_graph_runs(self, client: Listener) -> None:
        """As deep as graphs may be."""
        chain = {
            str(i): node("ImageFlip", image=[str(i - 1), 0], flip_method="x-axis: vertically")
            for i in range(1, 2000)
        }
        # to nobody: ComfyUI's progress messages list every node each time, here 4,000 times
        reply = client.post({"0": empty(side=1), **chain, "out": save("1999")}, client_id="nobody")
        client.until(queue_is(1))
        client.until(queue_is(0))
        prompt_id = reply.json["prompt_id"]
        assert client.server.request(f"/history/{prompt_id}").json[prompt_id]["status"]["completed"]

    def test_a_hidden_link_to_nowhere_fails_and_the_queue_goes_on(self, client: Listener) -> None:
        """ComfyUI's worker thread ends here, and its queue with it."""
        graph = picture(42)
        graph["3"]["inputs"]["undeclared"] = ["77", 0]
        data = client.run(graph)["status"]["messages"][-1][1]
        assert (data["node_id"], data["exception_type"]) == ("3", "NodeNotFoundError")
        assert client.run(picture(43))["status"]["completed"]

    @pytest.mark.parametrize("raw", [b"{", b"3", b"null", b"[" * 100_000])
    def test_bodies_that_are_none(self, server: Server, raw: bytes) -> None:
        """A bare 500, and the server goes on."""
        assert server.request("/prompt", raw=raw).status == 500
        assert server.request("/prompt", {}).json["error"]["type"] == "no_prompt"

    def test_another_sites_page_is_refused(self, server: Server) -> None:
        """A browser sends its page's origin along."""
        assert server.request("/prompt", {}, Origin="https://elsewhere.example").status == 403
        assert server.request("/prompt", {}, Origin=server.url).status == 400


class TestStart:
    def test_port_file_and_a_clean_end(self, tmp_path: Path) -> None:
        """The port is in the file once the server answers; SIGTERM ends it."""
        port_file = tmp_path / "port"
        with engine(tmp_path, "--port-file", str(port_file)) as server:
            assert server.url.endswith(f":{port_file.read_text().strip()}")
        with pytest.raises(Exception, match="refused"):
            server.request("/prompt")

    def test_it_starts_fast(self, tmp_path: Path) -> None:
        """Half a second on an idle machine; a generous bound on a busy one."""
        begun = time.monotonic()
        with engine(tmp_path) as server:
            assert server.request("/prompt").status == 200
        assert time.monotonic() - begun < 15


def _load(frame: Image.Image) -> Image.Image:
    frame.load()
    return frame


def _upload(server: Server, name: str, content: bytes, **fields: str) -> str:
    """The name that the server gave the file, or the status of its refusal."""
    parts = [f'name="{key}"\r\n\r\n{value}' for key, value in fields.items()]
    parts.append(f'name="image"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n{content.decode()}')
    body = "".join(f"--edge\r\nContent-Disposition: form-data; {part}\r\n" for part in parts) + "--edge--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    reply = server.request("/upload/image", raw=body.encode(), **headers)
    return str(reply.json["name"]) if reply.status == 200 else str(reply.status)
