"""The experiment files of HL: each is right, stands for its cells, and fills every table of the paper.

Composing takes an eighth of a second, and there are more than a hundred files. Files that only exchange the method or
the loss of another, or set HL's c and alpha, are therefore made from that other's composition, which is done once.
"""

from __future__ import annotations

import csv
import functools

import pytest
import yaml
from omegaconf import OmegaConf

from hardpix.config import published
from hardpix.config.catalog import conf_dir, split_sizes
from hardpix.config.compose import compose, compose_group, validate
from hardpix.config.published import layout
from hardpix.evaluate import override
from hardpix.record import SCHEMA, RunRecord, flatten, with_batch, write
from hardpix.tables.compare import collect
from hardpix.tables.protocol_check import Experiment
from hardpix.tables.reproduction import comparison
from hardpix.train.rundir import plain

FOLDER = conf_dir() / "experiment/hl"
GROUP = "/experiment/hl/"
NAMES = sorted(path.name.removesuffix(".yaml") for path in FOLDER.glob("*.yaml"))
ROWS = [name for name in NAMES if not name.startswith("_")]
TABLES = [table.id for table in published.tables("hl") if table.id != "ssim"]
COPIED = {"suponly_published", "u2pl_published", "isw", "fsdr", "wildnet", "shade"}


