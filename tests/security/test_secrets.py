"""No key, token or password stands in anything that a run, a failing run, a sweep or a report writes."""

import pytest

from hardpix import record, secrets
from hardpix.cli import main
from hardpix.config.compose import compose, validate
from hardpix.train.train import train
from hardpix.types import ConfigError
from tests.conftest import TINY

pytestmark = pytest.mark.slow  # whole runs and processes

CANARIES = {
    "WANDB_API_KEY": "c0ffee" * 6 + "abcd",
    "HF_TOKEN": "hf_canaryCANARYcanary",
    "AWS_SECRET_ACCESS_KEY": "aws/canary+secret+value",
    "DB_PASSWORD": "pass-canary-word",
}


@pytest.fixture
def canaries(monkeypatch, tmp_path):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text("machine api.wandb.ai login user password netrc-canary-password\n")
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    return [*CANARIES.values(), "netrc-canary-password"]


def leaks(folder, values):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [(path, value) for path in files for value in values if value.encode() in path.read_bytes()]


def test_a_run_with_wandb_and_its_page(canaries, tiny, tmp_path, capsys):
    train(tiny("run=a", "logger=default", "trainer.max_steps=1"))
    assert list(tmp_path.glob("runs/default/a/wandb/offline-run-*/*.wandb"))
    assert main(["page", str(tmp_path / "runs/default/a"), "-o", str(tmp_path / "runs/page.html")]) == 0
    main(["table", str(tmp_path / "runs/default/a")])
    main(["export", str(tmp_path / "runs/default/a"), "--safetensors", str(tmp_path / "runs/a.safetensors")])
    assert leaks(tmp_path / "runs", canaries) == []
    told = capsys.readouterr()
    assert [value for value in canaries if value in told.out + told.err] == []


def test_an_error_that_holds_one(canaries, tiny, tmp_path, monkeypatch):
    from hardpix.train import train as train_module

    def fails(job):
        raise RuntimeError(f"https://user:{CANARIES['DB_PASSWORD']}@host said no to {CANARIES['HF_TOKEN']}")

    monkeypatch.setattr(train_module, "_run", fails)
    with pytest.raises(RuntimeError):
        train(tiny("run=a", "logger=default"))
    assert "***" in record.read(tmp_path / "runs/default/a").error
    assert leaks(tmp_path / "runs", canaries) == []


def test_a_study_whose_jobs_fail_with_one(canaries, tmp_path, monkeypatch):
    from hardpix.train import train as train_module

    def fails(job):
        raise RuntimeError(f"no entry for {CANARIES['WANDB_API_KEY']}")

    monkeypatch.setattr(train_module, "_run", fails)
    words = [f"runs_dir={tmp_path}/runs", "seed=0,1", *TINY]
    assert main(["sweep", *words]) == 1
    assert list(tmp_path.glob("runs/**/error.txt"))
    assert leaks(tmp_path / "runs", canaries) == []


@pytest.mark.parametrize(
    "key", ["study", "logger.project", "data.source.root", "data.source.name", "init_from"]
)
def test_a_setting_that_holds_one_is_refused_without_telling_it(canaries, key):
    words = ["data=folder", "data.source.root=x", "data.source.classes=[a,b]"]
    for name, value in CANARIES.items():
        for text in (f"'{value}'", f"'x{value}y'", f"${{oc.env:{name}}}"):
            kept = [word for word in words if not word.startswith(f"{key}=")]
            with pytest.raises(ConfigError) as error:
                validate(compose([*kept, f"{key}={text}"]))
            assert f"{key}: holds the value of the environment variable {name}" in str(error.value)
            assert value not in str(error.value)


def test_a_password_in_an_address_is_refused_without_telling_it():
    for address in (
        "s3://key:hunter2hunter2@bucket/x",
        "https://u:hunter2hunter2@host/a",
        "ssh+x://:hunter2hunter2@h",
    ):
        with pytest.raises(ConfigError, match=r"data\.source\.root: holds a password") as error:
            validate(compose(["data=cityscapes", f"data.source.root='{address}'"]))
        assert "hunter2" not in str(error.value)
    validate(compose(["data=cityscapes", "data.source.root='s3://bucket/a@b:c'"]))


def test_what_is_masked(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abcdefgh12")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    monkeypatch.setenv("PLAIN", "abcdefghij")
    assert secrets.masked("x abcdefgh12 true abcdefghij") == "x *** true abcdefghij"
    assert (
        secrets.masked("git+https://me:pa55@host/x http://host:80/a@b")
        == "git+https://me:***@host/x http://host:80/a@b"
    )
