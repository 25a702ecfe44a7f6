"""Weights in and out: always loaded as plain data, never as code."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from hardpix import record
from hardpix.models import STREAMS
from hardpix.run import rundir, weights_file
from hardpix.run.checkpoint_files import problem
from hardpix.run.environment import code_versions
from hardpix.types import ConfigError, HardpixError

NETWORKS = ("backbone.", "head.", "model.", "method.")  # settings that decide on the tensors


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content; a file that is missing, damaged or carries code is refused in one sentence."""
    if not path.is_file():
        raise HardpixError(f"{path} does not exist: the run has not saved this checkpoint")
    if path.suffix == ".safetensors":
        return {"state_dict": weights_file.read(path)}
    if wrong := problem(path):
        raise HardpixError(f"{path} is damaged: {wrong}")
    if wrong := weights_file.packed_part(path):
        raise HardpixError(
            f"{path} is not a checkpoint: its part {wrong} is compressed, which can hide any size"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # the bytes of another kind of file
            raise HardpixError(f"{path} is not a checkpoint, or is damaged") from None
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch's own text goes on to advise how to run it
        what = f": it names {named[1]}, which was not run" if named else ""
        raise HardpixError(
            f"{path} holds more than plain data and is not loaded{what}; weights of others come as .safetensors "
            "(`hardpix export RUN --safetensors FILE` where they were trained)"
        ) from None
    except Exception as error:  # a reader that is fed any bytes can fail in any way
        raise HardpixError(f"{path} is not a checkpoint, or is damaged ({_first_line(error)})") from None
    if isinstance(content, dict) and content and all(isinstance(v, Tensor) for v in content.values()):
        content = {"state_dict": content}  # as others save weights
    if not isinstance(content, dict) or "state_dict" not in content:
        raise HardpixError(f"{path} is not a checkpoint of this program: it has no state_dict")
    state = content["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise HardpixError(
            f"{path} is not a checkpoint of this program: its state_dict is not of tensors by name"
        )
    if outside := next(_leading_out(content.get("callbacks")), None):
        raise HardpixError(f"{path} is not loaded: it names the file {outside!r}, which a run could delete")
    return content


def _leading_out(node: Any) -> Iterator[str]:
    """Texts in the state of callbacks that leave a folder: a former best checkpoint is deleted by its path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leading_out(key)
            yield from _leading_out(value)
    elif isinstance(node, str) and ".." in Path(node).parts:
        yield node


def load_weights(method: nn.Module, run_dir: Path, weights: str) -> None:
    """Put ``last`` or ``best`` of a run into ``method``; every tensor must fit."""
    if weights not in ("last", "best"):
        raise ConfigError(f"weights={weights}: must be last or best")
    load_file(method, run_dir / (rundir.LAST if weights == "last" else rundir.BEST))


def load_file(method: nn.Module, path: Path) -> dict[str, Any]:
    """Put a checkpoint's weights into ``method``, every tensor must fit; returns the checkpoint."""
    content = read_checkpoint(path)
    misfits = misfitting(method.state_dict(), content["state_dict"])
    if misfits:
        more = f"; and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise HardpixError(
            f"{path} does not fit the configured model: {'; '.join(misfits[:3])}{more}{_made_by(path)}"
        )
    method.load_state_dict(content["state_dict"])
    if isinstance(method, pl.LightningModule):
        method.on_load_checkpoint(content)  # what else belongs to the weights
    return content


