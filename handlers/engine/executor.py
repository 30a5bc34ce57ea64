"""Runs one prompt at a time, and keeps its results for the next."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handlers.engine.batch import Batch
from handlers.engine.context import Context, Interrupted
from handlers.engine.files import Folders
from handlers.engine.graph import GraphError, RunOrder, inputs_of, is_link, signatures
from handlers.engine.jobs import Job, Outcome
from handlers.engine.report import RunReport, Send
from handlers.engine.schema import Node, Output, Settings, Value

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A node's result, for whoever reads it: this prompt, or the next one's equal node."""

    values: tuple[Value, ...]
    ui: dict[str, Any] | None
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Run:
    """One prompt on its way through the executor.

    Args:
        signed: by node id, what its result depends on.
    """

    job: Job
    report: RunReport
    signed: Mapping[str, str]


class _NodeError(Exception):
    """A node raised; with the inputs that it had been given."""

    def __init__(self, error: Exception, inputs: dict[str, Any]) -> None:
        super().__init__(str(error))
        self.error = error
        self.inputs = inputs


class Executor:
    """Runs prompts on the thread that calls it.

    Results are found by what they depend on (`graph.signatures`), and only the previous prompt's are kept.
    So an identical prompt runs nothing and names the first run's files: ComfyUI's behaviour, which its
    clients must know.
    """

    def __init__(self, nodes: Mapping[str, Node], folders: Folders, settings: Settings, send: Send) -> None:
        self._nodes = nodes
        self._folders = folders
        self._settings = settings
        self._send = send
        self._interrupt = threading.Event()
        self._preview_tag = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(5))
        self._kept: dict[str, _Kept] = {}
        self._report: RunReport | None = None

    def interrupt(self) -> None:
        """Stop the running prompt at its next checkpoint. From any thread."""
        self._interrupt.set()

    def current_node(self) -> str | None:
        """The node that runs now, for a client that connects in the middle. From any thread."""
        report = self._report
        return None if report is None else report.current

    def forget_results(self) -> None:
        """Keep nothing for the next prompt."""
        self._kept.clear()

    def run(self, job: Job) -> Outcome:
        """Run a job to its end; whatever its graph does is an outcome, never an exception."""
        self._interrupt.clear()
        report = self._report = RunReport(job, self._send)
        report.started()
        signed = signatures(job.prompt, lambda node_id: self._fingerprint(job, node_id))
        used = set(signed.values())
        self._kept = {key: kept for key, kept in self._kept.items() if key in used}
        cached = [node_id for node_id in job.prompt if signed[node_id] in self._kept]
        report.found_cached(cached)
        succeeded = self._run_all(_Run(job, report, signed))
        self._report = None
        shown = [
            (node_id, kept)
            for node_id in job.prompt
            if (kept := self._kept.get(signed[node_id])) is not None and kept.ui is not None
        ]
        return Outcome(
            succeeded=succeeded,
            messages=report.messages,
            outputs={node_id: kept.ui for node_id, kept in shown},
            meta={node_id: kept.meta for node_id, kept in shown},
        )

    def _fingerprint(self, job: Job, node_id: str) -> str:
        node = self._nodes[job.prompt[node_id]["class_type"]]
        if node.fingerprint is None:
            return ""
        try:
            return node.fingerprint(self._folders, **inputs_of(job.prompt[node_id]))
        except Exception:  # noqa: BLE001 - the run itself will say what is wrong; until then, equal to nothing
            return secrets.token_hex()

    def _run_all(self, run: _Run) -> bool:
        """Run what the outputs need; whether that went well."""
        report = run.report
        try:
            order = RunOrder(
                run.job.prompt, run.job.outputs, self._nodes, lambda i: run.signed[i] in self._kept
            )
            while order:
                node_id = order.next()
                self._run_one(run, node_id)
                order.done(node_id)
        except Interrupted:
            log.info("Processing interrupted")
            report.interrupted()
            return False
        except GraphError as error:
            report.current = error.node_id
            report.failed(error, {})
            return False
        except _NodeError as wrapped:
            # the graph's fault, and its client gets the traceback: a line is enough here
            log.warning("Node %s failed: %s: %s", report.current, type(wrapped.error).__name__, wrapped)
            report.failed(wrapped.error, wrapped.inputs)
            return False
        report.succeeded()
        return True

    def _run_one(self, run: _Run, node_id: str) -> None:
        """Run a node, or tell what an output node's kept result was."""
        kept = self._kept.get(run.signed[node_id])
        if kept is None:
            run.report.node_started(node_id)
            output = self._call(run, node_id)
            meta = {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
            kept = self._kept[run.signed[node_id]] = _Kept(output.values, output.ui, meta)
            if output.ui is not None:
                run.report.node_showed(node_id, output.ui)
            run.report.executed.append(node_id)
        else:
            run.report.node_showed(node_id, kept.ui)
        run.report.node_finished(node_id)

    def _call(self, run: _Run, node_id: str) -> Output:
        inputs = inputs_of(run.job.prompt[node_id])
        node = self._nodes[run.job.prompt[node_id]["class_type"]]
        given: dict[str, Any] = {}
        try:
            for name, value in inputs.items():
                if is_link(value):
                    given[name] = self._kept[run.signed[value[0]]].values[value[1]]
                elif node.find_input(name) is not None:
                    given[name] = value
            self._checkpoint()
            output = node.run(self._context(run.job), **given)
            if self._settings.pause_s:
                self._interrupt.wait(self._settings.pause_s)
            for value in output.values:
                if isinstance(value, Batch):
                    value.check(self._settings.limits)
        except Interrupted:
            raise
        except Exception as error:
            if node.is_output:
                hidden = {
                    "prompt": str(run.job.prompt),
                    "extra_pnginfo": run.job.extra_data.get("extra_pnginfo"),
                }
                given |= hidden
            raise _NodeError(error, given) from error
        return output

    def _context(self, job: Job) -> Context:
        extra = job.extra_data.get("extra_pnginfo")
        return Context(
            folders=self._folders,
            limits=self._settings.limits,
            prompt=job.prompt,
            extra_pnginfo=extra if isinstance(extra, dict) else None,
            metadata=self._settings.metadata,
            checkpoint=self._checkpoint,
            preview_tag=self._preview_tag,
        )

    def _checkpoint(self) -> None:
        if self._interrupt.is_set():
            raise Interrupted
