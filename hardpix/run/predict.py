"""``hardpix predict``: label images of any size with a trained run."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from hardpix.data.images import SUFFIXES
from hardpix.run.evaluate import loaded
from hardpix.types import ConfigError, DataError


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
    given = parser.parse_intermixed_args(arguments)
    overrides = [x for x in given.images if x.split(".", 1)[0].split("=", 1)[0] == "inference" and "=" in x]
    paths = find_images([Path(x) for x in given.images if x not in overrides])
    check_folder(given.out)
    device = find_device(given.device)
    _, data, method = loaded(given.run, given.weights, overrides)
    faults = predict(method, data, paths, given.out, device=device)
    print(f"{len(paths) - len(faults)} images labelled in {given.out}")
    for fault in faults:
        print(f"hardpix: {fault}", file=sys.stderr)
    return 1 if faults else 0


def check_folder(out: Path) -> None:
    """Raise if ``out`` or a folder above it is a file."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--out {out}: {path} is a file; name a folder")


def find_device(name: str) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:1`` as torch takes it; raises if there is no such device here."""
    import torch

    found = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise ConfigError(f"--device {name}: must be auto, cpu or cuda")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and int(found[1] or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: no such CUDA device here; use auto, or cpu")
    return name


def find_images(sources: list[Path]) -> list[Path]:
    """The image files named or contained (recursively), sorted, each once.

    Raises if there are none, or if two different files would write the same output.
    """
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
        other = seen.setdefault(path.stem, path)
        if other != path and not other.samefile(path):
            raise ConfigError(
                f"{path} and {other} would write the same output; predict them into two folders"
            )
    return list(seen.values())


def predict(method, data, paths: list[Path], out: Path, *, device: str) -> list[str]:
    """``out/label/NAME.png`` (class index), ``out/overlay/NAME.png`` and ``out/<map>/NAME.png`` per image.

    Returns a sentence for every file that could not be read; the others are labelled all the same.
    """
    import torch
    from PIL import Image

    from hardpix.data.images import read_image
    from hardpix.report.figures import heatmap, overlay

    method = method.to(device).eval()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (data.info.mean, data.info.std))
    (out / "label").mkdir(parents=True, exist_ok=True)
    (out / "overlay").mkdir(exist_ok=True)
    faults = []
    for path in paths:
        try:
            pixels = read_image(path)
        except DataError as error:
            faults.append(str(error))
            continue
        image = ((pixels.float() - mean) / std)[None].to(device)
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
    return faults
