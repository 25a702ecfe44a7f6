"""Where a run's numbers go: a CSV file always, Weights & Biases when asked. The only file that imports wandb."""

from __future__ import annotations

import csv
import netrc
import os
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from hardpix.atomic import replacing
from hardpix.types import ConfigError


class Identity(NamedTuple):
    """Who a run is, for dashboards."""

    run_id: str
    name: str  # short overrides
    study: str  # the group on W&B
    job_type: str


def build_loggers(
    *,
    run_dir: Path,
    identity: Identity,
    config: dict[str, Any],
    resume_step: int | None,
    wandb: bool | str,
    project: str,
    entity: str | None,
    tags: list[str],
) -> list[Logger]:
    """The CSV logger, and a W&B one unless ``wandb`` is false.

    ``wandb``: ``auto`` (online with a key, else offline), ``online``, ``offline`` or false.
    """
    loggers: list[Logger] = [MetricsCSV(run_dir / "metrics.csv", resume_step=resume_step)]
    if wandb:
        loggers.append(_wandb_logger(run_dir, identity, config, str(wandb), project, entity, tags))
    return loggers


def _wandb_logger(
    run_dir: Path,
    identity: Identity,
    config: dict[str, Any],
    mode: str,
    project: str,
    entity: str | None,
    tags: list[str],
) -> Logger:
    if mode not in ("auto", "True", "online", "offline"):
        raise ConfigError(f"logger.wandb={mode}: must be auto, online, offline or false")
    try:
        import wandb
    except ImportError:
        raise ConfigError("logger.wandb: wandb is not installed; pip install wandb, or logger=csv") from None
    from pytorch_lightning.loggers import WandbLogger

    if mode == "online" and not has_wandb_key():
        raise ConfigError(
            "logger.wandb=online: no key; run wandb login, set WANDB_API_KEY, or logger.wandb=offline"
        )
    online = mode == "online" or (mode in ("auto", "True") and has_wandb_key())
    os.environ.setdefault("WANDB_SILENT", "true")
    logger = WandbLogger(
        project=project,
        entity=entity,
        name=identity.name,
        group=identity.study,
        job_type=identity.job_type,
        tags=list(tags),
        id=identity.run_id,
        resume="allow",
        config=config,
        save_dir=str(run_dir),
        offline=not online,
        settings=wandb.Settings(init_timeout=10, x_disable_stats=True, silent=True),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it always, and wandb warns of it
    return logger


def has_wandb_key() -> bool:
    """Whether a W&B key is set in the environment or in the netrc file (no network is touched)."""
    if os.environ.get("WANDB_MODE", "") in ("offline", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].rstrip("/")
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def connect(loggers: list[Logger]) -> None:
    """Start the W&B run; where its server cannot be reached, offline (`wandb sync` sends it later)."""
    for logger in loggers:
        if type(logger).__name__ != "WandbLogger":
            continue
        try:
            _ = logger.experiment  # type: ignore[attr-defined]
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(
                f"W&B cannot be reached ({reason}); going on offline, send it later with wandb sync",
                flush=True,
            )
            logger._wandb_init["mode"] = "offline"  # type: ignore[attr-defined]
            logger._offline = True  # type: ignore[attr-defined]


def log_images(loggers: list[Logger], key: str, paths: list[Path], step: int) -> None:
    """Pictures, each under its own key, to those loggers that take them."""
    for logger in loggers:
        if hasattr(logger, "log_image"):
            for path in paths:
                logger.log_image(f"{key}/{path.stem}", [str(path)], step=step)


def close(loggers: list[Logger]) -> None:
    """End the W&B run of this process; a second logger in the same process would adopt a live one."""
    if any(type(logger).__name__ == "WandbLogger" for logger in loggers):
        import wandb

        if wandb.run is not None:
            wandb.finish()


class MetricsCSV(Logger):
    """``metrics.csv``: one row per logged step, columns as they appear; a resumed run goes on in the same file.

    Rows are appended once they are complete: writing the file anew at each of them took longer than many a
    training step, and the longer the run the more. Lightning's own CSV logger does that, and deletes the rows of
    the run that is resumed.
    """

    def __init__(self, path: Path, *, resume_step: int | None) -> None:
        """``resume_step``: of the checkpoint that is continued; rows from there on are written again."""
        super().__init__()
        kept = [] if resume_step is None else [r for r in _read_rows(path) if r["step"] < resume_step]
        self.path, self.rows = path, kept
        self.columns = list(dict.fromkeys(["step", *(name for row in self.rows for name in row)]))
        self.on_disk = 0  # rows that stand in the file as they are; 0: the file is to be written anew
        self.promised = (
            0  # rows that a checkpoint relies on: they stay in the file, also while the last one grows
        )

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **options: Any) -> None:
        """The configuration has a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, **metrics}
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1] |= row
        else:
            self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        self.columns += new
        if new or len(self.rows) <= self.on_disk:  # a column more, or a row on disk that grew
            self.on_disk = 0

    @rank_zero_only
    def save(self) -> None:
        """What Lightning calls after every row; the newest one may still grow."""
        self._write(len(self.rows) - 1)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """A run resumed from here finds all rows up to here."""
        self.promised = len(self.rows)
        self._write(self.promised)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._write(len(self.rows))

    def _write(self, count: int) -> None:
        count = max(count, self.promised)
        if self.on_disk == 0:
            with (
                replacing(self.path) as unfinished,
                open(unfinished, "w", newline="", encoding="utf-8") as file,
            ):
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(self.rows[:count])
        elif count > self.on_disk:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerows(self.rows[self.on_disk : count])
        self.on_disk = max(self.on_disk, count)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = [
            {k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)
        ]
    return [row | {"step": int(row["step"])} for row in rows]
