"""``hardpix data prepare``: turn the published files of a data set into what its reader reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "prepare",
        help="unpack and convert what you downloaded of a data set",
        description="Turn the published files of a data set into what its reader reads. Nothing is downloaded: "
        "without --from it says where the files come from.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the data set; --list shows them")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="options of the data set's recipe")
    parser.add_argument("--list", action="store_true", help="the data sets there are recipes for")
    parser.add_argument(
        "--from",
        dest="inputs",
        nargs="+",
        action="extend",
        type=Path,
        metavar="PATH",
        help="archives, single files, or a folder that holds them or what was unpacked from them",
    )
    parser.add_argument("--to", dest="out", type=Path, metavar="DIR", help="a new folder for the result")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")


def run(given: argparse.Namespace) -> int:
    raise NotImplementedError
