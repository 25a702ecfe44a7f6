"""The rows of HL: what the released logs say, what separates a row with HL from its baseline, and filled tables."""

from __future__ import annotations

import csv
import functools

import pytest

from hardpix.cli.published_rows import experiments
from hardpix.config import published
from hardpix.config.catalog import split_sizes
from hardpix.config.compose import compose
from hardpix.config.rows import layouts, rows
from hardpix.evaluate import trained_on
from hardpix.record import SCHEMA, RunRecord, flatten, write
from hardpix.tables.compare import Run, collect
from hardpix.tables.protocol_check import Use, departure
from hardpix.tables.reproduction import comparison
from hardpix.train.rundir import plain

ROWS = rows("hl")
TABLES = [table.id for table in published.tables("hl")]
COPIED = {"isw", "fsdr", "wildnet", "shade"}


@functools.cache
def composed(overrides):
    return compose(overrides)


def of(overrides, *groups):
    return {text for text in overrides if text.split("=")[0].split(".")[0] in groups}


def test_rows_with_hl_differ_from_their_baselines_by_the_method_alone():
    for name, one in ROWS.items():
        base = ROWS.get(name.removesuffix("_hl"), one)
        if base is not one and not name.startswith("u2pl"):
            assert set(one.overrides) - set(base.overrides) == {"method=hl_released"}, name
            assert set(base.overrides) <= set(one.overrides), name
    released = composed(("method=hl_released",)).method
    assert (released.c, released.alpha) == (0.1, 0.01)


def test_what_the_released_logs_say_is_what_the_rows_of_table_2_and_figure_5_do():
    """Those with cross-entropy: HL exchanges the method alone."""
    seen = 0
    for table in layouts("hl/2") + layouts("hl/fig5"):
        for own in table.rows:
            log = own.facts["released_log"]
            cells = f"{table.table.name}/{own.id}/"
            names = [n for n, one in ROWS.items() if any(c.startswith(cells) for c in one.cells)]
            assert len(names) == (1 if table.table.id == "2" else 2)
            for name in names:
                if "method=hl_released" in ROWS[name].overrides:
                    continue
                cfg = composed(ROWS[name].fixed)
                crop = "x".join(map(str, cfg.data.train_transform.crop))
                found = (crop, cfg.trainer.max_steps, cfg.data.batch_size)
                assert found == (log["crop"], log["iterations"], log["total_batch"]), name
                odd = crop == "769x769"
                assert cfg.model.align_corners == odd
                assert cfg.inference._target_.endswith("SlidingWindow" if odd else "WholeImage")
                assert cfg.inference.base_size == ([2049, 1025] if odd else None)
                seen += 1
    assert seen == 12 + 13


def test_all_losses_are_divided_by_every_pixel_and_all_rows_are_normalised_as_released():
    for name, one in ROWS.items():
        if not one.trains or name.startswith(("u2pl", "suponly")):
            continue
        cfg = composed(tuple(sorted(of(one.overrides, "experiment", "loss", "method"))))
        assert cfg.loss.get("normalizer", "all") == "all", name
        assert cfg.loss.get("reduction", "all") == "all", name
        assert cfg.method.get("normalize_over", "batch") == "batch", name
        assert cfg.method.get("void_in_normalizer", True) is True, name


@pytest.mark.parametrize("name", ["deeplabv3plus", "deeplabv3plus_hl"])
def test_an_evaluation_on_cityscapes_departs_in_nothing(name):
    """Table 11: a run on GTAV, scored by ``hardpix evaluate RUN data=cityscapes``."""
    from hardpix.evaluate import override

    cell = f"hl/11/{name}/miou"
    one = ROWS[f"gtav_{name.replace('plus', 'plus_r101')}"]
    trained = RunRecord(
        schema=SCHEMA, run_id="a", status="done", seed=0, parent=None, started="", code={}, host={}, name="a",
        dataset="gtav", metrics={}, factors=flatten(plain(composed(one.fixed))), frames={},
    )  # fmt: skip
    scored = override(composed(one.fixed), ["data=cityscapes", f"reproduces=[{cell}]"])
    own = flatten(plain(scored)) | {"evaluation.split": "test", "evaluation.weights": "last"}
    made = RunRecord(
        **vars(trained) | {"dataset": "cityscapes", "factors": own | trained_on(trained, "cityscapes")}
    )
    use = Use(Run("a", made), cell, "cityscapes", "val", "test")
    found = departure(use, experiments([cell]))
    assert (found.known, found.keys) == (True, {})


