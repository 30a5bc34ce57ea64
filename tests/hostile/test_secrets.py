"""Secrets planted in the environment: in no object, log, page, report or child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from processor.redact import redact
from processor.store.directory import DirectoryStore
from tests.acceptance.drops import graph

PLANTED = {
    "DROPBATCH_KEY_ID": "planted-b2-key-id-000",
    "DROPBATCH_KEY": "planted-b2-secret-111",
    "B2_APPLICATION_KEY": "planted-b2-application-222",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret-333",
    "MODAL_TOKEN_SECRET": "planted-modal-secret-444",
    "HF_TOKEN": "planted-hugging-face-555",
    "SLACK_BOT_TOKEN": "planted-slack-token-666",
    "OPENAI_API_KEY": "planted-openai-key-777",
    "DATABASE_PASSWORD": "planted-password-888",
}
# An engine that tells all it knows, on its output and in what it answers.
_TELLTALE = """
import json, os, sys
from handlers.engine.__main__ import main
print("ENVIRONMENT " + json.dumps(dict(os.environ)), flush=True)
print("ECHO planted-b2-secret-111 planted-hugging-face-555", flush=True)
sys.exit(main())
"""


@pytest.fixture(name="comfyui")
def _comfyui(tmp_path: Path) -> Path:
    """A ComfyUI folder whose main.py is a telltale."""
    folder = tmp_path / "ComfyUI"
    folder.mkdir()
    (folder / "main.py").write_text(f"import sys; sys.path.insert(0, {str(Path.cwd())!r})\n{_TELLTALE}")
    return folder


def _drops(store: DirectoryStore) -> None:
    secret = PLANTED["DROPBATCH_KEY"]
    jobs: dict[str, Any] = {
        "good": {"workflow": graph()},
        "says": {"name": secret, "workflow": graph(), "overrides": {"1.color": 1}},
        "wrong": {"workflow": graph(), "overrides": {secret: 1}},
        "named": {"workflow": secret},
        "url": {
            "workflow": graph(),
            "inputs": {"a.png": f"http://user:{secret}@127.0.0.1/{secret}?k={secret}"},
        },
    }
    for name, job in jobs.items():
        store.put(f"inbox/jobs/{name}.json", json.dumps(job).encode())


def test_planted_secrets_are_nowhere(tmp_path: Path, comfyui: Path) -> None:
    """Run jobs that repeat a secret on an engine that prints its environment; then look everywhere.

    What users themselves wrote stays as they wrote it: their drop, and the plan made from it.
    """
    store = DirectoryStore(tmp_path / "bucket", create=True)
    _drops(store)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "DROPBATCH_WORK_DIR": str(tmp_path / "work"),
        "COMFYUI_DIR": str(comfyui),
        "COMFYUI_PYTHON": sys.executable,
        **PLANTED,
    }
    command = [sys.executable, "-m", "processor.cli", "run", "--once", "--json", "--bucket", str(store.root)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert json.loads(ran.stdout)["outcomes"].get("done", 0) >= 1, ran.stderr
    said = ran.stdout + ran.stderr
    for path in (tmp_path / "work").rglob("*"):
        if path.is_file():
            said += path.read_bytes().decode("utf-8", "replace")
    written = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    telling = [
        data for path, data in written.items() if path.name in ("engine.log", "error.json", "index.html")
    ]
    assert any(b"ENVIRONMENT" in data for data in telling) or "ENVIRONMENT" in said
    for secret in PLANTED.values():
        assert secret not in said
        assert not any(secret.encode() in data for data in telling)
    others = {name: value for name, value in PLANTED.items() if name != "DROPBATCH_KEY"}
    for secret in others.values():
        assert not any(secret.encode() in data for data in written.values())


def test_an_error_never_says_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    from processor import redact as module
    from processor.report import error_report

    monkeypatch.setenv("SOME_SECRET", "planted-value-999")
    module.forget()
    try:
        report = error_report(
            RuntimeError("boom planted-value-999 at https://user:planted@host/?X-Amz-Signature=abcdef")
        )
        assert "planted" not in report.model_dump_json()
        assert redact("planted-value-999") == "[redacted]"
    finally:
        monkeypatch.undo()
        module.forget()
