"""`python -m tests.soak`: so many rounds, and what came of them as JSON. Exit code 1 for a violation."""

from __future__ import annotations

import argparse
import json
import secrets
import sys

from tests.soak import page
from tests.soak.rounds import soak
from tests.soak.world import KINDS, Kind

_SHARES: dict[Kind, int] = {"s3": 2, "b2": 2, "rclone": 1}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="in all; each kind of store has its share")
    parser.add_argument("--seed", type=int, default=None, help="drawn, and printed, if not given")
    parser.add_argument("--store", choices=KINDS, action="append", help="only this one; may be repeated")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/reliability.md")
    options = parser.parse_args(argv)
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    kinds: list[Kind] = options.store or list(KINDS)
    shares = sum(_SHARES[kind] for kind in kinds)
    figures = []
    for number, kind in enumerate(kinds):
        rounds = max(1, options.rounds * _SHARES[kind] // shares)
        _tell(f"{kind}: {rounds} rounds, seed {seed + number}")
        figures.append(soak(kind, rounds=rounds, seed=seed + number, tell=_tell))
    told = [each.as_json() for each in figures]
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    if options.write:
        page.write(told)
    return 1 if any(each.violations for each in figures) else 0


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
