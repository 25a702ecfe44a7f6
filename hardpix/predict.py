"""``hardpix predict``: label images of any size with a trained run."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hardpix import record
from hardpix.config import safe_files
from hardpix.config.command_line import Parser
from hardpix.evaluate import loaded
from hardpix.types import ConfigError, DataError

if TYPE_CHECKING:
    from hardpix.data.source import Source


def main(arguments: list[str]) -> int:
    parser = Parser(
        "hardpix predict",
        description="Write label PNGs, colour overlays and, where the method has them, hardness maps.",
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument(
        "images", nargs="+", help="image files and folders; key=value overrides of inference and data"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--weights", default="last", choices=("last", "best"))
    parser.add_argument(
        "--values",
        default="index",
        choices=("index", "dataset"),
        help="what the label PNGs hold: class indices, or the data set's own numbers, for its test server",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    given = parser.parse_intermixed_args(arguments)
    overrides = [x for x in given.images if re.match(r"(inference|data|trusted)(\.[^=/]*)?=", x)]
    paths, unread = find_images([Path(x) for x in given.images if x not in overrides])
    check_folder(given.out)
    device = find_device(given.device)
    _, data, method = loaded(given.run, given.weights, overrides)
    values = submission_values(data.source) if given.values == "dataset" else None
    faults = predict(method, data, paths, given.out, device=device, values=values)
    print(f"{len(paths) - len(faults)} images labelled in {given.out}")
    faults += report_unread(unread)
    if values is not None:
        print(f"{given.out / 'label'} is what the test server of {data.info.name} takes")
    for fault in faults:
        print(f"hardpix: {fault}", file=sys.stderr)
    return 1 if faults else 0


def check_folder(out: Path) -> None:
    """Raise if ``out`` or a folder above it is a file, or cannot be written."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--out {out}: {path} is a file; name a folder")
    record.check_output("--out", out, folder=True)


def submission_values(source: Source) -> Mapping[int, int]:
    """Class index -> the number that ``source``'s test server takes; raises where it has none of its own."""
    values = source.submission_values()
    if values is None:
        raise ConfigError(
            f"--values dataset: {source.info.name} has no numbers of its own; use --values index, or data=NAME for "
            f"one of {', '.join(_datasets_with_submission_values())} with the same classes"
        )
    return values


def _datasets_with_submission_values() -> list[str]:
    import hardpix.data
    from hardpix.data.source import Source

    kinds = [
        kind for kind in vars(hardpix.data).values() if isinstance(kind, type) and issubclass(kind, Source)
    ]
    known = [k for k in kinds if k.submission_values is not Source.submission_values and hasattr(k, "info")]
    return sorted(kind.info.name for kind in known)


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


def find_images(sources: list[Path]) -> tuple[list[Path], list[Path]]:
    """The image files named or contained (recursively), sorted, each once; and the other files of the folders.

    Raises if there are none, or if two different files would write the same output.
    """
    from hardpix.data.images import SUFFIXES
    from hardpix.data.listing import files_below, normal

    paths: list[Path] = []
    unread: list[Path] = []
    for source in sources:
        if source.is_dir():
            for path in files_below(source):
                (paths if path.suffix.lower() in SUFFIXES else unread).append(path)
        elif source.is_file():
            paths.append(source)
        else:
            raise DataError(f"{source} does not exist; give image files or folders")
    if not paths:
        raise DataError(f"no images ({', '.join(SUFFIXES)}) in {', '.join(map(str, sources))}")
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(normal(path.stem), path)
        if other != path and not other.samefile(path):
            raise ConfigError(
                f"{path} and {other} would write the same output; predict them into two folders"
            )
    return list(seen.values()), unread


def report_unread(unread: list[Path]) -> list[str]:
    """Print how many files of the folders are not read; a sentence for each of them that is a picture."""
    from hardpix.data.listing import is_picture, kinds

    if unread:
        print(f"{kinds(unread)} in the folders are not read")
    return [f"{path}: not a PNG, JPEG or TIFF; convert it to PNG" for path in unread if is_picture(path)]


def predict(
    method,
    data,
    paths: list[Path],
    out: Path,
    *,
    device: str,
    values: Mapping[int, int] | None = None,
) -> list[str]:
    """``out/label/NAME.png`` (class index), ``out/overlay/NAME.png`` and ``out/<map>/NAME.png`` per image.

    ``values``: class index -> the number that stands for it in the label file; None: the index itself.
    Returns a sentence for every file that could not be read; the others are labelled all the same.
    """
    import torch
    from PIL import Image

    from hardpix.data.images import read_image
    from hardpix.draw.pictures import heatmap, overlay
    from hardpix.train.results import save_picture

    method = method.to(device).eval()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (data.info.mean, data.info.std))
    for kind in ("label", "overlay"):
        safe_files.make_results_folder(out / kind)
    table = None if values is None else value_table(values, data.info.num_classes)
    faults = []
    inputs = {path.resolve() for path in paths}
    for path in paths:
        try:
            pixels = read_image(path, data.source.image_range)
        except DataError as error:
            faults.append(str(error))
            continue
        image = ((pixels.float() - mean) / std)[None].to(device)
        with torch.inference_mode():
            label = method.enlarge(method.predict_logits(image), image.shape).argmax(1)[0].cpu()
            maps = {k: v[0].float().cpu().numpy() for k, v in method.maps({"image": image}).items()}
        for target in (out / kind / f"{path.stem}.png" for kind in ("label", "overlay", *maps)):
            if target.resolve() in inputs:
                raise ConfigError(f"--out {out}: {target} is one of the images; name another folder")
        index = label.to(torch.uint8 if data.info.num_classes <= 256 else torch.int32).numpy()
        stored = index if table is None else table[index]
        save_picture(Image.fromarray(stored), out / "label" / f"{path.stem}.png")
        drawn = overlay(pixels.permute(1, 2, 0).numpy(), index, data.info.palette, data.info.ignore_index)
        save_picture(Image.fromarray(drawn), out / "overlay" / f"{path.stem}.png")
        for name, shown in maps.items():
            safe_files.make_results_folder(out / name)
            save_picture(Image.fromarray(heatmap(shown)), out / name / f"{path.stem}.png")
    return faults


def value_table(values: Mapping[int, int], classes: int) -> np.ndarray:
    """The numbers of the classes ``0..classes-1`` as a table to index: uint8, or uint16 where one is above 255."""
    numbers = [values[index] for index in range(classes)]
    return np.array(numbers, np.uint8 if max(numbers) < 256 else np.uint16)
