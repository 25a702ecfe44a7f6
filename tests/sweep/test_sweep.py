"""A study as a list of jobs, and what becomes of each whatever happened before: the trainer is a stub."""

import functools
import io
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from hardpix import record
from hardpix.cli import main
from hardpix.config.compose import compose, composer, validate
from hardpix.sweep.jobs import _own, command, fingerprint, jobs_of
from hardpix.sweep.state import look, steps_done
from hardpix.sweep.status import _detail, duration, footer, rendered
from hardpix.sweep.study import read_study
from hardpix.train import machine, rundir
from hardpix.train.parent import with_parent
from hardpix.train.rundir import LAST, is_running, process_began
from hardpix.types import ConfigError, DataError


@pytest.fixture
def written(tmp_path):
    """``written(text)``: a study's file ``studies/s.yaml``; returns the folder for ``--config-dir``."""

    def write(text):
        (tmp_path / "conf/studies").mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf/studies/s.yaml").write_text(text)
        return tmp_path / "conf"

    return write


FILE = """
overrides: {optimizer.lr: 1e-3, head: fcn}
axes:
  method: [baseline, hardness]
for:
  method=hardness: {method.alpha: [0.5, 1], method.c: "range(1,3)"}
rows:
  - [method=lwm, loss=ohem]
  - {head: psp, data.source.classes: [wall, "null"]}
seeds: [3, 7]
"""


def test_a_file_is_the_product_of_its_axes_then_its_rows_for_each_seed(written):
    study = read_study(["s"], written(FILE))
    common = ("optimizer.lr=0.001", "head=fcn")
    cells = [
        (*common, "method=baseline"),
        *(
            (*common, "method=hardness", f"method.alpha={a}", f"method.c={c}")
            for a in ("0.5", "1")
            for c in (1, 2)
        ),
        (*common, "method=lwm", "loss=ohem"),
        ("optimizer.lr=0.001", "head=psp", 'data.source.classes=[wall,"null"]'),
    ]
    expected = [{*cell, f"seed={seed}", "study=s"} for seed in (3, 7) for cell in cells]
    assert [set(job) for job in study.jobs] == expected
    assert (study.name, study.on_error, study.retries) == ("s", "continue", 1)


def test_a_setting_on_the_command_line_replaces_an_axis_where_it_stands(written):
    folder = written(FILE)
    study = read_study(["s", "method.alpha=0.9", "seed=0", "optimizer.lr=0.1,0.2", "study=t"], folder)
    assert study.name == ""
    assert {o for job in study.jobs for o in job if o.startswith(("seed", "study"))} == {"seed=0", "study=t"}
    assert len(study.jobs) == 2 * (1 + 2 + 2)
    assert {o for job in study.jobs for o in job if "lr" in o} == {"optimizer.lr=0.1", "optimizer.lr=0.2"}
    for job in study.jobs:
        assert ("method.alpha=0.9" in job) == ("method=hardness" in job)
    only = read_study(["s", "method=hardness", "method.c=5"], folder).jobs
    assert sum("method=baseline" in job for job in only) == 0
    assert sum("method=hardness" in job for job in only) == 2 * 2


