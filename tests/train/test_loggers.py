"""``metrics.csv`` is appended to, and says the same as if it were written anew at each row."""

import csv

import pytest

from hardpix.train.loggers import MetricsCSV


def rows(path):
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def log(logger, step, **metrics):
    logger.log_metrics(metrics, step)
    logger.save()


def test_rows_of_one_step_join_and_a_late_column_reaches_the_file(tmp_path):
    logger = MetricsCSV(tmp_path / "metrics.csv", resume_step=None)
    log(logger, 9, loss=0.5)
    log(logger, 9, lr=0.1)
    log(logger, 19, loss=0.25)
    assert rows(logger.path) == [{"step": "9", "loss": "0.5", "lr": "0.1"}]  # 19 may still grow
    log(logger, 19, miou=0.75)
    logger.finalize("success")
    logger.log_metrics({"test": 1.0}, 19)  # a test after training, in a row that is on disk
    logger.finalize("success")
    assert rows(logger.path) == [
        {"step": "9", "loss": "0.5", "lr": "0.1"},
        {"step": "19", "loss": "0.25", "miou": "0.75", "test": "1.0"},
    ]


def test_a_new_row_does_not_write_the_file_anew(tmp_path):
    logger = MetricsCSV(tmp_path / "metrics.csv", resume_step=None)
    for step in range(3):
        log(logger, step, loss=step)
    before = logger.path.stat().st_ino
    for step in range(3, 9):
        log(logger, step, loss=step)
    assert logger.path.stat().st_ino == before
    assert [row["step"] for row in rows(logger.path)] == [str(step) for step in range(8)]


@pytest.mark.parametrize("again", [2, 3, 5])
def test_a_resumed_run_replaces_the_steps_it_does_again(tmp_path, again):
    killed = MetricsCSV(tmp_path / "metrics.csv", resume_step=None)
    for step in range(5):
        log(killed, step, loss=step)
    killed.after_save_checkpoint(None)  # all five rows are on disk, whatever happens next
    resumed = MetricsCSV(tmp_path / "metrics.csv", resume_step=again)
    log(resumed, again, loss=100 + again)
    log(resumed, again + 1, loss=101 + again)
    resumed.finalize("success")
    found = {int(row["step"]): float(row["loss"]) for row in rows(resumed.path)}
    assert found == {step: step for step in range(min(again, 5))} | {
        again: 100 + again,
        again + 1: 101 + again,
    }


@pytest.mark.parametrize("cut", range(1, 8))
def test_half_a_row_is_none(tmp_path, cut):
    """A full disk or a power cut may leave the beginning of a row: `12,...` must not become step 1."""
    logger = MetricsCSV(tmp_path / "metrics.csv", resume_step=None)
    for step in range(10, 13):
        log(logger, step, loss=step)
    logger.finalize("success")
    content = logger.path.read_bytes()
    logger.path.write_bytes(content[:-cut])
    kept = MetricsCSV(logger.path, resume_step=100)
    assert [row["step"] for row in kept.rows] == [10, 11]