@functools.cache
def content(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


@functools.cache
def group_of(choice):
    group, _, name = choice.partition(": ")
    return group, compose_group(group, name)[group]


def overlay(name):
    """The file that ``name`` is built on and the groups it exchanges; None if it does more than that."""
    given = content(name)
    base, *others = given["defaults"]
    base = base.removeprefix(GROUP) if isinstance(base, str) else "_"
    choices = [f"{key.removeprefix('override /')}: {value}" for item in others for key, value in item.items()]
    alike = set(given) <= {"defaults", "method", "loss", "reproduces"}
    if base.startswith("_") or not alike or any(c.split(":")[0] not in ("method", "loss") for c in choices):
        return None
    return base, choices


@functools.cache
def composed(name):
    found = overlay(name)
    if found is None:
        return compose([f"experiment=hl/{name}"])
    base, choices = found
    cfg = composed(base).copy()
    OmegaConf.set_struct(cfg, False)
    for choice in choices:
        group, node = group_of(choice)
        cfg[group] = node
    return OmegaConf.merge(cfg, {key: value for key, value in content(name).items() if key != "defaults"})


@functools.cache
def factors(name):
    return flatten(plain(composed(name)))


@pytest.mark.parametrize("name", ["pspnet_r18_ohem", "pspnet_r101_hl_alpha_1", "ade20k_upernet_swin_t_hl"])
def test_what_is_made_here_is_what_the_command_composes(name):
    assert overlay(name) is not None
    assert factors(name) == flatten(plain(compose([f"experiment=hl/{name}"])))


def test_no_file_builds_on_one_that_sets_what_it_exchanges_otherwise():
    """Else the settings below the exchanged group would differ from those made here."""
    for name in ROWS:
        found = overlay(name)
        while found is not None:
            groups = {choice.split(":")[0] for choice in found[1]}
            assert not groups & set(content(found[0])), name
            found = overlay(found[0])


@pytest.mark.slow  # a tenth of a second each
@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_right(name):
    validate(composed(name))


@pytest.mark.parametrize("name", ROWS)
def test_every_file_says_its_command_and_cost(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    if name.endswith("_on_cityscapes"):
        assert (
            f"# hardpix evaluate RUN data=cityscapes reproduces={content(name)['reproduces']}".replace(
                "'", ""
            )
            in text
        )
        return
    assert f"# hardpix train experiment=hl/{name} seed=0\n" in text
    head = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    steps = composed(name).trainer.max_steps
    assert (
        f"; {steps:,} steps of {composed(name).data.batch_size} crops" in head
        if steps
        else " steps of 16 " in head
    )
    for word in (" M parameters", " GFLOPs forward a crop", " PFLOPs."):
        assert word in head


def test_every_cell_belongs_to_one_file():
    for name in TABLES:
        one = layout(published.tables(f"hl/{name}")[0], conf_dir() / "table")
        for cell in one.cells():
            files = [n for n in ROWS if any(published.matches(p, cell) for p in content(n)["reproduces"])]
            assert len(files) == (cell.split("/")[2] not in COPIED), (cell, files)


def test_rows_with_hl_differ_from_their_baselines_by_the_method_alone():
    for name in ROWS:
        base = name.removesuffix("_hl")
        if base == name or base.startswith("u2pl"):
            continue
        keys = {
            k
            for k in factors(name).keys() | factors(base).keys()
            if factors(name).get(k) != factors(base).get(k)
        }
        assert {key for key in keys if not key.startswith("method.")} <= {"reproduces"}, name
        assert (factors(name)["method.c"], factors(name)["method.alpha"]) == (0.1, 0.01)


def test_what_the_released_logs_say_is_what_the_rows_of_table_2_and_figure_5_do():
    for table in ("2", "fig5"):
        for row in published.tables(f"hl/{table}")[0].rows.values():
            (log,) = [row.facts["released_log"]]
            files = [
                n
                for n in ROWS
                if any(c.startswith(f"hl/{table}/{row.id}/") for c in content(n)["reproduces"])
            ]
            assert len(files) == (1 if table == "2" else 2)
            for name in files:
                cfg = composed(name)
                crop = "x".join(map(str, cfg.data.train_transform.crop))
                own = (crop, cfg.trainer.max_steps, cfg.data.batch_size)
                assert own == (log["crop"], log["iterations"], log["total_batch"]), name
                odd = crop == "769x769"
                assert cfg.model.align_corners == odd
                assert cfg.inference._target_.endswith("SlidingWindow" if odd else "WholeImage")
                assert cfg.inference.base_size == ([2049, 1025] if odd else None)


def test_all_losses_are_divided_by_every_pixel_and_all_rows_are_normalised_as_released():
    for name in ROWS:
        own = factors(name)
        if name.startswith("u2pl"):
            continue
        assert own.get("loss.normalizer", "all") == "all", name
        assert own.get("loss.reduction", "all") == "all", name
        assert own.get("method.normalize_over", "batch") == "batch", name
        assert own.get("method.void_in_normalizer", True) is True, name


@pytest.mark.parametrize("name", ["gtav_deeplabv3plus_r101", "gtav_deeplabv3plus_r101_hl"])
def test_the_evaluation_of_table_11_is_what_its_command_makes_of_the_run(name):
    evaluated = flatten(plain(override(composed(name), ["data=cityscapes"])))
    wanted = factors(f"{name}_on_cityscapes")
    assert {k for k in evaluated.keys() | wanted.keys() if evaluated.get(k) != wanted.get(k)} == {
        "reproduces"
    }


def record(name, score, tmp_path, seed=0, fewer=0):
    """A finished run that followed the file ``name``."""
    own = factors(name) | {"seed": seed, "run": name}
    dataset = own["data.source._target_"].rpartition(".")[2].lower()
    split = own["data.test_split"]
    frames = dict(split_sizes().get(dataset, {}))
    frames["test"] = frames.get(split, 10)
    if isinstance(own["data.labeled"], float):
        share = int(frames["train"] * own["data.labeled"] + 0.5)
        frames |= {"train": share, "unlabeled": frames["train"] - share - fewer}
    memory = 1100.0 if "Hardness" in own["method._target_"] else 1000.0
    metrics = {"test/miou": score, "test/fg_iou": score, "cost/peak_memory_mb": memory + seed}
    made = RunRecord(
        schema=SCHEMA, run_id=f"{name}-{seed}", status="done", seed=seed, parent=None, started="", code={}, host={},
        name=name, dataset=dataset, metrics=metrics, factors=own,
        frames={f"{dataset}/{k}": n for k, n in frames.items()},
    )  # fmt: skip
    folder = tmp_path / f"{name}-{seed}"
    folder.mkdir()
    write(made, folder)
    if any(cell.startswith("hl/2/") for cell in content(name)["reproduces"]):
        classes = [column for column in published.tables("hl/2")[0].columns if column != "miou"]
        with open(folder / "per_class.csv", "w", newline="") as file:
            csv.writer(file).writerows([["class", "iou"], *([name, score] for name in classes)])


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_runs_that_follow_the_files_fill_every_table(table, tmp_path):
    files = [n for n in ROWS if any(c.startswith(f"hl/{table}/") for c in content(n)["reproduces"])]
    for name in files:
        for seed in (0, 1):
            record(name, (0.6 if "_hl" in name else 0.5) + 0.02 * seed, tmp_path, seed)
    known = [
        Experiment(name, tuple(content(name)["reproduces"]), with_batch(factors(name))) for name in files
    ]
    one = layout(published.tables(f"hl/{table}")[0], conf_dir() / "table")
    shown = comparison(one, collect([tmp_path]), known)
    assert shown.our_notes == ()
    for _, lines in shown.parts:
        for line in lines:
            for entry, column in zip(line.entries, one.columns, strict=True):
                if line.row.id in COPIED or (column.of and not line.row.against):
                    continue
                where = (line.row.id, column.id)
                if column.factor:
                    assert entry.word == str(entry.published), where
                    continue
                assert entry.cell is not None, where
                assert entry.cell.n == entry.cell.total == 2, where
                if column.of or column.minus:
                    assert entry.cell.mean == pytest.approx(10), where
                elif column.increase:
                    assert entry.cell.mean == pytest.approx(100 * (2201 / 2001 - 1)), where
                    assert entry.cell.std == pytest.approx(100 * abs(1.1 - 1101 / 1001) / 2**0.5), where
                elif column.unit == "MB":
                    assert entry.cell.mean == pytest.approx(1100.5 if column.id == "hl" else 1000.5), where
                else:
                    hl = column.id == "hl" or any(word in line.row.id for word in ("hl", "c_", "alpha_"))
                    assert entry.cell.mean == pytest.approx(61 if hl else 51), where


def test_fewer_frames_without_labels_are_told(tmp_path):
    for name in ("u2pl_1_8", "u2pl_1_8_hl"):
        record(name, 0.5, tmp_path, fewer=7)
    known = [
        Experiment(name, tuple(content(name)["reproduces"]), factors(name))
        for name in ("u2pl_1_8", "u2pl_1_8_hl")
    ]
    one = layout(published.tables("hl/10")[0], conf_dir() / "table")
    notes = str(comparison(one, collect([tmp_path]), known).our_notes)
    assert "2596 of 2603 training frames without labels" in notes
