from __future__ import annotations

import json
import math
import os

import pytest

from hardpix.record import SCHEMA, RunRecord, flatten, read, write
from hardpix.types import HardpixError


def example(**changes) -> RunRecord:
    values = {
        "schema": SCHEMA,
        "run_id": "a1",
        "status": "done",
        "factors": {"method.alpha": 0.5, "model.levels": [1, 2]},
        "metrics": {"test/miou": 0.25},
        "seed": 3,
        "parent": None,
        "code": {"commit": "abc"},
        "host": {"device": "cpu"},
        "started": "2026-01-01T00:00:00Z",
    }
    return RunRecord(**(values | changes))


def test_a_record_survives_the_disk(tmp_path):
    record = example(status="failed", error="boom", name="ohem", study="demo", parent="z9")
    assert write(record, tmp_path) == tmp_path / "run.json"
    assert read(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_metrics_that_json_cannot_hold(tmp_path):
    write(example(metrics={"iou/lamp": math.nan, "a": math.inf, "b": -math.inf, "c": 1.0}), tmp_path)
    stored = json.loads((tmp_path / "run.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert stored["metrics"] == {"iou/lamp": None, "a": "inf", "b": "-inf", "c": 1.0}
    metrics = read(tmp_path).metrics
    assert math.isnan(metrics.pop("iou/lamp"))
    assert metrics == {"a": math.inf, "b": -math.inf, "c": 1.0}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_former_record(tmp_path, monkeypatch, call):
    write(example(status="running"), tmp_path)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(example(status="done"), tmp_path)
    assert read(tmp_path).status == "running"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_others_may_read_a_record(tmp_path):
    (tmp_path / "plain").write_text("")
    path = write(example(), tmp_path)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": 1, "run_id"', "damaged"),
        ("[1]", "not a JSON object"),
        ('{"schema": 99}', "schema 99, and this hardpix reads only 1"),
        ("{}", "schema None"),
        ('{"schema": 1, "metrics": {}}', "not a complete run record"),
        ('{"schema": 1}', "not a complete run record ('metrics')"),
        (json.dumps(vars(example()) | {"status": "paused"}), "'paused'"),
        (json.dumps(vars(example()) | {"metrics": {"a": "x"}}), "not a complete run record"),
    ],
)
def test_a_damaged_record_is_one_sentence_with_its_path(tmp_path, text, said):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(HardpixError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "run.json") in message
    assert said in message
    assert "\n" not in message


def test_a_missing_or_binary_record(tmp_path):
    with pytest.raises(HardpixError, match="does not exist"):
        read(tmp_path)
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HardpixError, match="damaged"):
        read(tmp_path)
    with pytest.raises(HardpixError, match="does not exist"):
        read(tmp_path / "run.json")


def test_unknown_keys_are_passed_over(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(vars(example()) | {"mood": "good"}))
    assert read(tmp_path) == example()


def test_interrupted_is_a_status_of_its_own_also_in_records_of_before(tmp_path):
    for status in ("interrupted", "failed"):
        text = json.dumps(vars(example()) | {"status": status, "error": "interrupted"})
        (tmp_path / "run.json").write_text(text)
        found = read(tmp_path)
        assert (found.status, found.outcome, found.reason) == ("interrupted", "interrupted", "")


def test_flatten():
    config = {
        "seed": 1,
        "method": {"_target_": "hardpix.methods.LWM", "alpha": 0.5, "c": None, "options": {}},
        "callbacks": [{"_target_": "x", "at": (1, 2)}],
        "loss": {"cap": math.inf, "weights": {0: math.nan}},
    }
    assert flatten(config) == {
        "seed": 1,
        "method._target_": "hardpix.methods.LWM",
        "method.alpha": 0.5,
        "method.c": None,
        "method.options": {},
        "callbacks": [{"_target_": "x", "at": [1, 2]}],
        "loss.cap": "inf",
        "loss.weights.0": "nan",
    }
