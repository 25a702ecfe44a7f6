"""Runs of several processes: what their record says, how they resume, and that their scores are those of one."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning import seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint

from hardpix import record
from hardpix.config.compose import compose, validate
from hardpix.evaluate import evaluate
from hardpix.train import resume
from hardpix.train.build import build, method_class
from hardpix.train.callbacks import EMA, update_best
from hardpix.train.rundir import BEST, LAST, PREVIOUS, read_config
from hardpix.types import ConfigError
from tests.conftest import TINY
from tests.faults.cases import CASES
from tests.listed import listed


@pytest.mark.parametrize(
    "strategy", ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_2", "ddp_spawn", "model_parallel"]
)
def test_a_strategy_that_is_not_supported_is_refused_before_anything_is_built(strategy):
    with pytest.raises(ConfigError) as raised:
        validate(compose([f"trainer.strategy={strategy}"]))
    assert str(raised.value).splitlines() == [
        f"trainer.strategy={strategy}: must be auto or ddp or ddp_find_unused_parameters_true"
    ]


def test_one_process_unless_more_are_asked_for():
    assert compose([]).trainer.devices == 1


def test_the_average_of_the_weights_lives_where_the_network_will(tiny):
    """Callbacks are set up before the strategy moves the network; ``meta`` stands for another device."""
    _, method = build(tiny())
    average = EMA(decay=0.9)
    average.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta"))), method, "fit")
    assert {p.device.type for p in average._average_model.parameters()} == {"meta"}
    assert {p.device.type for p in method.parameters()} == {"cpu"}


def drawn():
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def test_every_generator_goes_on_where_it_was(tiny, tmp_path):
    _, method = build(tiny())
    method._log_every = 1
    method._trainer = SimpleNamespace(log_every_n_steps=1, global_rank=0)
    checkpoint = {}
    method.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "c.ckpt")
    expected = drawn()
    drawn()
    method.on_load_checkpoint(torch.load(tmp_path / "c.ckpt", weights_only=True))
    method.on_train_start()
    assert drawn() == expected


def test_each_process_goes_on_with_its_own_generators(tiny, monkeypatch):
    """Two processes in one: what each draws next is its own, whoever has written the checkpoint."""
    _, method = build(tiny())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    states, expected = [], []
    for seed in (3, 4):
        seed_everything(seed, verbose=False)
        monkeypatch.setattr(torch.distributed, "all_gather_object", lambda found, own: states.append(own))
        method.on_save_checkpoint({})
        expected.append(drawn())

    def gather(found, own):
        found[:] = states

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    checkpoint = {}
    method.on_save_checkpoint(checkpoint)
    for rank in (0, 1):
        method._trainer = SimpleNamespace(log_every_n_steps=1, global_rank=rank)
        method.on_load_checkpoint(checkpoint)
        method.on_train_start()
        assert drawn() == expected[rank]


def test_a_checkpoint_of_one_generator_alone_is_still_read(tiny):
    _, method = build(tiny())
    state = torch.get_rng_state()
    expected = float(torch.rand(()))
    method._trainer = SimpleNamespace(log_every_n_steps=1, global_rank=0)
    method.on_load_checkpoint({"rng": {"cpu": state, "cuda": []}})
    method.on_train_start()
    assert float(torch.rand(())) == expected


@pytest.mark.parametrize("first", [True, False])
def test_all_processes_save_the_best_weights_or_none(tmp_path, first):
    """Process 1 does not see the file that process 0 has written, or the other way round."""
    best = ModelCheckpoint()
    best.best_model_score = torch.tensor(0.5)
    decided, saved = {}, []
    for rank, sees_it in ((0, first), (1, not first)):
        folder = tmp_path / str(rank)
        (folder / "checkpoints").mkdir(parents=True)
        if sees_it:
            (folder / BEST).write_text("")
        trainer = SimpleNamespace(
            checkpoint_callbacks=[best], fast_dev_run=False,
            strategy=SimpleNamespace(broadcast=lambda own: decided.setdefault("by the first", own)),
            save_checkpoint=lambda *_, rank=rank, **__: saved.append(rank),
        )  # fmt: skip
        update_best(folder, trainer, 0.4)
    assert saved == ([] if first else [0, 1])


def test_further_processes_do_not_look_for_a_checkpoint_themselves(tiny, tmp_path, monkeypatch):
    """The first one may be renaming it at this moment."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / PREVIOUS).write_text("")
    monkeypatch.setenv("RANK", "1")
    assert resume.checkpoint(tmp_path, tiny()) == tmp_path / LAST


def test_other_processes_than_a_run_began_with_are_refused():
    before = SimpleNamespace(factors={"trainer.world_size": 4})
    resume.check_processes(before, 4)
    resume.check_processes(SimpleNamespace(factors={}), 4)  # an earlier version did not record them
    with pytest.raises(
        ConfigError, match=r"trainer\.world_size: 4 -> 1, .* with trainer\.devices=4 trainer\.num_nodes=1, or"
    ):
        resume.check_processes(before, 1)


# -- two processes, by gloo --------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
# Three frames are shared out as two and one; a step has two batches of each process.
SHARED = (
    "data.source.val_frames=3", "data.source.test_frames=3", "data.eval_batch_size=1", "data.batch_size=2",
    "data.num_workers=0", "trainer.accumulate=2", "trainer.max_steps=2", "trainer.val_every_epochs=1",
    "trainer.val_every_steps=null", "trainer.devices=2", "trainer.strategy=ddp", "panels=0",
)  # fmt: skip

