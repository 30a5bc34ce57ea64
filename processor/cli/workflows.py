"""`dropbatch workflows`: the workflows that a job may name, and what each takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from processor.cli import console
from processor.cli.exits import UsageError
from processor.cli.options import Bucket, Config, EndpointUrl, Json, load_settings, open_main

if TYPE_CHECKING:
    from processor.catalogue import Catalogue, ParameterFacts, WorkflowFacts
    from processor.config import Settings
    from processor.store import Store


def command(
    show: Annotated[
        str | None, typer.Argument(help="`show`, to explain one of them.", metavar="[show")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="Its name.", metavar="NAME]")] = None,
    *,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """The workflows that a job may name.

    Those that come with Dropbatch, and with a bucket yours: graphs exported by ComfyUI's
    "Export (API)", put under comfy_workflows/. What can be set in those is found by itself.

    \b
    Example:
      dropbatch workflows
      dropbatch workflows show txt2img-sdxl
    """
    if (show is None) != (name is None) or show not in (None, "show"):
        raise UsageError("write `dropbatch workflows`, or `dropbatch workflows show NAME`")
    settings = load_settings(config, bucket, endpoint_url)
    store = open_main(settings) if settings.bucket else None
    catalogue = open_catalogue(settings, store)
    if name is not None:
        facts = catalogue.workflow(name, store)
        console.print_json(facts.model_dump(mode="json")) if as_json else _explain(facts)
        return
    found = catalogue.workflows(store)
    if as_json:
        console.print_json([facts.model_dump(mode="json") for facts in found])
    else:
        console.print_table(["workflow", "GPU", "a task", "what it does"], map(_row, found))


def open_catalogue(settings: Settings, store: Store | None) -> Catalogue:
    """The render handler, asked for what it knows of workflows.

    Raises:
        UsageError: the configured handler knows none.
    """
    from processor.catalogue import Catalogue
    from processor.config import resolve_handlers
    from processor.handler import Stores
    from processor.store.memory import MemoryStore

    factory = resolve_handlers(settings).get("render")
    handler = factory.configured(settings, Stores.single(store or MemoryStore())) if factory else None
    if not isinstance(handler, Catalogue):
        raise UsageError("the configured render handler knows no workflows", where="handlers.render")
    return handler


def _row(facts: WorkflowFacts) -> list[str]:
    from processor.spelling import duration

    said = (
        f"[red]{escape(facts.problem)}[/red]" if facts.problem else escape(facts.description or facts.title)
    )
    taken = duration(facts.typical_seconds) if facts.typical_seconds else ""
    return [escape(facts.name), facts.gpu or "", taken, said]


def _explain(facts: WorkflowFacts) -> None:
    from processor.spelling import duration

    out = console.out()
    out.print(f"[bold]{escape(facts.name)}[/bold]  {escape(facts.title)}")
    if facts.description:
        out.print(escape(facts.description))
    for label, value in (
        ("from", "" if facts.source == "ready" else facts.source),
        ("GPU", facts.gpu or ""),
        ("a task", duration(facts.typical_seconds) if facts.typical_seconds else ""),
        ("models", ", ".join(facts.models)),
    ):
        if value:
            out.print(f"[dim]{label:<7}[/dim] {escape(value)}")
    out.print()
    if facts.found:
        out.print("[dim]It declares no parameters; these were found in its graph.[/dim]")
    rows = [[escape(p.name), p.type, _default(p), _range(p), escape(p.description)] for p in facts.parameters]
    console.print_table(["parameter", "type", "default", "range", ""], rows)
    out.print(f"\n[dim]dropbatch new {escape(facts.name)} writes a job file that uses it.[/dim]")


def _default(parameter: ParameterFacts) -> str:
    if parameter.required:
        return "[yellow]required[/yellow]"
    text = "" if parameter.default is None else str(parameter.default)
    return escape(text if len(text) <= 40 else f"{text[:39]}…")


def _range(parameter: ParameterFacts) -> str:
    if parameter.choices:
        return escape(", ".join(map(str, parameter.choices)))
    if parameter.min is None and parameter.max is None:
        return ""
    low = "" if parameter.min is None else f"{parameter.min:g}"
    high = "" if parameter.max is None else f"{parameter.max:g}"
    return f"{low} to {high}".strip()
