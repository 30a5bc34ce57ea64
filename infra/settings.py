"""What a deploy is told: the table `[modal]` of dropbatch.toml, and how it reaches containers.

At deploy the settings are read from dropbatch.toml and the environment, as every command
reads them, and put into the containers' environment as one JSON document. No secret is in it:
those are Modal Secrets. This module knows nothing of `modal` itself.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from infra import paths
from infra.gpus import parse
from processor.errors import ConfigError
from processor.models import Gpu, Model
from processor.problems import find_problems

if TYPE_CHECKING:
    from processor.config import Settings

DEPLOYED: Final = "DROPBATCH_DEPLOYED"
"""The variable that holds the settings in a container."""

_LOCAL: Final = (
    *("comfyui_url", "comfyui_dir", "comfyui_python", "ai_toolkit_dir", "ai_toolkit_python"),
    *("comfyui_cpu", "models_dir", "work_dir", "log_format"),
)
"""Settings about the machine that deploys; a container has its own."""

ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]
Count = Annotated[int, Field(ge=0, le=1000)]
Limit = Annotated[int, Field(le=1000)]
"""At least 1: see `ModalSettings._check_limit`."""
Seconds = Annotated[int, Field(ge=2, le=3600)]


_WITHOUT: Final = {
    "render_containers": "None is rented before a job needs it; `dropbatch pause` keeps all of them waiting",
    "train_containers": "None is rented before a training is dropped; `where: local` leaves it to others",
    "api_containers": "For a deploy without the API say `api = false`",
}
"""What to do instead of allowing no container."""


class ModalSettings(Model):
    """The table `[modal]`. docs/modal.md describes each."""

    app_name: ObjectName = "dropbatch"
    plan: Literal["starter", "team"] = "starter"
    engine: Literal["comfyui", "builtin"] = "comfyui"
    """`builtin` runs graphs without models on CPUs: to try it all out for cents."""

    render_gpus: list[Gpu] = Field(default=["L40S", "A100-80GB"], min_length=1)
    """The first that is free; a job's own `gpu` goes before."""
    train_gpus: list[Gpu] = Field(default=["A100-80GB"], min_length=1)
    render_containers: Limit = 6
    train_containers: Limit = 2
    render_concurrency: int = Field(default=3, ge=1, le=100)
    """Tasks in one container: one renders, one is prepared, one uploaded."""
    render_scaledown_s: Seconds = 60
    train_scaledown_s: Seconds = 60
    chunk_tasks: int = Field(default=1, ge=1, le=100)
    """Small tasks sent together; a container lost then repeats them all."""
    memory_snapshot: bool = True
    """Of our own code with its libraries loaded; ComfyUI starts after it, as it needs the GPU."""

    jobs_per_dispatch: int = Field(default=8, ge=1, le=100)
    dispatch_containers: int = Field(default=4, ge=1, le=100)
    claims_per_tick: int = Field(default=32, ge=1, le=1000)

    api: bool = True
    api_gpus: list[Gpu] = Field(default=["L40S"], min_length=1)
    api_containers: Limit = 1
    api_min_containers: Count = 0
    api_buffer_containers: Count = 0
    api_scaledown_s: Seconds = 300
    ui: bool = True
    ui_gpu: Gpu = "L40S"
    ui_idle_s: Seconds = 900
    webhook: bool = False

    bucket_secret: ObjectName = "b2-credentials"  # noqa: S105  (a name)
    models_mount_secret: ObjectName = "b2-credentials"  # noqa: S105  (a name)
    """For the mount of a models bucket that has a key of its own."""
    slack_secret: ObjectName | None = None
    hf_secret: ObjectName | None = None
    webhook_secret: ObjectName = "dropbatch-webhook"  # noqa: S105  (a name)
    notices_secret: ObjectName = "dropbatch-notices"  # noqa: S105  (a name)
    """What notices to `webhook_url` are signed with; another one than Backblaze signs with, as their
    receiver knows it."""
    mount_bucket: bool = False
    """Mount the buckets as folders in the interactive ComfyUI."""
    volume: ObjectName = "comfy-models"
    training_volume: ObjectName = "training-data"
    user_volume: ObjectName = "comfy-user"
    models_limit_gb: float = Field(default=500, gt=0)
    """The Volume's models that were not used for longest go beyond this."""

    @field_validator(*_WITHOUT)
    @classmethod
    def _check_limit(cls, value: int, info: ValidationInfo) -> int:
        if value < 1:
            mend = _WITHOUT[str(info.field_name)]
            raise ValueError(f"Modal takes {value} for no limit at all; at least 1. {mend}")
        return value

    @field_validator("api_min_containers")
    @classmethod
    def _check_warm(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("api_containers", value)
        if value > most:
            raise ValueError(f"{value} can't be kept warm of at most {most}. Raise api_containers")
        return value

    @model_validator(mode="after")
    def _check_gpus(self) -> ModalSettings:
        for name in (*self.render_gpus, *self.train_gpus, *self.api_gpus, self.ui_gpu):
            try:
                parse(name)
            except ConfigError as error:
                raise ValueError(f"{error.what}. {error.mend}") from None
        return self

    @property
    def leases_name(self) -> str:
        return f"{self.app_name}-leases"

    @property
    def notes_name(self) -> str:
        """The Dict of what may be forgotten: stop requests, webhook events, API jobs."""
        return f"{self.app_name}-notes"


@dataclass(frozen=True)
class Deployment:
    """All that a deploy was told."""

    settings: Settings
    modal: ModalSettings

    def baked(self) -> str:
        """As JSON, for the containers' environment; holds no secret."""
        return json.dumps(
            self.settings.model_dump(mode="json", exclude_defaults=True, exclude=set(_LOCAL)), sort_keys=True
        )


def modal_settings(settings: Settings) -> ModalSettings:
    """The table `[modal]`.

    Raises:
        ConfigError: a key in it is wrong, with the nearest known name.
    """
    try:
        return ModalSettings.model_validate(settings.modal)
    except ValidationError as error:
        first = find_problems(error, settings.modal, ModalSettings)[0]
        raise ConfigError(first.what, where=f"[modal] {first.path}", mend=first.mend) from None


@cache
def deployment() -> Deployment:
    """This process's deployment: in a container what was baked, else what the deploy would bake.

    Raises:
        ConfigError: as `deployable`.
    """
    from processor.config import load

    baked = os.environ.get(DEPLOYED)
    return deployable(_from_baked(baked) if baked else load())


def deployable(settings: Settings) -> Deployment:
    """These settings, if they can be deployed.

    Raises:
        ConfigError: the table `[modal]` is wrong, there is no bucket, Modal could not reach it, or
            notices could not be sent from there.
    """
    buckets = {"bucket": settings.store_url}
    buckets |= {
        name: url
        for name in ("models_bucket", "datasets_bucket")
        if (url := getattr(settings, name)) is not None
    }
    for name, url in buckets.items():
        if not url.startswith(("b2:", "s3:")):
            raise ConfigError(
                "Modal can't reach a folder of this machine",
                where=name,
                mend="Name a bucket: b2://bucket/prefix, or s3://bucket/prefix with endpoint_url",
            )
    deployed = Deployment(settings, modal_settings(settings))
    _check_notices(deployed)
    return deployed


def _check_notices(deployed: Deployment) -> None:
    """Refuse what would keep each container from telling anybody, with stand-ins for its secrets."""
    from processor.assembly import open_notices

    settings, ours = deployed.settings, deployed.modal
    if settings.slack_channel and not ours.slack_secret:
        raise ConfigError(
            "notices to Slack need a bot's token, and no Modal Secret holds one",
            where="slack_channel",
            mend="Name one under [modal] as slack_secret, then `dropbatch secrets --create`",
        )
    open_notices(settings, {"SLACK_BOT_TOKEN": "a token", "DROPBATCH_WEBHOOK_SECRET": "0" * 32})


def _from_baked(baked: str) -> Settings:
    from processor.config import load_without_file

    given: dict[str, Any] = json.loads(baked)
    return load_without_file(**given)


def in_container(deployed: Deployment) -> Deployment:
    """The settings as a container uses them: its own folders, its own ComfyUI."""
    given = deployed.settings
    changes: dict[str, Any] = {
        "work_dir": paths.scratch(),
        "models_dir": paths.here(paths.MODELS),
        "log_format": "json",
    }
    if given.lease_backend != "store":
        # B2 has no put-if-absent, and a folder here would be gone with the container.
        changes["lease_backend"] = "modal"
    if deployed.modal.engine == "comfyui":
        # A container's own environment may say otherwise, as on a machine without the images.
        if given.comfyui_dir is None and given.comfyui_url is None:
            changes["comfyui_dir"] = paths.here(paths.COMFYUI)
            # It runs only where a GPU was asked for (`capture` says otherwise itself).
            changes["comfyui_cpu"] = False
        if given.ai_toolkit_dir is None:
            changes["ai_toolkit_dir"] = paths.here(paths.AI_TOOLKIT)
    return replace(deployed, settings=given.model_copy(update=changes))
