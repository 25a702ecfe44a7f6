"""The recipe of CIFAR-100: one of its archives as it is."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from hardpix.data.cifar100 import BINARY, PYTHON
from hardpix.data.prepare.recipe import Part, Recipe, Work

FILES = {PYTHON: ("train", "test", "meta"), BINARY: ("train.bin", "test.bin", "fine_label_names.txt")}


class CIFAR100Recipe(Recipe):
    """Either release will do; nothing is converted."""

    name: ClassVar[str] = "cifar100"
    title: ClassVar[str] = "CIFAR-100"
    page: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar.html"
    licence: ClassVar[str] = (
        "No terms beside that it be cited (Krizhevsky 2009) are known here; see its page."
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part(
            f"{PYTHON}.tar.gz",
            "the release for Python",
            size=169_001_437,
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            needed=False,
        ),
        Part(
            f"{BINARY}.tar.gz",
            "or the binary release",
            size=168_513_733,
            md5="03b5dce01913d631647c71ecec9e9cb8",
            needed=False,
        ),
    )

    def wanted(self, member: str) -> bool:
        path = Path(member)
        return path.name in FILES.get(path.parent.name, ())

    def convert(self, work: Work) -> None:
        release = PYTHON if work.search(f"{PYTHON}/train") else BINARY
        for name in FILES[release]:
            found = work.find(f"{release}/{name}", f"{PYTHON}.tar.gz or {BINARY}.tar.gz")
            work.place(found, f"{release}/{name}")
