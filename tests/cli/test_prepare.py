"""``hardpix data prepare``: refusals leave nothing, interruptions leave a state that goes on, nothing is fetched."""

import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import dataclass
from functools import partial
from hashlib import md5
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from hardpix.cli import main
from hardpix.config.command_line import command_words
from hardpix.config.compose import compose
from hardpix.data.prepare import RECIPES, archive, find_recipe, job, recipe
from hardpix.data.prepare.recipe import Part, Recipe, Work, write_once
from hardpix.types import ConfigError, DataError

IMAGES = {f"toy/images/{n}.txt": f"image {n}".encode() * 9 for n in range(4)}
EXTRA = b"the list"


@dataclass(frozen=True)
class Toy(Recipe):
    """Upper-case copies of the texts in toy.zip; ``bad`` ones are faults."""

    name = "toy"
    title = "Toy texts"
    page = "https://example.org/toy"
    licence = "Toys only."
    parts = (
        Part("toy.zip", "the texts"),
        Part("list.mat", "the list", size=len(EXTRA), md5=md5(EXTRA).hexdigest()),
        Part("more/*.tar.gz", "more texts", needed=False),
    )

    times: int = 1
    factor: float = 1.0
    head: str = ""
    loud: bool = True

    def __post_init__(self):
        if self.times < 1:
            raise ConfigError(f"times={self.times}: must be 1 or more")

    def wanted(self, member):
        return member.endswith(".txt")

    def convert(self, work):
        work.place(work.find("list.mat", "list.mat"), "list.mat")
        found = sorted(p for root in work.roots for p in root.rglob("*.txt"))
        work.each(partial(self.write, work.out), found, "texts")

    def write(self, out, path):
        text = path.read_text()
        if "bad" in text:
            raise DataError(f"{path}: it is bad;\nmend it")
        text = self.head + text * self.times
        write_once(out / path.name, lambda p: p.write_text(text.upper() if self.loud else text))


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The recipe under its name, and a folder with its files; the current folder is another."""
    module = ModuleType("hardpix.data.prepare.toy")
    module.Toy = Toy
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(RECIPES, "toy", "hardpix.data.prepare.toy.Toy")
    folder = tmp_path / "downloads"
    folder.mkdir()
    make_zip(folder / "toy.zip", {**IMAGES, "toy/readme.md": b"x"})
    (folder / "list.mat").write_bytes(EXTRA)
    monkeypatch.chdir(tmp_path)
    return folder


def make_zip(path, files):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def prepare(folder, *more, out="out"):
    return main(["data", "prepare", "toy", "--from", str(folder), "--to", out, "--workers", "1", *more])


def tree(out="out"):
    return {p.relative_to(out).as_posix() for p in Path(out).rglob("*") if p.is_file()}


def journal(out="out"):
    return json.loads(Path(out, "prepare.json").read_text())


RESULT = {"prepare.json", "list.mat", "0.txt", "1.txt", "2.txt", "3.txt"}


def is_right(out="out"):
    return tree(out) == RESULT and all(
        Path(out, f"{n}.txt").read_text() == f"IMAGE {n}" * 9 for n in range(4)
    )


def test_without_files_it_says_where_they_are_and_what_to_do(toy, capsys, monkeypatch):
    monkeypatch.delenv("HARDPIX_DATA", raising=False)
    assert main(["data", "prepare", "toy", "times=2"]) == 0
    said = capsys.readouterr().out
    for words in ("Toy texts", "https://example.org/toy", "Toys only.", "toy.zip", "the list, 8 bytes",
                  "more texts (can be left out)", "options:  times=2, factor=1.0, head=, loud=True",
                  "\n  hardpix data prepare toy times=2 --from downloads --to data/toy\n"):  # fmt: skip
        assert words in said
    assert not Path("data").exists()
    assert prepare(toy, "times=2") == 0  # the command it printed


def test_list(toy, capsys):
    assert main(["data", "prepare", "--list"]) == 0
    said = capsys.readouterr().out
    assert "Toy texts" in said
    assert "https://example.org/toy" in said


def test_help_names_the_commands_without_torch():
    script = "import sys; from hardpix.cli import main; main(['data']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "prepare" in done.stdout
    assert "pack" in done.stdout


@pytest.mark.parametrize("kind", ["folder", "files", "unpacked"])
def test_archives_files_and_unpacked_folders_give_the_same(toy, kind, capsys):
    sources = [str(toy)]
    if kind == "files":
        sources = [str(toy / "toy.zip"), "--from", str(toy / "list.mat")]
    if kind == "unpacked":
        zipfile.ZipFile(toy / "toy.zip").extractall(toy / "by hand")
        (toy / "toy.zip").unlink()
    assert main(["data", "prepare", "toy", "--to", "out", "--from", *sources, "--workers", "1"]) == 0
    assert is_right()
    said = capsys.readouterr().out
    assert "https://example.org/toy" in said
    assert "Toys only." in said
    assert "are free" in said
    assert "train with data=toy data.source.root=out" in said
    record = journal()
    assert (record["status"], record["recipe"], record["faults"]) == ("done", "toy", 0)
    assert record["inputs"]["list.mat"]["md5"] == md5(EXTRA).hexdigest()
    assert record["inputs"]["list.mat"]["size"] == len(EXTRA)
    if kind != "unpacked":
        assert (record["unpacked_files"], record["unpacked_bytes"]) == (4, 4 * 63)
        assert record["inputs"]["toy.zip"]["mtime_ns"] == (toy / "toy.zip").stat().st_mtime_ns


def test_a_single_files_neighbours_are_not_looked_at(toy):
    (toy / "stray.txt").write_text("bad")
    assert prepare("downloads/toy.zip", "--from", "downloads/list.mat") == 0
    assert is_right()
    assert os.path.samefile("out/list.mat", toy / "list.mat")  # a hard link, not a link to a link
    assert not Path("out/list.mat").is_symlink()


def test_parts_with_folders_keep_them(toy):
    """Archives that only their folders tell apart."""
    seen = []

    class Tree(Toy):
        parts = (Part("train/x.zip", "a"), Part("val/x*.zip", "b"))

        def convert(self, work):
            assert work.roots[-1].name == "tree"
            assert sum(root.name == "tree" for root in work.roots) == 1
            seen.extend(p.relative_to(root).as_posix() for root in work.roots for p in root.rglob("*.txt"))

    sys.modules["hardpix.data.prepare.toy"].Toy = Tree
    for split in ("train", "val"):
        (toy / "deep" / split).mkdir(parents=True)
        make_zip(toy / "deep" / split / "x.zip", {f"{split}.txt": b"1"})
    assert prepare(toy) == 0
    assert sorted(seen) == ["train/x.zip/train.txt", "val/x.zip/val.txt"]
    assert prepare(toy / "deep/train/x.zip", "--from", str(toy / "deep/val/x.zip"), out="two") == 0
    assert sorted(seen) == sorted(["train/x.zip/train.txt", "val/x.zip/val.txt"] * 2)
    seen.clear()
    assert (
        prepare(toy / "deep/train", "--from", str(toy / "deep/val"), out="three") == 0
    )  # the folders themselves
    assert sorted(seen) == ["train/x.zip/train.txt", "val/x.zip/val.txt"]


def test_options_are_parsed_by_their_types(toy):
    assert prepare(toy, "times=2", "head=a=b ", "factor=2", out="a") == 0
    assert Path("a/1.txt").read_text() == "A=B " + "IMAGE 1" * 18
    assert journal("a")["options"] == {"times": 2, "factor": 2.0, "head": "a=b ", "loud": True}
    assert prepare(toy, "loud=false", out="b") == 0
    assert Path("b/1.txt").read_text() == "image 1" * 9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["toi"], "there is no recipe for 'toi'; did you mean 'toy'?"),
        ([], "name the data set"),
        (["times=2"], "name the data set"),
        (["toy", "tims=2"], "tims: no such option of toy; did you mean 'times'?"),
        (["toy", "times=2.5"], "times=2.5: must be a whole number"),
        (["toy", "factor=x"], "factor=x: must be a number"),
        (["toy", "loud=2"], "loud=2: must be true or false"),
        (["toy", "times=0"], "times=0: must be 1 or more"),
        (["toy", "downloads"], "downloads: must be an option of toy as key=value; paths follow --from"),
        (["toy", "--to", "out"], "--from is missing"),
        (["toy", "--from", "downloads"], "--to is missing"),
        (["toy", "--from", "nowhere", "--to", "out"], "nowhere: no such file or folder"),
        (["toy", "--from", "downloads", "--to", "out", "--workers", "0"], "--workers 0: must be 1 or more"),
        (["toy", "--from", "downloads", "--to", "downloads/out"], "one lies in the other"),
        (["toy", "--from", "downloads", "--to", "downloads"], "holds other files"),
        (["toy", "--from", "downloads/toy.zip", "--to", "out"], "list.mat is missing (the list)"),
        (["toy", "--from", "notes.txt", "--to", "out"], "notes.txt: none of the release's files (toy.zip, list.mat"),
        (["toy", "--from", "downloads", "again/toy.zip", "--to", "out"], "is the same part; give one of them"),
        (["toy", "--from", "downloads", "--to", "notes.txt"], "notes.txt is a file; name another folder"),
        (["toy", "--from", "downloads", "--to", "full"], "full: it holds other files"),
    ],
)  # fmt: skip
def test_wrong_commands_get_one_sentence_and_leave_nothing(toy, words, said, capsys):
    Path("notes.txt").write_text("x")
    Path("full").mkdir()
    Path("full/x").write_text("x")
    Path("again").mkdir()
    make_zip(Path("again/toy.zip"), IMAGES)
    before = tree(".")
    assert main(["data", "prepare", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert tree(".") == before
    assert not Path("out").exists()


def test_the_same_file_twice_is_one(toy):
    assert prepare("downloads", "--from", str(toy / "toy.zip")) == 0
    assert is_right()


def test_truncated_and_wrong_downloads_are_told_before_unpacking(toy, capsys):
    (toy / "list.mat").write_bytes(EXTRA[:-1])
    assert prepare(toy) == 2
    assert "list.mat is 7 bytes but the release is 8: download it again" in capsys.readouterr().err
    assert not Path("out").exists()
    (toy / "list.mat").write_bytes(EXTRA[::-1])
    assert prepare(toy) == 2
    assert f"but that of the release {md5(EXTRA).hexdigest()}: download it again" in capsys.readouterr().err
    assert tree() == {"prepare.json"}
    (toy / "list.mat").write_bytes(EXTRA)
    assert prepare(toy) == 0
    assert is_right()


def test_sums_are_taken_once(toy, monkeypatch):
    calls = []
    check = job.check_md5
    monkeypatch.setattr(job, "check_md5", lambda *given: calls.append(given[0].name) or check(*given))
    monkeypatch.setattr(Toy, "convert", lambda self, work: (_ for _ in ()).throw(DataError("later")))
    assert prepare(toy) == 2
    assert prepare(toy) == 2
    assert calls == ["list.mat"]
    os.utime(toy / "list.mat", (1, 1))
    assert prepare(toy) == 2
    assert calls == ["list.mat"] * 2


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "toy\\evil.txt", "C:/evil.txt"])
def test_a_hostile_archive_leaves_nothing(toy, name, capsys):
    make_zip(toy / "toy.zip", {**IMAGES, name: b"evil"})
    before = tree(".")
    assert prepare(toy) == 2
    assert f"{name!r} is refused" in capsys.readouterr().err
    assert tree(".") == before
    assert not Path("out").exists()
    Path("out").mkdir()
    assert prepare(toy) == 2
    assert list(Path("out").iterdir()) == []


def test_an_archive_of_something_else(toy, capsys):
    make_zip(toy / "toy.zip", {"x.doc": b"1"})
    assert prepare(toy) == 2
    assert "none of its files is one of toy" in capsys.readouterr().err


def test_archives_that_a_wildcard_took_in_are_left_out(toy, capsys):
    (toy / "more").mkdir()
    with tarfile.open(toy / "more/holidays.tar.gz", "w:gz") as file:
        file.add("/dev/null", "x.doc", recursive=False, filter=lambda info: tarfile.TarInfo("x.doc"))
    assert prepare(toy) == 0
    assert "holidays.tar.gz: none of its files is one of toy; it is left out" in capsys.readouterr().out
    assert is_right()


def test_a_recipe_says_how_many_files_may_be_wanted(toy, monkeypatch, capsys):
    monkeypatch.setattr(Toy, "most_files", 3)
    assert prepare(toy) == 2
    assert "more than 3 files" in capsys.readouterr().err
    monkeypatch.setattr(Toy, "most_files", 4)
    assert prepare(toy) == 0


def test_a_disk_too_small(toy, capsys, monkeypatch):
    class Usage:
        free = job.RESERVE + 251

    monkeypatch.setattr(job.shutil, "disk_usage", lambda path: Usage)
    assert prepare(toy) == 2
    err = capsys.readouterr().err
    assert "252 bytes are to be unpacked but 1.0 GB are free there, of which 1.0 GB are kept" in err
    assert not Path("out").exists()
    Usage.free += 1
    assert prepare(toy) == 0


def test_again_after_the_end(toy, capsys):
    assert prepare(toy) == 0
    (Path("out") / job.UNPACKED).mkdir()  # killed while it was removed
    (toy / "toy.zip").unlink()
    capsys.readouterr()
    assert prepare(toy) == 0
    assert "already prepared" in capsys.readouterr().out
    assert is_right()
    assert not (Path("out") / job.UNPACKED).exists()
    (toy / "list.mat").unlink()
    toy.rmdir()
    assert prepare(toy) == 0
    assert "already prepared" in capsys.readouterr().out
    assert prepare(toy, "times=2") == 2
    assert "started with times=1, not times=2; give another --to" in capsys.readouterr().err
    assert prepare("elsewhere") == 2


def test_parts_that_come_later_are_added(toy, capsys):
    assert prepare(toy) == 0
    (toy / "more").mkdir()
    with tarfile.open(toy / "more/a.tar.gz", "w:gz") as file:
        Path("x.txt").write_text("late")
        file.add("x.txt")
    assert prepare(toy) == 0
    assert Path("out/x.txt").read_text() == "LATE"


def test_a_folder_of_another_recipe_or_without_a_journal(toy, capsys):
    assert prepare(toy) == 0
    record = journal()
    Path("out/prepare.json").write_text(json.dumps({**record, "recipe": "other"}))
    assert prepare(toy) == 2
    assert "out: other is prepared there; give another --to" in capsys.readouterr().err
    for text in ("{", "[]", '{"a": 1}'):
        Path("out/prepare.json").write_text(text)
        assert prepare(toy) == 2
        assert "prepare.json: not what hardpix data prepare wrote" in capsys.readouterr().err
    Path("out/prepare.json").unlink()
    assert prepare(toy) == 2
    assert "out: it holds other files" in capsys.readouterr().err
    assert Path("out/0.txt").exists()


def test_what_made_nothing_can_be_given_anew(toy):
    """A wrong --from leaves a journal alone: another recipe, or other options, may follow."""
    Path("empty").mkdir()
    assert prepare("empty") == 2
    assert tree() == {"prepare.json"}
    record = journal()
    Path("out/prepare.json").write_text(json.dumps({**record, "recipe": "other"}))
    assert prepare("empty", "times=2") == 2
    assert (journal()["recipe"], journal()["options"]["times"]) == ("toy", 2)
    assert prepare(toy, "times=1") == 0
    assert is_right()


class Killed(BaseException):
    """What no handler of the program catches."""


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Killed])
def test_stopped_at_each_file_it_goes_on(toy, monkeypatch, stop, capsys):
    """Stopped when any file is about to get its name, time after time, until all are there."""
    replace, calls, runs = os.replace, [], 0

    def failing(source, target):
        if not calls:
            raise stop
        calls.pop()
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    for length in range(40):
        calls[:] = [None] * length
        runs += 1
        try:
            status = prepare(toy)
        except Killed:
            status = None
        for path in Path("out").glob("*.txt"):
            assert path.read_text() == f"IMAGE {path.stem}" * 9
        if status == 0:
            break
        if stop is KeyboardInterrupt:
            assert status == 130
            assert "the same command goes on" in capsys.readouterr().err
    assert is_right()
    assert runs > 5


def noted(monkeypatch):
    """The order in which files and folders are flushed (their names), and removed."""
    calls, inner = [], {"fsync": os.fsync, "replace": os.replace, "clean": job.clean}

    def fsync(handle):
        calls.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        inner["fsync"](handle)

    def replace(source, target):
        if Path(target).name == "prepare.json":
            calls.append(json.loads(Path(source).read_text())["status"])
        inner["replace"](source, target)

    def clean(out):
        calls.append("clean")
        inner["clean"](out)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(job, "clean", clean)
    return calls


def test_the_order_of_writing_survives_a_power_cut(toy, monkeypatch):
    """Contents and names are on the disk before the journal says done, and that before the sources go."""
    calls = noted(monkeypatch)
    assert prepare(toy) == 0
    done, cleaned = calls.index("done"), calls.index("clean")
    wanted = {path.name for path in Path("out").iterdir()} - {"prepare.json"}
    assert len(wanted) == 5
    since = len(calls[:done]) - calls[:done][::-1].index(
        "running"
    )  # the journal before was the last one to be written
    assert wanted | {"out"} <= set(calls[since:done])
    assert "out" in calls[max(calls.index(name, since) for name in wanted) : done]  # names after contents
    assert "out" in calls[done:cleaned]
    assert not Path("out", job.UNPACKED).exists()


def interrupt(toy, monkeypatch):
    """Everything is unpacked, nothing is converted."""

    def interrupted(self, work):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Toy, "convert", interrupted)
        assert prepare(toy) == 130


def test_what_a_power_cut_left_empty_is_made_again(toy, monkeypatch):
    interrupt(toy, monkeypatch)
    Path("out/1.txt").touch()
    assert prepare(toy) == 0
    assert is_right()


def test_leftovers_of_a_killed_process_are_removed(toy, monkeypatch):
    interrupt(toy, monkeypatch)
    unpacked = Path("out", job.UNPACKED)
    assert len(list(unpacked.rglob("*.txt"))) == 4
    Path("out/.0.77.partial.txt").write_text("half")
    (unpacked / archive.PARTIAL).write_text("half")
    stamps = {p: p.stat().st_mtime_ns for p in unpacked.rglob("*.txt")}
    written = []
    monkeypatch.setattr(archive, "_write", lambda *given: written.append(given))
    assert prepare(toy) == 0
    assert stamps
    assert written == []
    assert is_right()


def test_a_changed_archive_is_unpacked_anew(toy, monkeypatch):
    interrupt(toy, monkeypatch)
    make_zip(toy / "toy.zip", {name: content.replace(b"image", b"other") for name, content in IMAGES.items()})
    os.utime(toy / "toy.zip", (9, 9))
    with monkeypatch.context() as patch:  # it needs the room of the whole again
        patch.setattr(job.shutil, "disk_usage", lambda path: SimpleNamespace(free=job.RESERVE + 251))
        assert prepare(toy) == 2
    assert prepare(toy) == 0
    assert Path("out/1.txt").read_text() == "OTHER 1" * 9


def test_the_result_cannot_be_the_source(toy, capsys):
    assert prepare(toy) == 0
    assert prepare("out/list.mat", "--from", str(toy / "toy.zip")) == 2
    assert "one lies in the other" in capsys.readouterr().err


def test_without_hard_links(toy, monkeypatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert prepare("downloads/toy.zip", "--from", "downloads/list.mat") == 0
    assert is_right()
    assert not Path("out/list.mat").is_symlink()


def test_options_and_paths_with_an_equals_sign(toy):
    toy.rename("from=here")
    assert prepare("from=here", "loud=false") == 0
    assert Path("out/1.txt").read_text() == "image 1" * 9
    assert (
        main(["data", "prepare", "toy", "--to", "two", "--from", "from=here", "loud=false", "--workers", "1"])
        == 0
    )
    assert Path("two/1.txt").read_text() == "image 1" * 9


def test_faults_are_shown_logged_and_mended(toy, capsys, monkeypatch):
    bad = {f"toy/images/bad{n:02}.txt": b"bad" for n in range(23)}
    make_zip(toy / "toy.zip", {**IMAGES, **bad})
    assert prepare(toy) == 1
    out, err = capsys.readouterr()
    assert err.count("it is bad; mend it") == 20
    assert "... and 3 more" in err
    assert "23 files could not be used (all in out/prepare.log)" in out
    assert "rerun the same command" in out
    assert Path("out/prepare.log").read_text().count("it is bad; mend it\n") == 23
    assert (journal()["status"], journal()["faults"]) == ("faulty", 23)
    assert Path("out/0.txt").exists()
    assert (Path("out") / job.UNPACKED).is_dir()
    assert prepare(toy) == 1  # not "already prepared"
    make_zip(toy / "toy.zip", IMAGES)
    os.utime(toy / "toy.zip", (9, 9))
    assert prepare(toy) == 0
    assert is_right()


def test_needed_files_alone_are_unpacked_and_kept(toy, capsys, monkeypatch):
    """Those of all archives and folders are known before, by the paths that they will have."""
    seen = []

    def needed(self, work):
        seen.append(list(work.files()))
        return [path for path in seen[-1] if "bad" in path or path.endswith(("1.txt", "late.txt"))]

    monkeypatch.setattr(Toy, "needed", needed)
    make_zip(toy / "toy.zip", {**IMAGES, "toy/bad.txt": b"bad", "toy/readme.md": b"x"})
    (toy / "more").mkdir()
    with tarfile.open(toy / "more/a.tar.gz", "w:gz") as file:
        Path("late.txt").write_text("late")
        file.add("late.txt")
        file.add("late.txt", "other.txt")
    given = [str(toy / name) for name in ("toy.zip", "list.mat", "more/a.tar.gz")]
    assert main(["data", "prepare", "toy", "--from", *given, "--to", "out", "--workers", "1"]) == 1
    out = capsys.readouterr().out
    assert "toy.zip (2 of 5 files, 66 bytes)" in out
    assert "a.tar.gz (1 of 2 files, 4 bytes)" in out
    paths = ["files/list.mat", *(f"toy.zip/{name}" for name in (*IMAGES, "toy/bad.txt")), "tree/more/a.tar.gz/late.txt",
                "tree/more/a.tar.gz/other.txt"]  # fmt: skip
    assert seen[0] == seen[-1] == [f"out/{job.UNPACKED}/{path}" for path in paths]
    assert tree() >= {"1.txt", "late.txt"}
    assert "0.txt" not in tree()
    below = Path("out", job.UNPACKED)
    assert tree(below) == {"toy.zip/toy/bad.txt", "toy.zip/toy/images/1.txt", "tree/more/a.tar.gz/late.txt"}
    assert not (below / "files").exists()


def test_nothing_is_kept_where_nothing_is_needed(toy, capsys, monkeypatch):
    make_zip(toy / "toy.zip", {**IMAGES, "toy/bad.txt": b"bad"})
    monkeypatch.setattr(Toy, "needed", lambda self, work: None if not Path("out/0.txt").exists() else ())
    assert prepare(toy) == 1
    assert not Path("out", job.UNPACKED).exists()
    assert capsys.readouterr().out.endswith("it makes what is missing.\n")
    monkeypatch.setattr(
        Toy, "needed", Recipe.needed
    )  # all that came out of archives, no links to single files
    given = [str(toy / name) for name in ("toy.zip", "list.mat")]
    assert main(["data", "prepare", "toy", "--from", *given, "--to", "two", "--workers", "1"]) == 1
    assert tree(Path("two", job.UNPACKED)) == {f"toy.zip/{name}" for name in (*IMAGES, "toy/bad.txt")}


def test_a_full_disk_gets_its_sentence(toy, capsys, monkeypatch):
    def full(self, work):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Toy, "convert", full)
    assert prepare(toy) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert "rerun the same command to continue" in err


def test_two_at_once_are_refused(toy, capsys):
    from hardpix.data.prepare.recipe import only_writer

    Path("out").mkdir()
    with only_writer(Path("out")):
        assert prepare(toy) == 2
    assert "another process prepares it" in capsys.readouterr().err
    assert prepare(toy) == 0


def test_progress_is_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(recipe.time, "monotonic", lambda: now[0])
    bar = recipe.PlainBars(5)
    for done in range(101):
        now[0] += 0.13
        bar("files", done, 100)
    bar("files", 100, 100)
    bar("more", 0, 0)
    assert capsys.readouterr().out.splitlines() == [
        "files: 38/100",
        "files: 77/100",
        "files: 100/100",
        "more: 0/0",
    ]


def test_progress_is_bars_on_a_terminal(toy, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert prepare(toy) == 0
    assert "unpacking toy.zip (MB)" in capsys.readouterr().out


SLOW = """
import os, signal, sys, time
from pathlib import Path
from hardpix.data.prepare.recipe import Work

