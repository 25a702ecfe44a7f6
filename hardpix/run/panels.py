"""Pictures of a run: image, truth, prediction, error, and the method's own maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hardpix.atomic import replacing
from hardpix.data import DataModule
from hardpix.methods import Method
from hardpix.report.figures import panel
from hardpix.run.figure_runs import spread
from hardpix.run.own_files import make_folder
from hardpix.types import Batch, DatasetInfo


def write_panels(method: Method, data: DataModule, folder: Path, *, split: str, count: int) -> list[Path]:
    """``count`` panels, evenly spaced over the split, as ``folder/NAME.png``; returns their paths."""
    if count <= 0:
        return []
    make_folder(folder)
    return [
        _write_one(method, data.evaluation_batch(split, index), data.info, folder)
        for index in spread(len(data.evaluation_dataset(split)), count)
    ]


@torch.inference_mode()
def _write_one(method: Method, batch: Batch, info: DatasetInfo, folder: Path) -> Path:
    method.eval()
    batch = method.transfer_batch_to_device(batch, method.device, 0)
    size = batch["label"].shape
    prediction = method.enlarge(method.predict_logits(batch["image"]), size).argmax(1)[0]
    maps = {name: value[0].float().cpu().numpy() for name, value in method.maps(batch).items()}
    picture = panel(
        unnormalize(batch["image"][0], info),
        batch["label"][0].cpu().numpy(),
        prediction.cpu().numpy(),
        info,
        maps,
    )
    path = folder / f"{Path(batch['name'][0]).name}.png"
    with replacing(path, sync=False) as unfinished:
        picture.save(unfinished)
    return path


def unnormalize(image: Tensor, info: DatasetInfo) -> np.ndarray:
    """``[3, H, W]`` normalised -> ``[H, W, 3]`` uint8."""
    mean, std = torch.tensor(info.mean).view(3, 1, 1), torch.tensor(info.std).view(3, 1, 1)
    pixels = (image.float().cpu() * std + mean).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 0).numpy()
