"""The classes of CamVid's original release, their grouping into 11, and the split that came with SegNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hardpix.data.images import read_colour
from hardpix.data.labels import Colour, ColourCode
from hardpix.types import DataError

IGNORE = 255
VOID = "Void"

# label_colors.txt of the release, in its order. The group is the class of the 11 that it becomes: the grouping that is
# published with MathWorks' example on CamVid; the 11-class labels of SegNet show the same, as far as pictures tell.
TABLE: tuple[tuple[str, Colour, str | None], ...] = (
    ("Animal", (64, 128, 64), "pedestrian"),
    ("Archway", (192, 0, 128), "building"),
    ("Bicyclist", (0, 128, 192), "bicyclist"),
    ("Bridge", (0, 128, 64), "building"),
    ("Building", (128, 0, 0), "building"),
    ("Car", (64, 0, 128), "car"),
    ("CartLuggagePram", (64, 0, 192), "pedestrian"),
    ("Child", (192, 128, 64), "pedestrian"),
    ("Column_Pole", (192, 192, 128), "pole"),
    ("Fence", (64, 64, 128), "fence"),
    ("LaneMkgsDriv", (128, 0, 192), "road"),
    ("LaneMkgsNonDriv", (192, 0, 64), "road"),
    ("Misc_Text", (128, 128, 64), "sign"),
    ("MotorcycleScooter", (192, 0, 192), "bicyclist"),
    ("OtherMoving", (128, 64, 64), "car"),
    ("ParkingBlock", (64, 192, 128), "pavement"),
    ("Pedestrian", (64, 64, 0), "pedestrian"),
    ("Road", (128, 64, 128), "road"),
    ("RoadShoulder", (128, 128, 192), "pavement"),
    ("Sidewalk", (0, 0, 192), "pavement"),
    ("SignSymbol", (192, 128, 128), "sign"),
    ("Sky", (128, 128, 128), "sky"),
    ("SUVPickupTruck", (64, 128, 192), "car"),
    ("TrafficCone", (0, 0, 64), "pole"),
    ("TrafficLight", (0, 64, 64), "sign"),
    ("Train", (192, 64, 128), "car"),
    ("Tree", (128, 128, 0), "tree"),
    ("Truck_Bus", (192, 128, 192), "car"),
    ("Tunnel", (64, 0, 64), "building"),
    ("VegetationMisc", (192, 192, 0), "tree"),
    (VOID, (0, 0, 0), None),
    ("Wall", (64, 192, 0), "building"),
)
CLASSES = tuple(name for name, _, _ in TABLE if name != VOID)
PALETTE = tuple(colour for name, colour, _ in TABLE if name != VOID)

# In this one file 175 pixels along edges have colours that are no class.
DAMAGED, DAMAGED_PIXELS = "Seq05VD_f02610_L.png", 175

_SPLITS: dict[str, tuple[tuple[str, list[int]], ...]] = {
    "train": (
        ("0001TP_{:06d}", [*range(6690, 8521, 30)]),
        ("0006R0_f{:05d}", [*range(930, 3931, 30)]),
        ("0016E5_{:05d}", [*range(390, 871, 30), 901, *range(930, 2401, 30)]),
        ("0016E5_{:05d}", [*range(4350, 7921, 30), *range(8190, 8641, 30)]),
    ),
    "val": (("0016E5_{:05d}", [*range(7959, 8160, 2)]),),
    "test": (
        ("0001TP_{:06d}", [*range(8550, 10381, 30)]),
        ("Seq05VD_f{:05d}", [*range(0, 5101, 30)]),
    ),
}


def segnet_split(split: str) -> list[str]:
    """The frames of ``split`` in SegNet's release: 367, 101 and 233 of the 701."""
    return [form.format(number) for form, numbers in _SPLITS[split] for number in numbers]


class OriginalLabels:
    """Label files of the original release; what is no class becomes void in the one file known to be damaged."""

    def __init__(self, index: dict[str, int]) -> None:
        """``index``: class of the release -> class index; what it lacks is void."""
        self._code = ColourCode({colour: index.get(name, IGNORE) for name, colour, _ in TABLE}, IGNORE)

    def read(self, path: Path, image: Path) -> Tensor:
        raw = read_colour(path)
        if path.name == DAMAGED:
            unknown = ~np.isin(_packed(raw), _packed(np.array([colour for _, colour, _ in TABLE])))
            if unknown.sum() <= DAMAGED_PIXELS:
                raw[unknown] = 0
        return self._code.decode(raw, str(path))

    def identity(self) -> str:
        return f"{self._code.identity()} {DAMAGED}"


def _packed(colours: NDArray) -> NDArray[np.int32]:
    """RGB ``[..., 3]`` -> one number each."""
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def check_colours(path: Path) -> None:
    """Refuse a ``label_colors.txt`` that contradicts :data:`TABLE`; lines are red, green, blue and name."""
    expected = {name: colour for name, colour, _ in TABLE}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if words and (len(words) != 4 or words[:3] != [str(value) for value in expected.get(words[3], ())]):
            raise DataError(
                f"{path}: the line '{line.strip()}' is none of the release's table of {len(TABLE)} colours; "
                "put the file of the release there, or take it away"
            )
