"""A study whose jobs train in two processes: Lightning's own, torchrun's, and those of a SLURM step."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hardpix import record
from hardpix.sweep import lockstep
from hardpix.train import machine
from hardpix.types import ConfigError, HardpixError

ROOT = Path(__file__).resolve().parents[2]
STUDY = (
    "data.source.height=32", "data.source.width=48", "data.source.train_frames=8", "data.source.val_frames=2",
    "data.source.test_frames=2", "data.train_transform.crop=[32,48]", "data.batch_size=2", "data.num_workers=0",
    "backbone.name=test_resnet", "head.channels=8", "model.aux_channels=8", "trainer.accelerator=cpu",
    "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=2", "trainer.val_every_epochs=3",
    "trainer.sanity_steps=0", "callbacks.progress=none", "logger=csv", "panels=0", "study=s",
)  # fmt: skip

# The command, but that process 1 fails in the second step of seed 1.
FAILS = """
import os, sys
import hardpix.train.train as train
from hardpix.cli import main
from pytorch_lightning.callbacks import Callback

class Fails(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == 1:
            raise ValueError("the disk of this node is full")

def run(job, before=train._run):
    if job.cfg.seed == 1 and trained_by == job.trainer.global_rank:
        job.trainer.callbacks.append(Fails())
    return before(job)

trained_by = int(os.environ["FAILS"])
train._run = run
sys.exit(main())
"""


@pytest.fixture
def ran(tmp_path):
    """``ran([...])``: (exit status, output) of a command in an empty folder; it must end by itself."""

    def run(command, **env):
        given = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE"))}
        path = f"{ROOT}:{given.get('PYTHONPATH', '')}"
        given |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env}
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        return done.returncode, done.stdout

    return run


def by_seed(folder):
    found = [record.read(p.parent) for p in folder.glob("runs/s/*/run.json")]
    return {r.seed: r for r in found}


def test_which_process_this_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    assert (machine.rank(), machine.size()) == (0, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert (machine.rank(), machine.size()) == (0, 1)  # the batch script
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert (machine.rank(), machine.size()) == (3, 4)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (machine.rank(), machine.size()) == (1, 2)  # torchrun in a step of srun


def test_as_many_processes_as_the_trainer_asks_for(tiny):
    lockstep.check_size(tiny("trainer.devices=2", "trainer.num_nodes=3"), 6, "job 1")
    lockstep.check_size(tiny("trainer.devices=auto"), 6, "job 1")
    lockstep.check_size(tiny("trainer.devices=[0,2]"), 2, "job 1")
    with pytest.raises(
        ConfigError, match=r"job 1: trainer\.devices=2 on trainer\.num_nodes=1, but 3 processes"
    ):
        lockstep.check_size(tiny("trainer.devices=2"), 3, "job 1")


def test_the_first_error_is_the_one_that_is_told():
    """Two processes in one: what the second one said is raised in place of a broken connection."""
    said = {}
    store = SimpleNamespace(
        set=said.__setitem__, wait=lambda *_: None, get=lambda key: said.get(key, "ValueError: full").encode()
    )
    first = object.__new__(lockstep.RankGroup)
    first.rank, first.size, first.spoken, first.store = 0, 2, 1, store
    with pytest.raises(HardpixError, match="process 1: ValueError: full"):
        first._leave(RuntimeError("Connection closed by peer"))
    with pytest.raises(KeyError, match="own"):
        first._leave(KeyError("own"))
    said["left/1/1"] = ""
    with pytest.raises(RuntimeError, match="Connection"):
        first._leave(RuntimeError("Connection closed by peer"))
    first._leave(None)
    assert said["left/1/0"] == ""


@pytest.mark.slow
def test_processes_of_lightnings_own(ran, tmp_path):
    """Each job has its second process, which trains that job alone and begins no sweep of its own."""
    status, output = ran([sys.executable, "-m", "hardpix.cli", "sweep", *STUDY, "seed=0,1"])
    assert status == 0, output[-3000:]
    assert output.count("2 jobs: 2 done") == 1
    for number in (1, 2):  # it begins once and ends once
        told = [line for line in output.splitlines() if line.startswith(f"job {number} of 2: ")]
        assert len(told) == 2, told
        assert ["(run: " in line for line in told] == [True, False]
    assert {r.status for r in by_seed(tmp_path).values()} == {"done"}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_goes_through_a_study(ran, tmp_path, rank):
    """Seed 1 fails in one process alone, seed 2 trains all the same; the second time only seed 1 is left."""
    (tmp_path / "fails.py").write_text(FAILS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    given = ["sweep", *STUDY, "seed=0,1,2"]
    status, output = ran([*torchrun, str(tmp_path / "fails.py"), *given], FAILS=str(rank))
    assert status == 1, output[-3000:]
    found = by_seed(tmp_path)
    assert [found[seed].status for seed in (0, 1, 2)] == ["done", "failed", "done"]
    assert "the disk of this node is full" in found[1].error
    assert output.count("3 jobs: 2 done, 1 failed") == 1
    if rank == 1:  # once is enough
        status, output = ran([*torchrun, "-m", "hardpix.cli", *given])
        assert status == 0, output[-3000:]
        assert output.count("3 jobs: 3 done (2 before)") == 1
        assert by_seed(tmp_path)[1].status == "done"
        assert by_seed(tmp_path)[0].run_id == found[0].run_id
