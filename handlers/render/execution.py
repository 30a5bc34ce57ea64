"""One execution of one task on a running engine: inputs in, prompt through, files out."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from handlers.render.client import Unyielding, Watching
from handlers.render.engine import Engine
from handlers.render.graph import Graph, Set, applied
from handlers.render.inputs import download
from handlers.render.outputs import (
    ForgottenOutput,
    Reported,
    chosen_files,
    collect,
    folders_of,
    inside,
    move,
    new_tag,
    prefix_sets,
    reported_data,
    reported_files,
)
from handlers.render.settings import RenderSettings
from handlers.render.verdict import Verdict
from processor.errors import ErrorKind, TaskFailed
from processor.handler import TaskContext, TaskOutput, Work
from processor.records import InputFile


class Execution:
    """Runs one prompt and brings back what it made. Used once."""

    def __init__(self, engine: Engine, work: Work, context: TaskContext, settings: RenderSettings) -> None:
        self._engine = engine
        self._work = work
        self._context = context
        self._settings = settings
        self._tag = ""
        self._names: dict[str, str] = {}
        self._output_dir = engine.server.directories.output if engine.server is not None else None
        self._log = engine.server.log if engine.server is not None else None
        self._begin()

    def run(self, graph: Graph) -> TaskOutput:
        """Run the task's final graph.

        Raises:
            TaskFailed: with the engine's log meanwhile in `log`.
        """
        try:
            with self._engine.inputs.placed(self._files(graph), self._download) as names:
                self._names = names
                placed = applied(graph, self._input_sets(graph, names))
                output = None
                while output is None:  # a second turn is alone with the nodes that spoilt the first
                    output = self._turn(placed)
                return output
        except TaskFailed as error:
            self._judge_engine(error)
            error.what = self._in_users_words(error.what)
            error.details = [self._in_users_words(line) for line in error.details]
            error.log = self._log_text()
            raise

    def _turn(self, graph: Graph) -> TaskOutput | None:
        """Run the prompt once; None if another's may have written to its files meanwhile."""
        self._tag = new_tag()
        prefixes = prefix_sets(graph, self._tag)
        placed = applied(graph, prefixes)
        stop, timeout_s = self._context.stop, self._work.timeout_s
        try:
            if self._output_dir is not None:
                for folder in folders_of(prefixes):
                    (self._output_dir / folder).mkdir(parents=True, exist_ok=True)
            with self._engine.turns.taken(placed, stop) as turn:
                watching = Watching(stop, self._context.progress, self._begin, timeout_s)
                verdict = self._engine.client.run(
                    placed, watching, allow_invalid_outputs=self._allows_invalid()
                )
                self._bound_previews(verdict)
                chosen = chosen_files(verdict.outputs, placed, tag=self._tag, cached=verdict.cached)
                if not self._engine.turns.settle(turn, chosen, stop):
                    return None
                return self._output(placed, verdict)
        finally:
            if self._output_dir is not None:
                shutil.rmtree(self._output_dir / self._tag, ignore_errors=True)

    def _bound_previews(self, verdict: Verdict) -> None:
        """Nobody asks for them, and ComfyUI empties its `temp` only when it starts."""
        if self._engine.server is not None:
            temp = self._engine.server.directories.temp / "temp"  # in the folder that it is told of
            for file in reported_files(verdict.outputs, temporary=True):
                path = inside(temp, file.subfolder, file.filename)
                if path is not None and path.is_file():
                    self._engine.previews.keep(path)

    def _begin(self) -> None:
        # What the engine logged before belongs to the prompts that ran while ours waited.
        self._mark = self._log.mark() if self._log is not None else 0
        self._began = time.monotonic()

    def _log_text(self) -> str:
        return self._in_users_words(self._log.since(self._mark)) if self._log is not None else ""

    def _in_users_words(self, text: str) -> str:
        """A text of the engine with the names that the user gave, not those we placed files under."""
        if self._engine.server is not None:
            folders = self._engine.server.directories
            text = text.replace(f"{folders.input}/", "").replace(f"{folders.output}/", "")
        for name, placed in self._names.items():
            text = text.replace(placed, name)
        return text.replace(f"{self._tag}/", "")

    def _output(self, graph: Graph, verdict: Verdict) -> TaskOutput:
        seconds = verdict.seconds if verdict.seconds is not None else time.monotonic() - self._began
        files = collect(
            verdict.outputs,
            graph,
            tag=self._tag,
            workdir=self._context.workdir,
            take=self._take_over_http if self._output_dir is None else self._take_from_disk,
            left=None if self._output_dir is None else self._output_dir / self._tag,
            cached=verdict.cached,
            owners=verdict.owners,
        )
        return TaskOutput(
            files=files,
            seconds=seconds,
            data=reported_data(verdict.outputs, graph, verdict.owners),
            log=self._log_text(),
            engine=self._engine.facts,
        )

    def _judge_engine(self, error: TaskFailed) -> None:
        """See to it that nothing else runs on an engine that this failure shows to be broken, or
        is answered from a cache that it shows to be stale."""
        if isinstance(error, ForgottenOutput):
            # The task is tried again; if the engine can't be told, then that fails the same way.
            with contextlib.suppress(TaskFailed):
                self._engine.api.free()
        server = self._engine.server
        if server is None:
            return
        if error.kind is ErrorKind.CRASHED:
            self._engine.broken = True
        elif isinstance(error, Unyielding) and error.kind is ErrorKind.TIMED_OUT:
            # A prompt past its time that does not yield blocks all behind it: only a restart
            # helps. A cancelled one is left to end by itself, others may wait behind it.
            self._engine.broken = True
            server.stop()

    def _files(self, graph: Graph) -> list[InputFile]:
        """The planned input files that this graph names, each once."""
        planned = {file.name: file for file in self._work.inputs}
        values = (graph[node]["inputs"].get(name) for node, name in self._work.shared.get("files", []))
        named = dict.fromkeys(value for value in values if isinstance(value, str))
        return [planned[value] for value in named if value in planned]

    def _input_sets(self, graph: Graph, names: dict[str, str]) -> list[Set]:
        sets: list[Set] = []
        for node, name in self._work.shared.get("files", []):
            value = graph[node]["inputs"].get(name)
            if isinstance(value, str) and value in names:
                sets.append(Set(node, name, names[value]))
        return sets

    def _download(self, file: InputFile, target: Path) -> None:
        download(file, target, self._context.stores.main, self._settings)

    def _allows_invalid(self) -> bool:
        planned = self._work.shared.get("allow_invalid_outputs", False)
        return bool(self._work.options.get("allow_invalid_outputs", planned))

    def _take_from_disk(self, file: Reported, target: Path) -> bool:
        if self._output_dir is None:
            return False
        path = inside(self._output_dir, file.subfolder, file.filename)
        if path is None or not path.is_file():
            return False
        if not path.is_relative_to((self._output_dir / self._tag).resolve()):
            return self._engine.outputs.copy(path, target)
        move(path, target)
        return True

    def _take_over_http(self, file: Reported, target: Path) -> bool:
        try:
            self._engine.api.view(file.filename, file.subfolder, file.type, target)
        except FileNotFoundError:
            return False
        return True
