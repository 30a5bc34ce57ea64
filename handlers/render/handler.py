"""The render handler: one ComfyUI prompt per task."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from handlers.model_cache import ModelCache, ModelState, model_state
from handlers.render.embeddings import FOLDER as EMBEDDINGS
from handlers.render.embeddings import file_names, named_embeddings
from handlers.render.engine import Engine, EnginePool, schema_of
from handlers.render.execution import Execution
from handlers.render.graph import Graph, applied, named_models
from handlers.render.models import has_locally
from handlers.render.planning import plan_render
from handlers.render.schema import SchemaSource
from handlers.render.settings import RenderSettings, render_settings
from handlers.render.showing import all_workflows, one_workflow
from processor.catalogue import WorkflowFacts
from processor.clock import Clock, SystemClock
from processor.handler import PlanContext, Remedy, Stores, TaskContext, TaskOutput, Work
from processor.models import JobBase, RenderJob
from processor.records import Plan
from processor.store import Store

if TYPE_CHECKING:
    from processor.config import Settings  # costs a quarter of a second at run time


class RenderHandler:
    """Plans render jobs and runs their prompts; see `processor.handler.Handler`.

    One engine per handler, started by the first `run`, shared by its threads and stopped
    by `close`. While one prompt executes, the next ones wait in the engine's own queue.
    """

    kind = "render"

    def __init__(self, settings: RenderSettings, clock: Clock) -> None:
        self.concurrency = settings.concurrency
        self._settings = settings
        self._engines = EnginePool(settings, clock)
        self._schema = SchemaSource(settings, self._engines.schema)
        self._lock = threading.Lock()
        self._caches: dict[str, ModelCache] = {}

    @classmethod
    def configured(cls, settings: Settings, stores: Stores) -> RenderHandler:  # noqa: ARG003 - stores come with each task
        """The handler that the settings describe."""
        return cls(render_settings(settings), SystemClock())

    def plan(self, job: JobBase, context: PlanContext) -> Plan:
        if not isinstance(job, RenderJob):
            raise TypeError(f"{type(job).__name__} is no render job")
        return plan_render(job, context, self._settings, self._schema)

    def run(self, work: Work, context: TaskContext) -> TaskOutput:
        graph = applied(work.shared["workflow"], work.task.payload.get("sets", []))
        models = self._ensure_models(graph, work, context.stores.models)
        folders = {path.relative_to(self._settings.models_dir).parts[0] for path in models}
        fresh = work.remedy in (Remedy.RESTART, Remedy.BIGGER_GPU)
        with self._engines.use(fresh=fresh, folders=folders, stop=context.stop) as engine:
            self._learn(engine)
            if work.remedy is Remedy.FREE_MEMORY:
                engine.api.free()
            engine.drop_replaced(models)
            return Execution(engine, work, context, self._settings).run(graph)

    def warm(self) -> None:
        """Start the engine before the first task comes.

        Raises:
            TaskFailed: it does not start.
        """
        with self._engines.use() as engine:
            self._learn(engine)

    def problem(self) -> str | None:
        """What keeps the engine from working; None if it is well, or will be replaced anyway."""
        engine = self._engines.current
        if engine is None or engine.server is None or not engine.server.is_alive():
            return None
        return None if engine.server.is_healthy() else "the engine runs but does not answer"

    def workflows(self, store: Store | None) -> list[WorkflowFacts]:
        return all_workflows(store)

    def workflow(self, name: str, store: Store | None) -> WorkflowFacts:
        return one_workflow(name, store)

    def close(self) -> None:
        self._engines.close()

    def _ensure_models(self, graph: Graph, work: Work, store: Store) -> dict[Path, ModelState]:
        """Have this task's models in the local folder; what lies there now, by path."""
        if self._settings.engine != "comfyui":
            return {}
        named = {(folder, model.name) for model in named_models(graph) for folder in model.folders}
        named |= {(EMBEDDINGS, file) for name in named_embeddings(graph) for file in file_names(name)}
        # What no loader names that we know of, the workflow declares.
        named |= {(folder, name) for folder, name in work.shared.get("models", [])}
        wanted = [model for model in dict.fromkeys(work.models) if (model.folder, model.name) in named]
        # ComfyUI's own models folder is its user's: used as it is, never written.
        missing = [model for model in wanted if not has_locally(self._settings.comfyui_dir, model)]
        cache = self._cache(store)
        cache.ensure(missing)
        return {path: model_state(path) for path in map(cache.path_of, missing)}

    def _cache(self, store: Store) -> ModelCache:
        with self._lock:
            if store.url not in self._caches:
                self._caches[store.url] = ModelCache(self._settings.models_dir, store)
            return self._caches[store.url]

    def _learn(self, engine: Engine) -> None:
        """Ask a ComfyUI that was just started for its nodes, for the plans to come."""
        if self._settings.engine == "comfyui" and not engine.used:
            schema = schema_of(engine)
            if schema is not None:
                self._schema.learn(schema)
