"""The processes of a soak: two runners, the engines that they start, and their ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.soak.world import World
from tests.support.b2like import Request

_STOP_S = 60


class Fleet:
    """Two `dropbatch run` on one bucket, started again whenever they were killed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._starts = 0

    @property
    def logs(self) -> list[Path]:
        """What each process that ever ran has written."""
        return sorted(self._world.root.glob("runner-*.log"))

    def ensure(self) -> None:
        """Start the runners that were killed.

        Raises:
            RuntimeError: one ended without having been killed, with what it said last.
        """
        for name in self._world.key_ids:
            code = self._running[name].poll() if name in self._running else -signal.SIGKILL
            if code == -signal.SIGKILL:
                self._running[name] = self._start(name)
            elif code is not None:
                said = self.logs_of(name)[-1].read_text("utf-8", "replace")[-2000:]
                raise RuntimeError(f"runner {name} ended by itself with exit code {code}: {said}")

    def logs_of(self, name: str) -> list[Path]:
        """A runner's, the newest last."""
        return sorted(self._world.root.glob(f"runner-{name}-*.log"))

    def killer(self, draw: random.Random) -> Callable[[Request], str]:
        """Draw whom a request's moment kills: mostly whoever sent it, else another, all, or an engine."""
        wanted = draw.choices(("sender", "other", "both", "engine"), (5, 2, 1, 3))[0]
        chosen = draw.choice(list(self._world.key_ids))

        def kill(request: Request) -> str:
            if wanted == "engine" and (engines := self.engines()):
                for pid in engines[:1]:
                    _kill(pid)
                return "engine"
            names = list(self._running) if wanted == "both" else [self._whose(request, wanted, chosen)]
            for name in names:
                _kill(self._running[name].pid)
            for name in names:
                self._running[name].wait(_STOP_S)
            return "both runners" if wanted == "both" else "runner"

        return kill

    def engines(self) -> list[int]:
        """Process ids of engines, whoever started them: each names a folder of ours."""
        root = os.fsencode(str(self._world.root))
        return [
            pid
            for pid, command in _processes()
            if root in command and any(word in command for word in (b"handlers.engine", b"main.py"))
        ]

    def stop(self) -> None:
        """End the runners as Ctrl-C does.

        Raises:
            subprocess.TimeoutExpired: one does not end.
        """
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            process.wait(_STOP_S)
        self._running.clear()

    def kill(self) -> None:
        """End everything at once, engines too."""
        for process in self._running.values():
            process.kill()
            process.wait(_STOP_S)
        for pid in self.engines():
            _kill(pid)

    def left_engines(self, patience_s: float) -> list[int]:
        """Engines that are still there after their runners' end and some patience."""
        deadline = time.monotonic() + patience_s
        while (left := self.engines()) and time.monotonic() < deadline:
            time.sleep(0.1)  # nothing tells of the end of a process that is not our child
        return left

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        self._starts += 1
        with (self._world.root / f"runner-{name}-{self._starts:04d}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "processor.cli", "run", "--plain"],
                env=self._world.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _whose(self, request: Request, wanted: str, chosen: str) -> str:
        signed = request.headers.get("Authorization", "")
        senders = [name for name, key_id in self._world.key_ids.items() if f"={key_id}/" in signed]
        if len(senders) != 1:
            return chosen  # they share a key here
        return senders[0] if wanted != "other" else next(n for n in self._world.key_ids if n != senders[0])


@contextmanager
def fleet_of(world: World) -> Iterator[Fleet]:
    """A fleet whose processes are all gone afterwards."""
    fleet = Fleet(world)
    try:
        yield fleet
    finally:
        fleet.kill()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _processes() -> Iterator[tuple[int, bytes]]:
    """Process id and command line of everything that runs; zombies have none."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes()
