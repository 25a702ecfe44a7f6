"""Runs to be interrupted, one a method, each with what makes resuming hard: averages, validations, accumulation."""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import torch

from hardpix.train.checkpoint import sha256
from tests.conftest import TINY
from tests.faults.harness import Killer, States, command, in_child, restore, state_hash, warm
from tests.listed import listed

STEPS = ("trainer.max_steps=5", "callbacks.checkpoint_every_steps=2", "panels=1", "trainer.log_every_steps=1")
SEMI = ("data.labeled=0.25", "data.batch_size=2", "data.unlabeled_batch_size=1", "head.dropout=0.1",
        "method.contrastive=true", "method.contrast.bank=200", "method.contrast.bank_first=300")  # fmt: skip
# (settings, settings of the run below, of the run below that)
SETTINGS = {
    "baseline": [("trainer.accumulate=2", "data.batch_size=2", "data.num_workers=2")],
    "hardness": [("trainer.ema_decay=0.9", "trainer.val_every_steps=1", "trainer.val_every_epochs=null")],
    "lwm": [("trainer.val_every_steps=2", "trainer.val_every_epochs=null")],
    "u2pl": [SEMI],
    "u2pl_hl": [SEMI],
    "layer_cascade": [("head=gau_decoder",)],
    "error_prediction": [("method.channels=8",), ("head=deeplabv3plus", "head.low_channels=4")],
    "detail": [
        ("method.channels=8",),
        ("method=error_prediction", "method.channels=8"),
        ("head=deeplabv3plus", "head.low_channels=4"),
    ],
    "bagging": [("method.channels=8",), ("head=deeplabv3plus", "head.low_channels=4")],
}
OF_CONF = {name: SETTINGS.get(name, [()]) for name in listed("method")}
CASES = {name: [(f"method={name}", *first), *below] for name, (first, *below) in OF_CONF.items()} | {
    "plateau": [
        ("scheduler=plateau", "scheduler.patience=0", "trainer.val_every_epochs=2", "callbacks.snapshots=[1]")
    ],
}


class Case:
    """One method's run: first uninterrupted, then watched at each of its points, then interrupted."""

    def __init__(self, name, folder):
        torch.set_num_threads(1)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.log = Path(folder), Path(folder) / "log.txt"
        *below, settings = reversed(CASES[name])
        parent = None
        for place, given in enumerate(below):
            run = self._arguments(given, f"below{place}", parent)
            assert in_child(command(run), self.log) == 0, self.log.read_text()
            parent = self.run_dir(f"below{place}")
        self.settings, self.parent = settings, parent
        assert in_child(command(self._arguments(settings, "whole", parent)), self.log) == 0, (
            self.log.read_text()
        )
        self.expected = state_hash(self.run_dir("whole"))
        self.states = self._watched()
        counts = {
            kind: sum(at[0] == kind for points, _ in self.states for at in points)
            for kind in ("step", "write")
        }
        self.counts = counts | {"term": counts["step"], "full": counts["write"]}

    def run_dir(self, run):
        return self.folder / "runs/default" / run

    def _watched(self):
        """What SIGKILL leaves at every point of a run: [(points, state of its directory)], each state once."""
        run_dir = self.run_dir("killed")
        found = States(run_dir, self.folder / "states")
        watcher = Killer(self.folder, watch=found)

        def work():
            status = command(self._arguments(self.settings, "killed", self.parent), watcher)()
            (self.folder / "points").write_text(json.dumps([found.points, sorted(sys.modules)]))
            return status

        assert in_child(work, self.log, seconds=600) == 0, self.log.read_text()
        assert state_hash(run_dir) == self.expected, "being watched changed the run"
        shutil.rmtree(run_dir)
        points, modules = json.loads((self.folder / "points").read_text())
        warm(modules)
        return [(at, state) for state, at in points.items()]

    def resumed(self, state):
        """Give the same command in this state of the run's directory; what is wrong then, or None."""
        run_dir = self.run_dir("killed")
        try:
            restore(state, self.folder / "states", run_dir)
            return self._continued(self._arguments(self.settings, "killed", self.parent), run_dir)
        except (AssertionError, OSError) as error:
            return str(error)
        finally:
            shutil.rmtree(run_dir, ignore_errors=True)

    def draw(self, dice: random.Random):
        """One point of any kind, SIGTERM in a step and a full disk among them."""
        kind = dice.choice(list(self.counts))
        return kind, dice.randint(1, self.counts[kind])

    def violation(self, kind, number):
        """Interrupt there, give the same command again; what is wrong then, or None."""
        run = f"{kind}{number}"
        arguments = self._arguments(self.settings, run, self.parent)
        run_dir = self.run_dir(run)
        act, expected = {
            "term": (lambda: os.kill(os.getpid(), signal.SIGTERM), (143,)),
            "full": (_disk_full, (0, 1, 2)),
        }.get(kind, (None, (-signal.SIGKILL,)))
        counted = {"term": "step", "full": "write"}.get(kind, kind)
        try:
            status = in_child(command(arguments, Killer(self.folder, counted, number, act)), self.log)
            if status not in expected:
                return f"the interrupted command ended with {status}"
            kept = {p: sha256(p) for p in self.run_dir("whole").rglob("*.ckpt")} if number == 1 else {}
            wrong = self._continued(arguments if status else None, run_dir)
            if any(sha256(p) != digest for p, digest in kept.items()):
                return "another run was changed"
            return wrong
        except (AssertionError, OSError) as error:
            return str(error)
        finally:
            shutil.rmtree(run_dir, ignore_errors=True)

    def _continued(self, arguments, run_dir):
        if arguments and (status := in_child(command(arguments), self.log)):
            return f"the same command again ended with {status}: {self.log.read_text()[-300:]}"
        left = [p.name for p in run_dir.rglob("*") if ".partial" in p.name]
        if left:
            return f"left behind: {left}"
        return None if state_hash(run_dir) == self.expected else "another result than uninterrupted"

    def _arguments(self, settings, run, parent):
        given = {o.partition("=")[0] for o in (*settings, *STEPS)}
        of_parent = ("head.", "backbone.", "model.") if parent else ()  # a run on another takes its networks
        kept = [o for o in TINY if o.partition("=")[0] not in given and not o.startswith(of_parent)]
        link = [] if parent is None else [f"parent='{parent}'"]
        return ["train", *kept, *STEPS, *settings, *link, f"runs_dir={self.folder}/runs", f"run={run}"]


def _disk_full():
    raise OSError(28, "No space left on device", "a file of the run")
