"""Synthetic rooms: geometry against its definition, hardness against Monte Carlo, and the cache under attack."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hardpix.data.synthetic import furniture, raycast
from hardpix.data.synthetic.furniture import BOX, COMPONENTS, CYLINDER, ELLIPSOID, GROUPS, NAMES, VOID
from hardpix.data.synthetic.rooms import SyntheticFrame, SyntheticRooms, render
from hardpix.data.synthetic.scene import build_scene
from hardpix.types import ConfigError, DataError

SIZE = {"height": 96, "width": 128}


def frame(index: int = 0, **changes) -> SyntheticFrame:
    return render(0, "train", index, **({**SIZE, "difficulty": 0.5} | changes))


def rooms(cache_dir: Path, **changes) -> SyntheticRooms:
    few = {"train_frames": 3, "val_frames": 2, "test_frames": 1, "seed": 0, "difficulty": 0.5}
    return SyntheticRooms(**({"height": 24, "width": 32, "cache_dir": cache_dir} | few | changes))


def points(f: SyntheticFrame) -> np.ndarray:
    """Camera-frame points ``[H, W, 3]`` from exact depth and K, in float64."""
    v, u = np.mgrid[: f.label.shape[0], : f.label.shape[1]].astype(float)
    pixels = np.stack([u, v, np.ones_like(u)], -1)
    return pixels @ np.linalg.inv(f.K.astype(float)).T * f.exact_depth[..., None]


@pytest.fixture(scope="module")
def frames() -> list[SyntheticFrame]:
    return [frame(i) for i in range(60)]


def test_points_height_and_pose_agree(frames):
    for f in frames[:10]:
        cloud = points(f)
        assert np.isclose(np.linalg.norm(f.up), 1, atol=1e-6)
        assert f.up[1] < 0  # y points down
        assert 1.0 <= f.pose[2, 3] <= 1.8
        np.testing.assert_allclose(cloud @ f.up + f.pose[2, 3], f.height, atol=1e-4)
        world = cloud @ f.pose[:3, :3].T.astype(float) + f.pose[:3, 3]
        assert world.min() > -1e-4
        rotation = f.pose[:3, :3].astype(float)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(rotation) > 0.999


def test_surfaces_of_the_room_are_where_they_should_be(frames):
    for f in frames[:10]:
        floor, wall = f.label == NAMES.index("floor"), f.label == NAMES.index("wall")
        assert np.abs(f.height[floor]).max() < 1e-4
        np.testing.assert_allclose(f.normal[floor] @ f.up, 1, atol=1e-5)
        np.testing.assert_allclose(f.normal[wall] @ f.up, 0, atol=1e-5)
        top = f.height[f.label == NAMES.index("ceiling")]
        assert top.size == 0 or (np.ptp(top) < 1e-4 and top[0] > 2.3)


def test_normals_face_the_camera_and_agree_with_neighbouring_points(frames):
    for f in frames[:10]:
        cloud = points(f)
        np.testing.assert_allclose(np.linalg.norm(f.normal, axis=-1), 1, atol=1e-5)
        assert ((f.normal * cloud).sum(-1) < 0).all()
        across = cloud[1:-1, 2:] - cloud[1:-1, :-2]
        down = cloud[2:, 1:-1] - cloud[:-2, 1:-1]
        cross = np.cross(down, across)  # towards the camera: y x x = -z
        cross /= np.linalg.norm(cross, axis=-1, keepdims=True)
        centre = f.normal[1:-1, 1:-1]
        near = (f.normal[1:-1, 2:], f.normal[1:-1, :-2], f.normal[2:, 1:-1], f.normal[:-2, 1:-1])
        flat = np.all([np.abs(n - centre).max(-1) < 1e-5 for n in near], axis=0)
        flat &= np.all(
            [_same_plane(cloud, f.normal, dy, dx) for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))], axis=0
        )
        assert flat.mean() > 0.6
        assert ((cross * centre).sum(-1)[flat] > 0.999).all()


def _same_plane(cloud: np.ndarray, normal: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Whether the neighbour lies on the centre's plane within 0.1 mm (else a depth edge is between them)."""
    h, w = cloud.shape[:2]
    there = cloud[1 + dy : h - 1 + dy, 1 + dx : w - 1 + dx]
    return np.abs(((there - cloud[1:-1, 1:-1]) * normal[1:-1, 1:-1]).sum(-1)) < 1e-4


