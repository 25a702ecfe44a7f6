"""``hardpix data stitch``: put label patches back together."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "stitch",
        help="put predicted label patches back together to full-size label images",
        description="Put label patches, whose names end in _TOP_BOTTOM_LEFT_RIGHT, back together: OUT/FRAME.png. "
        "Where patches overlap, a pixel takes the label of the patch in which it lies deepest.",
    )
    parser.add_argument("patches", type=Path, metavar="PATCHES", help="folder of label PNGs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the result")
    parser.add_argument(
        "--sizes",
        type=Path,
        metavar="FILE",
        help="the sizes.csv that prepare wrote beside the patches: takes the padding of small frames off and "
        "sees patches missing at the right and lower edge",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        default=384,
        metavar="N",
        help="pixels that neighbouring patches share (default: 384)",
    )


def run(given: argparse.Namespace) -> int:
    from hardpix.data.stitch import find_patches, read_sizes, stitch_files
    from hardpix.run.predict import check_folder

    check_folder(given.out)
    sizes = None if given.sizes is None else read_sizes(given.sizes)
    faults = stitch_files(find_patches(given.patches), given.out, overlap=given.overlap, sizes=sizes)
    print(f"full-size labels are in {given.out}")
    for fault in faults:
        print(f"hardpix: {fault}", file=sys.stderr)
    return 1 if faults else 0
