"""Published rows: each composes to what its experiment file once did, and its commands fill its cells."""

import functools
import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hardpix.cli import main
from hardpix.config import catalog, published
from hardpix.config import rows as reader
from hardpix.config.compose import compose, validate
from hardpix.config.rows import Row, commands, fill, layouts, papers, row, row_of, rows, rows_of
from hardpix.evaluate import override
from hardpix.types import ConfigError

# sha256 of the composed configuration without `reproduces` and `notes`: of 213 files that became rows, and of the demo.
GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures/rows.json").read_text())
EVERY = [one for paper in papers() for one in rows(paper).values()]
TABLES = [one for paper in papers() for one in layouts(paper)]


@functools.cache
def composed(full_name):
    one = row(full_name)
    if one.evaluate:
        return override(composed(f"{one.paper}/{one.evaluate}").copy(), list(one.overrides))
    return compose(one.fixed)


def fingerprint(cfg):
    content = OmegaConf.to_container(cfg, resolve=False)
    content.pop("reproduces")
    assert content.pop("notes") == {}  # a key that came later
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def test_no_row_is_lost_and_the_demo_is_what_it_was():
    assert set(GOLDEN) - {one.full_name for one in EVERY} == {"demo"}
    assert len(GOLDEN) == 214
    assert fingerprint(compose(["experiment=demo"])) == GOLDEN["demo"]


def every_row():
    """A tenth of a second each, so the fast tests have every fourteenth."""
    for number, name in enumerate(sorted(set(GOLDEN) - {"demo"})):
        yield pytest.param(name, marks=[pytest.mark.slow] * (number % 14 > 0))


@pytest.mark.parametrize("name", every_row())
def test_a_row_composes_to_what_its_file_did(name):
    cfg = composed(name)
    assert fingerprint(cfg) == GOLDEN[name]
    validate(cfg)


@pytest.mark.parametrize("name", ["hl/suponly_1_16", "hl/pspnet_r101_hl_trainval"])
def test_rows_that_no_file_was_there_for_compose(name):
    validate(composed(name))


def test_every_cell_has_one_row_or_is_cited():
    assert len(TABLES) == 31
    for one in TABLES:
        cited = {own.id for own in one.rows if own.cited}
        for cell in one.cells():
            found = [
                own for own in rows(one.table.paper).values() if any(reader.fits(p, cell) for p in own.cells)
            ]
            copied = cell.split("/")[2] in cited
            assert len(found) == (not copied), cell
            assert row_of(cell) == (None if copied else found[0])


def test_chains_name_rows_and_rows_name_their_chain():
    from hardpix.sweep.stages import read_chain

    chains = [entry.name for entry in catalog.entries("studies") if "/" in entry.name]
    assert chains
    for name in chains:
        for stage in read_chain(name):
            named = row(stage.row)
            assert stage.overrides[: len(named.run_overrides)] == named.run_overrides
    for one in EVERY:
        if one.chain:
            assert one.full_name in [stage.row for stage in read_chain(one.chain)]


def test_a_command_is_plain_overrides_and_names_the_cells():
    (text,) = fill("hl/6/ohem/resnet50", [0, 1]).commands
    words = shlex.split(text)
    assert words == [
        "hardpix", "train", "-m", "experiment=hl/cityscapes", "backbone=resnet50c_d8", "head=psp",
        "loss=ohem_released", "reproduces=[hl/6/ohem/resnet50]", "seed=0,1",
    ]  # fmt: skip
    (one,) = fill("hl/6/ohem/resnet50", [2]).commands
    assert one.startswith("hardpix train experiment=")
    assert one.endswith(" seed=2")


