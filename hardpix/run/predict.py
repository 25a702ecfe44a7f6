"""``hardpix predict``: label images of any size with a trained run."""

from __future__ import annotations

import argparse
from pathlib import Path

from hardpix.run.evaluate import loaded
from hardpix.types import ConfigError, DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "hardpix predict",
        description="Write label PNGs, colour overlays and, where the method has them, hardness maps.",
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("images", nargs="+", help="image files and folders; key=value overrides of inference")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--weights", default="last", choices=("last", "best"))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    given = parser.parse_args(arguments)
    overrides = [x for x in given.images if x.split(".", 1)[0].split("=", 1)[0] == "inference" and "=" in x]
    paths = find_images([Path(x) for x in given.images if x not in overrides])
    _, data, method = loaded(given.run, given.weights, overrides)
    predict(method, data, paths, given.out, device=given.device)
    print(f"{len(paths)} images labelled in {given.out}")
    return 0


def find_images(sources: list[Path]) -> list[Path]:
    """The image files named or contained (recursively), sorted; raises if there are none or names collide."""
    paths: list[Path] = []
    for source in sources:
        if source.is_dir():
            paths += sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif source.is_file():
            paths.append(source)
        else:
            raise DataError(f"{source} does not exist; give image files or folders")
    if not paths:
        raise DataError(f"no images ({', '.join(SUFFIXES)}) in {', '.join(map(str, sources))}")
    seen: dict[str, Path] = {}
    for path in paths:
        if path.stem in seen:
            raise ConfigError(
                f"{path} and {seen[path.stem]} would write the same output; predict them into two folders"
            )
        seen[path.stem] = path
    return paths


def predict(method, data, paths: list[Path], out: Path, *, device: str = "auto") -> None:
    """``out/label/NAME.png`` (class index), ``out/overlay/NAME.png`` and ``out/<map>/NAME.png`` per image."""
    import torch
    from PIL import Image

    from hardpix.data.images import read_image
    from hardpix.report.figures import heatmap, overlay

    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    method = method.to(place).eval()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (data.info.mean, data.info.std))
    (out / "label").mkdir(parents=True, exist_ok=True)
    (out / "overlay").mkdir(exist_ok=True)
    for path in paths:
        pixels = torch.as_tensor(read_image(path))
        image = ((pixels.float() - mean) / std)[None].to(place)
        with torch.inference_mode():
            label = method.enlarge(method.predict_logits(image), image.shape).argmax(1)[0].cpu()
            maps = {k: v[0].float().cpu().numpy() for k, v in method.maps({"image": image}).items()}
        index = label.to(torch.uint8 if data.info.num_classes <= 256 else torch.int32).numpy()
        Image.fromarray(index).save(out / "label" / f"{path.stem}.png")
        drawn = overlay(pixels.permute(1, 2, 0).numpy(), index, data.info.palette, data.info.ignore_index)
        Image.fromarray(drawn).save(out / "overlay" / f"{path.stem}.png")
        for name, values in maps.items():
            (out / name).mkdir(exist_ok=True)
            Image.fromarray(heatmap(values)).save(out / name / f"{path.stem}.png")
