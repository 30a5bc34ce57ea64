"""ComfyUI's HTTP routes, as far as we use them (server.py of ComfyUI 0.3.64)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from handlers.fetching import credentials_of
from handlers.render.graph import Graph, Schema
from processor.errors import ConfigError, ErrorKind, TaskFailed

_CONNECT_S: Final = 5.0
_READ_S: Final = 60.0
_CHUNK_BYTES: Final = 256 * 1024
_JSON = {"Content-Type": "application/json"}


class EngineUnreachable(TaskFailed):
    """The engine's port does not answer, or not in time. Whether it acted is unknown."""

    def __init__(self, what: str) -> None:
        super().__init__(ErrorKind.UNAVAILABLE, what)


class Api:
    """One engine over a pool of kept-alive connections. Thread-safe.

    Raises `EngineUnreachable` from every call, and TaskFailed (UNAVAILABLE) for a 5xx.

    Args:
        url: `http://host:port`, maybe with a path and with `user:password@`.
    """

    def __init__(self, url: str, *, connections: int = 8) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                "no http(s) URL", where="COMFYUI_URL", mend="Write it like http://127.0.0.1:8188"
            )
        self._base = parts.path.rstrip("/")
        self._headers = credentials_of(parts)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self.url = f"{parts.scheme}://{host}:{port}{self._base}"
        """Without credentials."""
        pool_type = urllib3.HTTPSConnectionPool if parts.scheme == "https" else urllib3.HTTPConnectionPool
        timeout = urllib3.Timeout(connect=_CONNECT_S, read=_READ_S)
        self._pool = pool_type(parts.hostname, port, maxsize=connections, timeout=timeout, retries=False)

    def socket_url(self, client_id: str) -> str:
        return f"ws{self.url.removeprefix('http')}/ws?clientId={quote(client_id)}"

    @property
    def headers(self) -> dict[str, str]:
        """Credentials, for the socket."""
        return dict(self._headers)

    def submit(self, graph: Graph, *, prompt_id: str, client_id: str) -> tuple[int, dict[str, Any]]:
        """`POST /prompt`: the status (200 or 400) and the answer."""
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id}
        response = self._request("POST", "/prompt", json.dumps(body).encode(), _JSON)
        if response.status in (200, 400):
            return response.status, _object(response)
        raise _unexpected(response, "POST /prompt")

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry of a prompt that ended; None while it has not (or is unknown)."""
        answer = self._get(f"/history/{quote(prompt_id, safe='')}")
        entry = answer.get(prompt_id)
        return entry if isinstance(entry, dict) else None

    def queue(self) -> tuple[list[str], list[str]]:
        """The prompt ids that run and that wait."""
        answer = self._get("/queue")
        return _ids(answer.get("queue_running")), _ids(answer.get("queue_pending"))

    def remove(self, prompt_id: str) -> None:
        """Take a waiting prompt out of the queue; nothing happens if it runs or is unknown."""
        self._post("/queue", {"delete": [prompt_id]})

    def interrupt(self, prompt_id: str) -> None:
        """Interrupt this prompt if it runs. Versions before 0.3.57 interrupt whatever runs:
        ask `queue` first."""
        self._post("/interrupt", {"prompt_id": prompt_id})

    def free(self) -> None:
        """Unload models and forget cached results, when the queue next comes round."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def system_stats(self, *, timeout_s: float = 5.0) -> dict[str, Any]:
        response = self._request("GET", "/system_stats", timeout_s=timeout_s)
        if response.status in (401, 403):
            raise _unexpected(response, "GET /system_stats")
        if response.status != 200:
            # A tunnel or a proxy whose ComfyUI is off says so in many ways, 404 among them.
            raise TaskFailed(
                ErrorKind.UNAVAILABLE, f"the engine answers {response.status} to GET /system_stats"
            )
        return _object(response)

    def object_info(self) -> Schema:
        schema: Schema = self._get("/object_info")
        return schema

    def view(self, filename: str, subfolder: str, kind: str, target: Path) -> None:
        """Download an output to a new file, streaming.

        Raises:
            FileNotFoundError: the engine has no such file.
        """
        query = urlencode({"filename": filename, "subfolder": subfolder, "type": kind})
        try:
            response = self._pool.urlopen(
                "GET",
                f"{self._base}/view?{query}",
                headers=self._headers,
                preload_content=False,
                redirect=False,
            )
            try:
                if response.status in (400, 403, 404):
                    raise FileNotFoundError(filename)
                if response.status != 200:
                    raise _unexpected(response, "GET /view")
                with target.open("xb") as file:
                    for piece in response.stream(_CHUNK_BYTES):
                        file.write(piece)
            finally:
                response.release_conn()
        except HTTPError as error:
            target.unlink(missing_ok=True)
            raise EngineUnreachable(
                f"the download from {self.url} broke off ({type(error).__name__})"
            ) from None

    def upload(self, file: Path, *, subfolder: str) -> str:
        """`POST /upload/image` into the input directory, streaming; the name it got there."""
        boundary = secrets.token_hex(16)
        head, tail = _multipart(
            boundary, file.name, {"type": "input", "subfolder": subfolder, "overwrite": "true"}
        )
        size_bytes = len(head) + file.stat().st_size + len(tail)
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(size_bytes),
        }
        response = self._request("POST", "/upload/image", _stream(head, file, tail), headers)
        if response.status == 413:
            raise TaskFailed(
                ErrorKind.BAD_INPUT,
                f"{file.name} is larger than the attached ComfyUI takes",
                mend="Start it with --max-upload-size",
            )
        if response.status != 200:
            raise _unexpected(response, "POST /upload/image")
        answer = _object(response)
        name = str(answer.get("name") or file.name)
        return f"{answer['subfolder']}/{name}" if answer.get("subfolder") else name

    def has_input(self, name: str) -> bool:
        """`HEAD /view`: whether the input directory holds what `upload` gave this name."""
        subfolder, _, filename = name.rpartition("/")
        query = urlencode({"filename": filename, "subfolder": subfolder, "type": "input"})
        response = self._request("HEAD", f"/view?{query}")
        if response.status >= 500:
            raise _unexpected(response, "HEAD /view")
        return response.status == 200

    def close(self) -> None:
        self._pool.close()

    def _get(self, path: str) -> dict[str, Any]:
        response = self._request("GET", path)
        if response.status != 200:
            raise _unexpected(response, f"GET {path.split('?', maxsplit=1)[0]}")
        return _object(response)

    def _post(self, path: str, body: dict[str, Any]) -> None:
        response = self._request("POST", path, json.dumps(body).encode(), _JSON)
        if response.status >= 300:
            raise _unexpected(response, f"POST {path}")

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(timeout_s) if timeout_s else self._pool.timeout
        try:
            return self._pool.urlopen(
                method,
                self._base + path,
                body=body,
                headers={**self._headers, **(headers or {})},
                timeout=timeout,
                redirect=False,
            )
        except (HTTPError, OSError) as error:
            raise EngineUnreachable(f"{self.url} does not answer ({type(error).__name__})") from None


def _object(response: urllib3.BaseHTTPResponse) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise TaskFailed(ErrorKind.UNAVAILABLE, "the engine's answer is no JSON object")
    return answer


def _unexpected(response: urllib3.BaseHTTPResponse, what: str) -> TaskFailed:
    if response.status in (401, 403):
        return TaskFailed(
            ErrorKind.REFUSED,
            f"the engine answers {response.status} to {what}",
            mend="Check COMFYUI_URL, and the user and password in it",
        )
    kind = ErrorKind.UNAVAILABLE if response.status >= 500 or response.status == 429 else ErrorKind.INVALID
    return TaskFailed(kind, f"the engine answers {response.status} to {what}")


def _ids(entries: Any) -> list[str]:
    return [str(entry[1]) for entry in entries or [] if isinstance(entry, list) and len(entry) > 1]


def _multipart(boundary: str, name: str, fields: dict[str, str]) -> tuple[bytes, bytes]:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return "".join(parts).encode(), f"\r\n--{boundary}--\r\n".encode()


def _stream(head: bytes, file: Path, tail: bytes) -> Iterator[bytes]:
    yield head
    with file.open("rb") as source:
        while piece := source.read(_CHUNK_BYTES):
            yield piece
    yield tail
