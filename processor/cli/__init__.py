"""The command line: `dropbatch COMMAND …`.

Start-up is a promise (`dropbatch --help` takes at most seven times bare Python), so this module
imports nothing but the standard library: the table below names each command's module,
which is imported, and Typer with it, only when that command is called.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

if TYPE_CHECKING:
    import typer


class Entry(NamedTuple):
    """A command: its module, which has a function `command`, and one line of help.

    The module is one of this package; with a dot it is a whole path, of a room above this one.
    """

    module: str
    help: str


COMMANDS: Final[dict[str, dict[str, Entry]]] = {
    "Work": {
        "drop": Entry("drop", "Put jobs or dataset folders in the inbox."),
        "run": Entry("run", "Process the bucket on this machine."),
        "demo": Entry("demo", "Render example drops on this machine. Needs nothing."),
        "check": Entry("check", "Say what a drop would do. Needs no GPU and no bucket."),
        "train": Entry("handlers.train.command", "Train on an archived dataset, with other settings."),
        "datasets": Entry("handlers.ingest.command", "The archived datasets; take in one of the bucket."),
        "workflows": Entry("workflows", "The workflows that a job may name, and what each takes."),
        "new": Entry("new", "Write a job file for a workflow."),
    },
    "Jobs": {
        "status": Entry("status", "What waits, runs and has finished; or one job."),
        "costs": Entry("costs", "What finished jobs have cost: by day, job, GPU or workflow."),
        "logs": Entry("logs", "A job's engine log and errors."),
        "fetch": Entry("fetch", "Download a job's results."),
        "open": Entry("open", "Look at results in the browser, whatever the bucket."),
        "retry": Entry("retry", "Run a job's failed tasks again, as a new job."),
        "cancel": Entry("cancel", "Stop a job that waits or runs."),
        "pause": Entry("pause", "Begin no further jobs in this bucket."),
        "resume": Entry("resume", "Go on after a pause."),
    },
    "Setup": {
        "init": Entry("init", "Connect a bucket and write dropbatch.toml."),
        "doctor": Entry("doctor", "Check the configuration, the bucket and the engine."),
        "schema": Entry("schema", "Print the JSON Schema of jobs, or the page of settings."),
    },
    "Modal": {
        "deploy": Entry("infra.commands.deploy", "Put it all on Modal; show the plan first."),
        "stop": Entry("infra.commands.stop", "Take it off Modal."),
        "secrets": Entry("infra.commands.secrets", "Check or make the secrets on Modal."),
        "models": Entry("infra.commands.models", "The models on Modal's Volume: sync, ls, push, rm."),
        "app": Entry("infra.commands.app", "Open ComfyUI on a GPU in the browser."),
        "webhook": Entry("infra.commands.webhook", "The event rule for Backblaze, and a test of it."),
    },
}

_NO_SUCH_COMMAND: Final = 2


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point. Ends the process with one of `processor.cli.exits.Exit`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a Latin-1 terminal has no tick, and needs none
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        if arguments[1:] and arguments[0] == "help":
            main([arguments[1], "--help"])
        try:
            print(_help(), flush=True)
        except BrokenPipeError:
            reader_gone()
        sys.exit(0)
    name = arguments[0]
    if name in ("--version", "-V"):
        print(f"dropbatch {_version()}")
        sys.exit(0)
    entries = {key: entry for group in COMMANDS.values() for key, entry in group.items()}
    if name not in entries:
        sys.exit(_unknown(name, list(entries)))
    _app(name, entries[name])(arguments[1:], prog_name=f"dropbatch {name}")


def _app(name: str, entry: Entry) -> typer.Typer:
    """A Typer application of one command."""
    import importlib

    import typer

    from processor.cli.guard import guarded

    path = entry.module if "." in entry.module else f"processor.cli.{entry.module}"
    module = importlib.import_module(path)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name)(guarded(module.command))
    return app


def reader_gone() -> NoReturn:
    """End well: who read stdout (`| head`) has enough; nothing more may be written, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _help() -> str:
    lines = [
        "Usage: dropbatch COMMAND [OPTIONS]",
        "",
        "  Drop a ComfyUI job or a dataset folder in a bucket; get pictures, LoRAs and a manifest back.",
    ]
    for title, entries in COMMANDS.items():
        lines += ["", f"{title}:", *(f"  {name:<10}{entry.help}" for name, entry in entries.items())]
    return "\n".join(
        [
            *lines,
            "",
            "Options:",
            "  --help   Show this, or with a command all about it.",
            "  --version",
            "",
            "Example:",
            "  dropbatch drop portrait.json -n 20 --bucket b2://renders",
            "  dropbatch run --once --bucket b2://renders",
            "",
            "Exit codes:",
            "  0 ok, 1 a job failed or is invalid, 2 usage, 3 settings, 4 store, 5 not found",
        ]
    )


def _version() -> str:
    from importlib.metadata import version

    return version("dropbatch")


def _unknown(name: str, known: list[str]) -> int:
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "`dropbatch --help` lists them all"
    print(f"error: there is no command {name!r}. {hint}", file=sys.stderr)
    return _NO_SUCH_COMMAND
