"""Nothing that a configuration names is imported or called unless it is of hardpix, or the command line trusts it."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from hardpix.cli import main
from hardpix.config.catalog import conf_dir
from hardpix.config.compose import check_command_line_trust, compose, validate
from hardpix.config.trust import check_hydra, find_target, named_trust
from hardpix.train import rundir
from hardpix.types import ConfigError

TARGETS = (
    "builtins.open", "builtins.exec", "builtins.eval", "builtins.__import__", "os.makedirs", "os.system", "os.popen",
    "logging.os.system", "posix.system", "subprocess.run", "subprocess.Popen", "shutil.rmtree", "pty.spawn",
    "urllib.request.urlopen", "runpy.run_path", "importlib.import_module", "pickle.loads", "yaml.unsafe_load",
    "torch.hub.load", "torch.load", "torch.utils.cpp_extension.load_inline", "pandas.read_pickle", "joblib.load",
    "numpy.load", "timm.create_model", "hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_method",
    "hydra._internal.utils._locate", "omegaconf.OmegaConf.load", "code.interact", "timeit.timeit", "antigravity.x",
    "torch.nn.Linear", "pytorch_lightning.Trainer",
)  # fmt: skip
# Of hardpix by their first word.
INSIDE = (
    "hardpix.train.train.os.system", "hardpix.train.train.train", "hardpix.data.np.load", "hardpix.data.files.np.load",
    "hardpix.record.write_text", "hardpix.record.os.system", "hardpix.data.pack", "hardpix.data.packed.pack",
    "hardpix.models.backbone.timm.create_model", "hardpix.train.rundir.yaml.unsafe_load", "hardpix.record.json.load",
    "hardpix.evaluate.loaded", "hardpix.data.prepare.job.prepare", "hardpix.cli.main", "hardpix.__builtins__.open",
    "hardpix.data.DataModule.__init__.__globals__", "hardpix", "hardpix..data", "hardpix.data.", "hardpix.data.pack ",
    "hardpix_evil.x", "Hardpix.data.Folder", "hardpix.data.Folder.frames", "hardpix.models.choose_skips",
)  # fmt: skip


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A package ``trap`` that leaves a file when it is imported or called."""
    marker = tmp_path / "ran"
    (tmp_path / "lib").mkdir()
    body = f"open({str(marker)!r}, 'w').close()\n"
    (tmp_path / "lib/trap.py").write_text(f"{body}def go(*a, **k):\n    {body}")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    sys.modules.pop("trap", None)
    yield marker
    sys.modules.pop("trap", None)
    assert not marker.exists()


def refused(capsys, *arguments, said="trap.go is not part of hardpix"):
    assert main(list(map(str, arguments))) != 0
    told = capsys.readouterr()
    assert said in told.err, told.err
    assert "Traceback" not in told.err


