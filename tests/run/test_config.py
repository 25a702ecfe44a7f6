"""Every configuration file is right, and a wrong key is named by its path before anything is built."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hardpix.run.config import GROUPS, compose, conf_dir, validate
from hardpix.run.signatures import find_signature
from hardpix.types import ConfigError

# Values that a user must give, filled in for the check.
NEEDED = {
    "data=folder": ["data.source.root=x", "data.source.classes=[a,b]"],
    "data=packed": ["data.source.root=x"],
}


def choices():
    for group in (*GROUPS, "experiment"):
        for path in sorted((conf_dir() / group).rglob("*.yaml")):
            yield f"{group}={path.relative_to(conf_dir() / group).with_suffix('').as_posix()}"


@pytest.mark.parametrize("choice", list(choices()))
def test_every_file_composes_and_validates(choice):
    validate(compose([choice, *NEEDED.get(choice, [])]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+method.alpa=1", r"method\.alpa: no such key; did you mean 'alpha'"),
        ("+typo=1", r"typo: no such key at the top level"),
        ("~method.c", r"method\.c: needs a value"),
        ("+method.parts=1", r"method\.parts: set by the program"),
        ("+trainer.max_step=1", r"trainer\.max_step: no such key; did you mean 'max_steps'"),
        ("+data.source.frames=1", r"data\.source\.frames: no such key"),
        ("method._target_=hardpix.methods.Hardnes", r"method\._target_: hardpix\.methods\.Hardnes cannot be found"),
        ("method._target_=os.system", r"method\._target_: os\.system is not part of hardpix"),
        ("loss._target_=torch.hub.load", r"loss\._target_: torch\.hub\.load is not part of hardpix"),
        ("+data.train_transform.photometric.gamma=2", r"data\.train_transform\.photometric\.gamma"),
        ("seed=a", "seed"),
        ("data.source.root=???", r"data\.source\.root"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_path(override, said):
    extra = ["data=nyuv2"] if "root" in override else ["method=hardness"]
    with pytest.raises(ConfigError, match=said):
        validate(compose([*extra, override]))


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        validate(compose(["method=hardness", "+method.alpa=1", "+trainer.foo=1", "~loss.normalizer"]))
    assert len(str(error.value).splitlines()) == 3


def test_a_trusted_package_may_be_named(monkeypatch, tmp_path):
    (tmp_path / "mylab.py").write_text("class Mine:\n    def __init__(self, parts, *, gain): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose(["trusted=[mylab]"])
    OmegaConf.set_struct(cfg, False)
    cfg.method = {"_target_": "mylab.Mine", "gian": 1}
    with pytest.raises(ConfigError, match=r"method\.gian: no such key; did you mean 'gain'"):
        validate(cfg)
    cfg.method = {"_target_": "mylab.Mine", "gain": 1}
    validate(cfg)


def test_signatures_are_read_as_python_reads_them():
    """The source reader and ``inspect`` agree on every target of the configuration."""
    import importlib
    import inspect

    targets = set()
    for path in conf_dir().rglob("*.yaml"):
        targets |= {
            line.split(":", 1)[1].split("#")[0].strip()
            for line in path.read_text().splitlines()
            if line.strip().startswith("_target_:")
        }
    assert len(targets) > 25
    for target in sorted(targets):
        module, _, name = target.rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        found = find_signature(target)
        assert found.names == frozenset(parameters), target
        required = {n for n, p in parameters.items() if p.default is inspect.Parameter.empty}
        assert found.required == required, target


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "usage: hardpix"),
        (["--version"], 0, "hardpix 0"),
        (["train", "--cfg", "job"], 0, "_target_: hardpix.methods.Baseline"),
        (["train", "optm.lr=3"], 2, "optm"),
        (["train", "method=hardness", "method.alpa=3"], 2, "alpa"),
        (["train", "method=hardnes"], 2, "hardness"),
        (["train", "+optimizer.lrr=3"], 2, "did you mean 'lr'"),
        (["trian"], 2, "did you mean train"),
        (["table", "nowhere"], 2, "nowhere"),
    ],
)
def test_quick_answers_import_neither_torch_nor_lightning(arguments, status, said, tmp_path):
    code = (
        "import sys; from hardpix.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'pytorch_lightning', 'timm', 'wandb'} & set(sys.modules);"
        "print('HEAVY', heavy); sys.exit(99 if heavy else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert list(Path(tmp_path).iterdir()) == []  # nothing is left behind
