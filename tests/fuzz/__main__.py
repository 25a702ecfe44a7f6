"""``make fuzz``: broken, odd and hostile files for every reader, with their number; status 1 on a violation.

python -m tests.fuzz [--examples 2000] [--minutes N] [--only NAME ...] [--seed 0]
"""

import argparse
import os
import sys
import time
import warnings

from tests.fuzz.parsers import PARSERS
from tests.fuzz.run import fuzz

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}


BATCH = 200


def main() -> int:
    parser = argparse.ArgumentParser("make fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=2000, help="of each reader (slow ones have a share)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop beginning new inputs then")
    parser.add_argument("--only", nargs="+", choices=PARSERS, default=list(PARSERS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    begin, told = time.monotonic(), dict.fromkeys(given.only, 0)
    bad = {}
    for number in range(-(-given.examples // BATCH)):
        for name in given.only:
            if name in bad or time.monotonic() - begin > 60 * given.minutes:
                continue
            wanted = min(BATCH, given.examples - number * BATCH)
            tried, found = fuzz(name, round(wanted * PARSERS[name].share), 1000 * given.seed + number)
            told[name] += tried
            if found:
                bad[name] = found
                print(f"{name}: {found[0]}\n  input: {found[1]!r:.600}", flush=True)
    for name, tried in told.items():
        print(f"{name:<26} {tried:7} inputs, {int(name in bad)} violations")
    print(
        f"{sum(told.values())} inputs, {len(bad)} violations, seed {given.seed}, {time.monotonic() - begin:.0f} s"
    )
    return 1 if bad else 0


sys.exit(main())
