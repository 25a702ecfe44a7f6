"""Which of a data set's kinds of pixels a method needs."""

from __future__ import annotations

from hardpix.types import ConfigError, DataError, DatasetInfo

ALWAYS = frozenset({"image", "label"})
UNLABELED = frozenset({"unlabeled"})  # what a method requires to be given images without labels
WITH_DEPTH = "data=nyuv2, sunrgbd and synthetic, and your own folder or listed data with depth files"


def needed(keys: frozenset[str], info: DatasetInfo, *, all_labelled: bool) -> frozenset[str]:
    """What to load of each frame; a ``DataError`` names what the data set lacks."""
    provided = with_validity(info.provides)
    if "label" not in provided:
        raise DataError(
            f"data set {info.name} has no labels, only {', '.join(sorted(provided))}: no segmentation can be "
            "trained or scored on it; choose another data"
        )
    if "unlabeled" in keys and all_labelled:
        raise ConfigError(
            "data.labeled=null: the method learns from frames without labels, too; set the share of the training "
            "frames that have labels, data.labeled=0.125, or the path of a list of them"
        )
    lacking = sorted(keys - provided - UNLABELED)
    if lacking:
        where = f"; depth have {WITH_DEPTH}" if "depth" in lacking else ""
        raise DataError(
            f"the method needs {', '.join(lacking)}, which data set {info.name} does not have; "
            f"it provides {', '.join(sorted(provided))}{where}"
        )
    return ALWAYS | with_validity(keys - UNLABELED)


def with_validity(keys: frozenset[str]) -> frozenset[str]:
    """Depth never comes without the mask that says where it means something."""
    return keys | {"depth_valid"} if "depth" in keys else keys
