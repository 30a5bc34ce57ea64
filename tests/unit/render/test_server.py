"""The engine's process: its command, its environment, its log, its end."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from handlers.render.catalog import MODEL_FOLDERS
from handlers.render.enginelog import EngineLog
from handlers.render.server import (
    Directories,
    Server,
    child_environment,
    engine_command,
    find_python,
    has_cuda,
    model_folders,
)
from processor.clock import SystemClock
from processor.errors import ConfigError, ErrorKind, TaskFailed
from tests.support.rendering import builtin_settings


def fake_comfyui(root: Path, code: str) -> Path:
    """A folder that starts like a ComfyUI and does something else."""
    folder = root / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text(code)
    (folder / "comfy" / "cli_args.py").write_text('parser.add_argument("--database-url")')
    return folder


def test_environment_holds_no_secret() -> None:
    """Names are allowed one by one; whatever else is there stays here."""
    given = {
        "PATH": "/bin",
        "HOME": "/h",
        "CUDA_VISIBLE_DEVICES": "0",
        "AWS_SECRET_ACCESS_KEY": "x",
        "B2_APPLICATION_KEY": "x",
        "HF_TOKEN": "x",
        "SLACK_BOT_TOKEN": "x",
        "MODAL_TOKEN_SECRET": "x",
        "DROPBATCH_KEY": "x",
    }
    kept = child_environment(given)
    assert {"PATH", "HOME", "CUDA_VISIBLE_DEVICES"} <= kept.keys()
    assert "x" not in kept.values()


def test_tensors_lie_in_huge_pages() -> None:
    """Unless somebody says otherwise; their own allocator's settings are kept, too."""
    assert child_environment({})["THP_MEM_ALLOC_ENABLE"] == "1"
    tunables = "glibc.malloc.hugetlb=1"
    chosen = {"THP_MEM_ALLOC_ENABLE": "0", "MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": tunables}
    assert chosen.items() <= child_environment(chosen).items()


