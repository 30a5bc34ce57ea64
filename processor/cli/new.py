"""`dropbatch new`: write a job file that uses a named workflow, ready to be changed and dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from processor.cli import console
from processor.cli.exits import UsageError
from processor.cli.options import Bucket, Config, EndpointUrl, load_settings, open_main
from processor.cli.workflows import open_catalogue

if TYPE_CHECKING:
    from processor.catalogue import WorkflowFacts


def command(
    name: Annotated[
        str, typer.Argument(help="A workflow; `dropbatch workflows` lists them.", metavar="NAME")
    ],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it; NAME.json otherwise.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Write a job file for a workflow.

    It sets every parameter to its default, so that there is something to change, and shows
    how one job becomes many tasks. `-o -` prints it.

    \b
    Example:
      dropbatch new txt2img-sdxl -o night.json
      dropbatch check night.json
      dropbatch drop night.json --nightly
    """
    settings = load_settings(config, bucket, endpoint_url)
    store = open_main(settings) if settings.bucket else None
    text = spell_job(job_for(open_catalogue(settings, store).workflow(name, store)))
    if str(output) == "-":
        print(text, end="")
        return
    path = output or Path(f"{Path(name).name.removesuffix('.json')}.json")
    if path.exists() and not force:
        raise UsageError("this file is there already; --force writes over it", where=str(path))
    path.write_text(text, "utf-8")
    console.note(f"wrote {path}; `dropbatch check {path}` says what it would do")


def job_for(facts: WorkflowFacts) -> dict[str, Any]:
    """A job that uses a workflow: its example, with all other parameters at their defaults."""
    example = dict(facts.example)
    varied = _varied(example)
    overrides = {
        parameter.name: parameter.default
        for parameter in facts.parameters
        if parameter.default is not None and parameter.name not in varied
    }
    job = {"name": facts.title or facts.name, "workflow": facts.name}
    overrides |= example.pop("overrides", {})
    return {**job, "overrides": overrides, **example} if overrides else {**job, **example}


def spell_job(job: dict[str, Any]) -> str:
    """A job as JSON that is pleasant to edit: one field a line, short values kept together."""
    lines = []
    for field, value in job.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, dict) and len(text) > 80:
            inner = ",\n".join(
                f"    {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items()
            )
            text = f"{{\n{inner}\n  }}"
        lines.append(f"  {json.dumps(field)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _varied(example: dict[str, Any]) -> set[str]:
    """The parameters that the example's axes set."""
    matrix = example.get("matrix", {})
    names = set(matrix) | set(matrix.get("zip", {})) | set(matrix.get("product", {}))
    names |= {"seed"} if "seeds" in example else set()
    return names | ({"prompt"} if "prompts" in example else set())