def record(one, own, cells, score, tmp_path, seed=0, fewer=0):
    """A finished run that followed the row ``one``."""
    own = own | {"seed": seed, "run": one.name, "reproduces": list(cells)}
    dataset = own["data.source._target_"].rpartition(".")[2].lower()
    if one.evaluate:
        dataset = "cityscapes"
        own |= {
            "trained.dataset": "gtav",
            **{f"trained.{k}": v for k, v in own.items() if k.startswith("data.")},
        }
    split = "val" if one.evaluate else own["data.test_split"]
    sizes = {name.replace("_", ""): splits for name, splits in split_sizes().items()}
    frames = dict(sizes.get(dataset, {}))
    frames["test"] = frames.get(split, 10)
    if isinstance(own["data.labeled"], float):
        share = int(frames["train"] * own["data.labeled"] + 0.5)
        frames |= {"train": share, "unlabeled": frames["train"] - share - fewer}
    if one.evaluate:
        own |= {"data.test_split": "val"}
    memory = 1100.0 if "Hardness" in own["method._target_"] else 1000.0
    metrics = {
        "test/miou": score,
        "test/fg_iou": score,
        "test/ssim": score,
        "cost/peak_memory_mb": memory + seed,
    }
    made = RunRecord(
        schema=SCHEMA, run_id=f"{one.name}-{seed}", status="done", seed=seed, parent=None, started="", code={}, host={},
        name=one.name, dataset=dataset, metrics=metrics, factors=own,
        frames={f"{dataset}/{k}": n for k, n in frames.items()},
    )  # fmt: skip
    folder = tmp_path / f"{one.name}-{seed}"
    folder.mkdir()
    write(made, folder)
    if any(cell.startswith("hl/2/") for cell in cells):
        classes = [column for column in published.tables("hl/2")[0].columns if column != "miou"]
        with open(folder / "per_class.csv", "w", newline="") as file:
            csv.writer(file).writerows([["class", "iou"], *([name, score] for name in classes)])


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_runs_that_follow_the_rows_fill_every_table(table, tmp_path):
    (one,) = layouts(f"hl/{table}")
    known = experiments(one.cells())
    for found in known:
        row = ROWS[found.name.removeprefix("hl/")]
        for seed in (0, 1):
            score = (0.6 if "_hl" in row.name else 0.5) + 0.02 * seed
            # Of the runs for table 9 one of two was trained to the end.
            short = {"trainer.max_steps": 50} if table == "9" and seed else {}
            record(row, dict(found.factors) | short, row.cells, score, tmp_path, seed)
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
                elif column.unit == "percent":
                    hl = column.id == "hl" or any(word in line.row.id for word in ("hl", "c_", "alpha_"))
                    assert entry.cell.mean == pytest.approx(61 if hl else 51), where


def test_fewer_frames_without_labels_are_noted(tmp_path):
    known = experiments(["hl/10/u2pl/1_8", "hl/10/u2pl_hl/1_8"])
    for found in known:
        one = ROWS[found.name.removeprefix("hl/")]
        record(one, dict(found.factors), one.cells, 0.5, tmp_path, fewer=7)
    (one,) = layouts("hl/10")
    notes = str(comparison(one, collect([tmp_path]), known).our_notes)
    assert "2596 of 2603 training frames without labels" in notes
