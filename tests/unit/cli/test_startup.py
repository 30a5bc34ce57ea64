"""Start-up: what `--help` imports, and how the command line answers what is no command."""

from __future__ import annotations

import subprocess
import sys

import pytest

from processor.cli import COMMANDS, main
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