# One of the two: goes through all runs. Each draws from its generators, as many numbers more as its rank says.
PROCESS = """
import json, os, random, sys
from pathlib import Path
import numpy as np
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from hardpix.config.compose import compose
from hardpix.train.train import train

torch.set_num_threads(1)
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
draw = lambda: [random.random(), float(np.random.rand()), float(torch.rand(()))]

class Draws(Callback):
    def __init__(self):
        self.drawn = {}
    def on_train_batch_start(self, trainer, module, batch, index):
        step = trainer.global_step
        if (step, index) == (0, 0):
            for _ in range(rank + 1):
                draw()
        self.drawn.setdefault(str(step), []).append(draw())

for name, overrides in json.loads((folder / "jobs.json").read_text()):
    draws = Draws()
    train(compose(overrides), [], [draws])
    (folder / f"{name}-{rank}.json").write_text(json.dumps(draws.drawn))
    dist.barrier()
"""


def jobs_below(folder):
    """Every method's run after its parents: ``{name: overrides}``."""
    jobs = {}

    def add(name, stages):
        settings, *below = stages
        given = [*settings, *SHARED, f"run={name}", f"runs_dir='{folder}/runs'"]
        if below:
            parent = next((n for n, s in known.items() if s == below), f"{name}-below")
            if parent not in jobs:
                add(parent, below)
            given.append(f"parent='{folder}/runs/default/{parent}'")
        last = {override.partition("=")[0]: override for override in (*TINY, *given)}
        if not method_class(compose(settings)).averages:
            last["trainer.ema_decay"] = "trainer.ema_decay=0.5"
        jobs[name] = list(last.values())

    methods = listed("method")
    known = {name: CASES[name] for name in methods}
    for name in methods:
        if name not in jobs:
            add(name, known[name])
    dropout = [*jobs["baseline"], "scheduler=constant", "head.dropout=0.5"]
    jobs["full"] = [*dropout, "run=full", "trainer.max_steps=4"]
    jobs["half"] = [*dropout, "run=parts"]
    jobs["parts"] = [*dropout, "run=parts", "trainer.max_steps=4", "resume=true"]
    return methods, jobs


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of the runs of two processes, and the methods among them; all have trained once."""
    folder = tmp_path_factory.mktemp("pair")
    methods, jobs = jobs_below(folder)
    (folder / "jobs.json").write_text(json.dumps(list(jobs.items())))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "pair",
    }  # fmt: skip
    logs = [open(folder / f"log{rank}.txt", "w") for rank in (0, 1)]  # noqa: SIM115
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(folder)], cwd=folder, stdout=log, stderr=subprocess.STDOUT,
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
        )
        for rank, log in enumerate(logs)
    ]  # fmt: skip
    try:
        limit = time.monotonic() + 1800  # they would wait for each other for ever
        while any(process.poll() is None for process in processes) and time.monotonic() < limit:
            if any(process.poll() for process in processes):  # the other one waits for it
                break
            time.sleep(0.2)
        ends = [process.poll() for process in processes]
        said = "\n".join(
            (folder / f"log{rank}.txt").read_text()[-3000:] for rank in (0, 1) if ends[rank] != 0
        )
        assert ends == [0, 0], said
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            process.wait()
            log.close()
    return folder, methods


@pytest.mark.slow
def test_every_method_scores_in_two_processes_what_one_scores(pair, tmp_path):
    """Of the same weights: the same pixels counted, each image once, though one process has more batches."""
    folder, methods = pair
    for name in methods:
        run = folder / "runs/default" / name
        found = record.read(run)
        assert (found.status, found.metrics["run/steps"]) == ("done", 2), name
        cfg = read_config(run)
        cfg.data.source.cache_dir = None
        alone = evaluate(run, cfg, split="test", weights="last", out=tmp_path / name)
        pixels = [np.load(path / "confusion.npy") for path in (run, tmp_path / name)]
        assert np.array_equal(*pixels), name
        images = [(path / "per_image.csv").read_text().splitlines() for path in (run, tmp_path / name)]
        assert images[0] == images[1], name
        assert len(images[0]) == 1 + 3
        for key in alone:
            if key.startswith("test/"):
                assert found.metrics[key] == pytest.approx(alone[key], rel=1e-5, nan_ok=True), (name, key)


@pytest.mark.slow
def test_a_record_has_the_processes_and_the_batch_of_them_all(pair):
    folder, _ = pair
    found = record.read(folder / "runs/default/detail").factors
    below = "parent_config."
    for start in ("", below, below + below):
        assert found[f"{start}trainer.world_size"] == 2
        assert found[f"{start}trainer.effective_batch"] == 2 * 2 * 2


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_is_the_uninterrupted_one(pair):
    folder, _ = pair
    drawn = [[json.loads((folder / f"{n}-{r}.json").read_text()) for n in ("full", "parts")] for r in (0, 1)]
    for full, parts in drawn:
        assert set(full) == {"0", "1", "2", "3"}
        assert parts == {step: full[step] for step in ("2", "3")}
    assert drawn[0][0] != drawn[1][0]
    full, parts = (
        torch.load(folder / f"runs/default/{n}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for n in ("full", "parts")
    )
    assert all(torch.equal(full[key], parts[key]) for key in full)
