"""`python -m tests.simulation`: play schedules, crash everywhere, disable every guard; print figures.

SEED=n N=1 plays one schedule of every scenario's turn again; `--trace` prints its calls.
"""

from __future__ import annotations

import argparse
import os
import sys

from tests.simulation import ledger
from tests.simulation.invariants import run
from tests.simulation.report import Figures, everything, first_lines, silence
from tests.simulation.scenarios import SCENARIOS


def main() -> int:
    """Exit code 0 if nothing was violated and every disabled guard was noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("-n", type=int, default=int(os.environ.get("N", "20000")), help="schedules")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "0")), help="the first seed")
    parser.add_argument("--pairs-every", type=int, default=10, help="of crash points' pairs, one in so many")
    parser.add_argument("--schedules-only", action="store_true", help="no crash points, no disabled guards")
    parser.add_argument("--write", action="store_true", help="add the figures to docs/reliability.md")
    parser.add_argument("--trace", choices=list(SCENARIOS), help="play one seed of this scenario, print it")
    options = parser.parse_args()
    silence()
    if options.trace:
        return _trace(options.trace, options.seed)
    figures = Figures(options.seed)
    for figures in everything(
        options.n, options.seed, pairs_every=options.pairs_every, schedules_only=options.schedules_only
    ):
        if sys.stderr.isatty():
            done, wrong = figures.schedules.total(), len(figures.violations)
            sys.stderr.write(f"\r{done:,} schedules, {wrong} violations")
    sys.stdout.write(ledger.as_markdown(ledger.of(figures)))
    violations = figures.violations + [each for crash in figures.crashes for each in crash.violations]
    for line in first_lines(violations, 20):
        sys.stdout.write(f"VIOLATION {line}\n")
    if options.write:
        ledger.record(figures)
    return 0 if figures.all_well else 1


def _trace(name: str, seed: int) -> int:
    schedule = SCENARIOS[name](seed, None)
    violations = run(schedule)
    for at_s, who, operation, key, fault in schedule.world.trace:
        sys.stdout.write(f"{at_s:10.2f} {who:12} {operation:7} {key} {fault}\n")
    sys.stdout.write("".join(f"VIOLATION {each}\n" for each in violations))
    return 1 if violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
