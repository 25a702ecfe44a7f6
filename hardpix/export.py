"""``hardpix export``: a run's network as an ONNX file that is compared with the run, or its weights alone."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hardpix import record
from hardpix.config.command_line import Parser
from hardpix.types import ConfigError, DataError, HardpixError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra
OPSET = 18  # the lowest that torch writes: the one that most readers know
TOLERANCE = 1e-4  # of the largest logit: rounding stays below
SMALLEST = 64  # pixels, of the second size

DESCRIPTION = """\
Write what a run predicts as an ONNX graph: image [B, 3, H, W] (RGB, mean and standard deviation of the data set taken
off) -> class logits, or labels. Classes, mean, standard deviation and sizes stand in the file's metadata. The graph
sees the whole image in one piece; windows and scales of the run's inference are up to whoever runs it.

Or write the weights alone (--safetensors): tensors by name, and as text the classes and the configuration. Nothing in
such a file can be run, so it is the form in which weights are passed on; init_from=FILE starts from it. For this a
checkpoint's file (.ckpt, .pth, .pt) from elsewhere may stand for RUN, if it holds plain data alone."""


class Difference(NamedTuple):
    """What a graph says against what the run says, of all pixels that were compared."""

    pixels: int
    equal: int  # pixels with the same label
    largest: float  # difference of logits
    scale: float  # the run's largest logit, of either sign
    beyond: int  # pixels with a difference above the tolerance times the scale


def main(arguments: list[str]) -> int:
    given = _parser().parse_intermixed_args(arguments)
    if given.safetensors is not None:
        return _weights(given)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'--onnx needs {", ".join(missing)}: pip install "hardpix[onnx]"')
    _check(given)
    record.check_output("--onnx", given.onnx)
    found = record.read(given.run)

    from hardpix.evaluate import loaded

    cfg, data, method = loaded(given.run, given.weights, given.overrides)
    graph = Inference(method, given.output)
    program = exported(graph, given.size, given.opset)
    program.model.metadata_props.update(_facts(found, cfg, data.info, given))
    temporary = given.onnx.with_name(f".{given.onnx.name}.{os.getpid()}.tmp")
    try:
        _save(program, temporary)
        if not _compared(graph, temporary, data, given):
            return 1
        os.replace(temporary, given.onnx)
    finally:
        temporary.unlink(missing_ok=True)
    free = "H, W" if given.size is None else ", ".join(map(str, given.size))
    shape = f"[B, {data.info.num_classes}, {free}]" if given.output == "logits" else f"[B, {free}]"
    print(
        f"written to {given.onnx}: image [B, 3, {free}] -> {given.output} {shape}, opset {given.opset}, "
        f"{given.onnx.stat().st_size / 1e6:.1f} MB"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "hardpix export", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run directory; with --safetensors also a checkpoint's file")
    parser.add_argument(
        "overrides", nargs="*", help="data=, data. keys, and a method's own at inference: method.tile=null"
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--onnx", type=Path, metavar="FILE", help="the graph to write")
    kind.add_argument("--safetensors", type=Path, metavar="FILE", help="or the file of weights alone")
    parser.add_argument("--weights", default="last", choices=("last", "best"))
    parser.add_argument("--output", default="logits", choices=("logits", "labels"))
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="fix the image's size (default: any size)"
    )
    parser.add_argument("--opset", type=int, default=OPSET, help=f"ONNX operator set (default: {OPSET})")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help=f"largest difference of logits, as a share of the largest logit (default: {TOLERANCE})",
    )
    return parser


def _weights(given: argparse.Namespace) -> int:
    """The weights of a checkpoint as they are: no network is built, so that no data are needed."""
    path = given.safetensors
    if given.overrides:
        raise ConfigError(f"{given.overrides[0]}: --safetensors takes the weights of the run as they are")
    if path.suffix != ".safetensors" or not path.parent.is_dir() or path.is_dir():
        raise ConfigError(f"--safetensors {path}: must be a file NAME.safetensors in a folder that exists")
    if given.run.is_file():
        return _converted(given.run, path)
    found = record.read(given.run)

    from hardpix import __version__
    from hardpix.train import rundir
    from hardpix.train.checkpoint import read_checkpoint

    config = rundir.as_text(rundir.read_config(given.run))
    state = read_checkpoint(given.run / (rundir.LAST if given.weights == "last" else rundir.BEST))[
        "state_dict"
    ]
    facts = {"version": __version__, "run_id": found.run_id, "run": found.name, "weights": given.weights}
    facts |= {
        "dataset": found.dataset,
        "classes": json.dumps(rundir.read_classes(given.run)),
        "config": config,
    }
    return _written(state, path, facts)


