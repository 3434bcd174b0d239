"""``make fuzz``: every target, new seeds, until the time is over; failures are listed and give status 1."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.target import Failure, Fuzzer
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run what the command line asks for; the status."""
    parser = argparse.ArgumentParser(prog="make fuzz ARGS='…'", description=__doc__)
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="all, if none is named")
    parser.add_argument("--seconds", type=float, default=60, help="for each target (default: 60)")
    parser.add_argument("--cases", type=int, help="for each target, in place of a time")
    parser.add_argument("--seed", type=int, help="the first seed (default: the time)")
    parser.add_argument("--case", type=int, help="one case of a target and a seed, as a failure names it")
    asked = parser.parse_args()
    seed, failed = int(time.time()) if asked.seed is None else asked.seed, 0
    for name in asked.target or TARGETS:
        with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as folder:
            fuzzer = Fuzzer(TARGETS[name], Path(folder), seed)
            if asked.case is not None:
                fuzzer.run(asked.case)
                continue
            failed += _many(name, fuzzer, asked.seconds, asked.cases)
    return 1 if failed else 0


def _many(name: str, fuzzer: Fuzzer, seconds: float, cases: int | None) -> int:
    """Cases until the time or their number is over; how many failed. Of each kind of failure the first is printed."""
    end, number, kinds = time.monotonic() + seconds, 0, Counter[str]()
    while number < cases if cases is not None else time.monotonic() < end:
        try:
            fuzzer.run(number)
        except Failure as failure:
            kind = str(failure)[:60]
            if not kinds[kind]:
                print(f"{name}: {failure}", flush=True)
            kinds[kind] += 1
        number += 1
    tally = fuzzer.tally
    ends = f"{tally.accepted:,} accepted, {tally.refused:,} refused, {kinds.total():,} failed"
    print(f"{name}: {number:,} cases, {ends}", flush=True)
    return kinds.total()


if __name__ == "__main__":
    sys.exit(main())
