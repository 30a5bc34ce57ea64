"""Pages are functions of manifests and no part of the protocol: here they are written, but say nothing.

They would be a fifth of what a small schedule costs. Their own tests look at what they say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from processor import effects, nightly, publishing

_RENDERERS = ((effects, "render_gallery"), (nightly, "render_night"), (publishing, "render_training"))


@contextmanager
def blank_pages() -> Iterator[None]:
    """While it is open, every page is one line."""
    with ExitStack() as stack:
        for module, name in _RENDERERS:
            stack.enter_context(patch.object(module, name, lambda _: "<!doctype html>"))
        yield