def test_overrides_alone_are_what_hydra_makes_of_them():
    study = read_study(
        ["loss=cross_entropy,ohem", "seed=range(2)", "data.train_transform.crop=[32,48]", "optimizer.lr=0.1"]
    )
    assert [set(job) - {"data.train_transform.crop=[32,48]", "optimizer.lr=0.1"} for job in study.jobs] == [
        {f"loss={loss}", f"seed={seed}"} for seed in (0, 1) for loss in ("cross_entropy", "ohem")
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("axis: {}", "axis: no such key; did you mean 'axes'"),
        ("axes: {method: baseline}\nfor: {method=hardnes: {method.c: [1]}}", "for.method=hardnes: neither"),
        ("axes: {method.c: []}", "axes.method.c: must be a list"),
        ("axes: {run: [a, b]}", "run: a sweep names"),
        ("overrides: ['optimizer.lr=1,2']", "has several values"),
        ("overrides: [study=x]", "study: a sweep names"),
        ("rows: 3", "rows must be"),
        ("seeds: [a]", "seeds=['a']"),
        ("on_error: ignore", "on_error=ignore: must be one of continue, retry, stop"),
        ("retries: 0", "retries=0"),
        ("- 3", "must hold a mapping"),
        ("{", "is no YAML"),
    ],
)
def test_files_that_are_wrong_get_one_sentence(written, text, said):
    folder = written(text)
    with pytest.raises(ConfigError) as raised:
        read_study(["s"], folder)
    assert said in str(raised.value)
    assert "s.yaml" in str(raised.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hl_alpa_c"], "did you mean 'hl_alpha_c'"),
        (["run=a"], "a sweep names and resumes its runs itself"),
        (["optimizer.lr=interval(0,1)"], "values one by one"),
        (["loss=glob(*)"], "name the choices"),
        (["optimizer.lr=[1"], "do all brackets"),
    ],
)
def test_words_that_are_wrong_get_one_sentence(words, said):
    with pytest.raises(ConfigError) as raised:
        read_study(words)
    assert said in str(raised.value)


def test_the_files_of_the_project_can_be_trained():
    jobs, twice = jobs_of(read_study(["hl_alpha_c", "seed=0"]))
    assert (len(jobs), twice) == (17, [])
    assert len({job.run_dir for job in jobs}) == 17
    assert {job.run_dir.parent for job in jobs} == {Path("runs/hl_alpha_c")}
    assert sum(job.config().method._target_.endswith("Baseline") for job in jobs) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=hardness", "seed=3", "method.alpha=0.3", "experiment=demo", "panels=9"],
        ["experiment=demo", "~data.source.focal", "+data.source.kinds=[1,2]", "++trainer.max_steps=3"],
        ["data.source={height: 64}", "data.source.width=64", "~experiment", "trusted=[a]"],
    ],
)
def test_many_configurations_are_composed_as_one_is(overrides):
    composed = composer()
    composed(["experiment=demo", "seed=9", "optimizer.lr=9"])  # nothing stays from another job
    alone = compose(overrides)
    assert composed(overrides) == alone
    assert composed(overrides) == alone


def test_a_wrong_key_or_choice_is_told_as_for_one_run():
    composed = composer()
    with pytest.raises(ConfigError, match=r"optimizer\.lrr: no such key; did you mean 'lr'"):
        composed(["optimizer.lrr=1"])
    with pytest.raises(ConfigError, match="hardnes"):
        composed(["method=hardnes"])


def test_a_fingerprint_is_of_what_decides_the_result():
    composed, base = composer(), {"method": "hardness", "method.alpha": "1", "seed": "2"}

    def mark(text):
        key, _, value = text.partition("=")
        return fingerprint(composed([f"{k}={v}" for k, v in (base | {key: value}).items()]))

    for same in ("run=a", "study=b", "runs_dir=c", "resume=true", "logger=csv", "callbacks.progress=none",
                 "panels=0", "data.num_workers=1", "method.alpha=1.0", "trainer.log_every_steps=3"):  # fmt: skip
        assert mark(same) == mark("seed=2"), same
    for other in ("seed=1", "trainer.max_steps=9", "test_weights=best", "method.alpha=1.5", "reproduces=[a]",
                  "trainer.precision=bf16-mixed", "data.source.height=64", "freeze=[stem]"):  # fmt: skip
        assert mark(other) != mark("seed=2"), other


def test_all_problems_of_all_jobs_are_told_before_anything_trains(tmp_path, monkeypatch, capsys, trained):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "method=baseline,hardness", "method.c=0.5", "optimizer.momentum=0.9,x"]) == 2
    said = capsys.readouterr().err
    assert (
        "job 1 (method=baseline,momentum=0.9), job 2 (method=baseline,momentum=x): method.c: no such key"
        in said
    )
    assert "job 4 (method=hardness,momentum=x): optimizer.momentum=x: must be" in said
    assert "job 3" not in said
    assert (trained.calls, list(tmp_path.iterdir())) == ([], [])


