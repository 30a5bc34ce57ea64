"""Start-up: what `--help` imports, and how the command line answers what is no command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from processor.cli import COMMANDS, main
from processor.config import Settings
from tests.unit.cli.conftest import Dropbatch

HEAVY = {"boto3", "botocore", "modal", "structlog", "pydantic", "PIL", "rich", "typer", "aiohttp", "jinja2"}
NAMES = [name for entries in COMMANDS.values() for name in entries]


def test_help_imports_nothing_heavy() -> None:
    """The promise of a fast start rests on what is not imported."""
    code = (
        "import sys\nfrom processor.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "drop" in done.stdout
    assert HEAVY.isdisjoint(done.stderr.split())


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_help_with_an_example(dropbatch: Dropbatch, name: str) -> None:
    """Nobody should have to guess how a command is called."""
    result = dropbatch(name, "--help")
    assert result.code == 0
    assert f"dropbatch {name}" in result.out.partition("Example")[2]


def test_an_unknown_command_names_the_nearest(dropbatch: Dropbatch) -> None:
    """A slip of the keys is not a dead end."""
    result = dropbatch("stauts")
    assert (result.code, result.out) == (2, "")
    assert "Did you mean 'status'?" in result.err


def test_version_and_no_arguments(dropbatch: Dropbatch) -> None:
    """Both answer and end well."""
    assert dropbatch("--version").out.startswith("dropbatch ")
    assert "Usage: dropbatch COMMAND" in dropbatch().out
    assert "Usage: dropbatch drop" in dropbatch("help", "drop").out


def test_a_defect_is_one_line_unless_debugging(
    dropbatch: Dropbatch, monkeypatch: pytest.MonkeyPatch, bucket: object
) -> None:
    """A person sees one line; whoever mends it sees the traceback."""
    monkeypatch.setenv("DROPBATCH_HANDLERS", '{"render": "tests.unit.cli.echo:BrokenHandler"}')
    result = dropbatch("run", "--once")
    assert result.code == 70
    assert result.err == "error: RuntimeError: boom. A defect; DROPBATCH_DEBUG=1 shows more\n"
    monkeypatch.setenv("DROPBATCH_DEBUG", "1")
    with pytest.raises(RuntimeError, match="boom"):
        main(["run", "--once"])


def test_a_handler_that_is_not_there_is_a_matter_of_settings(
    dropbatch: Dropbatch, monkeypatch: pytest.MonkeyPatch, bucket: object
) -> None:
    """With its name, on one line."""
    monkeypatch.setenv("DROPBATCH_HANDLERS", '{"render": "tests.unit.cli.echo:Nothing"}')
    result = dropbatch("run", "--once")
    assert result.code == 3
    assert result.err.count("\n") == 1
    assert "tests.unit.cli.echo:Nothing" in result.err


def test_without_a_bucket_the_mend_is_said(dropbatch: Dropbatch) -> None:
    """The first thing that a new user meets."""
    result = dropbatch("status")
    assert result.code == 3
    assert "no bucket is configured" in result.err
    assert "dropbatch init" in result.err


def test_an_unreachable_store_has_its_own_exit_code(
    dropbatch: Dropbatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts can tell a bad network from a bad job; and no secret is in what is said."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-mine")
    result = dropbatch("status", "--bucket", "s3://bucket", "--endpoint-url", "http://127.0.0.1:9")
    assert result.code == 4
    assert "nothing answers" in result.err
    assert "a-secret-of-mine" not in result.err


def test_logs_of_any_command_go_to_stderr(bucket: Path) -> None:
    """What is piped stays one JSON document. In a process of its own: another command may set logging."""
    done = _process("costs", "--since", "2000-01-01", "--json", stdout=subprocess.PIPE)
    assert json.loads(done.stdout)["total"]["jobs"] == 0
    assert "history.cut_short" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["schema"]])
def test_a_reader_that_has_gone_is_no_failure(arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as gone:
        done = _process(*arguments, stdout=gone)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_that_knows_no_ellipsis_will_do() -> None:
    done = _process("check", "--help", stdout=subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_no_defect() -> None:
    with Path("/dev/full").open("wb") as full:
        done = _process("workflows", stdout=full)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "efect" not in done.stderr


def test_what_an_extra_brings_is_named(dropbatch: Dropbatch, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking() -> None:
        raise ModuleNotFoundError("No module named 'modal.x'", name="modal.x")

    monkeypatch.setattr("processor.cli.workflows.command", lacking)
    found = dropbatch("workflows")
    assert (found.code, "pip install 'dropbatch[modal]'" in found.err) == (3, True)


def test_the_demo_tells_nobody_and_says_where_it_is(
    dropbatch: Dropbatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settings file beside it may name buckets and people; a folder may have a space in its name."""
    Path("dropbatch.toml").write_text(f'webhook_url = "https://hooks.example/"\nbucket = "{tmp_path}"\n')
    ran: list[Settings] = []
    monkeypatch.setattr("processor.cli.demo._run", ran.append)
    folder = tmp_path / "my demo"
    assert dropbatch("demo", folder).code == 1  # nothing was rendered
    assert (ran[0].webhook_url, ran[0].store_url) == (None, folder.as_uri())


def test_the_demo_asks_for_its_engine_first(
    dropbatch: Dropbatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs wait for a ComfyUI that is off; a newcomer would wait with them."""
    monkeypatch.setenv("COMFYUI_URL", "http://127.0.0.1:9")
    found = dropbatch("demo", tmp_path / "demo")
    assert (found.code, "COMFYUI_URL" in found.err) == (4, True)


def _process(
    *arguments: str, stdout: int | IO[bytes], **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "processor.cli", *arguments],
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
