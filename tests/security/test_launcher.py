"""What a file says of a cluster, and what things are called there, runs no command."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from hardpix.cli import main
from hardpix.config.command_line import written
from hardpix.sweep.stages import read_chain
from hardpix.sweep.study import read_study
from hardpix.types import ConfigError
from tests.conftest import TINY
from tests.security.test_secrets import (
    canaries,  # noqa: F401
    leaks,
)
from tests.security.test_secrets_in_output import leaky  # noqa: F401
from tests.sweep.test_slurm import (
    cluster,  # noqa: F401
    waited,
)


def study(folder, content):
    (folder / "studies").mkdir(exist_ok=True)
    (folder / "studies/evil.yaml").write_text(yaml.safe_dump(content))
    return folder / "studies/evil.yaml"


KEYS = ("hydra.launcher.setup", "+hydra.searchpath", "hydra/launcher", "hydra.job.env_set", "~hydra",
        "++hydra.callbacks.x", "hydra/job_logging@x", "trusted", "+trusted")  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("place", ["overrides", "axes", "rows", "search", "for"])
def test_a_study_cannot_change_hydra_nor_trust(tmp_path, key, place):
    content = {
        "overrides": {"overrides": {key: "x"}},
        "axes": {"axes": {key: ["x", "y"]}},
        "rows": {"rows": [{key: "x"}]},
        "search": {"search": {key: {"choice": ["x", "y"]}}},
        "for": {"overrides": ["seed=1"], "for": {"seed=1": {key: ["x", "y"]}}},
    }[place]
    path = study(tmp_path, content)
    with pytest.raises(ConfigError, match=r"a file cannot|not a setting|evil\.yaml") as error:
        read_study(["evil"], tmp_path)
    assert "\n" not in str(error.value)
    if not key.startswith("~"):
        assert str(path) in str(error.value)
        assert "a file cannot" in str(error.value)


@pytest.mark.parametrize("text", ["hydra.searchpath=[pkg://trap]", "+hydra.launcher.setup=[x]", "hydra/launcher=x",
                                  " trusted=[a]", "~hydra"])  # fmt: skip
def test_a_chain_cannot_change_hydra_nor_trust(tmp_path, text):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/evil.yaml").write_text(yaml.safe_dump({"stages": {"a": {"overrides": [text]}}}))
    with pytest.raises(ConfigError, match=r"evil\.yaml: stage a: .*a file cannot"):
        read_chain("evil", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        *(
            (f"partition={text!r}", "partition=.*must be of one line")
            for text in ("gpu\ntouch MARK", "x\x0btouch MARK")
        ),
        ("name='a\nb'", "name=.*must be of one line"),
        ("additional_parameters.a='gpu\ntouch MARK'", "must be of one line"),
        (
            "setup=['export HF_TOKEN=hf_canaryCANARYcanary']",
            "setup.*: holds the value of the environment variable",
        ),
    ],
)
def test_no_setting_begins_a_line_of_the_script_or_holds_a_secret(
    cluster,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
    setting,
    said,
):
    monkeypatch.setenv("HF_TOKEN", "hf_canaryCANARYcanary")
    setting = setting.encode().decode("unicode_escape")
    words = [
        *TINY,
        f"runs_dir={tmp_path}/runs",
        "hydra/launcher=submitit_slurm",
        f"++hydra.launcher.{setting}",
    ]
    assert main(["sweep", *words, "seed=0,1"]) == 2
    err = capsys.readouterr().err
    assert re.search(said, err)
    assert "canary" not in err
    assert not (cluster / "sbatch.log").exists()


@pytest.mark.slow
def test_hydras_own_launcher_from_a_file(tmp_path, capsys, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("TWO_LINES", "a\ntouch MARK")
    (tmp_path / "experiment").mkdir()
    given = ["train", "-m", "--config-dir", str(tmp_path), "experiment=evil", "hydra/launcher=submitit_slurm"]
    given += [f"runs_dir={tmp_path}/runs", "seed=0,1"]
    for launcher, said in (
        ({"setup": ["touch MARK"]}, "hydra.launcher.setup: is set by a file"),
        (
            {"partition": "gpu\ntouch MARK"},
            "hydra.launcher.partition='gpu\\ntouch MARK': must be of one line",
        ),
        ({"comment": "${oc.env:TWO_LINES}"}, "hydra.launcher.comment='a\\ntouch MARK': must be of one line"),
    ):
        text = "# @package _global_\n" + yaml.safe_dump({"hydra": {"launcher": launcher}})
        (tmp_path / "experiment/evil.yaml").write_text(text)
        assert main(given) != 0
        told = capsys.readouterr().err
        assert said in told
        assert "Traceback" not in told


ODD = "$(touch MARK1);`touch MARK2`&touch MARK3|\"';touch MARK4;# x"


@pytest.mark.slow
def test_no_name_and_no_value_is_run_by_the_script(cluster, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The script itself, run by bash with an ``srun`` that does nothing: names leave no marker, ``setup`` does."""
    (cluster / "hold").touch()
    study(tmp_path, {"study": ODD, "axes": {"seed": [0, 1]}})
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / ("runs" + ODD.replace("/", ""))
    quoted = str(runs).replace("'", "\\'")
    words = [
        "evil",
        "--config-dir",
        str(tmp_path),
        *TINY,
        f"runs_dir='{quoted}'",
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.setup=[touch own]",
        f"hydra.launcher.comment={written(ODD)}",
    ]
    process = subprocess.Popen([sys.executable, "-m", "hardpix.cli", "sweep", *words], process_group=0)
    waited(lambda: (cluster / "100.sh").is_file() and (cluster / "sbatch.log").is_file())
    process.kill()
    process.wait()
    script = (cluster / "100.sh").read_text()
    assert "#SBATCH --comment=" in script
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub/srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments\n')
    (tmp_path / "stub/srun").chmod(0o755)
    place = tmp_path / "node"
    place.mkdir()
    subprocess.run(["bash", str(cluster / "100.sh")], cwd=place, check=True,
                   env=os.environ | {"PATH": f"{tmp_path}/stub:{os.environ['PATH']}"})  # fmt: skip
    assert {path.name for path in place.iterdir()} == {"own", "arguments"}
    assert f"{runs}/{ODD}/.submitit" in (place / "arguments").read_text()
    assert not list(tmp_path.rglob("MARK*"))
    assert main(["sweep", *words, "study='a\nb'"]) == 2
    assert "must be of one line" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_of_the_cluster_that_prints_and_raises_secrets(cluster, leaky, tmp_path):  # noqa: F811
    words, values = leaky
    pythonpath = os.environ["PYTHONPATH"]
    os.environ["PYTHONPATH"] = f"{tmp_path / 'lib'}:{pythonpath}"
    try:
        assert main(["sweep", *words, "study=s", "hydra/launcher=submitit_slurm"]) == 1
    finally:
        os.environ["PYTHONPATH"] = pythonpath
    waited(lambda: all((cluster / f"100_{n}.state").read_text() in ("FAILED", "COMPLETED") for n in (0, 1)))
    logs = "".join(path.read_text() for path in tmp_path.glob("runs/s/.submitit/**/*_log.*"))
    assert all(logs.count(f"{word} ***") >= 2 for word in ("print", "half", "error", "child"))
    assert len(list(tmp_path.glob("runs/s/*/error.txt"))) == 2
    assert leaks(tmp_path / "runs", values) == []
