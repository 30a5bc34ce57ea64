"""`dropbatch train`: drop a train job for a dataset that is archived."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from processor.cli import console
from processor.cli.exits import UsageError
from processor.cli.options import Bucket, Config, EndpointUrl, Json, load_settings

if TYPE_CHECKING:
    from processor.handler import Stores


def command(
    dataset: Annotated[str, typer.Argument(help="Its name, or name/version.", metavar="DATASET")],
    *,
    preset: Annotated[str | None, typer.Option(help="How to train; flux1-dev otherwise.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps; the preset's otherwise.")] = None,
    trigger: Annotated[
        str | None, typer.Option(help="The word that calls it up; the dataset's name otherwise.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting, e.g. lr=1e-4. Repeatable.", metavar="KEY=VALUE"),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="Values to compare, e.g. rank=8,16. Repeatable.", metavar="KEY=A,B"),
    ] = None,
    publish: Annotated[str | None, typer.Option(help="The LoRA's name; the dataset's otherwise.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="US dollars.", metavar="USD")] = None,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """Train on an archived dataset again, with other settings.

    New pictures need no command: drop their folder.

    \b
    Example:
      dropbatch train my_character --preset sdxl --steps 1500
      dropbatch train my_character --sweep rank=8,16,32
    """
    from processor.buckets import open_stores

    stores = open_stores(load_settings(config, bucket, endpoint_url))
    job: dict[str, Any] = {"kind": "train", "dataset": dataset, "name": dataset.partition("/")[0]}
    job |= {"preset": preset, "trigger_word": trigger, "publish": publish, "max_cost_usd": max_cost}
    job["settings"] = {"steps": steps} if steps is not None else {}
    job["settings"] |= dict(_pair(text) for text in settings or [])
    if sweep:
        job["sweep"] = {name: _values(text) for name, text in map(_split, sweep)}
    key, job_id = drop_training(
        stores, {name: value for name, value in job.items() if value not in (None, {})}
    )
    if as_json:
        console.print_json({"key": key, "job_id": job_id})
    else:
        console.out().print(f"{job_id}  {key}")


def drop_training(stores: Stores, job: dict[str, Any]) -> tuple[str, str]:
    """Check a train job as far as that needs no trainer, then put it in the main inbox.

    Args:
        stores: those that the machine has: the dataset may lie in a bucket of its own.
    Returns:
        Its key and its job id.
    Raises:
        JobInvalid: naming dataset, preset or setting, and the nearest known one.
    Cost: 3 requests, 4 without versions.
    """
    from datetime import UTC, datetime

    from handlers.train.planning import plan_training
    from handlers.train.settings import TrainSettings
    from processor.cli.job_files import JobFile
    from processor.cli.uploads import drop_job
    from processor.handler import PlanContext
    from processor.models import TrainJob
    from processor.reading import read_job

    data = json.dumps(job, ensure_ascii=False, indent=1).encode()
    read = read_job(data, key="train")
    if not isinstance(read, TrainJob):
        raise UsageError("this is no train job")
    context = PlanContext(
        job_id="check-0000000000000000",
        drop_key="train",
        stores=stores,
        now=datetime.now(UTC),
        max_tasks=10_000,
    )
    plan_training(read, context, TrainSettings(base_dir=Path(), toolkit_dir=Path()))
    dropped = drop_job(
        stores.main,
        JobFile(source=Path(f"train-{job['name']}"), data=data),
        nightly=False,
        moved=lambda _: None,
    )
    return dropped.key, str(dropped.job_id)


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"write it as KEY=VALUE, not {text!r}")
    return name.strip(), value.strip()


def _pair(text: str) -> tuple[str, Any]:
    name, value = _split(text)
    return name, _value(value)


def _values(text: str) -> list[Any]:
    return [_value(part.strip()) for part in text.split(",")]


def _value(text: str) -> Any:
    """A number, true or false, a list, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
