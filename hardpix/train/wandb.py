"""Log a run to Weights & Biases without ever waiting for it. The only file that imports wandb.

Every call of wandb's is made by a thread of its own (:class:`Errands`), for which a run waits at most PATIENCE seconds
in sum: training goes on whatever wandb, its process or its server do, and no fault of theirs ends a run. What could not
be sent stays in the run's folder for ``wandb sync``.
"""

from __future__ import annotations

import contextlib
import csv
import netrc
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from hardpix.record import RunRecord
from hardpix.secrets import masked
from hardpix.types import ConfigError

EXIT = {
    "done": 0,
    "interrupted": 255,
}  # W&B shows the runs as finished, killed, and with any other code failed
PATIENCE = 4.5  # seconds that a run waits for W&B in all; the promise is five
START = 1.5  # of these, before its first step
PROBE, INIT = 1.5, 2.0  # what the server has for its first word, and for a run's beginning
FINISH = 2.5  # what it has at the end to take what was not sent


def online(mode: str) -> bool | None:
    """Whether ``logger.wandb`` means a run that is sent at once; None with ``WANDB_MODE=disabled``: no W&B at all.

    Raises where it cannot be what was asked for.
    """
    if mode not in ("auto", "True", "online", "offline"):
        raise ConfigError(f"logger.wandb={mode}: must be auto, online, offline or false")
    if os.environ.get("WANDB_MODE") == "disabled":
        if mode == "online":
            raise ConfigError(
                "logger.wandb=online: WANDB_MODE=disabled in the environment switches W&B off; unset WANDB_MODE, or "
                "set logger.wandb=false"
            )
        return None
    # else wandb reports on itself to the server, for ten seconds after the end of a run where it does not answer
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
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
    if os.environ.get("WANDB_MODE", "") in ("offline", "dryrun", "disabled"):
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
    """The W&B side of a run; the first fault of wandb's is printed, and the run goes on without."""

    def __init__(
        self, run_dir: Path, started: dict[str, Any], *, online: bool, earlier: list[dict[str, Any]]
    ) -> None:
        """``started``: for ``wandb.init``; ``earlier``: rows of ``metrics.csv`` that a resumed run goes on from."""
        super().__init__()
        self.run_dir, self.started, self.online, self.earlier = run_dir, started, online, earlier
        self.run: Any = None  # also after W&B has failed
        self.background: BackgroundCalls | None = None  # between start and close
        self.folder = run_dir / "wandb"  # later that of the run itself
        self.faults: list[str] = []  # not printed yet: the thread prints nothing
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
        self.background = BackgroundCalls(PATIENCE)
        self.background.give(self._open)
        self.background.wait(
            START
        )  # mostly enough: data workers are forked from a process where little else goes on
        self._tell()

    def _open(self) -> None:
        if self.online and not answers(_server()):
            self.faults.append(f"{_server()} does not answer")
            self.online = False
        if self.online:
            try:
                self._init("online")
            except Exception as error:
                self.faults.append(_first_line(error))
                self.online = False
                _teardown()  # the service holds on to the name of the run
        if self.run is None:
            self._safely(lambda: self._init("offline"))
        if self.run is not None:
            self._safely(self._catch_up)

    def _init(self, mode: str) -> None:
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        # What is printed, the command line and local changes to the code may hold what nobody meant to send.
        settings = wandb.Settings(
            init_timeout=INIT, finish_timeout=FINISH if mode == "online" else 0, finish_timeout_raises=True,
            silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True,
            disable_code=True, x_save_requirements=False,
        )  # fmt: skip
        before = self._offline_legs()
        options: dict[str, Any] = self.started | {
            "mode": mode,
            "dir": str(self.run_dir),
            "settings": settings,
        }
        self.run = wandb.init(**options, resume="allow", allow_val_change=True)
        self.folder = Path(self.run.dir).parent
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
        row = dict(metrics)
        self._give(lambda: self.run.log(row, step=step))

    @rank_zero_only
    def log_results(
        self, per_class: Path, panels: Sequence[Path], scores: Mapping[str, float], step: int
    ) -> None:
        """The table of ``per_class.csv``, its scores in the summary too, and pictures, each under its own key."""

        def log() -> None:
            import wandb

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

        self._give(log)

    @rank_zero_only
    def close(self, record: RunRecord) -> None:
        def finish() -> None:
            self.run.summary.update(record.metrics | {"status": record.status})
            if record.error:
                self.run.summary["error"] = masked(record.error)
            with contextlib.suppress(TimeoutError):
                self.run.finish(exit_code=EXIT.get(record.status, 1))
                return
            self.faults.append(f"{_server()} did not take everything within {FINISH} s")

        if self.background is None:
            return
        self._give(finish)
        if not self.background.end():
            self.faults.append("wandb does not answer; not all of this run is logged there")
            _wait_no_more()
        self.run = self.background = None
        self._tell()

    def _give(self, call: Callable[[], None]) -> None:
        if self.background is not None:
            self.background.give(lambda: self._safely(call) if self.run is not None else None)
        self._tell()

    def _safely(self, call: Callable[[], None]) -> None:
        """In the thread."""
        try:
            call()
        except Exception as error:
            self.faults.append(f"{_first_line(error)}; no more of this run is logged there")
            run, self.run = self.run, None
            with contextlib.suppress(Exception):  # left open, the next run of this process would go on in it
                run.finish(exit_code=1)
            _teardown()

    def _tell(self) -> None:
        command = f"wandb sync{' --include-online' if self.online else ''} {self.folder}"
        while self.faults:
            print(f"W&B: {self.faults.pop(0)}; training goes on, metrics.csv has every row, and {command} "
                  "sends later what lies there", flush=True)  # fmt: skip