def init_from(method: nn.Module, source: str, classes: Sequence[str], cfg: DictConfig | None = None) -> str:
    """Start from another run's weights: every tensor of equal name and shape. Returns what was taken and what not.

    What is made for certain classes (a module's ``class_tensors``) is taken only from a run on the same ``classes``:
    as many other ones would fit, and mean nothing. The encoder of a plain run starts both streams of a cross-stitch.

    ``source`` is a run directory (its ``last``), a checkpoint or a ``.safetensors`` file. Fails when no tensor matches,
    and tells where ``cfg`` differs from that run's.
    """
    path = Path(source)
    path = path / rundir.LAST if path.is_dir() else path
    state = read_checkpoint(path)["state_dict"]
    own = method.state_dict()
    theirs = weights_file.classes(path) if path.suffix == ".safetensors" else rundir.read_classes(path)
    of_classes = () if theirs == list(classes) else tuple(_class_tensors(method))
    taken, reasons, used = {}, {}, set()
    for key, tensor in own.items():
        name = _origin(key, state)
        used.add(name)
        if key.startswith(of_classes):
            reasons[key] = (
                "classifier: other classes" if theirs else "classifier: classes of that run unknown"
            )
        elif name not in state:
            reasons[key] = "not in that run"
        elif state[name].shape != tensor.shape:
            reasons[key] = "of another shape"
        else:
            taken[key] = state[name]
    if not taken:
        raise HardpixError(
            f"init_from={source}: no tensor matches this model: {'; '.join(misfitting(own, state)[:3])}"
            f"{_apart(path, cfg)}"
        )
    method.load_state_dict(taken, strict=False)
    left = _grouped({key: f"as initialised: {{}} ({reason})" for key, reason in reasons.items()})
    unused = _grouped({key: "not used: {} of that run" for key in state if key not in used})
    return "; ".join([f"{len(taken)} of {len(own)} tensors from {path}", *left, *unused])


def _apart(path: Path, cfg: DictConfig | None) -> str:
    """In which settings of its networks a configuration differs from that of the run a checkpoint belongs to."""
    folder = _run_of(path)
    if folder is None or cfg is None:
        return ""
    found = [line for line in rundir.differences(folder, cfg, ()) if line.startswith(NETWORKS)]
    return f" (that run -> this one: {', '.join(found[: rundir.SHOWN])})" if found else ""


def _made_by(path: Path) -> str:
    """Which program made the run a checkpoint belongs to, where it is not this one."""
    folder = _run_of(path)
    if folder is None or not (folder / record.FILE_NAME).is_file():
        return ""
    theirs, own = record.read(folder).code, code_versions()
    keys = [k for k in ("hardpix", "commit", "torch", "timm") if theirs.get(k) != own.get(k)]
    told = ", ".join(f"{k} {theirs.get(k)}, here {own.get(k)}" for k in keys)
    return f" (it was made with {told})" if told else ""


def _run_of(path: Path) -> Path | None:
    """The directory of the run that ``path`` is, or lies in."""
    return next((f for f in (path, *path.parents[:2]) if (f / rundir.CONFIG).is_file()), None)


def _class_tensors(method: nn.Module) -> Iterator[str]:
    """Beginnings of the names of all tensors that are made for certain classes."""
    for name, module in method.named_modules():
        prefix = f"{name}." if name else ""
        yield from (prefix + own for own in getattr(module, "class_tensors", ()))


def _origin(key: str, state: dict[str, Tensor]) -> str:
    """The name in ``state`` of the tensor ``key``: a stream of a cross-stitched backbone comes from a plain one."""
    plain = next(
        (key.replace(f"backbone.{s}.", "backbone.", 1) for s in STREAMS if f"backbone.{s}." in key), key
    )
    return key if key in state else plain


def _grouped(texts: dict[str, str]) -> list[str]:
    """Equal texts of the tensors of one part (``model.head``) once, with their number."""
    groups = Counter(
        (".".join(key.split(".")[: 2 if key.startswith("model.") else 1]), t) for key, t in texts.items()
    )
    return [text.format(f"{part}, {count} tensors") for (part, text), count in groups.items()]


def misfitting(own: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """What keeps ``given`` from loading into ``own``: missing, unexpected and differently shaped names."""
    found = [f"{k} missing" for k in own if k not in given]
    found += [f"{k} unexpected" for k in given if k not in own]
    found += [
        f"{k} is {list(given[k].shape)}, not {list(own[k].shape)}"
        for k in own
        if k in given and own[k].shape != given[k].shape
    ]
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
