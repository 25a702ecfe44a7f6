"""A run in Weights & Biases: what ``metrics.csv`` has, row by row. The only file that imports wandb.

Training never waits for a server longer than PROBE + INIT seconds at its start and FINISH at its end, and no fault of
W&B ends a run: what could not be sent stays in the run's folder for ``wandb sync``.
"""

from __future__ import annotations

import contextlib
import csv
import netrc
import os
import shutil
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from hardpix.record import RunRecord
from hardpix.secrets import masked
from hardpix.types import ConfigError

PROBE, INIT, FINISH = 1.5, 2.0, 4.0  # seconds


def online(mode: str) -> bool:
    """Whether ``logger.wandb`` means a run that is sent at once; raises where it cannot."""
    if mode not in ("auto", "True", "online", "offline"):
        raise ConfigError(f"logger.wandb={mode}: must be auto, online, offline or false")
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise ConfigError("logger.wandb: wandb is not installed; pip install wandb, or logger=csv") from None
    if mode == "online" and not has_wandb_key():
        raise ConfigError(
            "logger.wandb=online: no key; run wandb login, set WANDB_API_KEY, or logger.wandb=offline"
        )
    return mode == "online" or (mode in ("auto", "True") and has_wandb_key())


def has_wandb_key() -> bool:
    """Whether a W&B key is set in the environment or in the netrc file (no network is touched)."""
    if os.environ.get("WANDB_MODE", "") in ("offline", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = _server().split("//")[-1].rstrip("/")
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def answers(url: str, seconds: float = PROBE) -> bool:
    """Whether a server of W&B says anything at all where it takes its questions."""
    kind = {"Content-Type": "application/json"}
    try:
        question = urllib.request.Request(f"{url.rstrip('/')}/graphql", b'{"query": "{__typename}"}', kind)
        urllib.request.urlopen(question, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


class WandbRun(Logger):
    """The W&B side of a run; every call of wandb's that fails is told once, and the run goes on without."""

    def __init__(
        self, run_dir: Path, started: dict[str, Any], *, online: bool, earlier: list[dict[str, Any]]
    ) -> None:
        """``started``: for ``wandb.init``; ``earlier``: rows of ``metrics.csv`` that a resumed run goes on from."""
        super().__init__()
        self.run_dir, self.started, self.online, self.earlier = run_dir, started, online, earlier
        self.run: Any = None  # also after W&B has failed
        if os.environ.get("WANDB_SWEEP_ID"):  # the agent of a sweep waits for a run of its own name
            self.started["id"] = os.environ.get("WANDB_RUN_ID", self.started["id"])

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return str(self.started["id"])

    @rank_zero_only
    def start(self) -> None:
        """Open the run, on the server or offline, and tell it the rows that an interrupted leg has left."""
        if self.online and not answers(_server()):
            self._say(f"{_server()} does not answer")
            self.online = False
        if self.online:
            try:
                self._init("online")
            except Exception as error:
                self._say(_first_line(error))
                self.online = False
                self._safely(_teardown)  # the service holds on to the name of the run
        if self.run is None:
            self._safely(lambda: self._init("offline"))
        if self.run is not None:
            self._safely(self._catch_up)

    def _init(self, mode: str) -> None:
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        # What is printed, the command line and local changes to the code may hold what nobody meant to send.
        settings = wandb.Settings(
            init_timeout=INIT, finish_timeout=FINISH if mode == "online" else 0, silent=True, console="off",
            x_disable_stats=True, x_disable_meta=True, disable_git=True, disable_code=True, x_save_requirements=False,
        )  # fmt: skip
        before = self._offline_legs()
        options: dict[str, Any] = self.started | {
            "mode": mode,
            "dir": str(self.run_dir),
            "settings": settings,
        }
        self.run = wandb.init(**options, resume="allow", allow_val_change=True)
        # The new file has all rows: two of them would be sent as one run with rows twice.
        if mode == "offline":
            for folder in before:
                shutil.rmtree(folder, ignore_errors=True)

    def _offline_legs(self) -> list[Path]:
        return sorted((self.run_dir / "wandb").glob(f"offline-run-*-{self.started['id']}"))

    def _catch_up(self) -> None:
        """What the server has already is passed over: a step that is over cannot be logged to."""
        sent = self.run.step if self.online else 0
        for row in self.earlier:
            if row["step"] >= sent:
                self.run.log({k: float(v) for k, v in row.items() if k != "step"}, step=row["step"])

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **options: Any) -> None:
        """The configuration is given at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.run is not None:
            self._safely(lambda: self.run.log(dict(metrics), step=step))

    @rank_zero_only
    def log_results(
        self, per_class: Path, panels: Sequence[Path], scores: Mapping[str, float], step: int
    ) -> None:
        """The table of ``per_class.csv``, its scores in the summary too, and pictures, each under its own key."""
        import wandb

        def log() -> None:
            shown: dict[str, Any] = {f"panels/{path.stem}": wandb.Image(str(path)) for path in panels}
            if per_class.is_file():
                with open(per_class, newline="", encoding="utf-8") as file:
                    rows = list(csv.DictReader(file))
                columns = list(rows[0])
                data = [[_number(row[column]) for column in columns] for row in rows]
                shown["per_class"] = wandb.Table(columns=columns, data=data)
                for row in rows:
                    each = {f"per_class/{key}/{row['class']}": _number(row[key]) for key in ("iou", "acc")}
                    self.run.summary.update(each)
            self.run.summary.update(dict(scores))
            self.run.log(shown, step=step)

        if self.run is not None:
            self._safely(log)

    @rank_zero_only
    def close(self, record: RunRecord) -> None:
        def finish() -> None:
            self.run.summary.update(record.metrics | {"status": record.status})
            if record.error:
                self.run.summary["error"] = masked(record.error)
            self.run.finish(exit_code=0 if record.status == "done" else 1)

        if self.run is not None:
            self._safely(finish)
        self.run = None

    def _safely(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._say(f"{_first_line(error)}; no more of this run is logged there")
            run, self.run = self.run, None
            with contextlib.suppress(Exception):  # left open, the next run of this process would go on in it
                run.finish(exit_code=1)

    def _say(self, reason: str) -> None:
        print(f"W&B: {reason}; training goes on, and wandb sync sends later what lies in {self.run_dir}/wandb",
              flush=True)  # fmt: skip


def _teardown() -> None:
    import wandb

    wandb.teardown()


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