@pytest.mark.parametrize("shape", [BOX, CYLINDER, ELLIPSOID])
def test_cast_against_marching_along_each_ray(shape):
    """A turned primitive before the wall; the reference steps along the ray and asks the solid's inequality."""
    base = build_scene(np.random.default_rng(0), 0.5, furniture.densities(0.5), np.ones(len(NAMES), bool))
    centre, half, yaw = np.array([2.0, 2.2, 1.0]), np.array([0.5, 0.25, 0.35]), 0.7
    scene = base._replace(
        shape=np.array([shape]),
        centre=centre[None],
        half=half[None],
        yaw=np.array([yaw]),
        material=np.array([0]),
    )
    camera = raycast.look(np.random.default_rng(1), scene, 12, 16, 0.81)
    forward = (centre - camera.pose[:3, 3]) / np.linalg.norm(centre - camera.pose[:3, 3])
    right = np.array([forward[1], -forward[0], 0]) / np.hypot(*forward[:2])
    camera.pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    hits = raycast.cast(scene, camera)

    t = np.arange(0.2, 5, 1e-3)
    rays = (raycast.camera_rays(camera) @ camera.pose[:3, :3].T).astype(float)
    p = camera.pose[:3, 3] + t[None, :, None] * rays[:, None] - centre
    x, y = (
        np.cos(yaw) * p[..., 0] + np.sin(yaw) * p[..., 1],
        np.cos(yaw) * p[..., 1] - np.sin(yaw) * p[..., 0],
    )
    x, y, z = x / half[0], y / half[1], p[..., 2] / half[2]
    inside = {
        BOX: np.maximum.reduce([abs(x), abs(y), abs(z)]) < 1,
        CYLINDER: (x * x + y * y < 1) & (abs(z) < 1),
        ELLIPSOID: x * x + y * y + z * z < 1,
    }[shape]
    hit = inside.any(1)
    assert hit.sum() > 20
    assert ((hits.material == 0) == hit).mean() > 0.98  # marching may miss a graze
    both = hit & (hits.material == 0)
    np.testing.assert_allclose(hits.depth[both], t[inside.argmax(1)][both], atol=2e-3)


def test_two_views_show_one_room():
    """Points of one view, mapped by the poses, fall on the other view's surface or are hidden there."""
    first, second = (frame(3, view=v) for v in (0, 1))
    assert np.abs(first.pose - second.pose).max() > 0.05
    world = points(first) @ first.pose[:3, :3].T.astype(float) + first.pose[:3, 3]
    there = (world - second.pose[:3, 3]) @ second.pose[:3, :3].astype(float)
    uv = np.round((there @ second.K.T.astype(float))[..., :2] / there[..., 2:]).astype(int)
    h, w = second.label.shape
    seen = (there[..., 2] > 0.1) & (uv >= 0).all(-1) & (uv[..., 0] < w) & (uv[..., 1] < h)
    assert seen.mean() > 0.2
    other = second.exact_depth[uv[seen][:, 1], uv[seen][:, 0]]
    gap = there[..., 2][seen] - other
    same = np.abs(gap) < 0.1
    assert same.mean() > 0.7
    agree = first.label[seen][same] == second.label[uv[seen][:, 1], uv[seen][:, 0]][same]
    assert agree.mean() > 0.95


