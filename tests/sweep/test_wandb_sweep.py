"""A search as a sweep of W&B: what its agent would run is a run of hardpix with the chosen settings."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from hardpix.cli import main
from hardpix.config.compose import compose, validate
from hardpix.sweep.study import read_study
from hardpix.sweep.wandb_file import sweep_of
from hardpix.types import ConfigError

FILE = """
overrides: [method=hardness, "data.source.classes=[wall,'a b']", logger.project=rooms]
search:
  method.alpha: {loguniform: [0.001, 1]}
  method.normalize_over: {choice: [image, batch]}
  head.channels: {integers: [8, 64]}
  data.train_transform.crop: {choice: [[32, 48], [64, 64]]}
  method.void_in_normalizer: {choice: [true, false]}
  trainer.clip_norm: {choice: [1.0, null]}
for: {method=hardness: {method.c: {uniform: [0.1, 0.5]}}}
seeds: [3]
metric: val/miou
trials: 7
"""


@pytest.fixture
def study(tmp_path):
    def read(text=FILE, *words):
        (tmp_path / "studies").mkdir(exist_ok=True)
        (tmp_path / "studies/s.yaml").write_text(text)
        return read_study(["s", *words], tmp_path)

    return read


def test_what_an_agent_runs_are_overrides(study, tmp_path, capsys, monkeypatch):
    """The command is filled in by wandb's own code."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    study()
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "s", "--config-dir", str(tmp_path), "--wandb", "sweep.yaml"]) == 0
    assert "wandb sweep sweep.yaml\nwandb agent " in capsys.readouterr().out
    content = utils.load_sweep_config("sweep.yaml")
    assert content == yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert (content["method"], content["run_cap"], content["project"]) == ("bayes", 7, "rooms")
    assert content["metric"] == {"name": "val/miou", "goal": "maximize"}
    assert content["parameters"]["method.alpha"] == {
        "distribution": "log_uniform_values",
        "min": 0.001,
        "max": 1.0,
    }
    assert content["parameters"]["head.channels"] == {"distribution": "int_uniform", "min": 8, "max": 64}
    assert content["parameters"]["method.normalize_over"] == {"values": ["image", "batch"]}
    for last in (0, 1):
        chosen = {"method.alpha": 1e-05, "head.channels": 32, "method.c": 0.25} | {
            key: content["parameters"][key]["values"][last]
            for key in ("method.normalize_over", "data.train_transform.crop", "method.void_in_normalizer",
                        "trainer.clip_norm")
        }  # fmt: skip
        words = {"program": [content["program"]], "env": ["/usr/bin/env"]}
        words |= utils.create_sweep_command_args({"args": {key: {"value": v} for key, v in chosen.items()}})
        line = []
        for word in utils.create_sweep_command(content["command"]):
            line += words[word[2:-1]] if word.startswith("${") else [word]
        assert line[:5] == ["/usr/bin/env", "hardpix", "train", "--config-dir", str(tmp_path)]
        cfg = compose(line[5:])
        validate(cfg)
        assert (cfg.method.alpha, cfg.head.channels, cfg.method.c) == (1e-05, 32, 0.25)
        assert cfg.method.normalize_over == ["image", "batch"][last]
        assert cfg.data.train_transform.crop == [[32, 48], [64, 64]][last]
        assert cfg.method.void_in_normalizer is [True, False][last]
        assert cfg.trainer.clip_norm == [1.0, None][last]
        assert (cfg.study, cfg.seed, cfg.data.source.classes) == ("s", 3, ["wall", "a b"])


def test_wandbs_own_scheduler_reads_the_parameters(study):
    """The wheel has no schema of the file; its scheduler on this machine reads the same specifications."""
    theirs = pytest.importorskip("wandb.sdk.sweeps.scheduler.optuna").sweep_parameter_to_distribution
    found = {key: theirs(spec) for key, spec in sweep_of(study())["parameters"].items()}
    alpha, channels, c = (found[key] for key in ("method.alpha", "head.channels", "method.c"))
    assert (alpha.low, alpha.high, alpha.log) == (0.001, 1.0, True)
    assert (channels.low, channels.high, channels.log) == (8, 64, False)
    assert (c.low, c.high, c.log) == (0.1, 0.5, False)
    assert found["method.normalize_over"].choices == ("image", "batch")


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("axes: {seed: [1]}", [], "only a study with search"),
        (FILE.replace("seeds: [3]", "seeds: [3, 4]"), [], "seeds: "),
        (FILE.replace("metric: val/miou", ""), [], "metric: W&B needs its name"),
        (FILE, ["logger=csv", "~logger.project"], "logger"),
        ("search: {method: {choice: [baseline, hardness]}}\nfor: {method=hardness: {method.c: {uniform: [0, 1]}}}",
         [], "has no conditions"),
    ],
)  # fmt: skip
def test_what_a_sweep_of_wandb_cannot_do_is_told(study, text, words, said):
    with pytest.raises(ConfigError) as raised:
        sweep_of(study(text, *words))
    assert said in str(raised.value)


def test_hyperband_is_theirs_too(study):
    assert "early_terminate" not in sweep_of(study())
    assert sweep_of(study(FILE + "pruner: hyperband"))["early_terminate"]["type"] == "hyperband"


CONDITIONAL = """
search: {method: {choice: [baseline, hardness]}, optimizer.lr: {uniform: [0.1, 1]}}
for: {method=hardness: {method.c: {uniform: [0.1, 1]}}}
metric: val/miou
"""


@pytest.mark.parametrize(("method", "keys"), [("hardness", {"method.c"}), ("baseline", set())])
def test_a_choice_that_is_made_on_the_command_line_is_no_condition(study, method, keys):
    found = sweep_of(study(CONDITIONAL, f"method={method}"))["parameters"]
    assert found.keys() == {"method", "optimizer.lr"} | keys
    assert found["method"] == {"values": [method]}


def test_the_commands_of_the_readme_write_a_file(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    readme = Path(__file__).resolve().parents[2] / "README.md"
    lines = [
        x for x in readme.read_text(encoding="utf-8").splitlines() if re.match("hardpix sweep .*--wandb ", x)
    ]
    assert lines
    monkeypatch.chdir(tmp_path)
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        assert main(words) == 0
        assert yaml.safe_load((tmp_path / words[-1]).read_text())["program"] == "hardpix"
