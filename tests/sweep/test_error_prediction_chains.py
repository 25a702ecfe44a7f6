"""EP's rows and chains: they fit together, one runs end to end, tables know what a stage stands on."""

import csv
import io
import json

import numpy as np
import pytest

from hardpix import record
from hardpix.cli import main, published_rows
from hardpix.cli.published_rows import experiments
from hardpix.config import compose as config
from hardpix.config import published
from hardpix.config.catalog import conf_dir
from hardpix.config.published import layout
from hardpix.config.rows import Row, row
from hardpix.sweep.stages import check_chain, read_chain

pytestmark = pytest.mark.slow  # trains runs

TABLES, CHAINS = conf_dir() / "table", conf_dir() / "studies"
STAGE = "parent_config."  # before a key of the run that a run stands on


@pytest.fixture(scope="module", autouse=True)
def _composed_once():
    """Many stages of these tests are the same, and composing one takes a fifth of a second."""
    cache = {}

    def compose(overrides, config_dir=None):
        key = tuple(overrides)
        if key not in cache:
            cache[key] = config.compose(overrides, config_dir=config_dir)
        return cache[key].copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published_rows, "compose", compose)
        yield


def test_every_chain_fits_together():
    names = [path.relative_to(CHAINS).with_suffix("").as_posix() for path in sorted(CHAINS.rglob("*.yaml"))]
    names = [name for name in names if name.startswith("error_prediction")]
    assert len(names) == 6
    for name in names:
        check_chain(read_chain(name), [], {}, published_rows.compose)


@pytest.fixture(scope="module")
def known():
    """The rows of all cells of EP, composed in one pass."""
    cells = [cell for one in published.tables("error_cascade") for cell in layout(one, TABLES).cells()]
    return experiments(cells)


def test_a_row_has_the_stages_before_it_below_in_its_chain(known):
    factors = {one.name.removeprefix("error_cascade/"): one.factors for one in known}
    detail = factors["pspnet_detail"]
    assert [detail[f"{STAGE * depth}method._target_"].rpartition(".")[2] for depth in range(3)] == [
        "Detail", "ErrorPrediction", "Baseline",
    ]  # fmt: skip
    assert [detail[f"{STAGE * depth}trainer.max_steps"] for depth in range(3)] == [90000, 60000, 80000]
    assert [detail[f"{STAGE * depth}optimizer.lr"] for depth in range(3)] == [1e-4, 1e-4, 0.01]
    assert f"{STAGE * 3}method._target_" not in detail
    assert {
        key: value for key, value in detail.items() if key.startswith(("backbone.", "head.", "model."))
    } == {
        key.removeprefix(STAGE * 2): value
        for key, value in detail.items()
        if key.startswith(tuple(f"{STAGE * 2}{group}." for group in ("backbone", "head", "model")))
    }  # the networks are the segmenter's
    assert detail["backbone.name"] == "resnet101c.gluon_in1k"
    assert factors["deeplabv3plus"]["parent_config"] is None
    assert factors["bagging"][f"{STAGE}head._target_"] == "hardpix.models.DeepLabV3PlusHead"


def test_an_evaluation_of_a_stage_has_what_that_has_below(known):
    factors = {one.name.removeprefix("error_cascade/"): one.factors for one in known}
    ours, scales = factors["ade20k_detail"], factors["ade20k_detail_ms"]
    differing = {key for key in ours.keys() | scales.keys() if ours.get(key) != scales.get(key)}
    assert {key.split(".")[0] for key in differing} == {"inference"}
    assert scales["inference._target_"] == "hardpix.ops.MultiScale"
    assert scales[f"{STAGE * 2}trainer.max_steps"] == 160000


def test_a_stage_that_starts_from_weights_has_the_run_below_and_its_own_networks(monkeypatch):
    from hardpix.sweep.stages import Stage

    chain = [
        Stage("first", ("backbone=resnet50", "trainer.max_steps=5"), None, None),
        Stage("second", ("experiment=demo", "backbone=swin_tiny"), "init_from", "first", "hn/b"),
    ]
    monkeypatch.setattr(published_rows, "read_chain", lambda name: chain)
    (factors,) = published_rows.factors_of(Row("hn", "b", (), chain="a"))
    assert factors["init_from"] == "RUN"
    assert factors[f"{STAGE}trainer.max_steps"] == 5
    assert factors[f"{STAGE}backbone.name"] == "resnet50.tv_in1k"
    assert factors["backbone.name"].startswith("swin")