@pytest.mark.slow
def test_frames_depend_on_the_arguments_alone(tmp_path):
    script = (
        "import sys, pickle; from hardpix.data.synthetic.rooms import render;"
        "f = [render(0, 'train', i, height=96, width=128, difficulty=0.5, kinect=True) for i in (7, 2)];"
        "pickle.dump([list(x) for x in f], open(sys.argv[1], 'wb'))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "f")], check=True)
    there = pickle.loads((tmp_path / "f").read_bytes())
    for index, other in zip((7, 2), there, strict=True):
        for name, ours, theirs in zip(SyntheticFrame._fields, frame(index, kinect=True), other, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_splits_seeds_and_indices_are_different_rooms():
    common = {**SIZE, "difficulty": 0.5}
    views = [
        render(s, split, i, **common) for s, split, i in ((0, "train", 0), (0, "val", 0), (1, "train", 0))
    ]
    views.append(frame(1))
    for i, a in enumerate(views):
        for b in views[:i]:
            assert (a.exact_depth != b.exact_depth).mean() > 0.99


def test_every_class_and_void_occurs(frames):
    present = np.mean([np.isin(range(256), f.label) for f in frames], axis=0)
    assert len(NAMES) >= 13
    for name, share in zip(NAMES, present, strict=False):
        assert share > 0.2, name
    assert 0.3 < present[VOID] < 1
    assert 0.001 < np.mean([f.label == VOID for f in frames]) < 0.1


def test_both_kinds_of_hard_neighbours_occur(frames):
    """Members of a group touch in the picture, at the same depth and across a depth gap."""
    group = np.full(256, -1)
    for i, g in enumerate(GROUPS):
        group[[NAMES.index(m) for m in g.members]] = i
    jumps = []
    for f in frames:
        a, b = f.label[:, 1:], f.label[:, :-1]
        alike = (a != b) & (group[a] == group[b]) & (group[a] >= 0)
        jumps += list(np.abs(f.exact_depth[:, 1:] - f.exact_depth[:, :-1])[alike])
    assert (np.array(jumps) < 0.05).sum() > 100
    assert (np.array(jumps) > 0.2).sum() > 100


@pytest.mark.parametrize("difficulty", [0.2, 0.5, 0.8])
def test_hardness_equals_the_share_of_other_classes_among_like_colours(difficulty):
    """Monte Carlo, no density formula: of draws from all classes that fall near a colour, how many are others."""
    known = furniture.densities(difficulty)
    rng = np.random.default_rng(0)
    label = rng.integers(len(NAMES), size=200_000)
    colour = known.sample(rng, label, rng.integers(COMPONENTS, size=label.size))
    # Cells are narrow (a quarter spread) along red against green, where alike classes part, and two spreads wide
    # across, where they do not: three pixels in five then lie in a cell with enough draws to count.
    axes = np.array([[1, -1, 0], [1, 1, 0], [0, 0, np.sqrt(2)]]) / np.sqrt(2)
    cell = np.floor(colour @ axes.T / (furniture.SPREAD * np.array([0.25, 2, 2]))).astype(int)
    _, cell = np.unique(cell, axis=0, return_inverse=True)
    cell = cell.ravel()  # numpy 2.0 gives it a second axis
    counts = np.zeros((cell.max() + 1, len(NAMES)))
    np.add.at(counts, (cell, label), 1)
    full = counts.sum(1)[cell] >= 60
    assert full.mean() > 0.6
    share_of_others = 1 - counts[cell, label] / counts.sum(1)[cell]
    hardness = known.hardness(colour, label)
    assert hardness.min() >= 0
    assert hardness.max() <= 1
    # Binning blurs the posterior a little, so single cells agree loosely and the mean closely.
    assert hardness[full].mean() == pytest.approx(share_of_others[full].mean(), rel=0.02)
    assert np.abs(hardness - share_of_others)[full].mean() < 0.03


@pytest.mark.parametrize("difficulty", [0.25, 0.5, 0.75])
def test_error_of_the_best_judge_is_the_overlap_of_two_gaussians(difficulty):
    """Pillow against cushion: Bayes error Phi(-d / 2), d the distance in spreads; hardness between it and twice it."""
    known = furniture.densities(difficulty)
    rng = np.random.default_rng(0)
    pair = np.array([NAMES.index("pillow"), NAMES.index("cushion")])
    label = pair[rng.integers(2, size=60_000)]
    colour = known.sample(rng, label, rng.integers(COMPONENTS, size=label.size))
    kept = np.isin(np.arange(len(NAMES)), pair)
    wrong = (known.posterior(colour, kept).argmax(-1) != label).mean()
    d = furniture.MAX_SEPARATION * (1 - difficulty)
    edge = rng.standard_normal(2_000_000)
    bayes = (edge > d / 2).mean()
    assert wrong == pytest.approx(bayes, abs=0.006)
    assert bayes < known.hardness(colour, label, kept).mean() < 2 * bayes


def test_hardness_map_follows_groups_and_difficulty():
    alone = [NAMES.index(g.members[0]) for g in GROUPS if len(g.members) == 1]
    by_difficulty = []
    for difficulty in (0.0, 0.5, 1.0):
        shown = [frame(i, difficulty=difficulty) for i in range(8)]
        for f in shown:
            assert f.hardness.min() >= 0
            assert f.hardness.max() <= 1
            assert f.hardness[np.isin(f.label, alone)].max() < 0.05
            assert (f.hardness[f.label == VOID] == 0).all()
        paired = [f.hardness[~np.isin(f.label, [*alone, VOID])] for f in shown]
        by_difficulty.append(np.concatenate(paired).mean())
    assert by_difficulty[0] < 0.1 < by_difficulty[1] < 0.4 < by_difficulty[2] < 0.52


def test_kinect_reads_in_steps_within_its_range_and_has_holes(frames):
    seen = [frame(i, kinect=True) for i in range(10)]
    for f, exact in zip(seen, frames, strict=False):
        np.testing.assert_array_equal(f.exact_depth, exact.exact_depth)
        np.testing.assert_array_equal(f.rgb, exact.rgb)
        np.testing.assert_array_equal(f.valid, f.depth > 0)
        assert not f.valid[(f.exact_depth > 5.6) | (f.exact_depth < 0.7)].any()
        assert 0.3 < f.valid.mean() < 0.999
        steps = 0.075 * 580 / f.depth[f.valid] * 8
        np.testing.assert_allclose(steps, np.round(steps), atol=2e-3)
        error = np.abs(f.depth - f.exact_depth)[f.valid] / f.exact_depth[f.valid] ** 2
        assert error.max() < 0.012  # the error of a disparity grows with the square of depth
        assert exact.valid.all()
        np.testing.assert_array_equal(exact.depth, exact.exact_depth)


def test_difficulty_thins_legs_and_adds_noise():
    easy, hard = (frame(2, difficulty=d) for d in (0.0, 1.0))
    chair = NAMES.index("chair")
    assert (easy.label == chair).sum() > 1.2 * (hard.label == chair).sum() > 0

    def roughness(f: SyntheticFrame) -> float:
        wall = (f.label == NAMES.index("wall"))[1:]
        return float(np.median(np.abs(np.diff(f.rgb.astype(float), axis=0))[wall]))

    assert roughness(hard) > 1.5 * roughness(easy)


def test_size_and_focal_length_are_configuration():
    small, large = frame(4, height=24, width=32), frame(4, height=96, width=128)
    assert small.rgb.shape == (24, 32, 3)
    np.testing.assert_array_equal(small.pose, large.pose)
    assert large.K[0, 0] == pytest.approx(0.81 * 128)
    assert frame(4, focal=1.5).K[1, 1] == pytest.approx(1.5 * 128)


def test_source_serves_what_render_gives(tmp_path):
    source = rooms(tmp_path, kinect=True)
    split = source.frames("val", source.info.provides)
    assert [len(source.frames(s, frozenset())) for s in ("train", "val", "test")] == [3, 2, 1]
    assert split.name(1) == "val_00001"
    sample = pickle.loads(pickle.dumps(split)).load(1)
    f = render(0, "val", 1, height=24, width=32, difficulty=0.5, kinect=True)
    np.testing.assert_array_equal(sample["image"].numpy(), f.rgb.transpose(2, 0, 1))
    np.testing.assert_array_equal(sample["label"].numpy(), f.label)
    np.testing.assert_array_equal(sample["depth_valid"].numpy(), f.valid)
    np.testing.assert_allclose(sample["depth"].numpy(), f.depth, atol=1.1e-4)
    np.testing.assert_allclose(sample["hardness"].numpy(), f.hardness, atol=0.5 / 255 + 1e-6)
    assert set(source.frames("val", frozenset({"image"})).load(0)) == {"image", "name"}
    assert len(source.info.classes) == len(source.info.palette) == len(NAMES)
    assert sample["depth"].max() < source.info.depth_max


def test_classes_left_out_become_void_and_no_longer_compete(tmp_path):
    source = rooms(tmp_path, classes=("wall", "floor", "table"), height=48, width=64)
    everything = rooms(tmp_path, height=48, width=64)
    for i in range(3):
        part = source.frames("train", source.info.provides).load(i)
        whole = everything.frames("train", everything.info.provides).load(i)
        assert (part["image"] == whole["image"]).all()
        for new, name in enumerate(source.info.classes):
            assert ((part["label"] == new) == (whole["label"] == NAMES.index(name))).all()
        assert set(part["label"].unique().tolist()) <= {0, 1, 2, VOID}
        assert part["hardness"].max() < 0.05  # the chair, the table's rival, is no class any more


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"difficulty": 1.5}, "SyntheticRooms: difficulty=1.5: must be at least 0 and at most 1"),
        ({"classes": ("wall", "sky")}, "synthetic rooms: "),
        ({"classes": ("wall", "wall")}, "synthetic rooms: "),
    ],
)
def test_wrong_configuration_is_one_sentence(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        rooms(tmp_path, **changes)


def test_cache_key_follows_every_parameter(tmp_path):
    base = {
        "seed": 0,
        "height": 8,
        "width": 8,
        "difficulty": 0.5,
        "kinect": False,
        "focal": 0.81,
        "classes": None,
    }
    other = {
        "seed": 1,
        "height": 9,
        "width": 9,
        "difficulty": 0.6,
        "kinect": True,
        "focal": 0.9,
        "classes": ("bed", "box"),
    }
    rooms(tmp_path, **base).frames("test", frozenset())
    for count, (key, value) in enumerate(other.items(), start=2):
        rooms(tmp_path, **(base | {key: value})).frames("test", frozenset())
        assert len(list(tmp_path.iterdir())) == count, key
    rooms(tmp_path, **base).frames("test", frozenset())
    assert len(list(tmp_path.iterdir())) == 1 + len(other)


@pytest.mark.parametrize("damage", ["empty", "header", "short", "content"])
def test_damaged_cache_is_rebuilt(tmp_path, damage):
    source = rooms(tmp_path)
    before = source.frames("train", source.info.provides).load(2)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    if damage == "content":
        data[-5000] ^= 1
    path.write_bytes({"empty": b"", "header": b"x" * 500, "short": bytes(data[:-7])}.get(damage, bytes(data)))
    after = source.frames("train", source.info.provides).load(2)
    for key in ("image", "label", "depth", "hardness"):
        assert (before[key] == after[key]).all()
    assert len(list(tmp_path.iterdir())) == 1


def _build_and_add_up(cache_dir: Path, both_building, answers) -> None:
    """Renders no first frame before the other process is about to render its own."""
    source = rooms(cache_dir, height=8, width=8)
    record = source._record

    def meet(split, index):
        if index == 0:
            both_building.wait(60)
        return record(split, index)

    source._record = meet
    split = source.frames("train", frozenset())
    answers.put([int(split.load(i)["image"].sum()) for i in range(3)])


def test_two_processes_build_one_cache(tmp_path):
    """Both start from nothing at once; each sees whole frames only, and one sound file is left."""
    context = multiprocessing.get_context("fork")  # a new interpreter would import torch first
    answers, both_building = context.SimpleQueue(), context.Barrier(2)
    cache = tmp_path / "shared"
    running = [
        context.Process(target=_build_and_add_up, args=(cache, both_building, answers)) for _ in range(2)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0, 0]
    alone = rooms(tmp_path / "alone", height=8, width=8).frames("train", frozenset())
    expected = [int(alone.load(i)["image"].sum()) for i in range(3)]
    assert [answers.get(), answers.get()] == [expected, expected]
    (left,) = cache.iterdir()
    assert left.read_bytes() == alone.path.read_bytes()


def test_a_build_in_progress_is_invisible(tmp_path, monkeypatch):
    """Halfway through the rendering no cache file exists under the final name."""
    source, seen = rooms(tmp_path), []
    record = source._record

    def spy(split, index):
        seen.append([path.suffix for path in tmp_path.iterdir()])
        return record(split, index)

    monkeypatch.setattr(source, "_record", spy)
    source.frames("train", frozenset())
    assert seen == [[".tmp"]] * 3


def test_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    source = rooms(tmp_path)
    monkeypatch.setattr(source, "_record", lambda split, index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        source.frames("train", frozenset())
    assert list(tmp_path.iterdir()) == []


def test_cache_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cache_dir"):
        rooms(tmp_path / "file" / "below").frames("test", frozenset())


@pytest.mark.parametrize("name", ["height", "width", "train_frames", "val_frames", "test_frames"])
def test_sizes_below_one_are_named(tmp_path, name):
    with pytest.raises(ConfigError, match=f"{name}=0: must be at least 1"):
        rooms(tmp_path, **{name: 0})
