"""Checkpoints on disk: whole or not there, listed with their sha256, the last but one kept besides the last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from hardpix import atomic
from hardpix.run import rundir
from hardpix.run.signals import held
from hardpix.types import HardpixError

MANIFEST = "manifest.json"
LAST, BEFORE = Path(rundir.LAST).name, Path(rundir.BEFORE).name


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the final name, flushes, renames, flushes the folder, and lists the file's sha256 at the very end.

    Lightning writes to the system's temporary folder and moves: from another disk that is a copy, of which a kill
    leaves a part under the final name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        with held():
            save(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        from hardpix.run.checkpoint import read_checkpoint

        return read_checkpoint(Path(path))


def save(content: dict[str, Any], path: Path) -> None:
    """The former ``last.ckpt`` becomes ``previous.ckpt``; at every moment one of the two is whole and listed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as unfinished:
        with open(unfinished, "wb") as file:
            digesting = _Digesting(file)
            try:
                torch.save(content, digesting)  # type: ignore[arg-type]
            except RuntimeError as error:  # which tells of a position only
                raise digesting.problem or error from None
        listed = manifest(path.parent)
        if path.name == LAST and path.is_file():
            _keep(path, path.with_name(BEFORE))
            listed[BEFORE] = listed.get(LAST, {})
    listed[path.name] = {
        "sha256": digesting.digest.hexdigest(),
        "bytes": digesting.size,
        "step": content.get("global_step"),
    }
    atomic.write_text(path.parent / MANIFEST, json.dumps(listed, indent=1, sort_keys=True) + "\n")


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
            f"{path} is damaged ({error}): it lists the checkpoints beside it; delete it to take them unchecked"
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
        name in listed for name in (LAST, BEFORE)
    )  # else the first one was stopped before it was listed
    found = [run_dir / name for name in (rundir.LAST, rundir.BEFORE) if (run_dir / name).is_file()]
    for path in found:
        if not checked or sha256(path) in known:
            return path
        print(f"{path} is damaged or was not finished: its sha256 is not listed in {MANIFEST}", flush=True)
    if not found:
        raise HardpixError(f"{run_dir / rundir.LAST} does not exist: the run has not saved this checkpoint")
    raise HardpixError(
        f"{run_dir}: no checkpoint is whole ({', '.join(p.name for p in found)}); train anew under another run=, "
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
