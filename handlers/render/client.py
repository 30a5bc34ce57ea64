"""Running prompts on a ComfyUI server (or ours, which speaks the same protocol).

Several threads may call `run` at once: their prompts queue up in the engine, so that it
never waits for us. One socket and one connection pool serve them all.
"""

from __future__ import annotations

import contextlib
import queue
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from handlers.render.api import Api, EngineUnreachable
from handlers.render.graph import Graph, title_of
from handlers.render.listener import BACK, LOST, Listener, Message
from handlers.render.verdict import Verdict, partly_invalid, read_history, rejection_of
from processor.errors import ErrorKind, TaskFailed
from processor.handler import Progress, Stop

_LOOK_S: Final = 0.2
"""How often a stop is looked at while the engine says nothing."""
_SILENCE_S: Final = 30.0
"""After so long without a message the engine is asked: a half-open socket says nothing."""
_DEAF_S: Final = 1.0
"""The same where no message can come: the socket that the prompt was sent with is no more."""
_INTERRUPT_AGAIN_S: Final = 0.5
_REACHABLE_S: Final = 0.25


@dataclass(frozen=True)
class Watching:
    """What a caller wants to know and decide while its prompt runs.

    The callbacks are called in the thread that all prompts' messages come through, so they
    must return quickly.
    """

    stop: Stop
    progress: Callable[[Progress], None] = lambda _progress: None
    started: Callable[[], None] = lambda: None
    """Called when the engine begins to execute the prompt."""
    timeout_s: float | None = None
    """Counted from that moment, not from queueing."""


class _Run:
    """One prompt on its way.

    Its messages come in the listener's thread, which keeps what they say; the thread that
    runs the prompt is woken only when it must act.
    """

    def __init__(self, graph: Graph, watching: Watching) -> None:
        self.prompt_id = str(uuid.uuid4())
        self.client_id = ""
        """Whom the engine tells of it."""
        self.graph = graph
        self.watching = watching
        self.began: float | None = None
        self.heard = time.monotonic()
        self.shown: Progress | None = None
        self.news: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """True: the prompt is over. False: messages may have been missed."""

    def is_overdue(self) -> bool:
        limit_s = self.watching.timeout_s
        return self.began is not None and limit_s is not None and time.monotonic() - self.began > limit_s

    def receive(self, message: Message) -> None:
        """Note one message."""
        if message in (LOST, BACK):
            self.news.put(False)
            return
        self.heard = time.monotonic()
        data = message.data
        match message.type:
            case "execution_start":
                self.begin()
            case "executing" if data.get("node") is None:
                self.news.put(True)
            case "executing":
                self.begin()
                self._show(data.get("display_node") or data["node"], 0.0, 1.0)
            case "progress":
                self._show(data.get("node"), data.get("value"), data.get("max"))
            case "progress_state":
                for node in (data.get("nodes") or {}).values():
                    if node.get("state") == "running" and node.get("max", 1) > 1:
                        self._show(node.get("display_node_id"), node.get("value"), node.get("max"))

    def begin(self) -> None:
        if self.began is None:
            self.began = time.monotonic()
            self.watching.started()

    def _show(self, node_id: Any, value: Any, total: Any) -> None:
        if not isinstance(value, (int, float)) or not isinstance(total, (int, float)):
            return
        progress = Progress(title_of(self.graph, str(node_id)), float(value), float(total))
        # `progress` and `progress_state` say the same twice.
        if progress != self.shown:
            self.shown = progress
            self.watching.progress(progress)


class Unyielding(TaskFailed):
    """A stopped prompt that the engine goes on with: only a restart ends it."""


