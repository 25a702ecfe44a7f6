"""``make faults``: every enumerated point of every method, and random ones, with their number; status 1 on a violation.

At an enumerated point the run is killed by SIGKILL, which leaves the files as they are there: one run of each method is
watched, its directory kept at every point, and the same command given in every state that differs (``states``). At a
random point the process really dies, of SIGKILL, or it gets SIGTERM, or finds the disk full at one write.

python -m tests.faults [--random 500] [--methods baseline hardness ...] [--seed 0] [--minutes N]
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.cases import CASES, Case

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}


def main() -> int:
    parser = argparse.ArgumentParser("make faults", description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--random", type=int, default=500, help="random points over all methods")
    parser.add_argument("--every", type=int, default=1, help="of the enumerated points every n-th state")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop beginning new points then")
    given = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("HARDPIX_CACHE", f"{folder}/cache")
        cases, told = {}, {name: [0, 0, 0, 0] for name in given.methods}
        in_time = lambda: time.monotonic() - begin < 60 * given.minutes  # noqa: E731

        def tell(name, points, at, violation):
            told[name][at] += points
            if violation:
                told[name][3] += 1
                print(f"{name}, {violation}", flush=True)

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            for name in given.methods:
                try:
                    cases[name] = Case(name, Path(folder) / name)
                except AssertionError as error:
                    tell(name, 0, 0, f"uninterrupted: {error}")
                    continue
                for points, state in cases[name].states[:: given.every]:
                    if in_time():
                        wrong = cases[name].resumed(state)
                        told[name][1] += 1
                        tell(name, len(points), 0, wrong and f"{points}: {wrong}")
                print(f"{name}: {told[name][0]} points, {told[name][3]} violations", flush=True)
            dice = random.Random(given.seed)
            for name in dice.choices(list(cases), k=given.random if cases else 0):
                kind, number = cases[name].draw(dice)
                if in_time():
                    wrong = cases[name].violation(kind, number)
                    tell(name, 1, 2, wrong and f"{kind} {number}: {wrong}")
        except KeyboardInterrupt:
            print("stopped; until then:")
    print(f"{'':<18} {'points':>6} {'states':>6} {'random':>6} {'violations':>10}")
    for name, numbers in (
        told | {"all": [sum(column) for column in zip(*told.values(), strict=True)]}
    ).items():
        print("{:<18} {:6} {:6} {:6} {:10}".format(name, *numbers))
    print(f"seed {given.seed}, {time.monotonic() - begin:.0f} s")
    return 1 if any(numbers[3] for numbers in told.values()) else 0


sys.exit(main())
