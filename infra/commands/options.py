"""What these commands share: the deployment that the settings describe, and calls to the app."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from processor.cli.options import load_settings
from processor.errors import ConfigError, StoreUnavailable

if TYPE_CHECKING:
    import modal

    from infra.settings import Deployment


def load_deployment(config: Path | None, bucket: str | None, endpoint_url: str | None) -> Deployment:
    """What a deploy with this command line is told.

    Raises:
        ConfigError: the settings are wrong, or can't be deployed.
    """
    from infra.settings import deployable

    return deployable(load_settings(config, bucket, endpoint_url))


def function(deployed: Deployment, name: str) -> modal.Function[..., Any, Any]:
    """A function of the deployed app. Sends nothing yet."""
    import modal

    return modal.Function.from_name(deployed.modal.app_name, name)


@contextmanager
def asking_modal(app: str) -> Iterator[None]:
    """Modal's errors as ours, with what to do.

    Raises:
        ConfigError: no token, no such app or secret.
        StoreUnavailable: Modal does not answer.
    """
    import modal

    try:
        yield
    except modal.exception.AuthError as error:
        raise ConfigError(f"Modal does not know you: {error}", mend="Run `modal setup`") from None
    except modal.exception.NotFoundError as error:
        raise ConfigError(str(error), where=app, mend="Run `dropbatch deploy`") from None
    except (modal.exception.ConnectionError, modal.exception.ServiceError) as error:
        raise StoreUnavailable(f"Modal does not answer: {error}") from None
