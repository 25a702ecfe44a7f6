"""The classes of NYU Depth v2: 40 (Gupta et al. 2013) and the 13 that group them (Couprie et al. 2013)."""

from __future__ import annotations

CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes",
    "ceiling", "books", "refridgerator", "television", "paper", "towel", "shower curtain", "box",
    "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure",
    "otherfurniture", "otherprop",
)  # fmt: skip

# class13Mapping.mat; a test compares every entry.
GROUPS = {
    "bed": ("bed",),
    "books": ("books",),
    "ceiling": ("ceiling",),
    "chair": ("chair",),
    "floor": ("floor", "floor mat"),
    "furniture": (
        "cabinet", "bookshelf", "counter", "shelves", "dresser", "refridgerator", "night stand", "otherfurniture",
    ),
    "objects": (
        "pillow", "mirror", "clothes", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "toilet",
        "sink", "lamp", "bathtub", "bag", "otherstructure", "otherprop",
    ),
    "picture": ("picture",),
    "sofa": ("sofa",),
    "table": ("table", "desk"),
    "tv": ("television",),
    "wall": ("wall", "door"),
    "window": ("window", "blinds", "curtain"),
}  # fmt: skip
CLASSES_13 = tuple(GROUPS)

# The colours that SceneNet RGB-D draws the 13 classes in (McCormac et al. 2017).
PALETTE_13 = (
    (0, 0, 255), (233, 89, 48), (0, 218, 0), (149, 0, 240), (222, 241, 24), (255, 206, 206), (0, 224, 229),
    (106, 136, 204), (117, 29, 41), (240, 35, 235), (0, 167, 156), (249, 139, 0), (225, 229, 194),
)  # fmt: skip

# Index into CLASSES -> index into CLASSES_13.
TO_13 = tuple(
    next(index for index, members in enumerate(GROUPS.values()) if name in members) for name in CLASSES
)
