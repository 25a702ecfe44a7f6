"""What a run leaves in its record when it is less than the full run, and what a table says of it."""

import pytest
from pytorch_lightning.callbacks import Callback

from hardpix import record
from hardpix.cli import main
from hardpix.tables.compare import shortfalls
from hardpix.train.train import train


def test_a_full_run_says_how_much_it_was(tiny, tmp_path):
    done = train(tiny("run=a", "trainer.max_steps=null", "trainer.max_epochs=2", "panels=0"), [])
    known = ("run/steps", "run/planned_steps", "val/frames", "test/frames")
    assert [done.metrics[key] for key in known] == [4, 4, 3, 3]
    assert shortfalls(done) == []
    assert main(["evaluate", str(tmp_path / "runs/default/a"), "trainer.limit_test_batches=1"]) == 0
    (folder,) = (tmp_path / "runs/default/a/evaluations").iterdir()
    assert shortfalls(record.read(folder)) == ["2 of 3 test frames"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["trainer.limit_test_batches=1"], ["2 of 3 test frames"]),
        (["trainer.limit_val_batches=0.5"], ["2 of 3 val frames"]),
        (["trainer.limit_train_batches=1"], ["50 % of an epoch's batches"]),
        (
            ["trainer.limit_train_batches=1", "trainer.max_steps=null", "trainer.max_epochs=2"],
            ["2 of 4 steps", "50 % of an epoch's batches"],
        ),
    ],
)
def test_what_limits_leave_out_is_in_the_record(tiny, settings, said):
    assert shortfalls(train(tiny("run=a", "panels=0", *settings), [])) == said


def test_a_run_that_ends_early_says_so(tiny):
    class Ends(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step == 2

    assert shortfalls(train(tiny("run=a", "panels=0"), [], [Ends()])) == ["2 of 4 steps"]


def test_dev_runs_are_no_scores_of_a_table(tiny, tmp_path, capsys):
    for seed in (0, 1):
        train(tiny(f"run={seed}", f"seed={seed}", "trainer.fast_dev_run=true", "panels=0"), [])
    capsys.readouterr()
    assert main(["table", str(tmp_path / "runs"), "--rows", "method"]) == 0
    text = capsys.readouterr().out
    assert "| fast_dev_run (2 of 2) [1] |" in text
    assert "seeds 0, 1 fast_dev_run: trainer.fast_dev_run=true, 1 of 4 steps" in text
    assert "2 of 3 val frames, 2 of 3 test frames" in text
    assert "±" not in text
