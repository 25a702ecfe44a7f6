"""A search: what its file may say, which trials it makes, and what becomes of each; the trainer is a stub."""

import functools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hardpix import record
from hardpix.cli import main
from hardpix.config.compose import compose
from hardpix.sweep import search, trials
from hardpix.sweep.jobs import jobs_of, look
from hardpix.sweep.study import read_study
from hardpix.tables.compare import collect
from hardpix.train.callbacks import ReportToTrial
from hardpix.train.rundir import LAST
from hardpix.types import ConfigError, Pruned

pytest.importorskip("optuna")


pytestmark = pytest.mark.slow  # whole runs and processes

FILE = """
search:
  method: {choice: [baseline, hardness]}
  optimizer.lr: {loguniform: [0.001, 1]}
for:
  method=hardness:
    method.alpha: {uniform: [0, 2]}
trials: 7
pruner: none
"""
STEPS = (10, 20, 30)


@pytest.fixture
def written(tmp_path):
    def write(text, name="s"):
        (tmp_path / "conf/sweep").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"conf/sweep/{name}.yaml").write_text(text)
        return tmp_path / "conf"

    return write


# -- files ---------------------------------------------------------------------------------------------------------


def read(folder, *words):
    return read_study(["s", *words], folder).search


def test_a_file_is_read(written):
    found = read(written(FILE))
    assert [(d.key, d.kind, d.values, d.condition) for d in found.dimensions] == [
        ("method", "choice", ("baseline", "hardness"), None),
        ("optimizer.lr", "loguniform", (0.001, 1.0), None),
        ("method.alpha", "uniform", (0.0, 2.0), "method=hardness"),
    ]
    assert (found.trials, found.sampler, found.pruner, found.metric) == (7, "tpe", "none", None)
    assert found.common == ("study=s",)


def test_every_end_and_every_value_is_probed_where_it_exists(written):
    lows = ("optimizer.lr=0.001",)
    assert set(read(written(FILE)).probes()) == {
        ("method=baseline", *lows), ("method=baseline", "optimizer.lr=1.0"),
        ("method=hardness", *lows, "method.alpha=0.0"), ("method=hardness", *lows, "method.alpha=2.0"),
    }  # fmt: skip


def test_the_command_line_sets_and_narrows(written):
    found = read(written(FILE), "method=hardness", "optimizer.lr=0.1,0.2", "trainer.max_steps=9", "seed=4,5")
    assert found.dimensions[0].texts == ("method=hardness",)
    assert found.dimensions[1].texts == ("optimizer.lr=0.1", "optimizer.lr=0.2")
    assert found.seeds == ("seed=4", "seed=5")
    assert set(found.common) == {"study=s", "trainer.max_steps=9"}
    with pytest.raises(ConfigError, match="several values"):
        read(written(FILE), "loss=ohem,focal")


def test_a_grid_is_every_cell_once(written):
    text = """
search: {method: {choice: [baseline, hardness]}, panels: {integers: [1, 3]}}
for: {method=hardness: {method.c: {choice: [0.1, 0.5]}}}
sampler: grid
"""
    cells = read(written(text)).grid()
    assert cells[:4] == [
        ("method=baseline", "panels=1"), ("method=baseline", "panels=2"), ("method=baseline", "panels=3"),
        ("method=hardness", "panels=1", "method.c=0.1"),
    ]  # fmt: skip
    assert len(cells) == len(set(cells)) == 3 + 3 * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("search: {a.b: {loguniform: [0, 1]}}", "above 0"),
        ("search: {a.b: {uniform: [1, 1]}}", "below the second"),
        ("search: {a.b: {uniform: [1]}}", "two numbers"),
        ("search: {a.b: {integers: [1, 2.5]}}", "two whole numbers"),
        ("search: {a.b: {unifrom: [0, 1]}}", "did you mean 'uniform'"),
        ("search: {a.b: [0, 1]}", "must be one of {loguniform"),
        ("search: {a.b: {choice: []}}", "must be a list"),
        ("search: {a.b: {choice: [1, 1]}}", "holds a value twice"),
        ("search: {seed: {integers: [0, 9]}}", "chance is not searched"),
        ("search: {run: {choice: [a]}}", "names and resumes its runs itself"),
        ("search: {a.b: {uniform: [0, 1]}}\naxes: {c: [1]}", "axes and search exclude each other"),
        (
            "search: {a.b: {uniform: [0, 1]}}\nfor: {method=x: {a.c: {uniform: [0, 1]}}}",
            "for.method=x: neither",
        ),
        ("search: {a.b: {uniform: [0, 1]}}\nmetric: test/miou", "of the validation split"),
        ("search: {a.b: {uniform: [0, 1]}}\nsampler: tp", "sampler=tp: must be one of tpe, random, grid"),
        ("search: {a.b: {uniform: [0, 1]}}\npruner: best", "pruner=best: must be one of"),
        ("search: {a.b: {uniform: [0, 1]}}\ntrials: 0", "trials=0"),
        ("search: {a.b: {uniform: [0, 1]}}\nsampler: grid", "a grid needs choice or integers"),
        ("axes: {seed: [1]}\ntrials: 3", "trials: only a study with search"),
        ("search: {}", "search must be a mapping"),
    ],
)
def test_files_that_are_wrong_get_one_sentence(written, text, said):
    with pytest.raises(ConfigError) as raised:
        read(written(text))
    assert said in str(raised.value)
    assert "s.yaml" in str(raised.value)


