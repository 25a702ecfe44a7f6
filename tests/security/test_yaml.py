"""A file of YAML from someone else takes no more memory, time or depth than it is worth."""

import os

import pytest
import yaml

from hardpix.cli import main
from hardpix.config import safe_files
from hardpix.config.compose import compose
from hardpix.sweep.stages import read_chain
from hardpix.sweep.study import read_study
from hardpix.types import ConfigError, HardpixError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}\n" for n in range(1, 60))
TEXT = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 200)}]\n"
HOSTILE = {
    "laughs": (BOMB, "its aliases stand for more than 10 million values and characters"),
    "mappings": (MERGED, "its aliases stand for more than 10 million"),
    "one long text": (TEXT, "its aliases stand for more than 10 million"),
    "itself": ("a: &a [*a]\n", r"its alias \*a stands for what it lies in"),
    "itself again": ("b: &a x\na: &a [*a]\n", r"its alias \*a stands for what it lies in"),
    "deep lists": ("a: " + "[" * 5000 + "]" * 5000, "more than 100 deep"),
    "deep mappings": ("".join(f"{' ' * n}a:\n" for n in range(2000)), "more than 100 deep"),
    "never closed": ("a: " + "[" * 90_000, "more than 100 deep"),
    "large": (None, "has 300 MB; a file of YAML must have no more than 10 MB"),
    "a pipe": (None, "is no regular file"),
}  # fmt: skip


def hostile(path, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "large":
        path.touch()
        os.truncate(path, 300_000_000)  # of zeros, which take no room
    else:
        path.write_text(HOSTILE[kind][0])
    return HOSTILE[kind][1]


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_asks_for_too_much_is_refused(tmp_path, kind):
    said = hostile(tmp_path / "x.yaml", kind)
    with pytest.raises(ConfigError, match=said) as error:
        safe_files.read_yaml(tmp_path / "x.yaml")
    assert str(error.value).startswith(str(tmp_path / "x.yaml"))
    assert "\n" not in str(error.value)


READERS = {
    "chain": ("studies/evil.yaml", lambda folder: read_chain("evil", folder)),
    "study": ("studies/evil.yaml", lambda folder: read_study(["evil"], folder)),
    "configuration": ("experiment/evil.yaml", lambda folder: compose(["experiment=evil"], config_dir=folder)),
    "run": ("config.yaml", lambda folder: safe_files.load(folder / "config.yaml")),
}


@pytest.mark.parametrize("kind", ["laughs", "deep lists", "large"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_it(tmp_path, reader, kind):
    place, read = READERS[reader]
    said = hostile(tmp_path / place, kind)
    if (reader, kind) == ("run", "laughs"):
        said = "is damaged: it repeats a part of itself by an alias"
    with pytest.raises(HardpixError, match=said) as error:
        read(tmp_path)
    assert str(tmp_path / place) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_line_says_it_in_one_line(tmp_path, capsys):
    said = hostile(tmp_path / "experiment/evil.yaml", "laughs")
    assert main(["train", "--config-dir", str(tmp_path), "experiment=evil", f"runs_dir={tmp_path}/runs"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_what_a_person_writes_is_read(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(
        "base: &b {lr: 1, list: [1, 2]}\none: {<<: *b, wd: 2}\ntwo: [*b, *b]\nthree: &c 5\nfour: *c\n"
    )
    assert safe_files.read_yaml(path) == yaml.safe_load(path.read_text())
    path.write_text("a: " + "[" * 99 + "]" * 99)
    assert safe_files.read_yaml(path)
    path.write_text("")
    assert safe_files.read_yaml(path) is None


def test_sizes_at_the_limit(tmp_path, monkeypatch):
    path = tmp_path / "x.yaml"
    monkeypatch.setattr(safe_files, "MAX_BYTES", 1000)
    path.write_text("a: " + "x" * 997)
    assert safe_files.read_yaml(path)
    path.write_text("a: " + "x" * 998)
    with pytest.raises(ConfigError, match="no more than"):
        safe_files.read_yaml(path)
    # The list 1, in it three times x: 1 for the value and 1 for its sign; as often for the alias; keys and mapping.
    path.write_text("a: &a [x, x, x]\nb: *a\n")
    monkeypatch.setattr(safe_files, "MAX_EXPANDED", 1 + 2 + 7 + 2 + 7)
    assert safe_files.read_yaml(path)
    monkeypatch.setattr(safe_files, "MAX_EXPANDED", 1 + 2 + 7 + 2 + 7 - 1)
    with pytest.raises(ConfigError, match="its aliases stand for more"):
        safe_files.read_yaml(path)


@pytest.mark.parametrize(
    "content", [b"a: [1", b"\xff\xfe\xfd", b"a: !!python/object/apply:os.system [x]", b"a: b: c"]
)
def test_no_yaml_is_one_sentence(tmp_path, content):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match="is no YAML: ") as error:
        safe_files.read_yaml(tmp_path / "x.yaml")
    assert "\n" not in str(error.value)
