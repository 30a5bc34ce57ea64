"""The Modal Secrets that the app needs: by name and keys; their values never come this way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import modal

from infra.settings import Deployment
from processor.config import credentials
from processor.errors import ConfigError


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


def needed(deployed: Deployment) -> list[Needed]:
    """The secrets of this deployment, those included that are not in use."""
    options = deployed.modal
    own = tuple(
        f"DROPBATCH_{bucket}_{part}" for bucket in ("MODELS", "DATASETS") for part in ("KEY_ID", "KEY")
    )
    found = [
        Needed(
            options.bucket_secret,
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
            own,
            what="the bucket's key",
        ),
        Needed(
            options.slack_secret or "slack-credentials",
            ("SLACK_BOT_TOKEN",),
            ("SLACK_ERROR_CHANNEL",),
            what="messages about failures",
            setting=None if options.slack_secret else _line("slack_secret", "slack-credentials"),
        ),
        Needed(
            options.hf_secret or "hf-credentials",
            ("HF_TOKEN",),
            what="gated models of Hugging Face",
            setting=None if options.hf_secret else _line("hf_secret", "hf-credentials"),
        ),
    ]
    if options.webhook:
        found.append(
            Needed(options.webhook_secret, ("DROPBATCH_WEBHOOK_SECRET",), what="Backblaze's signatures")
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


def missing(deployed: Deployment) -> Iterator[str]:
    """What a deploy would be refused for."""
    for secret in needed(deployed):
        if secret.setting is None and (found := state(secret)) != "ok":
            yield f"{secret.name}: {found}"


def create(secret: Needed, environ: Mapping[str, str]) -> list[str]:
    """Make a secret from the environment; which keys it got.

    Raises:
        ConfigError: a required value is not in the environment.
    """
    values = _values(secret, environ)
    if lacking := [key for key in secret.keys if not values.get(key)]:
        raise ConfigError(f"not in the environment: {', '.join(lacking)}", where=secret.name)
    modal.Secret.objects.create(secret.name, values)
    return sorted(values)


def _line(setting: str, name: str) -> str:
    """As it stands in `dropbatch.toml`."""
    return f'{setting} = "{name}"'


def _values(secret: Needed, environ: Mapping[str, str]) -> dict[str, str]:
    if "AWS_ACCESS_KEY_ID" not in secret.keys:
        return {key: environ[key] for key in (*secret.keys, *secret.optional) if environ.get(key)}
    # Under the names that bucket mounts want, whichever pair the commands here use.
    main = credentials(environ)
    values = {key: environ[key] for key in secret.optional if environ.get(key)}
    if main is not None:
        values |= {"AWS_ACCESS_KEY_ID": main.key_id, "AWS_SECRET_ACCESS_KEY": main.key}
    return values