class Client:
    """Prompts on one engine, from submission to verdict.

    Args:
        alive: whether the engine can still answer; for a process of ours, whether it runs.
            None: an attached server, given `lost_s` to come back.
        lost_s: how long an engine may be unreachable before its prompts count as lost.
        grace_s: how long a stopped prompt may take to yield.
    """

    def __init__(
        self, api: Api, *, alive: Callable[[], bool] | None = None, lost_s: float = 30.0, grace_s: float = 5.0
    ) -> None:
        self._api = api
        self._alive = alive
        self._lost_s = lost_s
        self._grace_s = grace_s
        self.listener = Listener(api.socket_url, headers=api.headers)

    def run(self, graph: Graph, watching: Watching, *, allow_invalid_outputs: bool = False) -> Verdict:
        """Queue a prompt and follow it to its end.

        Raises:
            TaskFailed: INVALID, MISSING_MODEL, MISSING_NODE, BAD_INPUT (validation),
                NODE_FAILED, OUT_OF_MEMORY, CRASHED (the engine died with it), UNAVAILABLE,
                or the reason of the stop; NO_ENGINE if its time ran out in an attached engine's queue.
            Unyielding: stopped, but still executing after `grace_s`.
        Cost: 2 HTTP requests.
        """
        watching.stop.check()
        run = _Run(graph, watching)
        self.listener.follow(run.prompt_id, run.receive)
        try:
            # Without an open socket the first messages would be lost; not fatal, but slow.
            self.listener.wait_open(self._lost_s if self._alive is None else 10.0)
            while not run.news.empty():
                run.news.get()  # that it opened concerns no prompt that was not sent yet
            self._submit(run, allow_invalid_outputs)
            return self._follow(run)
        finally:
            self.listener.unfollow(run.prompt_id)

    def wait_reachable(self, stop: Stop | None = None) -> bool:
        """Whether the engine answers, waiting for it up to `lost_s`, or until told to stop.

        Raises:
            TaskFailed: REFUSED, which no waiting mends.
        """
        deadline = time.monotonic() + self._lost_s
        while not self._is_dead():
            try:
                self._api.system_stats()
            except TaskFailed as error:
                if error.kind is ErrorKind.REFUSED:
                    raise
                if time.monotonic() > deadline or (stop or Stop()).wait(_REACHABLE_S):
                    return False
            else:
                return True
        return False

    def close(self) -> None:
        self.listener.close()

    def _submit(self, run: _Run, allow_invalid_outputs: bool) -> None:
        run.client_id = self.listener.client_id
        try:
            status, answer = self._api.submit(run.graph, prompt_id=run.prompt_id, client_id=run.client_id)
        except EngineUnreachable:
            # The reply was lost, maybe not the prompt: our id says which.
            if self.wait_reachable() and self._knows(run):
                return
            raise
        if status == 400:
            raise rejection_of(answer, run.graph)
        node_errors = answer.get("node_errors") or {}
        if node_errors and not allow_invalid_outputs:
            self._end(run)
            raise partly_invalid(node_errors, run.graph)

    def _follow(self, run: _Run) -> Verdict:
        while True:
            if run.watching.stop.is_set():
                self._stop(run, run.watching.stop.reason or ErrorKind.CANCELLED)
            if run.is_overdue():
                self._stop(run, ErrorKind.TIMED_OUT)
            try:
                over: bool | None = run.news.get(timeout=_LOOK_S)
            except queue.Empty:
                over = None
            silence_s = time.monotonic() - run.heard
            deaf = silence_s > _DEAF_S and not self.listener.hears(run.client_id)
            if over:
                verdict = self._verdict(run)
            elif over is False or deaf or self._is_dead():
                verdict = self._recover(run)
            elif silence_s > _SILENCE_S:
                verdict = self._recover(run, silent=True)
            else:
                verdict = None
            if verdict is not None:
                return verdict

    def _verdict(self, run: _Run) -> Verdict | None:
        try:
            entry = self._api.history(run.prompt_id)
        except EngineUnreachable:
            return self._recover(run)
        return None if entry is None else read_history(entry, run.prompt_id, run.graph)

    def _recover(self, run: _Run, *, silent: bool = False) -> Verdict | None:
        """Ask the engine what became of a prompt whose messages we may have missed.

        Args:
            silent: the socket seems well, but nothing has come for long.
        Returns:
            Its verdict, or None while it is still on its way.
        """
        run.heard = time.monotonic()
        if not self.wait_reachable(run.watching.stop):
            run.watching.stop.check()
            raise TaskFailed(
                ErrorKind.CRASHED, "the engine died while the prompt ran, or can't be reached any more"
            )
        for _ in range(2):
            # History is looked at again after the queue: the prompt may have ended between.
            if (entry := self._api.history(run.prompt_id)) is not None:
                if silent:
                    # Its end should have been told: the socket would not tell others' either.
                    self.listener.drop()
                return read_history(entry, run.prompt_id, run.graph)
            running, waiting = self._api.queue()
            if run.prompt_id in running:
                run.begin()
            if run.prompt_id in running or run.prompt_id in waiting:
                return None
        raise TaskFailed(ErrorKind.CRASHED, "the engine was restarted and has forgotten the prompt")

    def _is_dead(self) -> bool:
        return self._alive is not None and not self._alive()

    def _knows(self, run: _Run) -> bool:
        running, waiting = self._api.queue()
        return run.prompt_id in (*running, *waiting) or self._api.history(run.prompt_id) is not None

    def _stop(self, run: _Run, reason: ErrorKind) -> None:
        """End the prompt at the engine, then raise why."""
        words = {ErrorKind.TIMED_OUT: "took longer than allowed", ErrorKind.CANCELLED: "was cancelled"}
        what = f"the prompt {words.get(reason, 'was stopped')}"
        if reason is ErrorKind.TIMED_OUT and self._alive is None and run.began is None:
            # Whoever else uses an attached engine had it all the time: the task has failed at nothing.
            reason, what = ErrorKind.NO_ENGINE, "the engine was busy with others' prompts all the time"
        if run.shown is not None:
            what += f', in "{run.shown.stage}" at {run.shown.value:g} of {run.shown.total:g}'
        if not self._end(run):
            raise Unyielding(reason, what)
        raise TaskFailed(reason, what)

    def _end(self, run: _Run) -> bool:
        """Remove or interrupt exactly this prompt; whether it is over within the grace."""
        deadline = time.monotonic() + self._grace_s
        try:
            self._api.remove(run.prompt_id)
            while True:
                # Repeated, because an interrupt between dequeuing and start is forgotten.
                running, waiting = self._api.queue()
                if run.prompt_id not in (*running, *waiting):
                    return True
                if run.prompt_id in running:
                    self._api.interrupt(run.prompt_id)
                if time.monotonic() > deadline:
                    return False
                with contextlib.suppress(queue.Empty):
                    run.news.get(timeout=_INTERRUPT_AGAIN_S)
        except TaskFailed:
            return False
