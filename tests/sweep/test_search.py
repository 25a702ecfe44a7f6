"""A search: what its file may say, which trials it makes, and what becomes of each; the trainer is a stub."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hardpix import record
from hardpix.cli import main
from hardpix.config.compose import composer
from hardpix.sweep import search
from hardpix.sweep.state import look
from hardpix.sweep.study import read_study
from hardpix.tables.compare import collect
from hardpix.train.callbacks import ReportToTrial
from hardpix.train.rundir import LAST
from hardpix.types import ConfigError, Pruned

pytest.importorskip("optuna")

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
        (tmp_path / "conf/studies").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"conf/studies/{name}.yaml").write_text(text)
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
        (
            "search: {a.b: {uniform: [0, 1]}}\nsampler: tp",
            "sampler=tp: must be one of tpe, random, grid, or a class of optuna.samplers",
        ),
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


def test_the_files_of_the_project_can_be_searched():
    jobs = search.corners(read_study(["hl_search"]), composer())
    assert ({job.run_dir.parent for job in jobs}, len(jobs)) == ({Path("runs/hl_search")}, 3)


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
            told = "interrupted" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
            record.write(replace(started, status="failed", error=told), run_dir)
            raise
        metrics = {"val/miou": self.score(cfg, STEPS[-1]), "test/miou": -1.0, "run/seconds": 1.0}
        record.write(replace(started, status="done", metrics=metrics), run_dir)


@pytest.fixture
def trained(monkeypatch):
    stub = Stub()
    monkeypatch.setattr("hardpix.train.train.train", stub)
    monkeypatch.setattr("hardpix.train.train.code_versions", dict)
    for name in ("freeze_imports", "clean_up"):
        monkeypatch.setattr(f"hardpix.sweep.work.{name}", lambda: None)
    return stub


@pytest.fixture
def sweep(tmp_path, monkeypatch, trained, written):
    monkeypatch.chdir(tmp_path)

    def run(*words, text=FILE):
        return main(["sweep", "s", "--config-dir", str(written(text)), *words])

    return run


def found():
    return search.trials_of(SimpleNamespace(name="s"), Path("runs/s"))


def states():
    return [trial.state.name for trial in found()]


@pytest.mark.slow
def test_a_search_is_repeatable_and_goes_on_when_it_gets_more_trials(sweep, trained, capsys):
    assert sweep() == 0
    assert states() == ["COMPLETE"] * 7
    first = [trial.params for trial in found()]
    assert all(("method=hardness/method.alpha" in p) == (p["method"] == "method=hardness") for p in first)
    assert len(collect(["runs/s"])) == len(trained.runs) == 7
    for trial in found():
        done = record.read(trial.user_attrs["runs"][0])
        assert (done.status, trial.value) == ("done", done.metrics["val/miou"])
    assert "7 of 7 trials: 7 done" in capsys.readouterr().out
    assert sweep() == 0
    assert sweep(text=FILE.replace("7", "9")) == 0
    assert sweep("hydra.sweeper.n_trials=10") == 0
    assert (states(), len(trained.runs)) == (["COMPLETE"] * 10, 10)
    assert sweep("study=again", text=FILE) == 0
    again = search.trials_of(SimpleNamespace(name="again"), Path("runs/again"))
    assert [trial.params for trial in again] == first


@pytest.mark.slow
def test_tpe_learns(sweep):
    """Its later trials have rates nearer the best one, 0.1, than chance does (log-uniform on three decades)."""
    sweep(text="search: {optimizer.lr: {loguniform: [0.001, 1]}}\ntrials: 30\npruner: none")
    far = [abs(math.log10(trial.params["optimizer.lr"]) + 1) for trial in found()]
    assert sum(far[20:]) / 10 < 0.5 * sum(far[:10]) / 10


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_trial_that_was_cut_short_is_tried_again_with_its_settings(sweep, trained, killed):
    """After a signal at once; after SIGKILL as soon as its process is seen to be gone."""
    trained.faults = {3: (20, SystemExit(143))}
    if killed:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "_again", lambda *_: None)
            assert sweep() == 143
        assert states() == ["COMPLETE", "COMPLETE", "RUNNING"]
        gone = {**found()[2].user_attrs["owner"], "pid": "999999999"}
        import optuna

        study = optuna.load_study(storage=search._storage(Path("runs/s"), None), study_name="s")
        study._storage.set_trial_user_attr(found()[2]._trial_id, "owner", gone)
    else:
        assert sweep() == 143
        assert states() == ["COMPLETE", "COMPLETE", "FAIL", "WAITING"]
    params, paths = found()[2].params, found()[2].user_attrs["runs"]
    run_id = record.read(paths[0]).run_id
    assert sweep() == 0
    assert states() == ["COMPLETE", "COMPLETE", "FAIL", *["COMPLETE"] * 5]
    assert (found()[3].params, found()[3].user_attrs["runs"]) == (params, paths)
    assert trained.runs[3] == (trained.runs[2][0], True)  # from its checkpoint
    assert record.read(paths[0]).run_id == run_id


@pytest.mark.slow
def test_failures_do_not_end_a_search(sweep, trained, capsys):
    trained.faults = {2: (10, ValueError("bad luck"))}
    assert sweep() == 1
    assert states() == ["COMPLETE", "FAIL", *["COMPLETE"] * 5]
    assert found()[1].user_attrs["error"] == "ValueError: bad luck"
    assert "6 done, 1 failed" in capsys.readouterr().out
    assert sweep() == 0
    assert len(trained.runs) == 7


@pytest.mark.slow
def test_a_failure_may_end_it_or_be_tried_again(sweep, trained):
    trained.faults = {2: (10, ValueError("bad luck"))}
    assert sweep("--on-error", "stop") == 1
    assert states() == ["COMPLETE", "FAIL"]
    trained.faults = {3: (10, ValueError("bad luck"))}
    assert sweep("--on-error", "retry", text=FILE.replace("7", "3")) == 0
    assert (states(), len(trained.runs)) == (["COMPLETE", "FAIL", "COMPLETE"], 4)


@pytest.mark.slow
def test_what_is_behind_is_pruned_and_stays_out_of_tables(sweep, capsys):
    text = "search: {optimizer.lr: {loguniform: [0.001, 1]}}\ntrials: 16\nsampler: random\npruner: median\nseed: 3"
    assert sweep(text=text) == 0
    kinds = states()
    assert kinds[:5] == ["COMPLETE"] * 5
    assert 0 < kinds.count("PRUNED") < 11
    for trial in found():
        (path,) = map(Path, trial.user_attrs["runs"])
        done = record.read(path)
        if trial.state.name == "PRUNED":
            assert (done.status, done.metrics, look(path).kind) == ("failed", {}, "pruned")
            assert done.error.startswith(f"Pruned: at step {max(trial.intermediate_values)} of 30, val/miou ")
        else:
            assert (done.status, sorted(trial.intermediate_values)) == ("done", list(STEPS))
    capsys.readouterr()
    assert main(["sweep", "status", "s", "--config-dir", "conf"]) == 0
    said = capsys.readouterr().out
    assert f"16 of 16 trials: {kinds.count('COMPLETE')} done, {kinds.count('PRUNED')} pruned" in said
    assert "optuna-dashboard sqlite:///runs/s/optuna.db" in said


@pytest.mark.slow
def test_a_score_is_the_mean_over_the_seeds(sweep, trained):
    trained.score = lambda cfg, step: cfg.optimizer.lr + cfg.seed + step / 100
    assert sweep(text=FILE.replace("7", "2") + "seeds: [1, 4]") == 0
    for trial, rate in zip(found(), [trained.runs[0][0], trained.runs[2][0]], strict=True):
        assert trial.value == pytest.approx(rate + 2.5 + 0.3)
        assert sorted(trial.intermediate_values) == [10, 20, 30, 40, 50, 60]
    assert len(collect(["runs/s"])) == 4


@pytest.mark.slow
def test_a_grid_of_conditions_ends_by_itself_and_a_class_of_optunas_is_called_by_its_name(sweep, trained):
    text = (
        "search: {method: {choice: [baseline, hardness]}, optimizer.lr: {choice: [0.1, 0.2]}}\n"
        "for: {method=hardness: {method.c: {choice: [0.1, 0.5]}}}\nsampler: grid\npruner: none"
    )
    assert sweep(text=text) == 0
    cells = {tuple(trial.user_attrs["settings"]) for trial in found()}
    assert (len(trained.runs), len(cells)) == (6, 6)
    assert sweep("study=q", text=FILE.replace("7", "2") + "sampler: QMCSampler") == 0
    assert sweep("study=x", text=FILE + "sampler: NoSampler") == 2


@pytest.mark.slow
def test_another_search_is_not_mixed_in(sweep, trained, capsys):
    sweep(text=FILE.replace("7", "2"))
    assert sweep("trainer.max_steps=9") == 2
    assert "trainer.max_steps: " in capsys.readouterr().err
    assert sweep(text=FILE.replace("0, 2", "0, 3")) == 2
    assert "another search" in capsys.readouterr().err
    assert len(trained.runs) == 2
    assert sweep("logger=csv", text=FILE.replace("7", "3") + "sampler: random") == 0


@pytest.mark.slow
def test_a_metric_that_no_run_has_is_refused(sweep, capsys):
    assert sweep(text=FILE + "metric: val/mioo") == 2
    assert "metric=val/mioo: no run logs it; did you mean 'val/miou'?" in capsys.readouterr().err


def test_a_dry_run_trains_nothing(sweep, trained, capsys):
    assert sweep("--dry-run") == 0
    said = capsys.readouterr().out
    assert "a search of 7 trials, sampler=tpe, pruner=none, in runs/s: nothing so far" in said
    assert "method.alpha: uniform 0.0, 2.0 (for method=hardness)" in said
    assert trained.runs == []
    assert not Path("runs").exists()


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
