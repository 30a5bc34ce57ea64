"""Which models a graph needs, and whether they can be had."""

from __future__ import annotations

from pathlib import Path

from handlers.model_cache import model_key
from handlers.render.graph import (
    Graph,
    NamedModel,
    Schema,
    Target,
    describe,
    input_specs,
    named_models,
    nearest,
)
from handlers.render.policy import leads_out
from handlers.render.preflight import Problem, raise_problems
from handlers.render.settings import RenderSettings
from processor import layout
from processor.errors import ErrorKind, JobInvalid, NotFound, TaskFailed
from processor.records import ModelFile
from processor.store import Store
from processor.store.tree import MAX_NAME_BYTES

_TREE = "diffusers"
_TREE_INDEX = "model_index.json"


class ModelFinder:
    """Finds the models that graphs name, each once: in the store, then in local folders.

    An attached server has its own; there its `/object_info` decides.

    Args:
        bucketless: what is not found may be in the bucket, which is not at hand.
    """

    def __init__(
        self, store: Store, settings: RenderSettings, schema: Schema | None, *, bucketless: bool = False
    ) -> None:
        self._store = store
        self._settings = settings
        self._schema = schema
        self._found: dict[tuple[tuple[str, ...], str], ModelFile | None] = {}
        self._problems: list[Problem] = []
        self._bucketless = bucketless
        self.not_here: list[str] = []
        """Keys of models that must be in the bucket."""

    @staticmethod
    def targets(graph: Graph) -> list[Target]:
        """The inputs that name models."""
        return [model.target for model in named_models(graph)]

    def find(self, graph: Graph) -> list[ModelFile]:
        """The models of one graph that are to be fetched; what is missing is remembered."""
        files: dict[ModelFile, None] = {}
        for model in named_models(graph):
            key = (model.folders, model.name)
            if key not in self._found:
                self._found[key] = self._look(graph, model)
            if (file := self._found[key]) is not None:
                files[file] = None
        return list(files)

    def raise_missing(self) -> None:
        """Raise JobInvalid naming every model that can't be had; return when there is none."""
        raise_problems(self._problems)

    def _look(self, graph: Graph, model: NamedModel) -> ModelFile | None:
        if leads_out(model.name) or not _is_name(model):
            raise JobInvalid(
                f"{model.name[:200]!r} is no model name",
                where=str(model.target),
                kind=ErrorKind.REFUSED,
                mend="Name a file under comfy_models/",
            )
        if self._settings.engine == "attached":
            self._ask_schema(graph, model)
            return None
        for folder in model.folders:
            if self._in_store(ModelFile(folder=folder, name=model.name)):
                return ModelFile(folder=folder, name=model.name)
        for folder in model.folders:
            file = ModelFile(folder=folder, name=model.name)
            here = (self._settings.models_dir / folder / model.name).exists()
            if here or has_locally(self._settings.comfyui_dir, file):
                return file
        if self._bucketless:
            file = ModelFile(folder=model.folders[0], name=model.name)
            self.not_here.append(model_key(file))
            return file
        self._problems.append(self._missing(graph, model))
        return None

    def _in_store(self, file: ModelFile) -> bool:
        key = model_key(file)
        try:
            self._store.stat(f"{key}/{_TREE_INDEX}" if file.folder == _TREE else key)
        except NotFound:
            return False
        return True

    def _ask_schema(self, graph: Graph, model: NamedModel) -> None:
        info = (self._schema or {}).get(graph[model.target.node]["class_type"], {})
        spec = input_specs(info).get(model.target.input, [])
        if spec and isinstance(spec[0], list) and model.name not in spec[0]:
            mend = nearest(model.name, map(str, spec[0]), what="models there")
            self._problems.append(_problem(graph, model, "the attached ComfyUI does not have it", mend))

    def _missing(self, graph: Graph, model: NamedModel) -> Problem:
        known: list[str] = []
        for folder in model.folders:
            prefix = f"{layout.COMFY_MODELS}{folder}/"
            page = next(iter(self._store.list(prefix)))
            known += [
                entry.key.removeprefix(prefix)
                for entry in page.objects
                if entry.latest and not entry.delete_marker
            ]
        place = f"{layout.COMFY_MODELS}{model.folders[0]}/{model.name}"
        near = nearest(model.name, known, what="models there")
        return _problem(graph, model, f"there is no {place}", f"Upload it, or correct the name. {near}")


def _is_name(model: NamedModel) -> bool:
    """Whether every store and file system could hold a model of this name."""
    try:
        key = model_key(ModelFile(folder=model.folders[0], name=model.name))
    except TaskFailed:
        return False
    return all(len(part.encode()) <= MAX_NAME_BYTES for part in key.split("/"))


def has_locally(comfyui_dir: Path | None, file: ModelFile) -> bool:
    """Whether a ComfyUI checkout has this model in its own `models` folder."""
    return comfyui_dir is not None and (comfyui_dir / "models" / file.folder / file.name).exists()


def _problem(graph: Graph, model: NamedModel, what: str, mend: str) -> Problem:
    place = f"{describe(graph, model.target.node)}: {model.target.input} {model.name!r}"
    return Problem(ErrorKind.MISSING_MODEL, str(model.target), f"{place}: {what}", mend)
