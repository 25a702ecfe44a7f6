"""Data at another place, or other data at the same: resume, sweeps and saved configurations."""

import os
import shutil

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from hardpix import record
from hardpix.cli import main
from hardpix.config.compose import compose
from hardpix.data import Folder, content_sample
from hardpix.evaluate import loaded
from hardpix.sweep.jobs import jobs_of
from hardpix.sweep.study import read_study
from hardpix.train import parent, rundir
from hardpix.train.train import inspect, new_record, train
from hardpix.types import ConfigError, DataError

CLASSES = "[background,disc]"
NUMBERS = {"train": 4, "val": 2, "test": 2}


def made(root, seed=0):
    """Images as bitmaps: every file of a kind has the same size, whatever it shows."""
    dice = np.random.default_rng(seed)
    for split, count in NUMBERS.items():
        for kind, shape, high in (("images", (32, 48, 3), 256), ("labels", (32, 48), 2)):
            (root / split / kind).mkdir(parents=True)
            for number in range(count):
                pixels = dice.integers(0, high, shape, np.uint8)
                Image.fromarray(pixels).save(root / split / kind / f"{number}.tif")
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return made(tmp_path / "mydata")


def folder(tiny, root, *overrides):
    own = ("data=folder", f"data.source.root='{root}'", f"data.source.classes={CLASSES}", "data.batch_size=2")
    return tiny(*own, "data.train_transform.crop=[32,48]", "data.eval_batch_size=1", "panels=0", *overrides)


def copy(root, name):
    """With other times, as most copies have."""
    where = root.parent / name
    shutil.copytree(root, where, copy_function=shutil.copyfile)
    return where


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = [
        "data=listed",
        "data.source.listing='lists/{split}.csv'",
        "data.source.root=.",
        "data.labeled=some.txt",
    ]
    files = [
        "data.source.classes=c.txt",
        "backbone.pretrained=../w.pth",
        "init_from=runs/s/a",
        "parent=runs/s/b",
    ]
    cfg = rundir.with_absolute_paths(compose([*listed, *files]))
    assert (cfg.data.source.listing, cfg.data.source.root) == (
        f"{tmp_path}/lists/{{split}}.csv",
        str(tmp_path),
    )
    assert (cfg.data.source.classes, cfg.data.labeled) == (f"{tmp_path}/c.txt", f"{tmp_path}/some.txt")
    assert cfg.backbone.pretrained == str(tmp_path.parent / "w.pth")
    assert (cfg.init_from, cfg.parent) == (f"{tmp_path}/runs/s/a", f"{tmp_path}/runs/s/b")
    assert rundir.with_absolute_paths(cfg) == cfg
    plain = compose(["data.source.classes=[wall,bed]", "data.labeled=0.5"])
    assert rundir.with_absolute_paths(plain) == plain


def test_every_path_among_the_settings_is_known():
    """Of all keys of the data sets, those that a text may be given for and that are no choice, name or pattern."""
    from hardpix.config.catalog import conf_dir
    from hardpix.config.schema import find_signature

    known = {key.removeprefix("data.source.") for key in rundir.PLACES if key.startswith("data.source.")}
    words = {"name", "images", "labels", "depths", "annotations", "label_suffix", "label_format", "depth_missing",
             "background", "others", "crowd", "imperfect", "image", "label", "names", "style", "void_40_in_train",
             "depth", "truth", "layout", "illegible"}  # fmt: skip
    for path in (conf_dir() / "data").glob("*.yaml"):
        target = OmegaConf.load(path).source.get("_target_")
        if target is None:  # another file with some keys set otherwise
            continue
        types = find_signature(target).types
        texts = {key for key, written in types.items() if "str" in written.replace("Sequence[str]", "")}
        assert texts - known <= words, target


