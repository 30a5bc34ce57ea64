"""`python -m tests.loopback [options] -- COMMAND …`: run a command against a loopback control plane."""

import argparse
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tests.loopback.server import Loopback


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.loopback", description=__doc__)
    parser.add_argument("--root", type=Path, help="folder for its state and logs (default: a temporary one)")
    parser.add_argument("--secret", action="append", default=[], metavar="NAME:KEY=VALUE")
    parser.add_argument("--cron-every", type=float, metavar="SECONDS", help="fire every schedule this often")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    secrets: dict[str, dict[str, str]] = {}
    for given in args.secret:
        name, _, pair = given.partition(":")
        key, _, value = pair.partition("=")
        secrets.setdefault(name, {})[key] = value
    temporary = tempfile.TemporaryDirectory()
    with temporary, Loopback(args.root or Path(temporary.name) / "modal") as running:
        for name, env in secrets.items():
            running.set_secret(name, env)
        ended = threading.Event()
        clock = threading.Thread(target=_fire, args=(running, args.cron_every, ended))
        clock.start()
        try:
            return subprocess.run(args.command, check=False).returncode
        finally:
            ended.set()
            clock.join()


def _fire(running: Loopback, every_s: float | None, ended: threading.Event) -> None:
    while every_s and not ended.wait(every_s):
        for name, registered in running.registered.items():
            if registered.schedule:
                running.trigger(name)


if __name__ == "__main__":
    sys.exit(main())
