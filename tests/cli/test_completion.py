"""What is offered on TAB, by the program and by bash itself."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig

from hardpix.cli import COMMANDS, completion, main
from hardpix.cli.completion import candidates
from hardpix.cli.completion_scripts import SCRIPTS
from hardpix.config import catalog
from hardpix.config.compose import compose


@pytest.fixture
def runs(tmp_path, monkeypatch):
    for name in ("runs/s/a=1,b", "runs/s/c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands():
    assert candidates([], "") == sorted([*COMMANDS, "--help", "--version"])
    assert candidates([], "ev") == ["evaluate"]
    assert candidates(["nothing"], "") == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("train method=h", ["method=hardness", "method=hl_released"]),
        ("train loss=ohem,fo", ["loss=ohem,focal"]),
        ("train meth", ["method.", "method="]),
        ("train method=hardness method.al", ["method.alpha="]),
        ("train method.al", ["method.alpha="]),
        ("train method=baseline method.al", []),
        ("train experiment=hl/cityscapes method=hl_released method.al", ["method.alpha="]),
        ("train +data.source.hei", ["+data.source.height="]),
        ("train data.sour", ["data.source."]),
        ("train trainer.benchmark=", ["trainer.benchmark=false", "trainer.benchmark=true"]),
        ("train data.pin_memory=t", ["data.pin_memory=true"]),
        ("train --mul", ["--multirun"]),
        ("sweep error_prediction/d", ["error_prediction/deeplabv3plus", "error_prediction/dpc"]),
        ("sweep error_prediction detail:trainer.max_st", ["detail:trainer.max_steps="]),
        ("evaluate RUN --weights ", ["best", "last"]),
        ("evaluate RUN --sp", ["--split"]),
        ("evaluate RUN meth", []),
        ("evaluate RUN inference=m", ["inference=multiscale"]),
        ("table --format l", ["latex"]),
        ("figure dep", ["depth-error"]),
        ("figure sweep --met", ["--metric"]),
        ("data hn", ["hn-labels"]),
        ("data hn-labels --up ", ["gravity", "manhattan"]),
        ("data check data=ny", ["data=nyuv2", "data=nyuv2_424x560", "data=nyuv2_raw"]),
        ("list met", ["methods"]),
        ("list losses fo", ["focal"]),
        (
            "list rows h",
            [
                "hl",
                "hl/1",
                *(f"hl/{i}" for i in (10, 11, *range(2, 10), "fig5", "ssim")),
                "hn",
                *(f"hn/{i}" for i in range(2, 7)),
            ],
        ),
        ("compare --form", ["--format"]),
        ("completion i", ["install"]),
    ],
)
def test_what_may_follow(line, found):
    *words, current = line.split(" ")
    assert candidates(words, current) == found


def test_every_choice_of_a_group_is_offered():
    found = candidates(["train"], "experiment=")
    assert found == sorted(f"experiment={entry.name}" for entry in catalog.entries("experiment"))


def test_run_folders(runs):
    assert candidates(["compare"], "") == ["pictures/", "runs/", "runs/s/a=1,b", "runs/s/c"]
    assert candidates(["compare", "runs/s/c"], "runs/s/a=") == ["runs/s/a=1,b"]
    assert candidates(["evaluate"], "runs/") == ["runs/s/"]
    assert candidates(["train"], "parent=runs/s/c") == ["parent=runs/s/c"]
    assert candidates(["predict", "runs/s/c"], "pic") == []  # images: the shell's own names


def in_bash(folder, line, setup=""):
    """What bash would show for ``line``: the words split as readline splits them, the function called as it is."""
    program = folder / "bin/hardpix"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hardpix.cli "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    script = f"""
        eval "$(hardpix completion bash)"
        {setup}
        COMP_LINE={line!r} COMP_POINT={len(line)}
        _hardpix hardpix
        printf '%s\\n' "${{COMPREPLY[@]}}"
        complete -p hardpix
    """
    root = str(Path(catalog.PACKAGE).parent)
    env = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": root}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, env=env, cwd=folder
    )
    assert done.stderr == ""
    *replies, registered = done.stdout.splitlines()
    assert registered.endswith("-F _hardpix hardpix")
    return [reply for reply in replies if reply]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_is_answered_with_what_follows_its_last_break(runs):
    assert in_bash(runs, "hardpix ev") == ["evaluate"]
    assert in_bash(runs, "hardpix train method=h") == ["hardness", "hl_released"]  # it breaks at =
    assert in_bash(runs, "hardpix train method=h", "COMP_WORDBREAKS=' '") == [
        "method=hardness",
        "method=hl_released",
    ]
    assert in_bash(runs, "hardpix compare runs/s/a=") == ["1,b"]
    assert in_bash(runs, "hardpix train method=hardness ") != []
    assert in_bash(runs, "hardpix sweep error_prediction detail:data.sou") == ["data.source."]


def test_install_says_what_it_wrote_and_is_repeatable(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("BASH_COMPLETION_USER_DIR", raising=False)
    places = {
        "bash": tmp_path / "data/bash-completion/completions/hardpix",
        "zsh": tmp_path / "data/zsh/site-functions/_hardpix",
        "fish": tmp_path / "config/fish/completions/hardpix.fish",
    }
    for shell, path in places.items():
        monkeypatch.setenv("SHELL", f"/bin/{shell}")
        for word, arguments in (("written", [shell]), ("already there", [])):
            assert main(["completion", "install", *arguments]) == 0
            told = capsys.readouterr().out
            assert told.startswith(f"{word}: {path}\n")
            assert told.endswith(f"to undo: rm {path}\n")
        assert path.read_text() == SCRIPTS[shell]
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == SCRIPTS[shell]
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 3
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert main(["completion", "install"]) == 2
    assert "name bash, zsh or fish" in capsys.readouterr().err


def test_scripts_of_the_other_shells_ask_the_program():
    """Their text alone: these shells are not everywhere."""
    assert SCRIPTS["zsh"].startswith("#compdef hardpix\n")
    assert "complete -c hardpix -f -a" in SCRIPTS["fish"]
    for script in SCRIPTS.values():
        assert "completion words" in script
        assert script.count("(") == script.count(")")


def test_a_key_press_imports_nothing_heavy():
    code = (
        "import sys; from hardpix.cli import main; main(['completion', 'words', 'train', 'method=hardness', "
        "'method.']); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *words, loaded = done.stdout.splitlines()
    assert "method.alpha=" in words
    heavy = {"torch", "hydra", "omegaconf", "yaml", "numpy", "argparse", "dataclasses", "hardpix.types"}
    assert not heavy & set(loaded.split())


# Keys of configuration files, read by lines, are those that Hydra composes.


def nested(node):
    return {str(k): nested(v) for k, v in node.items()} if isinstance(node, dict | DictConfig) else None


def test_every_file_has_the_keys_that_a_parser_finds():
    """All of conf/ but tables, rows and studies, of which no key can be set."""
    for group in catalog.groups():
        if group in ("table", "rows", "studies"):
            continue
        for path in (catalog.conf_dir() / group).rglob("*.yaml"):
            text = path.read_text(encoding="utf-8")
            wanted = {k: v for k, v in (yaml.safe_load(text) or {}).items() if k not in ("defaults", "hydra")}
            assert set(completion.outline(text)) == set(wanted), path
            for key, value in completion.outline(text).items():
                if isinstance(value, dict) and value:
                    assert set(value) == set(map(str, wanted[key])), (path, key)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["method=hardness", "data=cityscapes", "head=psp", "loss=ohem"],
        ["model=cross_stitch", "backbone=segnet", "head=segnet", "optimizer=adamw"],
        ["experiment=hl/cityscapes", "head=fcn_hrnet"],
        ["experiment=lwm/nyuv2"],
        ["experiment=hn/nyuv2", "data.source.root=x"],
    ],
)
def test_groups_have_the_keys_of_the_composed_configuration(words):
    cfg = compose(words)
    for group in ("data", "backbone", "head", "method", "loss", "optimizer", "trainer", "inference"):
        found = completion.keys(group, words)
        own = {name for name in cfg[group] if name in found}
        assert found, group
        assert set(found) <= {str(name) for name in cfg[group]}, group
        assert len(own) >= 0.7 * len(cfg[group]), (group, set(cfg[group]) - own)  # an experiment may add some
        if isinstance(found.get("source"), dict):
            assert set(found["source"]) <= set(map(str, cfg[group].source))


def test_choices_follow_the_line_then_the_experiment_then_the_root():
    assert completion.chosen([])["head"] == "fcn"
    assert completion.chosen(["experiment=lwm/nyuv2"])["method"] == "lwm"
    assert completion.chosen(["experiment=lwm/nyuv2"])["head"] == "refinenet_cascades"
    assert completion.chosen(["experiment=lwm/nyuv2", "method=baseline"])["method"] == "baseline"