# --- whole runs -----------------------------------------------------------------------------------------------

SMALL = (
    "data=synthetic", "data.source.height=32", "data.source.width=48", "data.source.train_frames=8",
    "data.source.val_frames=3", "data.source.test_frames=3", "data.train_transform.crop=[32,48]",
    "data.train_transform.base_size=null", "data.batch_size=4", "data.eval_batch_size=2", "data.num_workers=0",
    "inference.base_size=null", "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.val_every_steps=2",
    "trainer.sanity_steps=0", "callbacks.progress=none", "logger=csv", "panels=0",
    "semantic:backbone=tiny", "semantic:backbone.name=test_resnet", "semantic:head.channels=8",
    "semantic:head.low_channels=4", "error_prediction:method.channels=8", "detail:method.channels=8",
)  # fmt: skip


def test_a_chain_runs_and_its_runs_stand_for_cells(tmp_path, capsys):
    runs = tmp_path / "runs/default"
    line = ["error_prediction/deeplabv3plus", *SMALL, f"runs_dir='{tmp_path}/runs'", "run=x", "seed=3"]
    assert main(["sweep", *line]) == 0
    shown = [*(f"x-{stage}" for stage in ("semantic", "error_prediction", "detail"))]
    for name in shown:  # as if the rooms were streets
        path = runs / name / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "cityscapes", "frames": {}}))
    metrics = json.loads((runs / "x-detail/run.json").read_text())["metrics"]
    capsys.readouterr()
    for table, cell, metric in (
        ("4", "hard_ratio/deeplabv3plus", "val/hard_error_ratio"),
        ("4", "original_miou/deeplabv3plus", "val/semantic_miou"),
        ("4", "ours_miou/deeplabv3plus", "val/miou"),
        ("2", "t_0.6/miou", "val/fused_miou@0.6"),
    ):
        assert main(["table", "--published", f"error_cascade/{table}", str(runs), "--format", "csv"]) == 0
        lines = csv.DictReader(io.StringIO(capsys.readouterr().out))
        found = {f"{one['row']}/{one['column']}": one for one in lines}[cell]
        assert float(found["mean"]) == pytest.approx(100 * metrics[metric], nan_ok=True)
    told = found["notes"].split(", ")
    # Only what the command line says otherwise departs, and of every stage alike.
    keys = {part.partition("=")[0].removeprefix(STAGE).removeprefix(STAGE) for part in told if "=" in part}
    given = {text.partition("=")[0].rpartition(":")[2].split(".")[0] for text in SMALL}
    assert {key.split(".")[0] for key in keys} <= given
    assert f"{STAGE * 2}trainer.max_steps=2 (experiment: 80000)" in told
    assert f"{STAGE}trainer.max_steps=2 (experiment: 60000)" in told
    assert "trainer.max_steps=2 (experiment: 90000)" in told
    assert "backbone.name=test_resnet (experiment: xception65.tf_in1k)" in told


def test_an_evaluation_may_stand_for_a_cell_of_its_own(tmp_path):
    own = [text for text in SMALL if ":" not in text]
    networks = [
        text.partition(":")[2] for text in SMALL if text.startswith("semantic:") and "low" not in text
    ]
    line = [
        *row("error_cascade/layer_cascade").run_overrides,
        *own,
        *networks,
        f"runs_dir='{tmp_path}/runs'",
        "run=a",
    ]
    assert main(["train", *line]) == 0
    run = tmp_path / "runs/default/a"
    trained = record.read(run)
    assert trained.factors["reproduces"] == ["error_cascade/3/lc_gau_decoder/miou"]
    assert all(
        np.isfinite(trained.metrics[f"test/stage{s}_{kind}"]) for s in (1, 2, 3) for kind in ("miou", "share")
    )
    scales = ["inference=multiscale", "inference.scales=[1.0]"]
    assert main(["evaluate", str(run), *scales, "reproduces=[error_cascade/6/ours_ms/miou]"]) == 0
    (out,) = (run / "evaluations").iterdir()
    assert "reproduces" not in out.name
    found = record.read(out).factors
    assert found["reproduces"] == ["error_cascade/6/ours_ms/miou"]
    assert found["inference._target_"] == "hardpix.ops.MultiScale"
    assert main(["evaluate", str(run), "reproduces=[error_cascade/6/ours_mss/miou]"]) == 2
    assert main(["evaluate", str(run), "reproduced=[error_cascade/6/ours_ms/miou]"]) == 2
