"""Every configuration file is right, and a wrong key is named by its path before anything is built."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hardpix.config.catalog import conf_dir
from hardpix.config.compose import GROUPS, compose, validate
from hardpix.config.schema import find_signature, type_problem
from hardpix.types import ConfigError

# Values that a user must give, filled in for the check.
NEEDED = {
    "data=folder": ["data.source.root=x", "data.source.classes=[a,b]"],
    "data=huggingface": ["data.source.root=x", "data.source.classes=[a,b]"],
    "data=listed": ["data.source.listing=x.csv", "data.source.classes=classes.txt"],
    "data=packed": ["data.source.root=x"],
    "data=rgbd": ["data.source.root=x", "data.source.layout=tum"],
    "data=coco": ["data.source.root=x"],
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


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=abc", "optimizer.lr=abc: must be a float"),
        (
            "optimizer.lr='0.1'",
            "optimizer.lr=0.1: must be a float; '0.1' is a text: write optimizer.lr=0.1 without quotes",
        ),
        ("optimizer.lr=true", "optimizer.lr=True: must be a float"),
        ("optimizer.nesterov=1", "optimizer.nesterov=1: must be a bool"),
        ("data.batch_size=abc", "data.batch_size=abc: must be an int"),
        ("data.batch_size=2.5", "data.batch_size=2.5: must be an int"),
        ("data.batch_size=true", "data.batch_size=True: must be an int"),
        ("data.batch_size=null", "data.batch_size=None: must be an int"),
        ("data.train_transform.crop=32", "data.train_transform.crop=32: must be a list of 2 ints"),
        ("data.train_transform.crop=[a,b]", "data.train_transform.crop=['a', 'b']: must be a list of 2 ints"),
        ("trainer.max_steps=1e4", "trainer.max_steps=10000.0: must be an int or null"),
        ("data.seed=${study}", "data.seed=default: must be an int (from ${study})"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_by_path(override, said):
    with pytest.raises(ConfigError) as error:
        validate(compose([override]))
    assert str(error.value).splitlines() == [said]


@pytest.mark.parametrize(
    "override", ["optimizer.lr=1", "seed=3", "trainer.max_steps=null", "data.train_transform.crop=[8,9]"]
)
def test_a_value_that_fits_passes(override):
    validate(compose([override]))


@pytest.mark.parametrize(
    ("value", "annotation", "wanted"),
    [
        ([1, 2], "tuple[int, int]", None),
        ([1, 2, 3], "tuple[int, int]", "a list of 2 ints"),
        ("ab", "Sequence[str] | None", "a list of strings or null"),
        ([[0, 1], [2]], "Sequence[Sequence[int]]", None),
        ([1, 2], "tuple[float, ...]", None),
        ("anything", "Path | None", None),  # not plain: not judged
    ],
)
def test_what_an_annotation_expects(value, annotation, wanted):
    assert type_problem(value, annotation) == wanted


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        validate(compose(["method=hardness", "+method.alpa=1", "+trainer.foo=1", "~loss.normalizer"]))
    assert len(str(error.value).splitlines()) == 3


def test_a_trusted_package_may_be_named(monkeypatch, tmp_path):
    (tmp_path / "ourlab.py").write_text("class Mine:\n    def __init__(self, parts, *, gain): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose(["trusted=[ourlab]"])
    OmegaConf.set_struct(cfg, False)
    cfg.method = {"_target_": "ourlab.Mine", "gian": 1}
    with pytest.raises(ConfigError, match=r"method\.gian: no such key; did you mean 'gain'"):
        validate(cfg)
    cfg.method = {"_target_": "ourlab.Mine", "gain": 1}
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
        (["train", "parent=nowhere"], 2, "nowhere"),
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


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.source.root=/a/ü/x", r"""must be quoted, for the shell too: "data\.source\.root='/a/ü/x'"$"""),
        ("data.source.root=/a/it's (1)", r"""root='/a/it\\'s \(1\)'"$"""),
        ("init_from=runs/lr=0.1-0", r"""init_from='runs/lr=0\.1-0'"$"""),
        ("data.source.root=~/x", r"""root='~/x'"; write \$HOME for ~$"""),
        ("data.source.classes=[a,b", "do all brackets and quotes close"),
        ("folder", "folder: not a setting; settings are group=choice"),
    ],
)
def test_what_hydra_cannot_read_is_told_how_to_write(override, said):
    with pytest.raises(ConfigError, match=said):
        compose([override])


def test_the_quoted_form_that_is_told_is_read():
    for value in ("/a/ü/x", "/a/it's (1)", "runs/lr=0.1-0", "C:\\x\\ü"):
        with pytest.raises(ConfigError) as told:
            compose([f"init_from={value}"])
        (quoted,) = re.findall(r'"(.*)"', str(told.value))
        assert compose([quoted]).init_from == value


def test_a_map_of_label_values_is_a_setting():
    cfg = compose(["data=folder", *NEEDED["data=folder"], "data.source.label_map={7: 0, 8: 255}"])
    validate(cfg)
    assert dict(cfg.data.source.label_map) == {7: 0, 8: 255}


def test_entries_of_an_open_mapping_are_added_one_by_one():
    with pytest.raises(ConfigError, match=r"backbone\.options: entries .* \+backbone\.options\.KEY=VALUE"):
        compose(["backbone.options={drop_path_rate: 0.1}"])
    assert compose(["+backbone.options.drop_path_rate=0.1"]).backbone.options == {"drop_path_rate": 0.1}


@pytest.mark.parametrize(("group", "key"), [(None, "trusted"), ("backbone", "name")])
def test_a_configuration_that_lacks_a_key_is_judged_like_any_other(group, key):
    """As a run's own file may, which anyone can have written."""
    cfg = compose(["optimizer.lr=0"])
    OmegaConf.set_struct(cfg, False)
    del (cfg if group is None else cfg[group])[key]
    with pytest.raises(ConfigError, match=r"optimizer\.lr=0"):
        validate(cfg)
