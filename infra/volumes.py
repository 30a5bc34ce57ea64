"""The app's Volumes, made before its first deploy."""

from __future__ import annotations

import modal

from infra.settings import Deployment


def make_missing(deployed: Deployment) -> None:
    """Make the Volumes that are not there, in version 2, which holds any number of files.

    One that stands, the guide's of version 1 for example, is used as it is: hence the app itself names no
    version, for which Modal would refuse it. Cost: 1 request to Modal for each, and 1 to make it.
    """
    options = deployed.modal
    for name in (options.volume, options.training_volume, *([options.user_volume] if options.ui else [])):
        try:
            modal.Volume.from_name(name).hydrate()
        except modal.exception.NotFoundError:
            modal.Volume.objects.create(name, version=2, allow_existing=True)