def test_all_problems_are_told_before_anything_trains(written, tmp_path, monkeypatch, capsys, trained):
    monkeypatch.chdir(tmp_path)
    folder = written("search: {method: {choice: [baseline, hardness]}, method.alhpa: {uniform: [0, 1]},"
                     " optimizer.lr: {uniform: [-1, 1]}}")  # fmt: skip
    assert main(["sweep", "s", "--config-dir", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "method.alhpa: no such key; did you mean 'alpha'" in said
    assert not (tmp_path / "runs").exists()
    assert trained.runs == []


def test_without_optuna_one_sentence(written, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "hardpix\[search\]"'):
        search.prepare(read_study(["s"], written(FILE)))


def test_the_files_of_the_project_can_be_searched():
    folder, settings, jobs = search.prepare(read_study(["hl_search"]))
    assert (folder, len(jobs)) == (Path("runs/hl_search"), 3)
    assert settings["search"]["method.alpha"] == {"loguniform": [0.001, 1.0]}


# -- trials --------------------------------------------------------------------------------------------------------


class Stub:
    """In place of ``train``: validates thrice and leaves the record; ``faults``: an exception by trial and step."""

    def __init__(self):
        self.runs, self.faults, self.score = (
            [],
            {},
            lambda cfg, step: 1 - abs(math.log10(cfg.optimizer.lr) + 1),
        )

    def __call__(self, cfg, overrides, callbacks=()):
        from hardpix.train.train import new_record

        run_dir = Path(cfg.runs_dir) / cfg.study / cfg.run
        before = record.read(run_dir) if cfg.resume else None
        self.runs.append((cfg.optimizer.lr, cfg.resume))
        started = new_record(cfg, run_dir, overrides, before)
        record.write(started, run_dir)
        trainer = SimpleNamespace(sanity_checking=False, state=SimpleNamespace(fn="fit"), world_size=1,
                                  estimated_stepping_batches=float(STEPS[-1]))  # fmt: skip
        module = SimpleNamespace(info=SimpleNamespace(main_metric="miou"))
        fault = self.faults.pop(len(self.runs), None)
        try:
            for step in STEPS:
                trainer.global_step = step
                trainer.callback_metrics = {"val/miou": self.score(cfg, step), "test/miou": -1.0}
                for callback in callbacks:
                    callback.on_fit_start(trainer, module)
                    callback.on_validation_end(trainer, module)
                if fault and fault[0] == step:
                    (run_dir / LAST).parent.mkdir(exist_ok=True)
                    (run_dir / LAST).write_text("")
                    raise fault[1]
        except BaseException as error:
            if not isinstance(error, Killed):
                told = "interrupted" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
                record.write(replace(started, status="failed", error=told), run_dir)
            raise
        metrics = {"val/miou": self.score(cfg, STEPS[-1]), "test/miou": -1.0, "run/seconds": 1.0}
        record.write(replace(started, status="done", metrics=metrics), run_dir)


class Killed(BaseException):
    """As SIGKILL: nothing is written after it."""


@functools.cache
def composed_once(overrides, config_dir):
    return compose(overrides, config_dir=config_dir)


@pytest.fixture
def trained(monkeypatch):
    stub = Stub()
    monkeypatch.setattr("hardpix.train.train.train", stub)
    monkeypatch.setattr("hardpix.train.train.code_versions", dict)
    monkeypatch.setattr("hardpix.sweep.jobs.compose", composed_once)
    monkeypatch.setattr("hardpix.sweep.execute._clean_up", lambda: None)
    monkeypatch.setattr("hardpix.sweep.search.freeze_imports", lambda: None)
    return stub


@pytest.fixture
def sweep(tmp_path, monkeypatch, trained, written):
    monkeypatch.chdir(tmp_path)

    def run(*words, text=FILE):
        return main(["sweep", "s", "--config-dir", str(written(text)), *words])

    return run


def found(name="s"):
    return trials.found(Path("runs") / name, name)


def states(name="s"):
    return [trial.state.name for trial in found(name)]


def chosen(name="s"):
    return [tuple(trial.user_attrs["settings"]) for trial in found(name)]


def test_trials_are_ordinary_runs_and_a_finished_search_does_nothing(sweep, trained, capsys):
    assert sweep() == 0
    assert states() == ["COMPLETE"] * 7
    runs = {str(run.directory): run.record for run in collect(["runs/s"])}
    assert len(runs) == 7
    for trial in found():
        (path,) = trial.user_attrs["runs"]
        assert trial.value == runs[path].metrics["val/miou"]  # never of the test split
        jobs, _ = jobs_of(read_study([*trial.user_attrs["settings"], "study=s", "seed=0"]))
        assert str(jobs[0].run_dir) == path  # where any other sweep would look for it
        assert ("method=hardness" in trial.user_attrs["settings"]) == (
            "method=hardness/method.alpha" in trial.params
        )
    said = capsys.readouterr().out
    best = max(found(), key=lambda trial: trial.value)
    assert f"best: trial {best.number + 1}," in said
    assert "7 of 7 trials: 7 done" in said
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("run.json")}
    assert sweep() == 0
    assert len(trained.runs) == 7
    assert before == {p: p.stat().st_mtime_ns for p in Path("runs").rglob("run.json")}
    assert sweep(text=FILE.replace("7", "9")) == 0
    assert len(trained.runs) == 9


def test_the_same_seed_makes_the_same_trials_however_often_it_was_interrupted(sweep, trained):
    sweep()
    trained.faults = {at: (10, SystemExit(143)) for at in (8, 11, 14)}
    status = [sweep("study=t") for _ in range(4)]
    assert status == [143, 143, 143, 0]
    assert chosen("t") == chosen("s")
    assert len(set(chosen("s"))) == 7
    assert states("t") == ["COMPLETE"] * 7
    sweep("study=u", text=FILE + "seed: 1")
    assert not set(chosen("u")) & set(chosen("s"))


@pytest.mark.slow
def test_the_sampler_learns(sweep):
    """TPE's later trials lie nearer the best rate, 0.1, than chance does (log-uniform on three decades)."""
    text = "search: {optimizer.lr: {loguniform: [0.001, 1]}}\ntrials: 40\npruner: none"
    sweep(text=text)
    far = [abs(math.log10(trial.params["optimizer.lr"]) + 1) for trial in found()]
    assert sum(far[20:]) / 20 < 0.5 * sum(far[:10]) / 10


@pytest.mark.parametrize("ended", [SystemExit(143), Killed()])
def test_a_trial_that_was_cut_short_is_taken_up_again(sweep, trained, ended):
    trained.faults = {3: (20, ended)}
    if isinstance(ended, Killed):
        with pytest.raises(Killed):
            sweep()
    else:
        assert sweep() == 143
    assert states() == ["COMPLETE", "COMPLETE", "RUNNING"]
    rate, paths = chosen()[2], found()[2].user_attrs["runs"]
    run_id = record.read(paths[0]).run_id
    assert sweep() == 0
    assert states() == ["COMPLETE"] * 7
    assert (chosen()[2], found()[2].user_attrs["runs"]) == (rate, paths)
    assert trained.runs[3] == (trained.runs[2][0], True)
    assert record.read(paths[0]).run_id == run_id
    assert found()[2].intermediate_values == {
        step: trained.score(SimpleNamespace(optimizer=SimpleNamespace(lr=trained.runs[2][0])), step)
        for step in STEPS
    }


def test_a_trial_of_another_process_is_left_alone(sweep, trained, tmp_path):
    trained.faults = {2: (10, SystemExit(143))}
    sweep()
    import optuna

    study = optuna.load_study(storage=trials._storage(Path("runs/s")), study_name="s")
    owner = found()[1].user_attrs["owner"]
    study._storage.set_trial_user_attr(found()[1]._trial_id, "owner", owner | {"hostname": "elsewhere"})
    assert sweep() == 0
    assert states() == ["COMPLETE", "RUNNING", *["COMPLETE"] * 5]
    assert sweep("--take-over") == 0
    assert states() == ["COMPLETE"] * 7


def test_failures_do_not_end_a_search(sweep, trained, capsys):
    trained.faults = {2: (10, ValueError("bad luck"))}
    assert sweep() == 1
    assert states() == ["COMPLETE", "FAIL", *["COMPLETE"] * 5]
    assert found()[1].user_attrs["error"] == "ValueError: bad luck"
    assert "6 done, 1 failed" in capsys.readouterr().out
    assert sweep() == 0
    assert len(trained.runs) == 7


def test_a_score_that_is_not_a_number_is_a_failure(sweep, trained):
    trained.score = lambda cfg, step: math.nan if len(trained.runs) == 2 else 0.5
    assert sweep() == 1
    assert states() == ["COMPLETE", "FAIL", *["COMPLETE"] * 5]


def test_what_is_behind_is_pruned_and_stays_out_of_tables(sweep, trained, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    text = "search: {optimizer.lr: {loguniform: [0.001, 1]}}\ntrials: 20\nsampler: random\npruner: median\nseed: 3"
    assert sweep(text=text) == 0
    kinds = states()
    assert kinds[:5] == ["COMPLETE"] * 5
    assert 0 < kinds.count("PRUNED") < 15
    for trial in found():
        (path,) = map(Path, trial.user_attrs["runs"])
        done = record.read(path)
        steps = sorted(trial.intermediate_values)
        if trial.state.name == "PRUNED":
            assert (done.status, done.metrics, look(path).kind) == ("failed", {}, "pruned")
            assert done.error.startswith(f"Pruned: at step {steps[-1]} of 30, val/miou ")
            others = [
                t.intermediate_values[steps[-1]]
                for t in found()[: trial.number]
                if t.state.name == "COMPLETE"
            ]
            assert trial.value < sorted(others)[len(others) // 2]
        else:
            assert (done.status, steps) == ("done", list(STEPS))
    capsys.readouterr()
    assert main(["sweep", "status", "s", "--config-dir", "conf"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "pruned at step 10 of 30" in said
    assert f"20 of 20 trials: {kinds.count('COMPLETE')} done, {kinds.count('PRUNED')} pruned" in said
    pruned = next(t for t in found() if t.state.name == "PRUNED")
    assert (
        main(["sweep", *pruned.user_attrs["settings"], "study=s", "seed=0"]) == 0
    )  # a whole run of the same
    assert trained.runs[-1] == (pruned.params["optimizer.lr"], True)
    assert record.read(pruned.user_attrs["runs"][0]).status == "done"


def test_a_score_is_the_mean_over_the_seeds(sweep, trained):
    trained.score = lambda cfg, step: cfg.optimizer.lr + cfg.seed + step / 100
    assert sweep(text=FILE.replace("7", "2") + "seeds: [1, 4]") == 0
    for trial, rate in zip(found(), [trained.runs[0][0], trained.runs[2][0]], strict=True):
        assert trial.value == pytest.approx(rate + 2.5 + 0.3)
        assert trial.intermediate_values == pytest.approx(
            {10: rate + 1.1, 20: rate + 1.2, 30: rate + 1.3, 40: rate + 4.1, 50: rate + 4.2, 60: rate + 4.3}
        )
    assert len(collect(["runs/s"])) == 4


def test_choices_made_twice_are_trained_once(sweep, trained):
    assert sweep(text="search: {method: {choice: [baseline, hardness]}}\ntrials: 8\nsampler: random") == 0
    assert (len(trained.runs), states()) == (2, ["COMPLETE"] * 8)


def test_a_grid_ends_by_itself(sweep, trained):
    text = (
        "search: {method: {choice: [baseline, hardness]}, optimizer.lr: {choice: [0.1, 0.2]}}\nsampler: grid"
    )
    assert sweep(text=text) == 0
    assert [lr for lr, _ in trained.runs] == [0.1, 0.2, 0.1, 0.2]


def test_another_search_is_not_mixed_in(sweep, trained, capsys):
    sweep()
    assert sweep("trainer.max_steps=9") == 2
    assert "trainer.max_steps: " in capsys.readouterr().err
    assert sweep(text=FILE.replace("0, 2", "0, 3")) == 2
    assert "another search" in capsys.readouterr().err
    assert len(trained.runs) == 7
    assert sweep("logger=csv", text=FILE + "sampler: random") == 0


def test_a_metric_that_no_run_has_is_told_and_can_be_mended(sweep, trained, capsys):
    assert sweep(text=FILE + "metric: val/mioo") == 2
    assert "metric=val/mioo: no run logs it; did you mean 'val/miou'?" in capsys.readouterr().err
    assert record.read(found()[0].user_attrs["runs"][0]).status == "failed"  # at its first validation
    assert sweep(text=FILE + "metric: val/miou") == 0
    assert len(trained.runs) == 8


def test_dry_run_and_status_touch_nothing_and_import_no_torch(tmp_path, written):
    place = str(written(FILE).relative_to(tmp_path))
    code = (
        "import sys; from hardpix.cli import main\n"
        f"assert main(['sweep', 's', '--config-dir', {place!r}, '--dry-run']) == 0\n"
        "assert main(['sweep', 'hl_search', '--dry-run']) == 0\n"
        "assert main(['sweep', 'status', 'hl_search']) == 0\n"
        "assert not {'torch', 'pytorch_lightning', 'wandb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "uniform 0.0, 2.0 (for method=hardness)" in done.stdout
    assert "loguniform 0.001, 1.0" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_a_status_is_brief_and_tells_the_time_left(sweep, trained, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    trained.score = lambda cfg, step: 0.25
    trained.faults[3] = (10, SystemExit(143))
    sweep(text="search: {optimizer.lr: {loguniform: [0.001, 1]}}\ntrials: 8\npruner: none")
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 of 8 trials: 2 done, 1 waiting; ")
    assert main(["sweep", "status", "s", "--config-dir", "conf"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rate = found()[0].params["optimizer.lr"]
    assert f"optimizer.lr={rate:.4g} " in next(line for line in lines if "│     1 │" in line)
    assert f"best: trial 1, val 25.00 %: optimizer.lr={rate}" in lines
    assert any(line.startswith("time left: about ") for line in lines)


def test_the_last_validation_never_prunes():
    seen = []
    watch = ReportToTrial(lambda s, step: seen.append((s, step)) or True, metric=None, earlier=2, prunes=True)
    trainer = SimpleNamespace(sanity_checking=False, state=SimpleNamespace(fn="fit"), global_step=30,
                              estimated_stepping_batches=30.0, callback_metrics={"val/miou": 0.5})  # fmt: skip
    module = SimpleNamespace(info=SimpleNamespace(main_metric="miou"))
    watch.on_validation_end(trainer, module)
    trainer.global_step = 20
    with pytest.raises(Pruned, match=r"at step 20 of 30, val/miou 50\.00 %"):
        watch.on_validation_end(trainer, module)
    trainer.sanity_checking = True
    watch.on_validation_end(trainer, module)
    trainer.sanity_checking, trainer.state.fn = False, "validate"
    watch.on_validation_end(trainer, module)
    assert seen == [(0.5, 90), (0.5, 80)]
    with pytest.raises(ConfigError, match="pruner"):
        watch.on_fit_start(SimpleNamespace(world_size=2), module)