def test_a_sample_differs_for_other_data_of_equal_names_and_sizes(root):
    def of(where):
        return content_sample(
            Folder(root=str(where), classes=["a", "b"]).frames("train", frozenset({"image"}))
        )

    other = made(root.parent / "other", seed=1)
    sizes = [[p.stat().st_size for p in sorted(where.rglob("*.tif"))] for where in (root, other)]
    assert sizes[0] == sizes[1]
    assert of(copy(root, "copy")) == of(root) != of(other)
    os.symlink(root, root.parent / "link")
    assert of(root.parent / "link") == of(root)
    one = root / "train/labels/2.tif"
    before, content = of(root), bytearray(one.read_bytes())
    content[-1] ^= 1
    one.write_bytes(bytes(content))
    assert of(root) != before


@pytest.mark.slow
def test_a_run_goes_on_with_its_data_wherever_they_lie(tiny, root, capsys):
    fixed = ("run=a", "scheduler=constant")
    first = train(folder(tiny, "mydata", *fixed, "trainer.max_steps=2"))
    assert first.factors["data.source.root"] == str(root)
    assert {"folder/train", "folder/train content", "folder/test"} <= first.data.keys()
    run_dir = rundir.choose_run_dir(folder(tiny, root, "run=a"), [])
    moved = copy(root, "elsewhere")
    shutil.rmtree(root)
    assert loaded(run_dir, "last", [])  # the network alone needs no data
    assert main(["evaluate", str(run_dir)]) == 2
    assert f"data.source.root={root}: no such file or folder" in capsys.readouterr().err
    assert (
        train(folder(tiny, moved, *fixed, "trainer.max_steps=2")).run_id == first.run_id
    )  # nothing left to do
    again = train(folder(tiny, "elsewhere", *fixed, "trainer.max_steps=4", "resume=true"))
    assert (again.run_id, again.metrics["run/steps"]) == (first.run_id, 4)
    assert rundir.read_config(run_dir).data.source.root == str(moved)
    other = made(root.parent / "other", seed=1)
    for resume, steps in (("auto", 4), ("true", 4), ("true", 6)):
        with pytest.raises(DataError, match="files of the same names and sizes have another content"):
            train(folder(tiny, other, *fixed, f"trainer.max_steps={steps}", f"resume={resume}"))
    os.chdir("/")
    assert main(["evaluate", str(run_dir), "--split", "val", "trainer.accelerator=cpu"]) == 0
    os.chdir(root.parent)
    assert main(["evaluate", str(run_dir), "data.source.root=other", "trainer.accelerator=cpu"]) == 0
    scored = record.read(next(run_dir.glob("evaluations/*other*")))
    assert scored.factors["data.source.root"] == str(other)
    assert scored.data["folder/test content"] != again.data["folder/test content"]
    assert scored.data["folder/train"] == again.data["folder/train"]


def begun(cfg, run_dir, **changes):
    """A run's directory as far as a sweep or a resume reads it."""
    run_dir.mkdir(parents=True)
    rundir.write_config(run_dir, cfg)
    data = parent.current_content(cfg, ["data.source.root"]).get("data.source.root", {})
    made = new_record(cfg, run_dir, [], None)
    found = record.RunRecord(
        **{**vars(made), "status": "done", "dataset": "folder", "data": made.data | data, **changes}
    )
    record.write(found, run_dir)
    return found


def test_what_is_not_known_of_a_run_is_compared_by_its_paths(tiny, root):
    cfg = rundir.with_absolute_paths(folder(tiny, "mydata", "run=a"))
    run_dir = rundir.choose_run_dir(cfg, [])
    begun(cfg, run_dir)
    elsewhere = rundir.with_absolute_paths(folder(tiny, copy(root, "copy"), "run=a"))
    assert inspect(run_dir, elsewhere) == record.read(run_dir)  # whoever opens the data compares them
    shutil.rmtree(run_dir)
    cfg.data.source.root = "mydata"  # as earlier versions wrote it, without fingerprints of the data
    begun(cfg, run_dir, data={})
    assert inspect(run_dir, rundir.with_absolute_paths(cfg)) == record.read(run_dir)
    with pytest.raises(ConfigError, match=r"data\.source\.root: mydata -> .*copy"):
        inspect(run_dir, elsewhere)