def test_commands_of_all_kinds():
    assert fill("lwm/I/d_cfn_r152/nyuv2_miou", [0]) == reader.Fill()
    (text,) = fill("hn/4/none/epoch_5", [1]).commands
    assert "trainer.max_epochs=5 'reproduces=[hn/4/none/epoch_5]' seed=1" in text
    (text,) = fill("lwm/fig7/alpha/miou_min", [0]).commands
    assert text.startswith("hardpix train -m ")
    assert "method.alpha=0.01,0.1,1,10,100" in text
    chain = fill("hn/4/hn/epoch_5", [0, 1])
    assert chain.commands == ("hardpix sweep hn/camvid seed=0", "hardpix sweep hn/camvid seed=1")
    assert "experiment=hn/camvid backbone.pretrained=false" in chain.about
    *trained, scored = fill("error_cascade/6/ours_ms/miou", [0]).commands
    assert trained == ["hardpix sweep error_prediction/ade20k seed=0"]
    assert scored == "hardpix evaluate RUN inference=multiscale 'reproduces=[error_cascade/6/ours_ms/miou]'"
    first, second, compared = fill("hl/ssim/trainval_vs_train/ssim", [0]).commands
    assert ("trainval" in first, "data.train_split=trainval" in second) == (False, True)
    assert compared.startswith("hardpix figure ssim RUN_OF_")
    assert compared.endswith(" --reproduces hl/ssim/trainval_vs_train/ssim")


def test_a_peak_of_memory_needs_fifty_steps():
    (short,) = fill("hl/9/pspnet_r101/hl", [0]).commands
    assert "trainer.max_steps=50 'reproduces=[hl/9/pspnet_r101/hl]'" in short
    (full,) = fill("hl/6/hl/resnet101", [0]).commands
    assert "trainer.max_steps" not in full
    assert "hl/9/pspnet_r101/hl" in full


@pytest.mark.parametrize("table", ["hl/9", "hl/10", "hl/11", "hn/4", "lwm/fig7", "error_cascade/6"])
def test_commands_are_composed_and_stand_for_their_cells(table):
    """Every third command of the table, read as the shell and Hydra do."""
    (one,) = layouts(table)
    for cell in one.cells()[::3]:
        for text in fill(cell, [0]).commands:
            words = shlex.split(text)
            if words[1] != "train":
                continue
            words = [re.sub(r"=([\d.]+),.*", r"=\1", word) for word in words[2:] if word != "-m"]
            cfg = compose(words)
            validate(cfg)
            if cfg.reproduces and row_of(cell).trains:
                assert any(published.matches(pattern, cell) for pattern in cfg.reproduces), cell


def test_rows_of_a_table_are_in_its_order():
    assert [one.name for one in rows_of("hl/11")] == [
        "gtav_deeplabv3plus_r101_on_cityscapes", "gtav_deeplabv3plus_r101_hl_on_cityscapes",
    ]  # fmt: skip
    assert len(rows_of("hl/6")) == 15
    assert rows_of("lwm") == list(rows("lwm").values())


def test_keys_of_several_values_are_axes():
    one = Row("lwm", "a", ("method.alpha=0.1,1", "data.train_transform.crop=[8,8]", "method=lwm"))
    assert one.axes == {"method.alpha": ("0.1", "1")}
    assert one.fixed == ("data.train_transform.crop=[8,8]", "method=lwm")
    assert commands(one, [0]).commands == (
        "hardpix train -m method.alpha=0.1,1 'data.train_transform.crop=[8,8]' method=lwm seed=0",
    )


@pytest.fixture
def written(tmp_path, monkeypatch):
    """``written(rows)``: conf/rows/lwm.yaml with this text, read."""

    def read(text):
        (tmp_path / "rows").mkdir(exist_ok=True)
        (tmp_path / "rows/lwm.yaml").write_text(text)
        monkeypatch.setattr(reader, "conf_dir", lambda: tmp_path)
        clear()
        return reader.rows("lwm")

    def clear():
        reader.rows.cache_clear()
        reader.layouts.cache_clear()

    yield read
    clear()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [seed=1]\na: [seed=2]\n", "row a is there twice"),
        ("a: x\n", "row a: must be a list of overrides, or a mapping"),
        ("a: {chain: hn, evaluate: b}\n", "row a: must be a list of overrides, or a mapping"),
        ("a: [seed]\n", "row a: seed: must be KEY=VALUE"),
        ("a: {ssim: [b]}\n", "row a: ssim must name two rows"),
        ("a: {evaluate: bb}\nbbb: [seed=1]\n", r"row a names 'bb' \(did you mean bbb\?\)"),
        ("- a\n", "must map names of rows to lists"),
    ],
)
def test_mistakes_in_a_file_of_rows_are_one_sentence(text, said, written):
    with pytest.raises(ConfigError, match=said) as failure:
        written(text)
    assert "\n" not in str(failure.value)


