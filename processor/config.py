"""The settings: every default of the product, in one place, with its description.

Precedence, first that says something: command-line flags, `DROPBATCH_*` environment
variables, the engines' own variables (`COMFYUI_URL`, `COMFYUI_DIR`, `COMFYUI_PYTHON`,
`AI_TOOLKIT_DIR`, `AI_TOOLKIT_PYTHON`),
`dropbatch.toml` (in the current directory, or `--config`), the defaults below.
Secrets come from the environment alone, see `credentials`.

`docs/settings.md` is generated from this module by `dropbatch schema --settings`.
pydantic-settings costs a quarter of a second to import: import this module late.
"""

from __future__ import annotations

import os
import pkgutil
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from processor.errors import ConfigError
from processor.policy import Policy
from processor.problems import find_problems, nearest
from processor.setting_values import BucketUrl, HttpUrl, LeaseBackend, Names, TimeOfDay, Zone

CONFIG_FILE = "dropbatch.toml"
ENV_PREFIX = "DROPBATCH_"

KEY_VARIABLES = (
    ("DROPBATCH_KEY_ID", "DROPBATCH_KEY"),
    ("B2_APPLICATION_KEY_ID", "B2_APPLICATION_KEY"),
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
)
"""Where the bucket's key is looked for; the first complete pair is used."""

OTHER_VARIABLES = frozenset(
    {
        "DROPBATCH_DEBUG",
        "DROPBATCH_WEBHOOK_SECRET",
        *(name for pair in KEY_VARIABLES for name in pair if name.startswith(ENV_PREFIX)),
    }
    | {f"DROPBATCH_{bucket}_{part}" for bucket in ("MODELS", "DATASETS") for part in ("KEY_ID", "KEY")}
)
"""`DROPBATCH_*` variables that are no settings."""

_SECRET_NAME = re.compile(r"(^|_)(key|key_id|secret|token|password)($|_)", re.IGNORECASE)

KIB = 1024
MIB = 1024 * KIB

_POLICY = Policy()
"""The machine's own defaults: what a setting shares with it is written there alone."""


