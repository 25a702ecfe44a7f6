"""``make faults``: every enumerated point of every method, and random ones, with their number; status 1 on a violation.

python -m tests.faults [--random 500] [--methods baseline hardness ...] [--seed 0] [--minutes N]
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}

from tests.faults.cases import CASES, Case


def main() -> int:
    parser = argparse.ArgumentParser("make faults", description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--random", type=int, default=500, help="random points over all methods")
    parser.add_argument("--every", type=int, default=1, help="of the enumerated points every n-th")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop beginning new points then")
    given = parser.parse_args()
    begin = time.monotonic()
    total = bad = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("HARDPIX_CACHE", f"{folder}/cache")
        cases = {name: Case(name, Path(folder) / name) for name in given.methods}
        points = [(name, *point) for name in cases for point in cases[name].points()[:: given.every]]
        dice = random.Random(given.seed)
        points += [(name, *cases[name].draw(dice)) for name in dice.choices(list(cases), k=given.random)]
        told = {name: [0, 0] for name in cases}
        for name, kind, number in points:
            if time.monotonic() - begin > 60 * given.minutes:
                break
            violation = cases[name].violation(kind, number)
            told[name][0] += 1
            total += 1
            if violation:
                bad += 1
                told[name][1] += 1
                print(f"{name}, {kind} {number}: {violation}", flush=True)
    for name, (tried, wrong) in told.items():
        print(f"{name:<18} {tried:5} points, {wrong} violations")
    print(
        f"{total} of {len(points)} points, {bad} violations, seed {given.seed}, {time.monotonic() - begin:.0f} s"
    )
    return 1 if bad else 0


sys.exit(main())