@pytest.fixture(scope="module")
def composed():
    """The configuration with Hydra's own settings, to be copied: composing takes longer than judging."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose("train", return_hydra_config=True)


@pytest.mark.parametrize("target", TARGETS)
def test_a_foreign_name_is_refused_before_it_is_imported(target):
    before = set(sys.modules)
    with pytest.raises(ConfigError, match="is not part of hardpix"):
        find_target(target, ())
    assert set(sys.modules) == before


@pytest.mark.parametrize("target", INSIDE)
def test_a_name_below_hardpix_that_is_no_public_class_is_refused(target):
    with pytest.raises(ConfigError):
        find_target(target, ())


def test_every_public_class_of_the_configuration_is_found():
    assert find_target("hardpix.data.Folder", ()).required
    assert find_target("hardpix.optim.SGD", ()).names


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "trap.go"},
        {"_target_": "trap.go", "_partial_": True},
        {"_target_": "trap.go", "_args_": ["x"]},
        {"_target_": "trap.go", "_recursive_": False, "_convert_": "none"},
        {"a": {"b": [1, [{"c": {"_target_": "trap.go"}}]]}},
        [[{"_target_": "trap.go"}]],
        {"_target_": "${.x}", "x": "trap.go"},
        {"_target_": "hardpix.methods.Baseline", "_args_": [{"_target_": "trap.go"}]},
    ],
    ids=range(8),
)
@pytest.mark.parametrize(
    "place", ["method", "data.source", "backbone.options.x", "trainer.x", "logger.tags", "loss.x"]
)
def test_however_deep_and_wherever(trap, composed, place, node):
    cfg = copy.deepcopy(composed)
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra")
    OmegaConf.update(cfg, place, node, merge=False, force_add=True)
    with pytest.raises(ConfigError, match=r"trap\.go is not part of hardpix|method: missing"):
        validate(cfg)


@pytest.mark.parametrize("word", ["_args_", "_recursive_", "_convert_"])
def test_hydras_own_words_are_no_keys_even_of_ours(word):
    with pytest.raises(ConfigError, match=f"{word}: no such key"):
        validate(compose([f"+method.{word}=[]"]))


def test_of_a_trusted_package_the_object_must_be_its_own(tmp_path, monkeypatch):
    (tmp_path / "ourtargets.py").write_text(
        "from os import system\nfrom hardpix.record import write_text\nclass Mine: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    find_target("ourtargets.Mine", ("ourtargets",))
    for name in ("system", "write_text"):
        with pytest.raises(ConfigError, match="is not trusted"):
            find_target(f"ourtargets.{name}", ("ourtargets",))
    with pytest.raises(ConfigError, match="is not part of hardpix"):
        find_target("ourtargetss.Mine", ("ourtargets",))
    with pytest.raises(ConfigError, match="cannot be found"):
        find_target("ourtargets.os.system", ("ourtargets",))


def test_what_a_command_line_trusts():
    assert named_trust(["seed=1", "trusted=[a, 'b']", "+trusted=c"]) == ["a", "b", "c"]
    assert named_trust(["trusted=[]", "x=trusted"]) == []


def test_by_an_override(trap, capsys, tmp_path):
    words = "method._target_=trap.go", "+data.x._target_=trap.go", "+backbone.options.x._target_=trap.go"
    refused(capsys, "train", *words, f"runs_dir={tmp_path}/runs")


def experiment(folder, content, where="experiment/evil.yaml"):
    path = folder / "conf" / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# @package _global_\n" + yaml.safe_dump(content))
    return ("--config-dir", str(folder / "conf"), "experiment=evil", f"runs_dir={folder}/runs")


# Content of a file, and what is said of it; each with the fewest keys that do it.
FILES = [
    ({"method": {"_target_": "trap.go"}}, "trap.go is not part of hardpix"),
    ({"method": {"_target_": "trap.go"}, "trusted": ["trap"]}, "a file of the configuration executes code"),
    ({"hydra": {"callbacks": {"x": {"_target_": "trap.go"}}}}, "trap.go is not part of hardpix"),
    ({"hydra": {"callbacks": {"x": {"_target_": "trap.go"}}}, "trusted": ["trap"]}, "trap.go is not part"),
    ({"hydra": {"sweeper": {"_target_": "trap.go"}}}, "trap.go is not part of hardpix"),
    ({"hydra": {"launcher": {"_target_": "trap.go"}}}, "trap.go is not part of hardpix"),
    ({"hydra": {"job_logging": {"handlers": {"x": {"()": "trap.go"}}}}}, "trap.go: is not called"),
    ({"hydra": {"job_logging": {"handlers": {"x": {"class": "trap.go"}}}}}, "trap.go: is not called"),
    ({"hydra": {"hydra_logging": {"filters": {"x": {"()": "trap.go"}}}}}, "trap.go: is not called"),
    ({"hydra": {"hydra_logging": {"formatters": {"simple": {"format": "ext://trap.go"}}}}}, "must be ext://sys.stdout"),
    ({"hydra": {"job": {"env_set": {"PATH": "/x"}}}}, "hydra.job.env_set: is set by a file"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "said"), FILES, ids=range(len(FILES)))
def test_by_what_a_file_brings_along(trap, composed, content, said):
    """Judged as :mod:`hardpix.cli.train` has Hydra's configuration judged."""
    cfg = copy.deepcopy(composed)
    OmegaConf.set_struct(cfg, False)
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_readonly(cfg.hydra, False)
    cfg.merge_with(content)
    with pytest.raises(ConfigError, match=re.escape(said)):
        judge(cfg)


def judge(cfg):
    check_hydra(cfg, [])
    cfg.pop("hydra")
    check_command_line_trust(cfg, [])
    validate(cfg)


# What a file may not trust is found before what Hydra would call.
TRUSTED = "a file of the configuration executes code of trap"
WHOLE = [
    pytest.param(
        content,
        TRUSTED if "trusted" in content else said,
        id=str(n),
        marks=[] if n in (1, 2) else pytest.mark.slow,
    )
    for n, (content, said) in enumerate(FILES)
]


@pytest.mark.parametrize(("content", "said"), WHOLE)
@pytest.mark.parametrize("multirun", [(), ("-m",)])
def test_by_a_folder_of_further_files(trap, capsys, tmp_path, content, said, multirun):
    refused(capsys, "train", *multirun, *experiment(tmp_path, content), said=said)
    assert not list(tmp_path.glob("runs/**/run.json"))


def test_by_a_study_or_a_chain(trap, capsys, tmp_path):
    for folder, content in (
        ("sweep", {"overrides": ["method._target_=trap.go"]}),
        ("sweep", {"axes": {"method._target_": ["trap.go"]}}),
        ("sweep", {"stages": {"a": {"overrides": ["method._target_=trap.go"]}}}),
    ):
        path = tmp_path / "studies/evil.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content))
        refused(capsys, folder, "evil", "--config-dir", tmp_path, f"runs_dir={tmp_path}/runs")
    for folder, content in (
        ("sweep", {"overrides": ["trusted=[trap]", "method._target_=trap.go"]}),
        ("sweep", {"axes": {"trusted": [["trap"]]}, "overrides": ["method._target_=trap.go"]}),
        ("sweep", {"stages": {"a": {"overrides": ["trusted=[trap]", "method._target_=trap.go"]}}}),
    ):
        (tmp_path / "studies/evil.yaml").write_text(yaml.safe_dump(content))
        refused(capsys, folder, "evil", "--config-dir", tmp_path, said="a file cannot trust code")