class Settings(BaseSettings):
    """All that can be configured, without secrets. Immutable; made by `load`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        validate_default=False,
        allow_inf_nan=False,
    )

    # --- bucket
    bucket: BucketUrl | None = Field(
        default=None,
        description="`b2://bucket/prefix`, `s3://bucket/prefix`, `file:///path` or a folder's path.",
    )
    endpoint_url: str | None = Field(
        default=None, description="S3 endpoint; found from `region` for `b2://`, AWS's own for `s3://`."
    )
    region: str | None = Field(default=None, description="The bucket's region, e.g. `us-west-004`.")
    models_bucket: BucketUrl | None = Field(
        default=None, description="Where `comfy_models/` and `models/` lie, if in a bucket of their own."
    )
    datasets_bucket: BucketUrl | None = Field(
        default=None, description="Where `datasets/` lies, if in a bucket of its own."
    )

    # --- ticks and leases
    tick_s: float = Field(default=60, gt=0, description="Seconds between two looks at the inbox.")
    settle_s: float = Field(
        default=_POLICY.settle_s,
        ge=0,
        description="A dataset folder without `_READY` is complete once it has not changed for this long.",
    )
    dataset_deadline_s: float = Field(
        default=_POLICY.dataset_deadline_s,
        gt=0,
        description="A dataset folder that is still not complete after this long is given up.",
    )
    lease_backend: LeaseBackend = Field(
        default="auto",
        description="Who keeps the leases. `auto`: the folder itself for a folder-bucket, the store where it "
        "proves put-if-absent, else a folder of this machine, which then works the bucket alone; a "
        "deployment keeps them in Modal's Dict, unless it says `store`.",
    )
    lease_s: float = Field(
        default=_POLICY.lease_s, gt=0, description="How long a job stays with a runner that went silent."
    )
    renew_s: float = Field(default=_POLICY.renew_s, gt=0, description="How often a runner renews its leases.")
    founding_grace_s: float = Field(
        default=20,
        ge=0,
        description="Pause after a bucket without put-if-absent is worked for the very first time.",
    )

    # --- jobs
    concurrency: int = Field(default=4, ge=1, le=1000, description="Jobs that one runner works on at a time.")
    max_attempts: int = Field(
        default=_POLICY.max_attempts, ge=1, le=10, description="Attempts before a job is given up as `dead`."
    )
    max_tasks: int = Field(default=_POLICY.max_tasks, ge=1, description="Tasks a job may expand to.")
    render_timeout_s: float = Field(
        default=_POLICY.task_timeout_s["render"], gt=0, description="For one render task."
    )
    train_timeout_s: float = Field(
        default=_POLICY.task_timeout_s["train"], gt=0, le=24 * 3600, description="For one training run."
    )
    job_file_limit_bytes: int = Field(
        default=_POLICY.max_job_bytes, ge=KIB, description="Larger job files are refused."
    )
    input_limit_bytes: int = Field(default=512 * MIB, ge=KIB, description="Larger input files are refused.")
    allow_nodes: Names = Field(
        default=[], description="Node classes that are refused as unsafe by default, and allowed here."
    )
    deny_nodes: Names = Field(
        default=[], description="Further node classes that no graph may use; `*` matches any text."
    )

    # --- night and money
    zone: Zone = Field(default="UTC", description="Time zone of the nightly window and of day limits.")
    night_start: TimeOfDay = Field(default=time(1), description="When held nightly jobs begin to run.")
    night_end: TimeOfDay = Field(default=time(7), description="When no further nightly job is begun.")
    max_job_cost_usd: float = Field(
        default=_POLICY.max_job_cost_usd, ge=0, description="A job stops fanning out at this cost."
    )
    max_day_cost_usd: float = Field(
        default=_POLICY.max_day_cost_usd, ge=0, description="No further task is begun on a day at this cost."
    )

    # --- notices
    slack_channel: str | None = Field(
        default=None,
        description="Where finished jobs are told, e.g. `C0123456789`; also `SLACK_ERROR_CHANNEL`. The bot's "
        "token is `SLACK_BOT_TOKEN` in the environment.",
    )
    webhook_url: str | None = Field(
        default=None,
        description="Where finished jobs are posted to, signed (Standard Webhooks) with the environment's "
        "`DROPBATCH_WEBHOOK_SECRET`.",
    )
    notify_on: Names = Field(
        default=["done", "partial", "failed", "invalid", "dead", "night"],
        description="Outcomes that are told, and `night` for the morning report.",
    )
    page_url: str | None = Field(
        default=None,
        description="Where `comfy_outputs/` can be seen in a browser, for links in notices.",
    )

    # --- engines on this machine
    machine_gpu: str | None = Field(
        default=None, description="What this machine's GPU is called, in manifests and estimates."
    )
    machine_usd_per_h: float = Field(
        default=0, ge=0, description="What an hour of its engine costs: rent, or electricity."
    )
    comfyui_url: HttpUrl | None = Field(
        default=None,
        description="A running ComfyUI to use, e.g. `http://127.0.0.1:8188`; while it is off, jobs wait. "
        "Also `COMFYUI_URL`.",
    )
    comfyui_dir: Path | None = Field(
        default=None, description="A ComfyUI checkout to start and supervise. Also `COMFYUI_DIR`."
    )
    comfyui_python: Path | None = Field(
        default=None,
        description="Its Python; that folder's own environment otherwise. Also `COMFYUI_PYTHON`.",
    )
    ai_toolkit_dir: Path | None = Field(
        default=None,
        description="An ai-toolkit checkout that trains; without one trainings are rehearsed. "
        "Also `AI_TOOLKIT_DIR`.",
    )
    ai_toolkit_python: Path | None = Field(
        default=None,
        description="Its Python; that folder's own environment otherwise. Also `AI_TOOLKIT_PYTHON`.",
    )
    comfyui_args: Names = Field(
        default=[], description="Further flags for a ComfyUI that is started here, e.g. `--highvram`."
    )
    comfyui_cpu: bool | None = Field(
        default=None,
        description="Whether that ComfyUI renders on the CPU; where no CUDA device is seen, if not set.",
    )
    comfyui_start_s: float = Field(
        default=180,
        gt=0,
        description="How long its start may take; many custom nodes take longer.",
    )
    url_inputs: bool = Field(
        default=True, description="Whether jobs may name http(s) URLs as inputs; private addresses never."
    )
    models_dir: Path | None = Field(
        default=None,
        description="Local copy of `comfy_models/`, filled on demand; `work_dir/models` otherwise.",
    )
    work_dir: Path = Field(
        default=Path("~/.cache/dropbatch"), description="Scratch space for inputs, outputs and engine logs."
    )
    handlers: dict[str, str] = Field(
        default={
            "render": "handlers.render:RenderHandler",
            "train": "handlers.train:TrainHandler",
            "ingest": "handlers.ingest:IngestHandler",
        },
        description="Job kind → what runs it, as `module:name`.",
    )

    # --- modal
    modal: dict[str, Any] = Field(
        default={}, description="How it is deployed on Modal: the table `[modal]`, see docs/modal.md."
    )

    # --- logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is written."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="`auto`: for people on a terminal, JSON lines otherwise."
    )

    config_file: Path | None = Field(default=None, exclude=True, json_schema_extra={"internal": True})
    """The file that the rest was read from; set by `load`."""

    @model_validator(mode="after")
    def _renews_in_time(self) -> Settings:
        if self.renew_s * 2 > self.lease_s:
            raise ValueError(
                f"renew_s ({self.renew_s:g}) must leave time for a second try: "
                f"at most half of lease_s ({self.lease_s:g})"
            )
        return self

    @property
    def store_url(self) -> str:
        """The bucket.

        Raises:
            ConfigError: none is configured.
        """
        if self.bucket is None:
            raise ConfigError(
                "no bucket is configured",
                mend="Give --bucket, set DROPBATCH_BUCKET, or run `dropbatch init`",
            )
        return self.bucket

    @property
    def models_path(self) -> Path:
        return (self.models_dir or self.work_dir / "models").expanduser()

    @property
    def scratch_path(self) -> Path:
        return self.work_dir.expanduser()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  (passed by name)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The precedence: flags, environment, the engines' own variables, the file."""
        flags = init_settings()
        return (
            init_settings,
            env_settings,
            InitSettingsSource(settings_cls, _engine_variables(os.environ)),
            InitSettingsSource(settings_cls, _file_values(flags.get("config_file"))),
        )


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key for a bucket. Its secret never shows in a repr."""

    key_id: str
    key: str = field(repr=False)
    source: str
    """The environment variable that held the key id."""


def credentials(
    environ: Mapping[str, str], *, bucket: Literal["main", "models", "datasets"] = "main"
) -> Credentials | None:
    """The first complete pair of `KEY_VARIABLES` in the environment, None if there is none.

    A models or datasets bucket may have its own pair, `DROPBATCH_MODELS_KEY_ID` and
    `DROPBATCH_MODELS_KEY` (or `…DATASETS…`), which goes first.
    """
    own = f"{ENV_PREFIX}{bucket.upper()}_"
    pairs = KEY_VARIABLES if bucket == "main" else ((own + "KEY_ID", own + "KEY"), *KEY_VARIABLES)
    for id_name, key_name in pairs:
        if environ.get(id_name) and environ.get(key_name):
            return Credentials(environ[id_name], environ[key_name], id_name)
    return None


def load(config: Path | None = None, **flags: object) -> Settings:
    """Read the settings from flags, environment and file.

    Args:
        config: the file to read; else `DROPBATCH_CONFIG_FILE`, else `dropbatch.toml` here, if any.
        flags: by field name; those that are None say nothing.
    Raises:
        ConfigError: naming the flag, variable or key, and the nearest known name.
    """
    return _settings(_config_file(config), flags)


def load_without_file(**flags: object) -> Settings:
    """As `load`, but from flags and environment only."""
    return _settings(None, flags)


def _settings(path: Path | None, flags: Mapping[str, object]) -> Settings:
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        if path is not None:
            _refuse_secrets(path)
        return Settings(config_file=path, **given)  # type: ignore[arg-type]  # checked by pydantic
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError("not UTF-8 text", where=str(path), mend="Save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror}", where=str(path)) from None
    except SettingsError as error:
        raise _not_json(error) from None
    except ValidationError as error:
        raise _as_config_error(error, path, given) from None


def resolve_handlers(settings: Settings) -> dict[str, Any]:
    """Import what `handlers` names, by job kind. The processor knows handlers only through this.

    Raises:
        ConfigError: a name can't be imported.
    """
    found = {}
    for kind, dotted in settings.handlers.items():
        try:
            found[kind] = pkgutil.resolve_name(dotted)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"{dotted!r} can't be imported: {error}",
                where=f"handlers.{kind}",
                mend="Write it as module:name, of something installed here",
            ) from error
    return found


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """`DROPBATCH_*` variables that nothing reads, each with the nearest name that is read."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    return {
        name: nearest(name, known)
        for name in sorted(environ)
        if name.startswith(ENV_PREFIX) and name not in known
    }