def one(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(0.05)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would not hear it
    out = Path(sys.argv[1])
    Work([], out, workers=2).each(one, [str(out / str(n)) for n in range(2000)], "slow")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_stop_with_their_parent(tmp_path, how):
    script, out = tmp_path / "slow.py", tmp_path / "out"
    script.write_text(SLOW)
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script), str(out)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while len(list(out.iterdir())) < 4:
            assert process.poll() is None
            time.sleep(0.05)
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does
        else:
            process.send_signal(how)
        process.wait(timeout=60)
    finally:
        process.kill()
    err = process.stderr.read()
    assert "Process SpawnProcess" not in err
    assert ("KeyboardInterrupt" in err, "DataError" in err) == (how == signal.SIGINT, False)
    time.sleep(1)
    done = len(list(out.iterdir()))
    assert done < 1000
    time.sleep(1)
    assert len(list(out.iterdir())) == done


def kill_itself(path):
    if path.endswith("9"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_killed_gets_its_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(
        recipe, "get_context", lambda kind: multiprocessing.get_context("fork")
    )  # starts faster
    with pytest.raises(DataError, match="use fewer --workers"):
        Work([], tmp_path, workers=2).each(kill_itself, [str(n) for n in range(40)], "x")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_states_what_a_user_needs(name, capsys, tmp_path, monkeypatch):
    """Its page, licence and files are printed, with a command that is right; its reader has a configuration."""
    monkeypatch.chdir(tmp_path)
    recipe = find_recipe(name)
    assert recipe.name == name
    assert recipe.page.startswith(("http://", "https://"))
    assert recipe.licence.endswith(".")
    assert recipe.parts
    assert len({part.name for part in recipe.parts}) == len(recipe.parts)
    assert main(["data", "prepare", name]) == 0
    said = capsys.readouterr().out
    for words in (recipe.title, recipe.page, recipe.licence, *(part.name for part in recipe.parts)):
        assert words in said
    assert f"hardpix data prepare {name} --from downloads --to" in said
    assert all(part.size is None or part.size > 1000 for part in recipe.parts)
    assert all(part.md5 is None or re.fullmatch("[0-9a-f]{32}", part.md5) for part in recipe.parts)
    assert list(tmp_path.iterdir()) == []
    overrides = shlex.split(command_words(recipe().use(tmp_path / "out")))
    assert overrides[0] == f"data={name}"
    assert compose(overrides).data.source.root == str(tmp_path / "out")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_misses_its_files_in_one_sentence(name, capsys, tmp_path):
    """An empty folder: what is missing is named."""
    (tmp_path / "downloads").mkdir()
    options = ["--from", str(tmp_path / "downloads"), "--to", str(tmp_path / "out"), "--workers", "1"]
    assert main(["data", "prepare", name, *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(tmp_path / "downloads") in err