def test_files_and_runs_below_are_known_by_content_on_resume(tiny, root, tmp_path):
    (tmp_path / "c.txt").write_text("background\ndisc\n")
    below = begun(folder(tiny, root, "run=b"), tmp_path / "runs/default/b", parent=None)
    given = ("run=a", "init_from=runs/default/b", "data.source.classes=c.txt")
    cfg = rundir.with_absolute_paths(folder(tiny, root, *given))
    run_dir = rundir.choose_run_dir(cfg, [])
    begun(cfg, run_dir)
    assert record.read(run_dir).parent == below.run_id
    shutil.copytree(tmp_path / "runs", tmp_path / "moved")
    shutil.copyfile(tmp_path / "c.txt", tmp_path / "d.txt")
    same = ("run=a", "init_from=moved/default/b", "data.source.classes=d.txt")
    assert inspect(run_dir, rundir.with_absolute_paths(folder(tiny, root, *same)))
    weights = [
        f"init_from=moved/default/b{end}" for end in ("/checkpoints/best.ckpt", "/checkpoints/last.ckpt")
    ]
    for other in weights:  # of the same run
        with pytest.raises(ConfigError, match=r"init_from: .*/b -> .*/b/checkpoints"):
            inspect(run_dir, rundir.with_absolute_paths(folder(tiny, root, "run=a", other, same[2])))
    (tmp_path / "d.txt").write_text("background\nrings\n")
    with pytest.raises(ConfigError, match=r"data\.source\.classes: .*c\.txt -> .*d\.txt"):
        inspect(run_dir, rundir.with_absolute_paths(folder(tiny, root, *same)))
    other = begun(folder(tiny, root, "run=o"), tmp_path / "runs/default/o", run_id="another")
    assert other.run_id != below.run_id
    with pytest.raises(ConfigError, match=r"init_from: .*b -> .*o"):
        inspect(
            run_dir, rundir.with_absolute_paths(folder(tiny, root, *given[::2], "init_from=runs/default/o"))
        )


# -- sweeps ------------------------------------------------------------------------------------------------------------


def jobs(*words):
    own = ("data=folder", f"data.source.classes={CLASSES}", "study=s")
    return jobs_of(read_study([*own, *words]))


def test_a_study_knows_its_data_and_not_their_places(root):
    copied, other = copy(root, "copy"), made(root.parent / "other", seed=1)
    found, twice = jobs(f"data.source.root={root},{copied},{other}")
    assert len(found) == 2
    assert len(twice) == 1
    assert "is job 1 once more" in twice[0]
    first, second = found
    assert first.run_dir != second.run_dir
    begun(first.config(), first.run_dir)
    begun(second.config(), second.run_dir)
    for where, expected in (
        ("mydata", first), ("copy", first), (str(root), first), ("other", second), (copy(other, "moved"), second),
    ):  # fmt: skip
        assert jobs(f"data.source.root={where}")[0][0].run_dir == expected.run_dir, where
    shutil.rmtree(other)
    assert jobs("data.source.root=moved")[0][0].run_dir == second.run_dir
    third = made(root.parent / "third", seed=2)
    assert jobs(f"data.source.root={third}")[0][0].run_dir not in (first.run_dir, second.run_dir)
    assert jobs("data.source.root=nowhere")[0][0].run_dir not in (first.run_dir, second.run_dir)


def test_runs_of_earlier_versions_are_found_by_their_configuration(root):
    (job,), _ = jobs("data.source.root=mydata")
    cfg = job.config()
    cfg.data.source.root = "mydata"
    earlier = job.run_dir.with_name("by hand")
    begun(cfg, earlier, data={})
    assert jobs("data.source.root=mydata")[0][0].run_dir == earlier
    assert jobs(f"data.source.root={copy(root, 'copy')}")[0][0].run_dir != earlier