# -- the state machine ---------------------------------------------------------------------------------------------


class Stub:
    """In place of ``train``: writes the record that it would have left; ``faults`` name what goes wrong, by alpha."""

    def __init__(self):
        self.calls, self.faults = [], {}

    def __call__(self, cfg, overrides, callbacks=()):
        from hardpix.train.train import new_record

        run_dir = Path(cfg.runs_dir) / cfg.study / cfg.run
        self.calls.append((cfg.method.alpha, cfg.resume, (run_dir / "run.json").exists()))
        before = record.read(run_dir) if cfg.resume else None
        fault = self.faults.get(cfg.method.alpha, iter(())) if self.faults else iter(())
        error, stage = next(fault, (None, ""))
        if stage == "early":
            raise error
        started = new_record(cfg, run_dir, overrides, before)
        record.write(started, run_dir)
        if stage == "checkpoint":
            (run_dir / LAST).parent.mkdir(exist_ok=True)
            (run_dir / LAST).write_text("")
        if error is not None:
            told = machine.one_line(error) if isinstance(error, Exception) else "interrupted"
            record.write(replace(started, status="failed", error=told), run_dir)
            raise error
        score = cfg.method.alpha / 10
        metrics = {"val/miou": score, "test/miou": score / 2, "run/seconds": 30.0}
        record.write(replace(started, status="done", metrics=metrics), run_dir)

    def fail(self, alpha, *errors, stage=""):
        self.faults[alpha] = iter([(error, stage) for error in errors])


@functools.cache
def composed(overrides):
    return compose(list(overrides))


def composed_once(overrides, **named):
    return compose(overrides, **named) if named else composed(tuple(overrides)).copy()


@pytest.fixture
def trained(monkeypatch):
    stub = Stub()
    monkeypatch.setattr("hardpix.train.train.train", stub)
    for name in ("freeze_imports", "clean_up"):  # the collector looks at all modules for a third of a second
        monkeypatch.setattr(f"hardpix.sweep.work.{name}", lambda: None)
    return stub


