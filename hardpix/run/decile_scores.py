"""Scores of the tenths of a split's pixels by hardness, for dashboards: of a few frames, at the end of a run."""

from __future__ import annotations

import torch

from hardpix.data import DataModule
from hardpix.methods import Method
from hardpix.run import hard_maps, hardness_rows

FRAMES = 50  # evenly spaced: `hardpix figure deciles` reads all
OWN = ("hardness", "error_probability")


def decile_scores(
    method: Method, data: DataModule, device: torch.device, split: str = "test"
) -> dict[str, float]:
    """``{"deciles/miou/01": ..., "deciles/pixel_acc/10": ...}``, the hardest tenth first, ranked by the method's map.

    Empty for a method without a map of hardness, and where the data set lacks what the map needs.
    """
    known = {
        name: about
        for name, about in hard_maps.known_maps(method, data).items()
        if name in method.hard_maps()
    }
    name = next((own for own in OWN if own in known), None)
    if name is None:
        return {}
    try:
        method.to(device).eval()
        hard_maps.use(data, [method], [known[name]])
        rankings = {"run": known[name]}
        (groups,) = hardness_rows.deciles({"run": method}, rankings, name, data, split, FRAMES).values()
    except Exception as error:  # the run is done and scored
        print(f"no hardness deciles for W&B: {type(error).__name__}: {error}", flush=True)
        return {}
    return {
        f"deciles/{score}/{index:02}": getattr(group, score)
        for score in ("miou", "pixel_acc")
        for index, group in enumerate(groups, 1)
    }
