"""The Modal Secrets that the app needs: by name and keys; their values never come this way back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import modal

from infra.settings import Deployment
from processor.buckets import BucketName
from processor.config import credentials
from processor.errors import ConfigError
from processor.webhook import key_of

_BUCKET_KEY: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_HOOK: Final = "DROPBATCH_WEBHOOK_SECRET"
_EVENTS_SECRET_CHARS: Final = 32


@dataclass(frozen=True, slots=True)
class Needed:
    """One secret."""

    name: str
    keys: tuple[str, ...]
    """Required ones; deploys check them."""
    optional: tuple[str, ...] = ()
    """Put in as well, where the environment has them."""
    what: str = ""
    setting: str | None = None
    """The setting that turns its use on, if it is off."""
    bucket: BucketName = "main"
    """Whose key it holds, where it holds a bucket's."""
    fits: Callable[[str], object] | None = None
    """Raises ConfigError for a value of its key that can't be one."""


Unmet = tuple[Needed, str]
"""A secret that a deploy would be refused for, and its state."""


def needed(deployed: Deployment, environ: Mapping[str, str] = os.environ) -> list[Needed]:
    """The secrets of this deployment, those included that are not in use.

    Args:
        environ: a key of their own for other buckets that it has is a container's to have, too.
    """
    options, settings = deployed.modal, deployed.settings
    required: tuple[str, ...] = _BUCKET_KEY
    optional: tuple[str, ...] = ()
    for name, bucket_url in (("MODELS", settings.models_bucket), ("DATASETS", settings.datasets_bucket)):
        own = (f"DROPBATCH_{name}_KEY_ID", f"DROPBATCH_{name}_KEY")
        if bucket_url and all(environ.get(key) for key in own):
            required += own
        else:
            optional += own
    found = [
        Needed(
            options.bucket_secret,
            required,
            optional,
            what="the bucket's key",
        ),
        Needed(
            options.slack_secret or "slack-credentials",
            ("SLACK_BOT_TOKEN",),
            ("SLACK_ERROR_CHANNEL",),
            what="how jobs ended, in Slack",
            setting=None if options.slack_secret else _line("slack_secret", "slack-credentials"),
        ),
        Needed(
            options.hf_secret or "hf-credentials",
            ("HF_TOKEN",),
            what="gated models of Hugging Face",
            setting=None if options.hf_secret else _line("hf_secret", "hf-credentials"),
        ),
    ]
    if options.mount_bucket and options.models_mount_secret != options.bucket_secret:
        bucket: BucketName = "models" if settings.models_bucket else "main"
        found.append(
            Needed(options.models_mount_secret, _BUCKET_KEY, what="the mounted models' key", bucket=bucket)
        )
    if options.webhook:
        found.append(
            Needed(options.webhook_secret, (_HOOK,), what="Backblaze's signatures", fits=_signs_events)
        )
    if settings.webhook_url:
        found.append(
            Needed(options.notices_secret, (_HOOK,), what="our notices' signatures", fits=_signs_notices)
        )
    return found


def state(secret: Needed) -> str:
    """`ok`, `missing`, or what Modal says it lacks. Cost: 1 request to Modal."""
    try:
        modal.Secret.from_name(secret.name, required_keys=list(secret.keys)).hydrate()
    except modal.exception.NotFoundError as error:
        said = str(error)
        return "missing" if "not found" in said else said
    return "ok"


def unmet(deployed: Deployment) -> list[Unmet]:
    """What a deploy would be refused for. Cost: 1 request to Modal for each secret in use."""
    states = [(secret, state(secret)) for secret in needed(deployed) if secret.setting is None]
    return [(secret, found) for secret, found in states if found != "ok"]


def listed(found: Sequence[Unmet]) -> str:
    """Each with its state, on one line."""
    return "; ".join(f"{secret.name}: {said}" for secret, said in found)


def way_out(found: Sequence[Unmet]) -> str:
    """The commands that bring these secrets in order."""
    ways = ["Run `dropbatch secrets --create` to make them"] if any(s == "missing" for _, s in found) else []
    for secret, said in found:
        if said != "missing":
            values = " ".join(f"{key}=…" for key in secret.keys)
            ways.append(
                f"Run `modal secret create --force {secret.name} {values}`: it replaces all that it holds"
            )
    return ". ".join(ways)


def create(secret: Needed, environ: Mapping[str, str]) -> list[str]:
    """Make a secret from the environment; which keys it got.

    Raises:
        ConfigError: a required value is not in the environment, or can't be one.
    """
    values = values_of(secret, environ)
    if lacking := [key for key in secret.keys if not values.get(key)]:
        raise ConfigError(f"not in the environment: {', '.join(lacking)}", where=secret.name)
    if secret.fits is not None:
        secret.fits(values[secret.keys[0]])
    modal.Secret.objects.create(secret.name, values)
    return sorted(values)


def _signs_events(value: str) -> None:
    if len(value) != _EVENTS_SECRET_CHARS or not value.isalnum():
        raise ConfigError(
            f"Backblaze signs with {_EVENTS_SECRET_CHARS} letters and digits",
            where=_HOOK,
            mend="Make one with `openssl rand -hex 16`, and run this again with it",
        )


def _signs_notices(value: str) -> None:
    # Without its mark Backblaze's would do as well, and whoever receives notices could wake us by it.
    if not value.startswith("whsec_"):
        raise ConfigError(
            "a secret for notices begins with whsec_, and is not the one that Backblaze signs with",
            where=_HOOK,
            mend='Make one with `echo "whsec_$(openssl rand -base64 24)"`, and run this again with it',
        )
    key_of(value)


def _line(setting: str, name: str) -> str:
    """As it stands in `dropbatch.toml`."""
    return f'{setting} = "{name}"'


def values_of(secret: Needed, environ: Mapping[str, str]) -> dict[str, str]:
    """What the environment has for a secret."""
    if not set(_BUCKET_KEY) <= set(secret.keys):
        return {key: environ[key] for key in (*secret.keys, *secret.optional) if environ.get(key)}
    # Under the names that bucket mounts want, whichever pair the commands here use.
    held = credentials(environ, bucket=secret.bucket)
    values = {key: environ[key] for key in (*secret.keys, *secret.optional) if environ.get(key)}
    if held is not None:
        values |= dict(zip(_BUCKET_KEY, (held.key_id, held.key), strict=True))
    return values
