"""Files that save nodes wrote where they chose, outside the folder of their execution.

Only a node with a `filename_prefix` can be told where to write. What another wrote is reported again
for each later prompt that ComfyUI answers from its cache: for the same graph, and for a second save
node on a branch that the seed does not touch. So such files stay with the engine, whose private
folder goes with it, and each execution gets a copy.
"""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

_KEPT_BYTES: Final = 4 * 1024**3


class KeptOutputs:
    """Hands out copies of such files, and deletes those not asked for longest once there is much of
    them: a night makes more than a disk holds. ComfyUI's cache forgets in the same order, and what it
    still reports is computed anew (`outputs.ForgottenOutput`). Thread-safe."""

    def __init__(self, kept_bytes: int = _KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._lock = threading.Lock()
        self._sizes_bytes: OrderedDict[Path, int] = OrderedDict()

    def copy(self, path: Path, target: Path) -> bool:
        """Copy a file to `target`; False when it is not there.

        Not a link: a node that always writes under one name would write into what is being uploaded.
        """
        try:
            shutil.copyfile(path, target)
        except FileNotFoundError:
            return False
        self.keep(path)
        return True

    def keep(self, path: Path) -> None:
        """Count a file as asked for, and delete those that are too many now."""
        with self._lock:
            try:
                self._sizes_bytes[path] = path.stat().st_size
            except FileNotFoundError:
                return
            self._sizes_bytes.move_to_end(path)
            total_bytes = sum(self._sizes_bytes.values())
            while total_bytes > self._kept_bytes and len(self._sizes_bytes) > 1:
                oldest, size_bytes = self._sizes_bytes.popitem(last=False)
                oldest.unlink(missing_ok=True)
                total_bytes -= size_bytes
