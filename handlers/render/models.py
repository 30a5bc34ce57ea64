"""Which models a graph needs, and whether they can be had."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from handlers.model_cache import model_key
from handlers.render.catalog import MODEL_INPUTS, NO_MODEL_FOLDERS
from handlers.render.embeddings import FOLDER as EMBEDDINGS
from handlers.render.embeddings import file_names, named_embeddings
from handlers.render.graph import (
    Graph,
    NamedModel,
    Schema,
    Set,
    applied,
    choices_of,
    describe,
    input_specs,
    lora_of,
    named_models,
    nearest,
    unwrapped,
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


class Spelling:
    """Writes models' names as the engine that will run the graph lists them.

    A graph exported on Windows names `SDXL\\x.safetensors`. An engine of ours, which no Windows
    runs, has it as `SDXL/x.safetensors` and takes nothing else; an attached server may be on
    either system, and its list decides, as it does for loaders that we don't know.
    """

    def __init__(self, schema: Schema | None, settings: RenderSettings) -> None:
        self._schema = schema or {}
        self._ours = settings.engine != "attached"

    def of_graph(self, graph: Graph) -> Graph:
        """The graph with its models so named; the same nodes where nothing changes."""
        values = (
            Set(node_id, name, value)
            for node_id, node in graph.items()
            for name, value in node["inputs"].items()
        )
        return applied(graph, [new for old in values if (new := self._of(graph, old)) is not old])

    def of_sets(self, graph: Graph, sets: Iterable[Set]) -> list[Set]:
        """Likewise, for changes to this graph."""
        return [self._of(graph, change) for change in sets]

    def _of(self, graph: Graph, change: Set) -> Set:
        value = unwrapped(change.value)
        if self._ours and "\\" in (lora := lora_of(change.input, value) or ""):
            return change._replace(value={**value, "lora": with_slashes(lora)})
        if not isinstance(value, str) or not ("\\" in value or "/" in value):
            return change
        class_type = graph[change.node]["class_type"]
        if self._ours and change.input in MODEL_INPUTS.get(class_type, {}):
            spelt = with_slashes(value)
        else:
            spec = input_specs(self._schema.get(class_type, {})).get(change.input, [])
            spelt = _as_listed(value, choices_of(spec) or [])
        return change if spelt == value else change._replace(value=spelt)


def with_slashes(name: str) -> str:
    """A model's name as all but Windows spell it."""
    return name.replace("\\", "/")


def _as_listed(value: str, choices: list[Any]) -> str:
    ways = (value, with_slashes(value), value.replace("/", "\\"))
    return next((way for way in ways if way in choices), value)


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
        self._embeddings: dict[str, ModelFile | None] = {}
        self.not_here: list[str] = []
        """Keys of models that must be in the bucket."""
        self.warnings: list[str] = []

    @property
    def embeddings(self) -> list[ModelFile]:
        """Those that the graphs' texts name, as far as they can be had."""
        return [file for file in self._embeddings.values() if file is not None]

    def find(self, graph: Graph) -> list[ModelFile]:
        """The models of one graph that are to be fetched; what is missing is remembered."""
        for name in named_embeddings(graph):
            if name not in self._embeddings:
                self._embeddings[name] = self._embedding(name)
        files: dict[ModelFile, None] = {}
        for model in named_models(graph):
            key = (model.folders, model.name)
            if key not in self._found:
                self._found[key] = self._look(graph, model)
            if (file := self._found[key]) is not None:
                files[file] = None
        return list(files)

    def declared(self, files: Iterable[ModelFile]) -> None:
        """Look for what a workflow says that it needs; what is missing is remembered."""
        for file in files if self._settings.engine != "attached" else ():
            if file.folder in NO_MODEL_FOLDERS or file.folder.startswith("."):
                what = f"ComfyUI is given no models from {layout.COMFY_MODELS}{file.folder}/"
                mend = "Name the folder that the loader's nodes read"
                self._problems.append(Problem(ErrorKind.REFUSED, "models", what, mend))
                continue
            if self._in_store(file) or self._is_local(file):
                continue
            if self._bucketless:
                self.not_here.append(model_key(file))
            else:
                what, mend = f"there is no {model_key(file)}, which the workflow needs", "Upload it there"
                self._problems.append(Problem(ErrorKind.MISSING_MODEL, "models", what, mend))

    def raise_missing(self) -> None:
        """Raise JobInvalid naming every model that can't be had; return when there is none."""
        raise_problems(self._problems)

    def _look(self, graph: Graph, model: NamedModel) -> ModelFile | None:
        if leads_out(model.name) or not _is_key(model.name, model.folders[0]):
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
            if self._is_local(file):
                return file
        if self._bucketless:
            file = ModelFile(folder=model.folders[0], name=model.name)
            self.not_here.append(model_key(file))
            return file
        self._problems.append(self._missing(graph, model))
        return None

    def _embedding(self, name: str) -> ModelFile | None:
        """ComfyUI leaves out of a prompt what it does not find, so that is no reason to refuse it."""
        if self._settings.engine == "attached" or leads_out(name):
            return None
        files = [ModelFile(folder=EMBEDDINGS, name=each) for each in file_names(name) if _is_key(each)]
        for file in files:
            if self._in_store(file) or self._is_local(file):
                return file
        place = f"{layout.COMFY_MODELS}{EMBEDDINGS}/{name}"
        if self._bucketless:
            self.not_here.append(place)
        else:
            self.warnings.append(f"there is no {place}, so ComfyUI leaves embedding:{name} out of the prompt")
        return None

    def _is_local(self, file: ModelFile) -> bool:
        here = (self._settings.models_dir / file.folder / file.name).exists()
        return here or has_locally(self._settings.comfyui_dir, file)

    def _in_store(self, file: ModelFile) -> bool:
        key = model_key(file)
        try:
            self._store.stat(f"{key}/{_TREE_INDEX}" if file.folder == _TREE else key)
        except NotFound:
            return False
        return True

    def _ask_schema(self, graph: Graph, model: NamedModel) -> None:
        info = (self._schema or {}).get(graph[model.target.node]["class_type"], {})
        choices = choices_of(input_specs(info).get(model.target.input, []))
        if choices is not None and model.name not in choices:
            mend = nearest(model.name, map(str, choices), what="models there")
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


def _is_key(name: str, folder: str = EMBEDDINGS) -> bool:
    """Whether every store and file system could hold a model of this name."""
    try:
        key = model_key(ModelFile(folder=folder, name=name))
    except TaskFailed:
        return False
    return all(len(part.encode()) <= MAX_NAME_BYTES for part in key.split("/"))


def has_locally(comfyui_dir: Path | None, file: ModelFile) -> bool:
    """Whether a ComfyUI checkout has this model in its own `models` folder."""
    return comfyui_dir is not None and (comfyui_dir / "models" / file.folder / file.name).exists()


def _problem(graph: Graph, model: NamedModel, what: str, mend: str) -> Problem:
    place = f"{describe(graph, model.target.node)}: {model.target.input} {model.name!r}"
    return Problem(ErrorKind.MISSING_MODEL, str(model.target), f"{place}: {what}", mend)