def test_threads_without_work_leave_the_cores_alone() -> None:
    """Unless somebody says otherwise."""
    assert child_environment({})["OMP_WAIT_POLICY"] == "passive"
    chosen = {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    assert chosen.items() <= child_environment(chosen).items()


def test_command_of_a_comfyui(tmp_path: Path) -> None:
    """Private folders, no API nodes, our models, no database file."""
    settings = replace(
        builtin_settings(tmp_path),
        comfyui_dir=fake_comfyui(tmp_path, ""),
        cpu=True,
        extra_args=("--lowvram",),
    )
    directories = Directories(tmp_path / "run")
    directories.make()
    command, directory = engine_command(settings, directories, 8188)
    assert directory == settings.comfyui_dir
    assert command[1:6] == ["main.py", "--listen", "127.0.0.1", "--port", "8188"]
    assert {"--disable-api-nodes", "--cpu", "--lowvram", "sqlite:///:memory:"} <= set(command)
    paths = json.loads(Path(command[command.index("--extra-model-paths-config") + 1]).read_text())
    assert paths["dropbatch"]["base_path"] == str(settings.models_dir)


def test_custom_nodes_own_model_folders_are_told(tmp_path: Path) -> None:
    """As they lie here, and beside the checkout's: many packs register theirs only if nobody did.
    Never as code."""
    settings = replace(builtin_settings(tmp_path), comfyui_dir=fake_comfyui(tmp_path, ""))
    assert {*model_folders(settings)} == {*MODEL_FOLDERS}, "no models yet"
    for name in ("loras", "ipadapter", "ultralytics", "custom_nodes", ".dropbatch"):
        (settings.models_dir / name).mkdir(parents=True)
    found = model_folders(settings)
    own = tmp_path / "ComfyUI" / "models"
    assert {name: path for name, path in found.items() if name not in MODEL_FOLDERS} == {
        "ipadapter": f"{own}/ipadapter\nipadapter",
        "ultralytics": f"{own}/ultralytics\nultralytics",
        "ultralytics_bbox": f"{own}/ultralytics/bbox\nultralytics/bbox",
        "ultralytics_segm": f"{own}/ultralytics/segm\nultralytics/segm",
    }
    assert found["loras"] == "loras"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["nvidia0", "nvidiactl"], True),
        (["nvidia5", "nvidiactl", "nvidia-uvm"], True),
        (["nvidia12"], True),
        (["dxg"], True),
        (["nvidiactl", "nvidia-uvm", "nvidia-caps", "null"], False),
    ],
)
def test_any_of_a_hosts_gpus_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], expected: bool
) -> None:
    """A container of a host with eight may have the sixth alone; the driver's own devices are none."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in names:
        (tmp_path / name).touch()
    assert has_cuda(tmp_path) is expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not has_cuda(tmp_path)


def test_python_of_a_comfyui(tmp_path: Path) -> None:
    """The one named, else its own environment's, else ours; a venv's link is not resolved."""
    folder = fake_comfyui(tmp_path, "")
    settings = replace(builtin_settings(tmp_path), comfyui_dir=folder)
    assert find_python(settings) == Path(sys.executable)
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "python").symlink_to(sys.executable)
    assert find_python(settings) == folder / "venv" / "bin" / "python"
    assert find_python(replace(settings, comfyui_python=Path("/x/python"))) == Path("/x/python")


def test_folder_without_comfyui(tmp_path: Path) -> None:
    server = Server(replace(builtin_settings(tmp_path), comfyui_dir=tmp_path), SystemClock())
    with pytest.raises(ConfigError, match=r"no main\.py"):
        server.start()
    server.remove()


def test_engine_that_ends_at_once(tmp_path: Path) -> None:
    """Its last lines are in the error, its secrets are not."""
    code = "import sys; print('token=hf_abcdefghijklmnopqrstuvwxyz'); sys.exit('no module named torch')"
    settings = replace(builtin_settings(tmp_path), comfyui_dir=fake_comfyui(tmp_path, code))
    server = Server(settings, SystemClock())
    with pytest.raises(TaskFailed) as caught:
        server.start()
    assert caught.value.kind is ErrorKind.CRASHED
    assert "no module named torch" in " ".join(caught.value.details)
    assert "hf_abc" not in str(caught.value.details)
    server.remove()


def test_engine_that_never_answers(tmp_path: Path) -> None:
    """Given up after the start time-out, and its children die with it."""
    child = tmp_path / "child.pid"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(process.pid))\n"
        "time.sleep(600)\n"
    )
    settings = replace(
        builtin_settings(tmp_path),
        comfyui_dir=fake_comfyui(tmp_path, code),
        start_timeout_s=2.0,
        stop_timeout_s=1.0,
    )
    server = Server(settings, SystemClock())
    with pytest.raises(TaskFailed, match="does not answer"):
        server.start()
    server.remove()
    assert not server.directories.root.exists()
    assert not is_running(int(child.read_text()))


def is_running(pid: int) -> bool:
    """Whether a process is alive, not just a zombie that nobody has waited for."""
    command = [shutil.which("ps") or "ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return state != "" and not state.startswith("Z")


def test_engine_of_a_killed_owner_is_ended(tmp_path: Path) -> None:
    """`kill -9` of a runner ends its engine; the next start cleans up, and touches no living one."""
    code = (
        "import sys; from pathlib import Path\n"
        "from handlers.render.server import Server; from processor.clock import SystemClock\n"
        "from tests.support.rendering import builtin_settings\n"
        "server = Server(builtin_settings(Path(sys.argv[1])), SystemClock()); server.start()\n"
        "print(server.pid, flush=True); sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[3],
    )
    with owner:
        assert owner.stdout is not None
        pid = next(int(line) for line in owner.stdout if line.strip().isdigit())
        living = Server(builtin_settings(tmp_path), SystemClock())
        engine_ended = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
        owner.kill()
        owner.wait()
    if engine_ended is not None:
        assert select.select([engine_ended], [], [], 10)[0]
        os.close(engine_ended)
    next_one = Server(builtin_settings(tmp_path), SystemClock())
    assert not is_running(pid)
    assert living.directories.root.is_dir()
    living.remove()
    next_one.remove()
    assert list((tmp_path / "work").glob("engine-*")) == []


def test_log_windows_and_progress_bars(tmp_path: Path) -> None:
    """Lines since a mark; of a redrawn line its last state; the file without secrets."""
    read, write = os.pipe()
    log = EngineLog(tmp_path / "engine.log")
    log.follow(os.fdopen(read, "rb"))
    with os.fdopen(write, "wb") as pipe:
        pipe.write(b"start\n 10%|#\r 50%|##\r100%|###\ntoken=abcdef123456\n\xff\xfe\n" + b"x" * 5000 + b"\n")
    log.join(5)
    lines = log.since(0).split("\n")
    assert lines[:3] == ["start", "100%|###", "token=[redacted]"]
    assert len(lines[4]) == 2000
    assert log.since(log.mark()) == ""
    assert "abcdef123456" not in (tmp_path / "engine.log").read_text(encoding="utf-8", errors="replace")
