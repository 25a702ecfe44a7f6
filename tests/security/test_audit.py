"""The pinned versions, and the lowest that may be installed, are at or above the versions without known holes."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/audit.py"


def script():
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_pinned_is_above_every_floor():
    audit = script()
    pinned = audit.read(ROOT / "constraints.txt")
    assert len(pinned) > 50
    assert {"torch", "pytorch-lightning", "hydra-core", "wandb", "pillow"} <= pinned.keys()
    assert audit.below(pinned) == []


def test_what_may_be_installed_is_above_every_floor():
    audit = script()
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest = dict(re.match(r"([\w-]+)>=([\d.]+)", text).groups() for text in wanted)
    assert audit.below(lowest) == []
    assert "lightning" not in lowest


def test_a_version_below_is_told(tmp_path):
    text = "torch==2.9.1+cpu\nlightning==2.6.3\nPillow==12.10.0\nhydra_core==1.3.8  # x\n"
    (tmp_path / "c.txt").write_text(text)
    done = subprocess.run(
        [sys.executable, SCRIPT, "--floors-only", "--constraints", tmp_path / "c.txt"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "torch==2.9.1+cpu: must be 2.10 or later" in done.stdout
    assert "lightning==2.6.3" in done.stdout
    assert "4 pinned versions, 2 below a floor" in done.stdout


def test_without_the_network_it_says_what_it_needs(monkeypatch, capsys):
    audit = script()

    def fails(*arguments, **options):
        raise subprocess.CalledProcessError(1, arguments)

    monkeypatch.setattr(audit.subprocess, "run", fails)
    monkeypatch.setattr(audit.venv, "create", lambda *a, **k: None)
    assert audit.ask({"torch": "2.10"}) == 2
    assert "needs the network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "status", "said"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 of 1 versions looked up, 0 advisories"),
        (
            [{"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}],
            1,
            "a==1: X-1, mended in 2",
        ),
        (
            [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}],
            2,
            "1 of 2 versions",
        ),
        ([{"name": "b", "skip_reason": "not found"}], 2, "0 of 1 versions looked up"),
        ([], 2, "0 of 0"),
    ],
)
def test_no_answer_is_not_a_sound_version(answers, status, said, capsys):
    assert script().judge(answers) == status
    assert said in capsys.readouterr().out