def _converted(source: Path, path: Path) -> int:
    """A file of its own, whose run is not here: its tensors by name."""
    from hardpix.train.checkpoint import read_checkpoint

    return _written(read_checkpoint(source)["state_dict"], path, {"source": source.name})


def _written(state: Mapping[str, Any], path: Path, facts: Mapping[str, str]) -> int:
    from hardpix.train import checkpoint

    size = checkpoint.write_weights(state, path, facts)
    print(f"written to {path}: {len(state)} tensors, {size / 1e6:.1f} MB")
    return 0


def _check(given: argparse.Namespace) -> None:
    from onnx.defs import onnx_opset_version

    if not OPSET <= given.opset <= onnx_opset_version():
        raise ConfigError(f"--opset {given.opset}: must lie between {OPSET} and {onnx_opset_version()}")
    if given.size is not None and min(given.size) < 1:
        raise ConfigError(f"--size {given.size[0]} {given.size[1]}: must be pixels, 1 or more")
    if not given.tolerance > 0:
        raise ConfigError(f"--tolerance {given.tolerance}: must be above 0")
    if not given.onnx.parent.is_dir() or given.onnx.is_dir():
        raise ConfigError(f"--onnx {given.onnx}: must be a file in a folder that exists")


def _facts(found: record.RunRecord, cfg: Any, info: Any, given: argparse.Namespace) -> dict[str, str]:
    """What someone who has the file alone needs to use it."""
    from hardpix import __version__
    from hardpix.train.rundir import plain

    crop = cfg.data.train_transform.get("crop")
    facts: Mapping[str, Any] = {
        "version": __version__,
        "run_id": found.run_id,
        "run": found.name,
        "weights": given.weights,
        "dataset": info.name,
        "classes": info.classes,
        "palette": info.palette,
        "channels": "RGB",
        "mean": info.mean,
        "std": info.std,
        "input": "(pixel - mean) / std per channel, pixels 0 to 255, float32 [B, 3, H, W]",
        "input_size": given.size,
        "training_crop": None if crop is None else list(crop),
        "inference": plain(cfg)["inference"],
        "output": given.output,
    }  # fmt: skip
    return {f"hardpix.{k}": v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}


def _save(program: Any, path: Path) -> None:
    try:
        program.save(path, external_data=False)
    except OSError as error:
        raise ConfigError(f"--onnx: {path.parent} cannot be written ({error.strerror})") from None


def _compared(graph: Any, path: Path, data: Any, given: argparse.Namespace) -> bool:
    """Run the written file next to the run, print how far they are apart; whether that is near enough."""
    import onnxruntime
    import torch

    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, and reported here
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for what, image in _images(data, given.size):
            with torch.inference_mode():
                logits = graph.method(image)
            answer = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
            found = difference(logits, answer, given.tolerance)
            print(
                f"{what}, {' x '.join(map(str, image.shape))}: largest difference of logits {found.largest:.1e} "
                f"(largest logit {found.scale:.1e}), equal labels {found.equal} of {found.pixels}"
            )
            if found.beyond:
                other = "" if given.size else "; --size H W fixes the size, if that is what it cannot follow"
                print(
                    f"{found.beyond} pixels differ by more than {given.tolerance:g} (--tolerance) of the largest "
                    f"logit: nothing written{other}",
                    file=sys.stderr,
                )
                return False
    except (HardpixError, KeyboardInterrupt):
        raise
    except Exception as error:  # onnxruntime's own kinds, and shapes that do not fit
        line = str(error).strip().splitlines()[0][:200]
        fixed = "" if given.size is not None else "; --size H W fixes the size, which more networks allow"
        raise ConfigError(f"the exported graph does not run: {line}{fixed}") from error
    return True


def difference(logits: Any, answer: Any, tolerance: float) -> Difference:
    """``logits`` ``[B, C, H, W]`` of the run against logits or labels ``[B, H, W]`` of the graph.

    Of labels: how much higher than the graph's choice the run's own stands, in the run's logits. NaN is beyond any
    tolerance.
    """
    import torch

    own = logits.argmax(1)
    if answer.shape not in (logits.shape, own.shape):
        raise ConfigError(f"the exported graph gives {list(answer.shape)}, not {list(logits.shape)}")
    if answer.ndim == 4:
        apart, labels = (logits - answer).abs().amax(1), answer.argmax(1)
    else:
        labels = answer
        apart = logits.amax(1) - logits.gather(1, labels[:, None])[:, 0]
    apart, scale = torch.nan_to_num(apart, nan=float("inf")), float(logits.abs().max())
    beyond = int((apart > tolerance * scale).sum())
    return Difference(own.numel(), int((labels == own).sum()), float(apart.max()), scale, beyond)


