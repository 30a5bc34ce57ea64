"""`dropbatch schema`: the forms, generated from the models."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from processor.cli.console import print_json


def command(
    settings: Annotated[bool, typer.Option("--settings", help="The page of settings, as Markdown.")] = False,
    jobs: Annotated[bool, typer.Option("--jobs", help="The page of jobs, as Markdown.")] = False,
) -> None:
    """Print the JSON Schema of jobs, or the page of jobs or settings.

    Point an editor at the schema, and it completes and checks job files.

    \b
    Example:
      dropbatch schema > job.schema.json
    """
    if settings:
        from processor.cli.settings_page import settings_page

        print(settings_page(), end="")
    elif jobs:
        from processor.cli.jobs_page import jobs_page

        print(jobs_page(), end="")
    else:
        print_json(job_schema())


def job_schema() -> dict[str, Any]:
    """The JSON Schema of what a job file may hold: a render or train job, or a bare graph."""
    from pydantic import TypeAdapter

    from processor import models
    from processor.cli.jobs_page import field_docs
    from processor.models import RenderJob, TrainJob

    schema = TypeAdapter(RenderJob | TrainJob).json_schema()
    for name, definition in schema["$defs"].items():
        for field, text in field_docs(getattr(models, name)).items():
            definition["properties"][field].setdefault("description", text)
        definition.get("properties", {}).pop("origin", None)  # the machine's own
        if "kind" in definition.get("required", ()):
            definition["required"].remove("kind")  # `workflow` or `dataset` tells it
    schema["$defs"].pop("Origin", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Dropbatch job",
        "description": "A job file, as dropped in inbox/. A bare ComfyUI API export is one, too.",
        "anyOf": [*schema.pop("anyOf"), {"$ref": "#/$defs/ApiExport"}],
        **schema,
        "$defs": {**schema["$defs"], "ApiExport": _API_EXPORT},
    }


_API_EXPORT: dict[str, Any] = {
    "title": "ComfyUI graph",
    "description": "What ComfyUI's Export (API) writes: node id → class and inputs.",
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {
        "type": "object",
        "required": ["class_type"],
        "properties": {"class_type": {"type": "string"}, "inputs": {"type": "object"}},
    },
}
