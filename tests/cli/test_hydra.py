"""``hardpix train`` and ``sweep`` as applications of Hydra: each flag works, or is refused in one sentence."""

import json
import logging
from pathlib import Path

import pytest
import yaml

from hardpix import record
from hardpix.cli import main
from hardpix.config.compose import compose
from hardpix.sweep.jobs import fingerprint
from tests.conftest import TINY

DRY = ("-m", "hydra.sweeper.dry_run=true")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with ``more/experiment/own.yaml``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more/experiment").mkdir(parents=True)
    (tmp_path / "more/experiment/own.yaml").write_text("# @package _global_\nseed: 77\n")
    yield tmp_path
    logging.getLogger().handlers.clear()  # --info prints through one


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cfg", "job", "seed=3"], "seed: 3"),
        (["--cfg", "hydra"], "_target_: hydra_plugins.hardpix.StudySweeper"),
        (["--cfg", "all"], "method:"),
        (["--cfg", "job", "--resolve", "-p", "method"], "_target_: hardpix.methods.Baseline"),
        (["--cfg", "job", "++trainer.max_steps=3"], "max_steps: 3"),
        (["--cfg", "job", "+notes.why=wide"], "why: wide"),
        (["--cfg", "job", "--config-dir", "more", "experiment=own"], "seed: 77"),
        (["--cfg", "job", "hydra.searchpath=[file://more]", "experiment=own"], "seed: 77"),
        (["--info", "plugins"], "PoolLauncher"),
        (["--hydra-help"], "Hydra (1.3"),
        (["--help"], "hardpix train GROUP=CHOICE"),
        ([*DRY, "seed=0,1"], "2 jobs: 2 to run"),
        (["hydra.mode=MULTIRUN", DRY[1], "seed=0,1"], "2 jobs: 2 to run"),
        ([*DRY, "--config-dir", "more", "experiment=own", "panels=0,1", "hydra.sweeper.commands=true"],
         "hardpix train --config-dir"),
        ([*DRY, "hydra.sweep.dir=here/there", "seed=0,1", "hydra.sweeper.commands=true"],
         "runs_dir=here study=there"),
    ],
)  # fmt: skip
def test_flags_that_work(words, said, capsys):
    assert main(["train", *words]) == 0
    shown = capsys.readouterr()
    assert said in shown.out
    assert shown.err == ""
    assert [path.name for path in Path().iterdir()] == ["more"]  # nothing is trained or written


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "--cfg", "job"], "--multirun and --cfg: give one of them"),
        (["--run", "--cfg", "job"], "--run and --cfg: give one of them"),
        (["--resolve"], "--resolve: goes with --cfg job"),
        (["-sc", "install=bash"], "hardpix completion install"),
        (["-sc", "query=bash"], "hardpix completion install"),
        (["--experimental-rerun", "x.pickle"], "hardpix train run=NAME continues a run"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
        (["--config-path", "more"], "add a folder with --config-dir"),
        (["--config-name", "own"], "--config-dir DIR experiment=NAME"),
        (["~callbacks.progress"], "callbacks.progress: needs a value"),
        (["hydra.run.dir=x"], "a run is in runs_dir/study/run"),
        (["-m", "hydra.sweep.subdir=x", "seed=0,1"], "set hydra.sweep.dir instead"),
        (["seed=0,1"], "add --multirun"),
        (["-m", "hydra/launcher=lsf", "seed=0,1"], "Available options in 'hydra/launcher': basic"),
        (["-m", "hydra/sweeper=best", "seed=0,1"], "Available options in 'hydra/sweeper': basic"),
        (["-m", "trainer.devices=2", "seed=0,1"], "add hydra/launcher=pool"),
        (["-m", "optimizer.lrr=1,2"], "optimizer.lrr: no such key; did you mean 'lr'?"),
        (["-m", "hydra/sweeper=optuna", "seed=0"], "needs a study with search"),
        (
            ["-m", "hydra/launcher=pool", "hydra.launcher.workers=0", "seed=0,1"],
            "hydra.launcher.workers=0: must be",
        ),
    ],
)
def test_flags_that_are_refused_get_one_sentence(words, said, capsys):
    assert main(["train", *words]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
    assert not list(Path().rglob("run.json"))


def test_ranks_of_torchrun_do_not_share_a_study(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sweep", "seed=0,1"]) == 2
    assert "hydra.launcher.python='torchrun --nproc_per_node=4'" in capsys.readouterr().err


def test_notes_are_recorded_and_never_compared(capsys):
    plain, noted = compose([]), compose(["+notes.why=wide", "+notes.who=me"])
    assert fingerprint(plain) == fingerprint(noted)


@pytest.mark.slow
def test_a_sweep_has_its_folder_hydras_files_and_notes(folder, capsys):
    """``hydra.sweep.dir`` is the runs' folder, ``.hydra/`` is written where it is asked for; notes stay a run's own."""
    words = [*TINY, "panels=0", "hydra.sweep.dir=here/there", "hydra.output_subdir=.hydra", "seed=0,1"]
    assert main(["train", "-m", *words, "+notes.why='first, small'"]) == 0
    runs = sorted(path.parent for path in Path("here/there").glob("*/run.json"))
    assert [path.name[:6] for path in runs] == ["seed=0", "seed=1"]
    assert all(yaml.safe_load((run / ".hydra/config.yaml").read_text())["seed"] in (0, 1) for run in runs)
    found = record.read(runs[0])
    assert (found.study, found.factors["notes.why"]) == ("there", "first, small")
    assert not Path("runs").exists()
    capsys.readouterr()
    assert main(["train", "-m", *words, "+notes.why=second"]) == 0
    assert "2 jobs: 2 done (2 before)" in capsys.readouterr().out
    assert (
        main(["train", *TINY, "panels=0", "runs_dir=here", "study=there", f"run='{runs[0].name}'", "seed=0"])
        == 0
    )
    assert "is done: nothing to resume" in capsys.readouterr().out
    words = [*TINY, "panels=0", "hydra.sweep.dir=here/there", "seed=2", "+notes.why=third"]
    assert main(["train", "-m", *words]) == 0
    capsys.readouterr()
    assert main(["table", "here/there", "--rows", "method", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 1