def _images(data: Any, size: list[int] | None) -> Iterator[tuple[str, Any]]:
    """Two batches ``[B, 3, H, W]``: of one image and of two; where the size is free, of two sizes."""
    import torch

    from hardpix.ops.resize import resize

    what, image = "test frame", _frame(data)
    if image is None:
        generator = torch.Generator().manual_seed(0)
        what, image = "random image", torch.randn(1, 3, 256, 320, generator=generator)
    if size is not None:
        image = resize(image, (size[0], size[1]))
        yield what, image
        yield what, torch.cat([image, image.flip(-1)])
        return
    yield what, image
    height, width = (
        max(SMALLEST, round(n * share / 32) * 32)
        for n, share in zip(image.shape[-2:], (0.75, 0.5), strict=True)
    )
    smaller = resize(image, (height, width))
    yield what, torch.cat([smaller, smaller.flip(-1)])


def _frame(data: Any) -> Any:
    """The first test frame, normalised ``[1, 3, H, W]``; None where the data are not at hand."""
    try:
        return data.evaluation_batch("test", 0)["image"]
    except (DataError, OSError, IndexError) as error:
        print(f"no test frame ({str(error).strip()}): a random image instead")
        return None


# A trained method as an ONNX graph: normalised image in, class logits or labels out.


INPUT, OUTPUTS = "image", ("logits", "labels")
NAMES = {0: "batch", 2: "height", 3: "width"}  # of the free extents, in the file

# B, channels, H, W: no two alike, and none of 1 at stride 32, or torch would take them for one, or for fixed.
TRACED = (2, 3, 160, 224)


class Inference(nn.Module):
    """``image`` ``[B, 3, H, W]`` -> what a method predicts of the whole image in one piece.

    ``logits`` ``[B, C, H, W]`` float32 (log-probabilities where the method decides by those), or ``labels``
    ``[B, H, W]`` int64. What exists for training alone is no part of it.
    """

    def __init__(self, method: nn.Module, output: str) -> None:
        super().__init__()
        self.method, self.output = method.eval(), output

    def forward(self, image: Tensor) -> Tensor:
        logits = self.method(image)
        return logits if self.output == "logits" else logits.argmax(1)


def exported(graph: Inference, size: Sequence[int] | None, opset: int) -> Any:
    """The graph as torch's ``ONNXProgram``; ``size`` (H, W) fixes what is free otherwise. The batch is always free.

    Raises ``ConfigError`` in one sentence where torch cannot follow the computation.
    """
    shape = TRACED if size is None else (TRACED[0], 3, *size)
    free = dict.fromkeys((0, 2, 3) if size is None else (0,), torch.export.Dim.DYNAMIC)
    example = torch.zeros(shape)
    with torch.no_grad():
        graph(
            example
        )  # a size that the network refuses is reported by the network, and what is looked up once is looked up
    try:
        with torch.no_grad(), PoolsByMatrix(), _quietly():
            program = torch.export.export(graph, (example,), dynamic_shapes=(free,), strict=False)
            return torch.onnx.export(
                program, opset_version=opset, input_names=[INPUT], output_names=[graph.output],
                dynamic_shapes=({d: NAMES[d] for d in free},), dynamo=True, verbose=False,
            )  # fmt: skip
    except Exception as error:  # torch raises a dozen kinds here
        fixed = "" if size is not None else "; --size H W fixes the size, which more networks allow"
        raise ConfigError(f"{_who(graph)} cannot be exported: {_reason(error)}{fixed}") from error


def _who(graph: Inference) -> str:
    method: Any = graph.method
    return f"{type(method).__name__} with {type(getattr(method.model, 'head', method.model)).__name__}"


def _reason(error: BaseException) -> str:
    """What the innermost cause says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if "DataDependent" in type(error).__name__:
        return "what it computes depends on values that are known only when it runs"
    line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
    return line[:200].rstrip(".")


class PoolsByMatrix(TorchFunctionMode):
    """Adaptive average pooling as two products with matrices made of the size: ONNX has none for sizes not known."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (F.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d):
            return adaptive_pool(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def adaptive_pool(x: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """``[B, c, h, w]`` -> ``[B, c, i, j]``, means over torch's bins; None keeps an extent."""
    counts = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    down, across = (n if count is None else count for n, count in zip(x.shape[-2:], counts, strict=True))
    return _bins(x.shape[-2], down, x) @ x @ _bins(x.shape[-1], across, x).t()


def _bins(size: int, count: int, like: Tensor) -> Tensor:
    """``[count, size]``: row i averages ``floor(i size / count)`` up to, without, ``ceil((i + 1) size / count)``."""
    place = torch.arange(size, device=like.device)[None]
    index = torch.arange(count, device=like.device)[:, None]
    inside = (place >= index * size // count) & (place < ((index + 1) * size + count - 1) // count)
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """Torch and its exporter think aloud."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        sink = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