def _config_file(config: Path | None) -> Path | None:
    if config is None and (named := os.environ.get("DROPBATCH_CONFIG_FILE")):
        config = Path(named)
    if config is not None:
        if not config.is_file():
            raise ConfigError("no such file", where=str(config), mend="Run `dropbatch init` to make one")
        return config
    here = Path(CONFIG_FILE)
    return here if here.is_file() else None


def _file_values(path: Path | None) -> dict[str, Any]:
    # Some editors begin UTF-8 with a byte order mark.
    return tomllib.loads(path.read_text("utf-8-sig")) if path else {}


_ENGINE_VARIABLES = ("comfyui_url", "comfyui_dir", "comfyui_python", "ai_toolkit_dir", "ai_toolkit_python")
"""Settings that are also read from a variable of their own name."""


def _engine_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    return {name: value for name in _ENGINE_VARIABLES if (value := environ.get(name.upper()))}


def _refuse_secrets(path: Path) -> None:
    if secret := next((key for key in _file_values(path) if _SECRET_NAME.search(key)), None):
        raise ConfigError(
            f"secrets don't belong in this file: {secret!r}",
            where=str(path),
            mend=f"Take it out, and set {KEY_VARIABLES[0][0]} and {KEY_VARIABLES[0][1]} in the environment",
        )


def _not_json(error: SettingsError) -> ConfigError:
    """Say which variable holds a table that can't be read as one."""
    name = re.search(r'field "(\w+)"', str(error))
    if name is None:
        return ConfigError(str(error), where="environment")
    return ConfigError(
        "not valid JSON",
        where=ENV_PREFIX + name[1].upper(),
        mend='A table in the environment is written as JSON, like {"render": "module:name"}',
    )


def _as_config_error(error: ValidationError, path: Path | None, flags: Mapping[str, object]) -> ConfigError:
    """Say which flag, variable or key of the file is wrong: the first problem, and how many more."""
    document = {**dict.fromkeys(Settings.model_fields), **_file_values(path), **flags}
    problems = find_problems(error, document, Settings)
    first = problems[0]
    name = first.path.partition(".")[0]
    variable = ENV_PREFIX + name.upper()
    where: str | None
    if name in flags:
        where = "--" + name.replace("_", "-")
    elif os.environ.get(variable):
        where = variable
    elif os.environ.get(name.upper()) and name in _ENGINE_VARIABLES:
        where = name.upper()
    else:
        where = ": ".join(part for part in (str(path or ""), first.path) if part) or None
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ConfigError(first.what + more, where=where, mend=first.mend)
