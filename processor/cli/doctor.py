"""`dropbatch doctor`: each thing that must hold, on a line of its own, with the mend."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from processor.cli import console
from processor.cli.exits import Exit
from processor.cli.options import Bucket, Config, EndpointUrl, Json, load_settings

if TYPE_CHECKING:
    from processor.cli.findings import Finding


def command(
    *,
    on_modal: Annotated[bool, typer.Option("--modal", help="What is deployed on Modal, too.")] = False,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Check the configuration, the bucket and the engine.

    Writes one small object under state/ and removes it; with --modal it lets one tick run there.
    Exit code 1 if anything failed.

    \b
    Example:
      dropbatch doctor --bucket b2://renders
      dropbatch doctor --modal
    """
    from processor.cli.findings import examine

    settings = load_settings(config, bucket, endpoint_url)
    examinations = [examine]
    if on_modal:
        # By name, as handlers are found: this package never imports `infra`.
        examinations.append(pkgutil.resolve_name("infra.doctor:examine"))
    findings = []
    for finding in (finding for look in examinations for finding in look(settings)):
        findings.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        console.print_json([finding.facts() for finding in findings])
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(Exit.FAILED)


def _print(finding: Finding) -> None:
    out = console.out()
    state = console.word(finding.state) + " " * (5 - len(finding.state))
    out.print(f"{state} {finding.name:<14} {escape(finding.what)}", soft_wrap=True)
    if finding.mend:
        out.print(f"{'':21}[dim]→ {escape(finding.mend)}[/dim]", soft_wrap=True)
