"""Save and load checkpoints and weights: atomic, with checksums, always loaded as plain data."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from hardpix import record
from hardpix.models import STREAMS
from hardpix.train import rundir
from hardpix.train.cost import code_versions
from hardpix.train.signals import signals_deferred
from hardpix.types import ConfigError, HardpixError

NETWORKS = ("backbone.", "head.", "model.", "method.")  # settings that decide on the tensors


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content; a file that is missing, damaged or carries code is refused in one sentence."""
    if not path.is_file():
        raise HardpixError(f"{path} does not exist: the run has not saved this checkpoint")
    if path.suffix == ".safetensors":
        return {"state_dict": read_weights(path)}
    if wrong := problem(path):
        raise HardpixError(f"{path} is damaged: {wrong}")
    if wrong := packed_part(path):
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
    if outside := next(_paths_outside(content.get("callbacks")), None):
        raise HardpixError(f"{path} is not loaded: it names the file {outside!r}, which a run could delete")
    return content


def _paths_outside(node: Any) -> Iterator[str]:
    """Texts in the state of callbacks that leave a folder: a former best checkpoint is deleted by its path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _paths_outside(key)
            yield from _paths_outside(value)
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
    misfits = state_dict_mismatches(method.state_dict(), content["state_dict"])
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
    theirs = weights_classes(path) if path.suffix == ".safetensors" else rundir.read_classes(path)
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
            f"init_from={source}: no tensor matches this model: {'; '.join(state_dict_mismatches(own, state)[:3])}"
            f"{_setting_differences(path, cfg)}"
        )
    method.load_state_dict(taken, strict=False)
    left = _grouped({key: f"as initialised: {{}} ({reason})" for key, reason in reasons.items()})
    unused = _grouped({key: "not used: {} of that run" for key in state if key not in used})
    return "; ".join([f"{len(taken)} of {len(own)} tensors from {path}", *left, *unused])


def _setting_differences(path: Path, cfg: DictConfig | None) -> str:
    """In which settings of its networks a configuration differs from that of the run a checkpoint belongs to."""
    folder = _run_of(path)
    if folder is None or cfg is None:
        return ""
    found = [line for line in rundir.differences(folder, cfg, ()) if line.startswith(NETWORKS)]
    return f" (that run -> this one: {', '.join(found[: rundir.MAX_NAMED])})" if found else ""


def _made_by(path: Path) -> str:
    """Which program made the run a checkpoint belongs to, where it is not this one."""
    folder = _run_of(path)
    if folder is None or not (folder / record.FILE_NAME).is_file():
        return ""
    theirs, own = record.read(folder).code, code_versions()
    keys = [k for k in ("hardpix", "commit", "torch", "timm") if theirs.get(k) != own.get(k)]
    summary = ", ".join(f"{k} {theirs.get(k)}, here {own.get(k)}" for k in keys)
    return f" (it was made with {summary})" if summary else ""


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


def state_dict_mismatches(own: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
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


# Checkpoints on disk: whole or not there, listed with their sha256, the last but one kept besides the
# last.


MANIFEST = "manifest.json"
LAST, PREVIOUS = Path(rundir.LAST).name, Path(rundir.PREVIOUS).name


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the final name, flushes, renames, flushes the folder, and lists the file's sha256 at the very end.

    Lightning writes to the system's temporary folder and moves: from another disk that is a copy, of which a kill
    leaves a part under the final name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        with signals_deferred():
            save(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:

        return read_checkpoint(Path(path))


def save(content: dict[str, Any], path: Path) -> None:
    """The former ``last.ckpt`` becomes ``previous.ckpt``; at every moment one of the two is whole and listed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with record.replacing(path) as unfinished:
        with open(unfinished, "wb") as file:
            digesting = _Digesting(file)
            try:
                torch.save(content, digesting)  # type: ignore[arg-type]
            except RuntimeError as error:  # which tells of a position only
                raise digesting.problem or error from None
        listed = manifest(path.parent)
        if path.name == LAST and path.is_file():
            _keep(path, path.with_name(PREVIOUS))
            listed[PREVIOUS] = listed.get(LAST, {})
    listed[path.name] = {
        "sha256": digesting.digest.hexdigest(),
        "bytes": digesting.size,
        "step": content.get("global_step"),
    }
    record.write_text(path.parent / MANIFEST, json.dumps(listed, indent=1, sort_keys=True) + "\n")


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """What is listed, by file name; empty where nothing is. Raises ``HardpixError`` if the list cannot be read."""
    path = folder / MANIFEST
    if path.exists() and not path.is_file():
        raise HardpixError(f"{path} is no file; remove it to take the checkpoints unchecked")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise HardpixError(
            f"{path} is damaged ({error}): it lists the checkpoints next to it; delete it to take them unchecked"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise HardpixError(
            f"{path} is damaged: it does not list files; delete it to take the checkpoints unchecked"
        )
    return content


def newest(run_dir: Path) -> Path:
    """The newest whole checkpoint to go on from; what is passed over is printed.

    A file counts as whole if its sha256 is listed, under whatever name: a run that is stopped between renaming and
    listing leaves a file that is not. Without a list (runs of older versions) the files speak for themselves.
    """
    listed = manifest((run_dir / rundir.LAST).parent)
    known = {entry.get("sha256") for entry in listed.values()}
    checked = any(
        name in listed for name in (LAST, PREVIOUS)
    )  # else the first one was stopped before it was listed
    found = [run_dir / name for name in (rundir.LAST, rundir.PREVIOUS) if (run_dir / name).is_file()]
    for path in found:
        if not checked or sha256(path) in known:
            return path
        print(f"{path} is damaged or was not finished: its sha256 is not listed in {MANIFEST}", flush=True)
    if not found:
        raise HardpixError(f"{run_dir / rundir.LAST} does not exist: the run has not saved this checkpoint")
    raise HardpixError(
        f"{run_dir}: no checkpoint is complete ({', '.join(p.name for p in found)}); train again under another run=, "
        f"or delete {run_dir}"
    )


def problem(path: Path) -> str | None:
    """How a checkpoint differs from what is listed of it; None for one that is as it was written, or not listed."""
    entry = manifest(path.parent).get(path.name)
    if not entry or entry.get("sha256") == sha256(path):
        return None
    size = path.stat().st_size
    if size != entry.get("bytes"):
        return f"it has {size} bytes, and {entry.get('bytes')} were written"
    return f"its sha256 is not the one in {MANIFEST} (which may be deleted, to take it as it is)"


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _keep(path: Path, name: Path) -> None:
    """Give ``path`` a second name, in the place of what had it."""
    if name.exists() and name.samefile(
        path
    ):  # after a stop: renaming one name of a file to another does nothing
        return
    second = name.with_name(f".{name.stem}.{os.getpid()}.partial{name.suffix}")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without links: for a moment there is the former one alone
        os.replace(path, name)
        return
    os.replace(second, name)


class _Digesting:
    """A file that is written from front to back, and its sha256: reading it again would take as long as writing it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.problem: OSError | None = None

    def write(self, content: Any) -> int:
        self.digest.update(content)
        self.size += len(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.problem = error
            raise

    def flush(self) -> None:
        self.file.flush()


# Weights as a file of tensors and text alone (safetensors): nothing in it can be run, so it may come from
# anyone.


SUFFIX = ".safetensors"
PREFIX = "hardpix."  # of the keys of the file's texts


def write_weights(state: Mapping[str, Tensor], path: Path, facts: Mapping[str, str]) -> int:
    """Tensors under their names, ``facts`` as texts next to them; returns the bytes written."""
    from safetensors.torch import save

    # Tensors that share memory are refused there: each gets its own.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    with record.replacing(path) as unfinished:
        unfinished.write_bytes(save(state, {f"{PREFIX}{k}": v for k, v in facts.items()}))
    return path.stat().st_size


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors by name; ``HardpixError`` for a file that is damaged, or another kind of file."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # the reader's own kinds
        raise _damaged(path, error) from None


def weights_facts(path: Path) -> dict[str, Any]:
    """What the file says of itself, without the ``hardpix.`` of its keys; texts of other programs stay texts."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            texts = file.metadata() or {}
    except Exception as error:
        raise _damaged(path, error) from None
    return {key.removeprefix(PREFIX): text for key, text in texts.items() if key.startswith(PREFIX)}


def weights_classes(path: Path) -> list[str] | None:
    """The names of the classes that the weights were trained on; None where the file does not tell."""
    try:
        found = json.loads(weights_facts(path).get("classes", "null"))
    except (ValueError, RecursionError):
        return None
    is_valid = isinstance(found, list) and all(isinstance(name, str) for name in found)
    return found if is_valid else None


def packed_part(path: Path) -> str | None:
    """The first compressed part of a zip file; torch writes none, and a few bytes of one can fill the memory."""
    try:
        with zipfile.ZipFile(path) as file:
            found = (i for i in file.infolist() if i.compress_type != zipfile.ZIP_STORED)
            return next((info.filename for info in found), None)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # no zip file, or a damaged one: reported by who reads it


def _damaged(path: Path, error: Exception) -> HardpixError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    return HardpixError(f"{path} is not a safetensors file, or is damaged ({line})")