@pytest.fixture
def sweep(tmp_path, monkeypatch, trained):
    """``sweep()``: three jobs, alpha 1, 2, 3; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hardpix.train.train.code_versions", dict)
    monkeypatch.setattr("hardpix.config.compose.compose", composed_once)

    def run(*words, alphas="1,2,3"):
        return main(["sweep", "method=hardness", f"method.alpha={alphas}", *words])

    return run


def runs():
    found = {p.parent: record.read(p.parent) for p in sorted(Path("runs").rglob("run.json"))}
    return {r.factors["method.alpha"]: (path, r) for path, r in found.items()}


def statuses():
    return {alpha: r.status for alpha, (_, r) in runs().items()}


def test_a_study_that_is_done_is_not_trained_again(sweep, trained, capsys):
    assert sweep("study=s") == 0
    assert trained.calls == [(1, False, False), (2, False, False), (3, False, False)]
    assert statuses() == {1: "done", 2: "done", 3: "done"}
    trained.calls.clear()
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if p.is_file()}
    assert sweep("study=s") == 0
    assert trained.calls == []
    assert before == {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if p.is_file()}
    assert "3 jobs: 3 done (3 before)" in capsys.readouterr().out


def test_runs_are_found_again_under_a_name_with_other_axes(sweep, trained):
    sweep()
    trained.calls.clear()
    assert sweep("seed=0,1", "optimizer.lr=0.01", "panels=0", alphas="3,1") == 0
    assert [alpha for alpha, *_ in trained.calls] == [3, 1]  # those of seed 1
    assert len(list(Path("runs").rglob("run.json"))) == 5


def configured():
    """The run with alpha 2, with the configuration that the stub leaves out."""
    job = jobs_of(read_study(["method=hardness", "method.alpha=2"]))[0][0]
    rundir.write_config(job.run_dir, job.config())
    return job.run_dir


def without(path, *lines):
    text = (path / "config.yaml").read_text()
    for line in lines:
        assert f"\n{line}\n" in text
        text = text.replace(f"\n{line}\n", "\n")
    (path / "config.yaml").write_text(text)


@pytest.mark.parametrize("name", ["alpha=2-0123abcd", "by hand"])
def test_a_run_of_an_earlier_version_is_known_by_its_configuration(sweep, trained, monkeypatch, name):
    monkeypatch.setitem(rundir.ADDED_GROUPS["trainer"], "limit_val_batches", 1.0)
    sweep()
    path = configured()
    without(path, "freeze: []", "  limit_val_batches: 1.0")
    path.rename(path.with_name(name))
    trained.calls.clear()
    assert sweep() == 0
    assert trained.calls == []
    assert sweep("freeze=[stem]") == 0
    assert len(trained.calls) == 3
    without(path.with_name(name), "seed: 0")  # no version lacked that: what trained is not known
    trained.calls.clear()
    assert sweep() == 0
    assert [alpha for alpha, *_ in trained.calls] == [2]


@pytest.mark.slow
def test_of_runs_that_are_alike_the_one_that_is_done_counts(sweep, trained):
    sweep(alphas="2")
    path = configured()
    other = path.with_name("alpha=2-ffffffff")
    shutil.copytree(path, other)
    record.write(replace(record.read(other), status="running", host={}), other)
    path.rename(path.with_name("alpha=2-00000000"))
    trained.calls.clear()
    job = jobs_of(read_study(["method=hardness", "method.alpha=2"]))[0][0]
    assert job.run_dir.name == "alpha=2-00000000"
    assert sweep(alphas="2") == 0
    assert trained.calls == []
    shutil.rmtree(path.with_name("alpha=2-00000000"))
    assert sweep("--take-over", alphas="2") == 0
    assert trained.calls == [(2, True, True)]


def test_what_failed_under_a_name_of_ones_own_is_not_cleared(sweep, trained):
    trained.fail(2, ValueError("no"), stage="checkpoint")
    sweep(alphas="2")
    path = configured()
    own = path.rename(path.with_name("mine"))
    assert sweep(alphas="2") == 0
    assert record.read(own).status == "failed"
    assert (own / LAST).exists()
    assert len(list(own.parent.iterdir())) == 2


def test_what_a_run_takes_over_from_its_parent_does_not_hide_it():
    composed = composer()
    words = ["method=error_prediction", "parent=runs/a/b"]
    other = composed(["head=psp", "seed=5"])
    job = composed(words)
    assert _own(with_parent(job, other, "parent")) == _own(job)
    assert _own(composed([*words, "method.channels=8"])) != _own(job)
    assert _own(with_parent(composed(["init_from=x"]), other, "init_from")) == _own(composed(["init_from=x"]))
    assert _own(composed(["head=psp"])) != _own(composed([]))


def test_jobs_that_are_one_are_told_and_run_once(sweep, trained, capsys):
    assert sweep(alphas="1,2,1.0") == 0
    assert len(trained.calls) == 2
    assert "job 3 (alpha=1.0) is job 1 once more" in capsys.readouterr().out


def test_a_failed_run_leaves_its_trace_and_is_tried_afresh(sweep, trained, capsys):
    trained.fail(2, ValueError("bad luck\nat sea"), stage="checkpoint")
    assert sweep() == 1
    said = capsys.readouterr().out
    assert "3 jobs: 2 done, 1 failed" in said
    assert "alpha=2: ValueError: bad luck (" in said
    path = runs()[2][0]
    assert "Traceback" in (path / "error.txt").read_text()
    assert statuses()[2] == "failed"
    trained.calls.clear()
    assert sweep() == 0
    assert trained.calls == [(2, False, False)]  # no record and no checkpoint that would make it go on
    assert not (path / LAST).exists()
    assert not (path / "error.txt").exists()
    assert statuses()[2] == "done"


def test_what_a_failed_run_had_saved_is_kept_at_every_retry(sweep, trained, written, capsys):
    folder = written("overrides: [method=hardness]\naxes: {method.alpha: [2]}\non_error: retry\nretries: 2")
    trained.fail(2, *[ValueError("no")] * 3, stage="checkpoint")
    assert main(["sweep", "s", "--config-dir", str(folder)]) == 1
    path = next(Path("runs/s").glob("*"))
    capsys.readouterr()
    assert main(["sweep", "s", "--config-dir", str(folder), "--commands"]) == 0
    shown = capsys.readouterr().out
    assert f"mkdir -p {path}/failed/3; mv " in shown
    assert " rm " not in shown
    assert main(["sweep", "s", "--config-dir", str(folder)]) == 0
    assert f"what it had saved is kept in {path}/failed/3" in capsys.readouterr().out
    kept = [path / "failed" / str(number) for number in (1, 2, 3)]
    assert [(folder / LAST).exists() for folder in (path, *kept)] == [False, True, True, True]
    assert all('"failed"' in (folder / "record.json").read_text() for folder in kept)
    assert all("Traceback" in (folder / "error.txt").read_text() for folder in kept)
    assert record.read(path).status == "done"


def test_a_run_that_fails_before_it_has_a_record_gets_one(sweep, trained):
    trained.fail(1, DataError("x.png: broken"), stage="early")
    assert sweep() == 1
    path, found = runs()[1]
    assert (found.status, found.error) == ("failed", "DataError: x.png: broken")
    assert found.factors["method.alpha"] == 1
    assert "x.png: broken" in (path / "error.txt").read_text()


def test_a_run_whose_continuation_is_refused_has_failed(sweep, trained):
    sweep(alphas="1")
    path, found = runs()[1]
    record.write(replace(found, status="running", host={}), path)
    trained.fail(1, DataError("last.ckpt: broken"), stage="early")
    assert sweep("--take-over", alphas="1") == 1
    assert (runs()[1][1].status, runs()[1][1].run_id) == ("failed", found.run_id)


@pytest.mark.parametrize(
    ("on_error", "calls"), [("continue", [1, 2, 3]), ("stop", [1]), ("retry", [1, 2, 3, 1, 1])]
)
def test_what_an_error_does_to_the_others(sweep, trained, written, capsys, on_error, calls):
    trained.fail(1, *[ValueError("no")] * 3)
    folder = written(
        f"overrides: [method=hardness]\naxes: {{method.alpha: [1, 2, 3]}}\non_error: {on_error}\nretries: 2"
    )
    assert main(["sweep", "s", "--config-dir", str(folder)]) == 1
    assert [alpha for alpha, *_ in trained.calls] == calls
    assert ("waiting      alpha=2" in capsys.readouterr().out) == (on_error == "stop")


def test_the_command_line_may_say_what_an_error_does(sweep, trained):
    trained.fail(1, ValueError("no"))
    assert sweep("--on-error", "stop") == 1
    assert len(trained.calls) == 1


def test_a_retry_that_succeeds_is_no_failure(sweep, trained, written):
    trained.fail(2, ValueError("no"), stage="checkpoint")
    folder = written("overrides: [method=hardness]\naxes: {method.alpha: [1, 2]}\non_error: retry")
    assert main(["sweep", "s", "--config-dir", str(folder)]) == 0
    assert trained.calls[1:] == [(2, False, False), (2, False, False)]
    assert set(statuses().values()) == {"done"}


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("signalled", [True, False])
def test_an_interrupted_run_goes_on_in_its_directory_and_under_its_id(sweep, trained, checkpoint, signalled):
    sweep()
    path, found = runs()[2]
    if checkpoint:
        (path / "checkpoints").mkdir()
        (path / LAST).write_text("")
    gone = {"pid": "999999999"}
    changed = (
        {"status": "failed", "error": "interrupted"}
        if signalled
        else {"status": "running", "host": found.host | gone}
    )
    record.write(replace(found, **changed), path)
    trained.calls.clear()
    assert sweep() == 0
    assert trained.calls == [(2, True, True)]
    assert (runs()[2][0], runs()[2][1].run_id) == (path, found.run_id)
    assert (path / LAST).exists() == checkpoint


def test_a_run_that_goes_on_elsewhere_is_left_alone(sweep, trained, capsys):
    sweep()
    path, found = runs()[2]
    trained.calls.clear()
    parent = {"pid": str(os.getppid()), "pid_began": process_began(os.getppid())}
    record.write(replace(found, status="running", host=found.host | parent), path)
    assert sweep("--take-over") == 0
    record.write(replace(found, status="running", host=found.host | {"hostname": "another"}), path)
    assert sweep() == 0
    assert trained.calls == []
    assert "on another (if not, --take-over)" in capsys.readouterr().out
    assert sweep("--take-over") == 0
    assert trained.calls == [(2, True, True)]


def test_two_sweeps_share_the_jobs(sweep, trained, capsys):
    sweep(alphas="1")
    path = runs()[1][0]
    (path / "run.json").unlink()
    holder = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    other.stdout.readline()
    trained.calls.clear()
    try:
        assert sweep(alphas="1") == 0
        assert trained.calls == []
        assert "another sweep on this machine has it" in capsys.readouterr().out
    finally:
        other.communicate()
    assert sweep(alphas="1") == 0
    assert len(trained.calls) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (SystemExit(130), 130), (SystemExit(143), 143)]
)
def test_a_signal_leaves_the_rest_waiting(sweep, trained, capsys, error, status):
    trained.fail(2, error)
    assert sweep() == status
    said = capsys.readouterr().out
    assert "1 done, 1 interrupted, 1 waiting" in said
    assert "waiting      alpha=3" in said
    assert sweep() == 0
    assert statuses() == {1: "done", 2: "done", 3: "done"}


def test_sigterm_outside_training_ends_the_sweep_in_order(sweep, trained, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(
        "hardpix.train.train.code_versions", lambda: os.kill(os.getpid(), signal.SIGTERM) or {}
    )
    assert sweep() == 143
    assert len(trained.calls) == 1
    assert "3 waiting" in capsys.readouterr().out  # it had not come as far as a record
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_that_the_trainer_takes_in_ends_the_sweep_after_the_run(sweep, trained, monkeypatch):
    """Lightning replaces the handler while it trains, calls ours from its own, and may still end the run."""

    def versions():
        ours = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *a: ours(*a))
        os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, ours)
        return {}

    monkeypatch.setattr("hardpix.train.train.code_versions", versions)
    assert sweep() == 143
    assert statuses() == {1: "done"}


def test_a_dry_run_says_what_and_why_with_commands_that_train_the_same(sweep, trained, capsys):
    trained.fail(2, ValueError("no"))
    trained.fail(3, SystemExit(130), stage="checkpoint")
    sweep(alphas="1,2,3,4")
    calls = list(trained.calls)
    capsys.readouterr()
    words = ["data.source.classes=['wall','a b']"]
    assert sweep("--dry-run", alphas="1,2,3,4") == 0
    said = capsys.readouterr().out
    for line in ("4 jobs: 1 to skip, 1 to resume, 1 to retry, 1 to run", "1 skip    alpha=1: done",
                 "2 retry   alpha=2: failed: ValueError: no", "3 resume  alpha=3: interrupted at step 0, goes on",
                 "4 run     alpha=4: not started"):  # fmt: skip
        assert line in said
    assert trained.calls == calls
    jobs, _ = jobs_of(read_study(["method=hardness", "study=t", "seed=0,1", *words]))
    for job in jobs:
        line = shlex.split(command(job, look(job.run_dir)))
        assert line[:2] == ["hardpix", "train"]
        cfg = compose(line[2:])
        validate(cfg)
        assert fingerprint(cfg) == job.fingerprint
        assert Path(cfg.runs_dir) / cfg.study / cfg.run == job.run_dir


def test_the_status_shows_where_a_study_stands(sweep, trained):
    trained.fail(2, ValueError("no [luck]"))
    sweep()
    jobs, _ = jobs_of(read_study(["method=hardness", "method.alpha=1,2,3,4,5"]))
    assert _detail(jobs[1], look(jobs[1].run_dir)) == str(jobs[1].run_dir / "error.txt")  # the traceback
    running = jobs[3].run_dir
    running.mkdir()
    host = runs()[1][1].host | {"pid": str(os.getppid()), "pid_began": process_began(os.getppid())}
    factors = {"trainer.max_steps": 200}
    record.write(replace(runs()[1][1], status="running", host=host, factors=factors, metrics={}), running)
    (running / "metrics.csv").write_text("step,train/loss\n9,1.0\n49,0.5\n")
    states = [look(job.run_dir) for job in jobs]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(rendered("s", jobs, states))
    text = console.export_text()
    for line in ("alpha=1", "10.00", "step 50 of 200", "job 2 failed: ValueError: no [luck]",
                 "2 done, 1 running, 1 failed, 1 waiting", "best: alpha=3, val/miou 30.00 %, test 15.00 %",
                 "time left: about 52 s"):  # fmt: skip
        assert line in text
    assert footer(jobs[4:], states[4:]) == ["1 waiting"]


def test_the_status_tells_interrupted_from_killed(sweep, trained):
    sweep()
    for alpha, changed in (
        (1, {"status": "interrupted", "error": "interrupted"}),
        (2, {"status": "running"}),
    ):
        path, found = runs()[alpha]
        record.write(replace(found, **changed, host=found.host | {"pid": "999999999"}), path)
    jobs, _ = jobs_of(read_study(["method=hardness", "method.alpha=1,2,3"]))
    states = [look(job.run_dir) for job in jobs]
    assert [state.kind for state in states] == ["interrupted", "interrupted", "done"]
    assert states[0].why.startswith("interrupted at step")
    assert footer(jobs, states)[0] == "1 done, 1 interrupted, 1 waiting"


def test_durations():
    assert [duration(s) for s in (8.2, 200, 7500)] == ["8 s", "3 min 20 s", "2 h 05 min"]


def test_the_steps_of_a_file_that_is_being_written(tmp_path):
    assert steps_done(tmp_path) == 0
    for text, steps in (("step,a\n", 0), ("step,a\n0,1\n", 1), ("step,a\n9,1\n19,2\n", 20)):
        (tmp_path / "metrics.csv").write_text(text)
        assert steps_done(tmp_path) == steps


def test_a_number_that_passed_to_another_process_is_not_the_run(sweep):
    sweep(alphas="1")
    host = {"pid": str(os.getppid()), "pid_began": process_began(os.getppid())}
    found = runs()[1][1]
    assert is_running(replace(found, host=found.host | host))
    assert not is_running(replace(found, host=found.host | host | {"pid_began": "1 x"}))
    older = {k: v for k, v in found.host.items() if k != "pid_began"}  # a record from before it was kept
    assert is_running(replace(found, host=older | {"pid": host["pid"]}))


@pytest.mark.slow
def test_looking_at_a_study_imports_no_torch(tmp_path):
    code = (
        "import sys; from hardpix.cli import main\n"
        "assert main(['sweep', 'status', 'hl_alpha_c', 'seed=0']) == 0\n"
        "assert main(['sweep', 'hl_alpha_c', 'seed=0', '--dry-run']) == 0\n"
        "assert not {'torch', 'pytorch_lightning', 'wandb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "17 waiting" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_jobs_are_small_and_do_not_share_their_configuration():
    jobs, _ = jobs_of(read_study(["method=hardness", "method.alpha=range(1,9)"]))
    assert max(len(job.packed) for job in jobs) < 50_000
    first, again = jobs[0].config(), jobs[0].config()
    first.seed = 5
    assert again.seed == 0
    assert all(a.fingerprint != b.fingerprint for a, b in itertools.combinations(jobs, 2))


def test_when_a_process_began():
    ours = process_began(os.getpid())
    assert ours.split()[0].isdigit()
    assert ours == process_began(os.getpid()) != process_began(1)
    assert process_began(999999999) == ""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_began(child.pid) == "ended"  # its number is not free yet
    child.wait()