COMMANDS = {
    "evaluate": ["evaluate", "RUN"],
    "evaluate, its method's settings": ["evaluate", "RUN", "method.tile=1"],
    "predict": ["predict", "RUN", "IMAGE", "--out", "OUT"],
    "export": ["export", "RUN", "--onnx", "OUT.onnx"],
    "figure": ["figure", "panels", "RUN", "--out", "OUT.png"],
    "figure of errors": ["figure", "errors", "RUN", "--out", "OUT.png"],
    "resume": ["train", "RESUME", "resume=true"],
    "stages": ["sweep", "error_prediction", "--use", "semantic=RUN", "run=b"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("own_trust", [False, True])
@pytest.mark.parametrize("group", ["method", "data", "backbone"])
@pytest.mark.parametrize("command", COMMANDS)
def test_by_a_run_that_came_from_elsewhere(trap, capsys, tmp_path, run, command, group, own_trust):
    import shutil

    other = tmp_path / "runs/default/a"
    shutil.copytree(run, other)
    content = yaml.safe_load((other / rundir.CONFIG).read_text())
    content[group]["_target_"] = "trap.go"
    content["trusted"] = ["trap"] if own_trust else []
    (other / rundir.CONFIG).write_text(yaml.safe_dump(content))
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    words = {"RUN": str(other), "IMAGE": str(tmp_path / "a.png"), "OUT": str(tmp_path / "out"),
             "OUT.onnx": str(tmp_path / "o.onnx"), "OUT.png": str(tmp_path / "o.png")}  # fmt: skip
    arguments = [words.get(w, w.replace("semantic=RUN", f"semantic={other}")) for w in COMMANDS[command]]
    if "RESUME" in arguments:
        arguments[1:2] = [f"runs_dir={tmp_path}/runs", "run=a"]
    status = main(arguments)
    told = capsys.readouterr().err
    assert status != 0
    assert "Traceback" not in told
    if command != "resume":  # whose configuration is that of the command line
        known = (
            "executes code of trap",
            "trap.go is not part of hardpix",
            "an evaluation can set",
            "predicts no errors of a",
        )
        assert any(text in told for text in known), told


@pytest.mark.slow
def test_a_run_with_code_of_its_own_needs_the_word_again(capsys, tmp_path, run, monkeypatch):
    import shutil

    (tmp_path / "ourtargets2.py").write_text(
        "from hardpix.methods import Baseline\nclass Mine(Baseline): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    other = tmp_path / "runs/default/a"
    shutil.copytree(run, other)
    content = yaml.safe_load((other / rundir.CONFIG).read_text())
    content["method"]["_target_"], content["trusted"] = "ourtargets2.Mine", ["ourtargets2"]
    (other / rundir.CONFIG).write_text(yaml.safe_dump(content))
    refused(
        capsys,
        "evaluate",
        other,
        said="executes code of ourtargets2; to allow this add trusted=[ourtargets2]",
    )
    assert main(["evaluate", str(other), "trusted=[ourtargets2]"]) == 0


def test_a_parent_that_a_run_directory_tells_of_is_judged_when_it_is_resumed(
    trap, capsys, tmp_path, run, tiny
):
    """The configuration of the parent is read from the resumed run's own directory, which may be anyone's."""
    import shutil

    from hardpix.train.train import train

    branch = (
        "method=error_prediction",
        "method.channels=8",
        f"parent='{run}'",
        "panels=0",
        "scheduler=constant",
    )
    cfg = tiny("run=b", *branch, "trainer.max_steps=1", "head=fcn")
    other = tmp_path / "runs/default/b"
    shutil.copytree(run, other)
    for trusted in ([], ["trap"]):
        content = yaml.safe_load((other / rundir.CONFIG).read_text())
        content["parent"], content["parent_config"] = (
            str(run),
            copy.deepcopy(content) | {"parent_config": None},
        )
        content["parent_config"]["method"] = {"_target_": "trap.go"}
        content["parent_config"]["trusted"] = trusted
        (other / rundir.CONFIG).write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError, match=r"parent_config: .*trap"):
            train(cfg)


def test_tables_and_comparisons_read_such_a_run_and_run_nothing(trap, capsys, tmp_path, run):
    import shutil

    other = tmp_path / "runs/default/a"
    shutil.copytree(run, other)
    content = yaml.safe_load((other / rundir.CONFIG).read_text())
    content["method"]["_target_"] = "trap.go"
    (other / rundir.CONFIG).write_text(yaml.safe_dump(content))
    main(["table", str(other)])
    main(["compare", str(other), str(run)])


@pytest.mark.slow
def test_importing_nothing_costs_no_torch():
    code = (
        "import sys; from hardpix.cli import main; s = main(['train', 'method._target_=os.system']);"
        "sys.exit(9 if 'torch' in sys.modules else s)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 2, done.stderr
