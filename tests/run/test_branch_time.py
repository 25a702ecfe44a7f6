"""Running times of branches: which calls are counted, and what an evaluation records."""

import pytest

from hardpix import record
from hardpix.cli import main
from hardpix.methods import Detail
from hardpix.models import DetailBranch, ErrorBranch, Segmenter
from hardpix.run import branch_time

NAMES = {"time/semantic", "time/error_prediction", "time/detail", "time/total"}


@pytest.fixture
def clock(monkeypatch):
    """A clock that parts of the network advance by whole seconds, and nothing else."""
    now = [0.0]

    def slowed(run, cost):
        def slow(*given, **more):
            now[0] += cost
            return run(*given, **more)

        return slow

    monkeypatch.setattr(branch_time.time, "perf_counter", lambda: now[0])
    for kind, name, seconds in (
        (Segmenter, "forward", 8), (ErrorBranch, "forward", 4), (DetailBranch, "forward", 2), (Detail, "decide", 1),
    ):  # fmt: skip
        monkeypatch.setattr(kind, name, slowed(getattr(kind, name), seconds))
    return now


def score(run, out, *overrides):
    assert main(["evaluate", str(run), "--out", str(out), *overrides]) == 0
    return {k: v for k, v in record.read(out).metrics.items() if k.startswith(("time/", "tiles/"))}


def test_seconds_per_image_after_the_first_batches(cascade, tmp_path, clock):
    """Eight frames one by one, of which two are not counted; then in pairs, twice as fast an image."""
    one = ("data.eval_batch_size=1",)
    found = score(cascade("detail"), tmp_path / "one", "--split", "train", *one)
    assert found == {"time/semantic": 8, "time/error_prediction": 4, "time/detail": 2, "time/total": 15}
    pairs = score(cascade("detail"), tmp_path / "two", "--split", "train", "data.eval_batch_size=2")
    assert pairs == {k: v / 2 for k, v in found.items()}
    slide = ("inference=slide", "inference.crop=[32,32]", "inference.stride=[16,16]", "inference.batch=1")
    windows = score(cascade("detail"), tmp_path / "slide", "--split", "train", *one, *slide)
    assert windows == {"time/semantic": 16, "time/error_prediction": 8, "time/detail": 4, "time/total": 29}


def test_a_branch_on_tiles_is_timed_too(cascade, tmp_path, clock):
    given = ("--split", "train", "data.eval_batch_size=1", "method.statistics=tracked", "method.tile=16")
    found = score(cascade("detail"), tmp_path / "a", *given)
    assert found.pop("tiles/run_share") <= 1
    assert found["time/detail"] == 2
    assert found["time/total"] == 15


def test_two_batches_are_too_few_and_methods_without_branches_are_left_alone(cascade, tmp_path):
    found = score(cascade("detail"), tmp_path / "a", "data.eval_batch_size=2")
    assert set(found) == NAMES
    assert all(v != v for v in found.values())
    assert score(cascade("semantic"), tmp_path / "b", "data.eval_batch_size=1") == {}


def test_times_of_the_clock_and_of_a_run(cascade, tmp_path):
    found = score(cascade("error_prediction"), tmp_path / "a", "--split", "train", "data.eval_batch_size=1")
    assert set(found) == NAMES - {"time/detail"}
    assert 0 < found["time/error_prediction"] < found["time/total"]
    assert found["time/semantic"] + found["time/error_prediction"] <= found["time/total"] < 60
    assert set(record.read(cascade("detail")).metrics) >= NAMES  # of its final test


def test_nothing_stays_on_the_method(cascade):
    import pytorch_lightning as pl

    from hardpix.run.evaluate import loaded

    _, data, method = loaded(cascade("detail"), "last", ["data.eval_batch_size=1"])
    before = set(vars(method))
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
                         callbacks=[branch_time.BranchTime()], enable_checkpointing=False)  # fmt: skip
    trainer.test(method, data.evaluation_loader("test"), verbose=False)
    assert set(vars(method)) - before <= {"confusion", "_hparams"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in method.modules())