def _teardown() -> None:
    """Forget a service that may be dead or hold on to a run: the next run of this process starts another."""
    import wandb
    from wandb.sdk.lib.module import unset_globals

    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()
    unset_globals()


def _wait_no_more() -> None:
    """Have the end of this process not wait for wandb's own, which goes on alone and writes its file whole."""
    from wandb.sdk import wandb_setup

    service: Any = wandb_setup.singleton()._connection
    with contextlib.suppress(Exception):
        service._cleanup()


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# Run blocking calls on a background thread with a total timeout.


MAX_WAITING = 20_000  # calls that wait; with more, the thread has hung for hours


class BackgroundCalls:
    """Makes calls one after another, in the order in which they are given.

    ``patience``: seconds that ``wait`` and ``end`` may take in sum. A call must not raise. The thread is a daemon: the
    process ends without it. Of several in one process, the next begins where the one before has ended.
    """

    _former: threading.Thread | None = None

    def __init__(self, patience: float) -> None:
        self.patience, self.complete = patience, True
        self._calls: deque[Callable[[], object]] = deque()
        self._given = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, args=(BackgroundCalls._former,), daemon=True)
        BackgroundCalls._former = self._thread
        self._thread.start()

    def _work(self, former: threading.Thread | None) -> None:
        if former is not None:
            former.join()
        while True:
            self._given.acquire()
            if not self._calls:
                return
            self._calls.popleft()()

    def give(self, call: Callable[[], object]) -> None:
        """Have ``call`` made, some time; never, where MOST others wait already."""
        if len(self._calls) >= MAX_WAITING:
            self.complete = False
            return
        self._calls.append(call)
        self._given.release()

    def wait(self, seconds: float) -> bool:
        """Whether all calls so far are over, waiting for at most ``seconds`` of the patience."""
        over = threading.Event()
        self.give(over.set)
        begin = time.monotonic()
        found = over.wait(max(0.0, min(seconds, self.patience)))
        self.patience -= time.monotonic() - begin
        return found

    def end(self) -> bool:
        """No further calls; whether all that were given are over, waiting for the rest of the patience."""
        self._given.release()
        begin = time.monotonic()
        self._thread.join(max(0.0, self.patience))
        self.patience -= time.monotonic() - begin
        return self.complete and not self._thread.is_alive()