def test_mistakes_in_the_cells_of_a_table_are_one_sentence(tmp_path):
    (table,) = published.tables("lwm/II")
    (tmp_path / "lwm").mkdir()
    for text, said in {
        "cells: {a: lss/miou}": r"row a: 'lss/miou' names no cell of the table \(did you mean lwm/II/ls/miou",
        "cells: {a: ls/miou, b: [ls/*]}": "lwm/II/ls/miou is filled by two rows, a and b",
    }.items():
        (tmp_path / "lwm/II.yaml").write_text(text)
        with pytest.raises(ConfigError, match=said):
            published.layout(table, tmp_path)


def test_the_name_of_a_row_in_the_place_of_an_experiment_gets_its_overrides():
    for word in ("hl/pspnet_r50_ohem", "error_prediction/dpc", "error_cascade/dpc"):
        with pytest.raises(
            ConfigError, match=r"is the published row \w+/\w+ and no file: experiment=\w+/cityscapes"
        ):
            compose([f"experiment={word}"])


def test_the_list_of_rows(capsys):
    assert main(["list", "rows", "hl/6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert lines[0].split() == ["hl/pspnet_r18", *row("hl/pspnet_r18").overrides]
    assert main(["list", "rows", "ssim", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found] == ["hl/ssim_trainval", "hl/ssim_ade20k"]
    assert found[0]["cells"] == ["hl/ssim/trainval_vs_train/ssim"]
    assert main(["list", "rows", "hl/66"]) == 2
    assert "hl/66 is no published row, table or paper (did you mean hl/6" in capsys.readouterr().err
    assert catalog.row_names() == [
        one.full_name for paper in sorted(papers()) for one in rows(paper).values()
    ]


def test_a_published_table_is_a_study_of_its_rows(capsys):
    assert main(["sweep", "hl/11", "seed=0,1", "--dry-run", "--all"]) == 0
    said = capsys.readouterr().out
    assert "4 jobs: 4 to run" in said  # two rows, whose runs are scored on another data set
    assert said.count("hardpix evaluate RUN data=cityscapes") == 2


def test_a_sweep_of_a_table_keeps_what_its_rows_are(capsys):
    assert main(["sweep", "hl/9", "--dry-run", "--commands"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "hardpix train" in line]
    assert len(lines) == 14
    assert all(line.count("trainer.max_steps=50 'reproduces=[hl/9/") == 1 for line in lines)
    assert not any(re.search("hl/[^9]", line.partition("reproduces=")[2].partition("]")[0]) for line in lines)
    for words, said in [
        (["hl/6", "backbone=resnet50"], "backbone=resnet50: the rows of hl/6 set backbone"),
        (["hl/66"], "did you mean 6?"),
        (["hl/pspnet_r101_hl"], "hardpix list rows hl/pspnet_r101_hl"),
        (["hl"], "name one of its tables: 1, 2"),
    ]:
        assert main(["sweep", *words, "--dry-run"]) == 2
        assert said in capsys.readouterr().err


def test_a_table_of_a_folder_without_runs_has_the_commands(tmp_path, capsys):
    assert main(["table", "hl/7", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"No run below {tmp_path} yet" in out
    (text,) = fill("hl/7/c_0.5/resnet50", [0]).commands
    assert f"`{text}`" in out
    assert main(["table", "hl/7", str(tmp_path / "absent")]) == 2
    said = capsys.readouterr().err
    assert "absent: no such folder" in said
    assert said.count("\n") == 1
