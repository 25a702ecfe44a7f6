"""Figures from runs: the numbers beside them, what they refuse, and the weights of single epochs they need."""

import csv
import math
import statistics

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix import record
from hardpix.cli import main
from hardpix.config.compose import compose
from hardpix.draw.charts import STEP, DepthErrors, axis_kind, binned
from hardpix.draw.pictures import MARGIN, VOID, ColumnGroup, Tile, grid, heatmap
from hardpix.evaluate import loaded
from hardpix.figures import maps as figure_maps
from hardpix.methods import Method
from hardpix.train import rundir
from hardpix.train.train import train
from hardpix.types import ConfigError
from tests.boundary import epochs_near

LINE = (
    "data.source.height=32", "data.source.width=48", "data.source.train_frames=8", "data.source.val_frames=1",
    "data.source.test_frames=3", "data.train_transform.crop=[32,48]", "data.batch_size=4", "data.num_workers=0",
    "data.eval_batch_size=2", "backbone.name=test_resnet", "trainer.accelerator=cpu", "trainer.devices=1",
    "trainer.max_steps=4", "trainer.sanity_steps=0", "callbacks.progress=none", "logger=csv", "panels=0",
    "optimizer.lr=1e-3",
)  # fmt: skip
LWM = (
    "method=lwm", "head=refinenet_cascades", "head.widths=[8,6,6,6]", "head.crp_stages=1", "head.output_units=1",
    "model.aux_level=null",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A baseline, LWM with two alphas and two seeds, all of two epochs; and a baseline on other rooms."""
    folder = tmp_path_factory.mktemp("figures")
    common = [*LINE, f"runs_dir={folder}"]
    train(compose([*common, "head.channels=8", "study=b", "run=plain"]), [])
    train(
        compose(
            [*common, "head.channels=8", "study=b", "run=other", "data.source.seed=5", "trainer.max_steps=1"]
        ),
        [],
    )
    for alpha in (0.1, 10):
        for seed in (0, 1):
            own = [f"method.alpha={alpha}", f"seed={seed}", "study=s", f"run=a{alpha}-{seed}"]
            train(compose([*common, *LWM, *own, "callbacks.snapshots=[1,2]"]), [])
    return folder


def numbers(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def figure(*words):
    return main(["figure", *map(str, words)])


def test_bins_equal_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    found, frames = {"a": DepthErrors(), "b": DepthErrors()}, {"a": [], "b": []}
    for run, scale in (("a", 0.8), ("b", 1.1)):
        for _ in range(3):
            gap = np.minimum(rng.exponential(scale, (20, 30)), math.log(256)).astype(np.float32)
            counted, wrong = rng.random((20, 30)) < 0.8, rng.random((20, 30)) < 0.3
            found[run].add(gap, counted, wrong)
            frames[run].append((gap, counted, wrong))
    made = binned(found)
    pooled = np.concatenate([g[c] for f in frames.values() for g, c, _ in f])
    top = 10 * made["a"][1].low
    assert np.mean(pooled <= top) >= 0.99
    assert np.mean(pooled <= top - 11 * STEP) < 0.99
    for run, bins in made.items():
        assert [b.low for b in bins] == [k * top / 10 for k in range(10)]
        assert [b.high for b in bins] == [b.low for b in bins[1:]] + [math.inf]
        for b in bins:
            pixels = wrong = 0
            for gap, counted, bad in frames[run]:
                for y, x in np.ndindex(gap.shape):
                    if counted[y, x] and b.low <= gap[y, x] < b.high:
                        pixels, wrong = pixels + 1, wrong + int(bad[y, x])
            assert (b.pixels, b.wrong) == (pixels, wrong)
            assert b.rate == wrong / pixels


def test_bins_at_their_edges_and_without_errors():
    errors = DepthErrors()
    gap = np.array([0.0, 0.5, 0.9999, 1.0, math.log(256)], np.float32)
    errors.add(gap, np.array([True, True, True, True, False]), np.array([True, False, False, True, True]))
    bins = binned({"a": errors})["a"]
    assert sum(b.pixels for b in bins) == 4
    assert bins[0].pixels == 1
    assert bins[0].wrong == 1
    exact = DepthErrors()
    exact.add(np.zeros((2, 2), np.float32), np.ones((2, 2), bool), np.zeros((2, 2), bool))
    bins = binned({"a": exact})["a"]
    assert [b.pixels for b in bins] == [4] + [0] * 9
    assert math.isnan(bins[9].rate)
    assert bins[1].low == STEP
    last = DepthErrors()
    last.add(
        np.array([math.log(256), 5.6], np.float32), np.ones(2, bool), np.ones(2, bool)
    )  # beyond: the last
    assert sum(b.pixels for b in binned({"a": last})["a"]) == 2


def by_hand(run_dir, split="test"):
    """(gap, counted, wrong) of every frame, from the definitions."""
    _, data, method = loaded(run_dir, "last", [])
    for i in range(len(data.evaluation_dataset(split))):
        batch = data.evaluation_batch(split, i)
        with torch.inference_mode():
            found = method.dense(batch["image"])[0].double().numpy()
        z, label = batch["depth"][0].double().numpy(), batch["label"][0].numpy()
        seen = batch["depth_valid"][0].numpy() & (z > 0)
        truth = np.log(1 + 255 * np.clip(np.where(seen, z, 0) / data.info.depth_max, 0, 1))
        gap = np.abs(np.clip(found[-1], 0, np.log(256)) - truth)
        yield gap, seen & (label != 255), found[:-1].argmax(0) != label


@pytest.mark.slow
def test_depth_error_of_runs_over_their_own_depth(runs, tmp_path):
    one, two = runs / "s/a0.1-0", runs / "s/a10-1"
    assert figure("depth-error", one, two, "--out", tmp_path / "f", "--device", "cpu") == 0
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == [
        f"depth-error.{s}" for s in ("csv", "pdf", "png")
    ]
    found = numbers(tmp_path / "f/depth-error.csv")
    for run in (one, two):
        frames = list(by_hand(run))
        rows = [r for r in found if r["run"] == run.name]
        assert [r["depth_from"] for r in rows] == [run.name] * 10
        assert sum(int(r["pixels"]) for r in rows) == sum(int(c.sum()) for _, c, _ in frames) > 0
        assert sum(int(r["wrong"]) for r in rows) == sum(int((w & c).sum()) for _, c, w in frames)
        for r in rows:
            inside = sum(
                int((c & (g >= float(r["low"])) & (g < float(r["high"]))).sum()) for g, c, _ in frames
            )
            assert abs(int(r["pixels"]) - inside) <= 3  # float32 at an edge
    gaps = np.concatenate([g[c] for run in (one, two) for g, c, _ in by_hand(run)])
    assert float(found[9]["low"]) / 0.9 == pytest.approx(np.percentile(gaps, 99), abs=0.01)


@pytest.mark.slow
def test_depth_error_over_that_of_another_run(runs, tmp_path):
    plain, other = runs / "b/plain", runs / "s/a10-0"
    words = ("depth-error", plain, other, "--depth-from", other, "--labels", "CE,LWM", "--device", "cpu")
    assert figure(*words, "--out", tmp_path / "x.png") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.csv", "x.png"]
    found = numbers(tmp_path / "x.csv")
    assert {r["depth_from"] for r in found} == {"LWM"}
    ce, lwm = ([r for r in found if r["run"] == name] for name in ("CE", "LWM"))
    assert [r["pixels"] for r in ce] == [r["pixels"] for r in lwm]
    assert figure("depth-error", other, "--out", tmp_path / "own.png", "--device", "cpu") == 0
    assert [r["wrong"] for r in numbers(tmp_path / "own.csv")] == [r["wrong"] for r in lwm]
    _, data, method = loaded(plain, "last", [])
    wrong = 0
    for i, (_, counted, _) in enumerate(by_hand(other)):
        batch = data.evaluation_batch("test", i)
        with torch.inference_mode():
            wrong += int((counted & (method(batch["image"]).argmax(1) != batch["label"])[0].numpy()).sum())
    assert sum(int(r["wrong"]) for r in ce) == wrong
    # The other run may be named by --depth-from alone.
    assert (
        figure("depth-error", plain, "--depth-from", other, "--out", tmp_path / "y.png", "--device", "cpu")
        == 0
    )
    assert [r["wrong"] for r in numbers(tmp_path / "y.csv")] == [r["wrong"] for r in ce]


def test_maps_over_epochs(runs, tmp_path):
    run = runs / "s/a10-0"
    words = ("maps", run, "--out", tmp_path, "--frames", "test_00002,test_00000", "--device", "cpu")
    assert figure(*words) == 0
    found = {(r["frame"], r["epoch"], r["map"]): r for r in numbers(tmp_path / "maps.csv")}
    assert list(dict.fromkeys(key[0] for key in found)) == ["test_00002", "test_00000"]
    assert len(found) == 2 * 2 * 4
    _, data, method = loaded(run, "last", [])
    batch = data.evaluation_batch("test", 2)
    with torch.inference_mode():
        maps = {k: v[0].numpy() for k, v in method.maps(batch).items()}
    valid = batch["label"][0].numpy() != 255
    m = maps["hardness"][valid]
    last = found["test_00002", "2", "hardness"]  # of two epochs, so what last.ckpt holds
    assert float(last["mean"]) == pytest.approx(m.mean(), abs=1e-6)
    assert float(last["kept"]) == 1
    kept = found["test_00002", "2", "curriculum"]  # e = E: all but the largest
    assert float(kept["kept"]) == pytest.approx((m < m.max()).mean(), abs=1e-6)
    assert float(found["test_00002", "1", "curriculum"]["kept"]) < float(kept["kept"])
    again = {k: (tmp_path / f"maps.{k}").read_bytes() for k in ("png", "pdf", "csv")}
    assert figure(*words) == 0
    assert again == {k: (tmp_path / f"maps.{k}").read_bytes() for k in again}


def test_the_curriculum_map_is_void_where_a_pixel_is_left_out(runs):
    run = figure_maps.FigureRun(runs / "s/a10-0", "x", rundir.read_config(runs / "s/a10-0"), "")
    _, data, method = loaded(run.directory, "last", [])
    batch = data.evaluation_batch("test", 0)
    valid = batch["label"][0].numpy() != 255
    m = figure_maps._maps(run, method, batch, 255, 0.5)["hardness"][0]
    share = 1 / epochs_near([m[None]], valid[None], 2)
    maps = figure_maps._maps(run, method, batch, 255, share)
    m, kept = maps["hardness"][0], maps["curriculum"][0]
    assert (np.isnan(m) == ~valid).all()
    ranked = np.sort(m[valid])
    u1, u2 = ranked[(len(ranked) - 1) // 2], ranked[-1]
    assert (np.isfinite(kept) == (valid & (m < u1 + share * (u2 - u1)))).all()
    assert (kept[np.isfinite(kept)] == m[np.isfinite(kept)]).all()
    assert (np.isnan(maps["dpe"][0]) == ~batch["depth_valid"][0].numpy()).all()


def test_sweep_has_mean_and_std_over_seeds(runs, tmp_path):
    assert figure("sweep", runs / "s", "--x", "method.alpha", "--out", tmp_path / "f.pdf") == 0
    assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")
    found = numbers(tmp_path / "f.csv")
    assert [r["method.alpha"] for r in found] == ["0.1", "10"]
    for r in found:
        scores = [record.read(runs / f"s/a{r['method.alpha']}-{s}").metrics["test/miou"] for s in (0, 1)]
        assert float(r["mean"]) == pytest.approx(statistics.fmean(scores))
        assert float(r["std"]) == pytest.approx(math.sqrt(sum((x - np.mean(scores)) ** 2 for x in scores)))
        assert r["n"] == "2"


def test_sweep_draws_a_line_per_value_and_refuses_what_else_differs(runs, tmp_path, capsys):
    words = ("sweep", runs / "s", "--x", "seed", "--lines", "method.alpha", "--out", tmp_path / "f.png")
    assert figure(*words) == 0
    assert [(r["seed"], r["method.alpha"]) for r in numbers(tmp_path / "f.csv")] == [
        ("0", "0.1"), ("0", "10"), ("1", "0.1"), ("1", "10"),
    ]  # fmt: skip
    assert figure("sweep", runs / "s", "--x", "method.beta", "--out", tmp_path / "g.png") == 2
    assert "they differ in method.alpha" in capsys.readouterr().err
    assert (
        figure(
            "sweep", runs / "s", "--x", "method.alpha", "--metric", "test/mio", "--out", tmp_path / "g.png"
        )
        == 2
    )
    assert "did you mean test/miou" in capsys.readouterr().err
    assert not (tmp_path / "g.png").exists()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["0.01", "1", "100"], "log"), (["1", "2", "3"], "linear"), (["0", "0.5", "1"], "linear"),
        (["0", "0.01", "100"], "even"), (["sum", "max"], "even"), (["[8, 8]", "null"], "even"), (["-1", "1"], "linear"),
    ],
)  # fmt: skip
def test_the_axis_of_a_sweep(values, kind):
    assert axis_kind(values) == kind


def test_panels_of_two_runs(runs, tmp_path):
    one, two = runs / "b/plain", runs / "s/a10-0"
    words = ("panels", one, two, "--out", tmp_path / "p.png", "--frames", "test_00001", "--tile", "96")
    assert figure(*words, "--device", "cpu") == 0
    (a, b) = numbers(tmp_path / "p.csv")
    frames = list(by_hand(two))
    _, data, _ = loaded(two, "last", [])
    labelled = data.evaluation_batch("test", 1)["label"][0].numpy() != 255
    assert (b["frame"], b["run"], int(b["pixels"])) == ("test_00001", "a10-0", labelled.sum())
    assert int(b["wrong"]) == (frames[1][2] & labelled).sum()
    assert a["pixels"] == b["pixels"]
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 6 * 96


def test_a_grid_puts_every_tile_at_its_place():
    colors = [np.full((4, 6, 3), 40 * i, np.uint8) for i in range(4)]
    rows = [
        [ColumnGroup("", [Tile(colors[0], "a")]), ColumnGroup("run", [Tile(colors[1]), Tile(colors[2])])]
    ] * 2
    made = np.asarray(grid(rows, title="t", tile_width=12))
    for color, x in ((0, 6), (1, 12 + 14 + 6), (2, 12 + 14 + 16 + 6)):
        column = made[:, MARGIN + x]
        assert (column == 40 * color).all(1).sum() >= 2 * 8
    assert heatmap(np.array([[np.nan]])).tolist() == [[list(VOID)]]


def test_refusals_come_before_any_work(runs, tmp_path, capsys, monkeypatch):
    plain, other, lwm = runs / "b/plain", runs / "b/other", runs / "s/a10-0"

    def refused(*words):
        assert figure(*words, "--out", tmp_path / "no" / "f.png") == 2
        assert not (tmp_path / "no").exists()
        return capsys.readouterr().err

    assert "--depth-from" in refused("depth-error", plain)
    assert "callbacks.snapshots=[1, 10, 50]" in refused("maps", plain)
    monkeypatch.setattr(rundir, "snapshots", lambda run_dir: [1, 2])
    assert "predicts no depth" in refused("maps", plain)
    told = refused("maps", lwm, "--epochs", "1,3")
    assert "epochs 1, 2" in told
    assert "callbacks.snapshots=[1, 3]" in told
    assert "did you mean test_00001" in refused("panels", lwm, "--frames", "test_0001")
    assert "data.source.seed" in refused("panels", plain, other)
    assert "--labels names 1 runs" in refused("panels", plain, lwm, "--labels", "a")
    assert "has dpe, dse, hardness, curriculum" in refused("maps", lwm, "--maps", "depth")
    assert "--count 0" in refused("panels", plain, "--count", "0")
    assert "--tile 5" in refused("maps", lwm, "--tile", "5")
    assert "called a" in refused("panels", plain, lwm, "--labels", "a,a")
    assert "draws one run" in refused("maps", lwm, runs / "s/a10-1")
    with pytest.raises(SystemExit):
        figure("panel", plain)
    assert figure("panels", plain, "--out", tmp_path / "f.svg") == 2
    assert ".png or .pdf" in capsys.readouterr().err


def test_runs_of_other_classes_are_refused(runs, tmp_path, capsys):
    classes = runs / "b/other/classes.json"
    kept = classes.read_text()
    try:
        classes.write_text(kept.replace('"wall"', '"barrier"'))
        assert figure("panels", runs / "b/plain", runs / "b/other", "--out", tmp_path / "f.png") == 2
    finally:
        classes.write_text(kept)
    assert "wall / barrier" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_snapshots_do_not_change_a_resumed_run(tiny, tmp_path, monkeypatch, ema):
    """Killed in the second of three epochs; the kept weights are those of the uninterrupted run, too."""
    fixed = [f"trainer.ema_decay={ema}", "trainer.max_steps=5", "panels=0"]
    train(tiny("run=without", *fixed), [])
    kept = [*fixed, "callbacks.snapshots=[1,2,3]"]
    train(tiny("run=whole", *kept), [])
    step = Method.training_step

    def dies(self, batch, batch_idx):
        if self.global_step == 3:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "training_step", dies)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny("run=parts", *kept), [])
    runs = tmp_path / "runs/default"
    assert rundir.snapshots(runs / "parts") == [1]
    train(tiny("run=parts", "resume=true", *kept), [])
    assert rundir.snapshots(runs / "parts") == rundir.snapshots(runs / "whole") == [1, 2, 3]

    def state(run, name):
        return torch.load(runs / run / f"checkpoints/{name}.ckpt", weights_only=True)

    files = ["last", *(f"epoch_000{e}" for e in (1, 2, 3))]
    for name, runs_of_it in [("last", ("without", "parts"))] + [(f, ("parts",)) for f in files]:
        whole = state("whole", name)["state_dict"]
        for run in runs_of_it:
            other = state(run, name)["state_dict"]
            assert all(torch.equal(whole[k], other[k]) for k in whole)
    final = state("whole", "epoch_0003")
    assert sorted(final) == ["epoch", "epochs", "global_step", "pytorch-lightning_version", "state_dict"]
    assert (final["epoch"], final["epochs"], final["global_step"]) == (3, 3, 5)
    last = state("whole", "last")["state_dict"]  # averaged where weights are averaged
    assert all(torch.equal(last[k], final["state_dict"][k]) for k in last)


def test_snapshots_of_epochs_that_do_not_come_are_refused(tiny):
    with pytest.raises(ConfigError, match=r"snapshots=\[0\]: must be values, each at least 1"):
        train(tiny("run=a", "callbacks.snapshots=[0]"), [])
    with pytest.raises(ConfigError, match="there is no epoch 9, the run has 2"):
        train(tiny("run=b", "callbacks.snapshots=[1,9]"), [])
