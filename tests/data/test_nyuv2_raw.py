"""NYUv2's raw recordings: pairing in time, sampling, registration, damaged files, reading."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix.cli import main
from hardpix.data import NYUv2Raw
from hardpix.data.camera import (
    COLOUR,
    DEPTH,
    ROTATION,
    TRANSLATION,
    Camera,
    disparity_to_metres,
    distort,
    rays,
    register,
    undistorted,
)
from hardpix.data.prepare import archive, find_recipe
from hardpix.data.prepare.nyuv2 import (
    NYUv2RawRecipe,
    evenly,
    find_scenes,
    read_disparity,
    read_recorded_colour,
    shares,
    synchronise,
)
from hardpix.data.prepare.recipe import Work
from hardpix.types import ConfigError, DataError

ALL = frozenset({"image", "depth", "depth_valid"})
Y, X = np.mgrid[:480, :640]


def write_depth(folder, seconds, disparity=800):
    """PGM with the low byte first, as in the release."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.broadcast_to(np.asarray(disparity, "<u2"), (480, 640))
    path = folder / f"d-{seconds:.6f}-{int(seconds * 60) % 2**32}.pgm"
    path.write_bytes(b"P5 640 480 65535\n" + values.tobytes())
    return path


def write_colour(folder, seconds, value=90):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"r-{seconds:.6f}-{int(seconds * 60) % 2**32}.ppm"
    path.write_bytes(b"P6 640 480 255\n" + np.full((480, 640, 3), value, np.uint8).tobytes())
    return path


def touch(folder, depths=(), colours=()):
    folder.mkdir(parents=True, exist_ok=True)
    for kind, suffix, times in (("d", "pgm", depths), ("r", "ppm", colours)):
        for seconds in times:
            (folder / f"{kind}-{seconds:.6f}-7.{suffix}").touch()
    (folder / "a-1.500000-7.dump").touch()
    (folder / "INDEX.txt").touch()
    return folder


def scenes(folder):
    return find_scenes(Work([folder], folder / "out").files())


# Pairs


def test_each_depth_frame_takes_the_nearest_colour_frame(tmp_path):
    depths, colours = [9.0, 10.0, 10.1, 10.2, 11.0], [9.01, 9.98, 10.14, 10.16, 10.6]
    [scene] = scenes(touch(tmp_path / "den_0001", depths, colours))
    pairs = synchronise(scene)
    assert [pair.depth.seconds for pair in pairs] == depths  # by time: as text, 10 stands before 9
    nearest = [min(colours, key=lambda c: abs(c - d)) for d in depths]
    assert [pair.colour.seconds for pair in pairs] == nearest == [9.01, 9.98, 10.14, 10.16, 10.6]
    assert pairs[1].gap_ms == pytest.approx(20)
    assert [pair.name for pair in pairs] == [f"den_0001__{i:05d}" for i in range(5)]


def test_colour_frames_are_shared_and_a_tie_goes_to_the_later(tmp_path):
    [scene] = scenes(touch(tmp_path / "a", [1.0, 1.01, 2.0], [0.99, 1.5, 2.5]))
    pairs = synchronise(scene)
    assert [pair.colour.seconds for pair in pairs] == [0.99, 0.99, 2.5]
    [scene] = scenes(touch(tmp_path / "none", [1.0]))
    assert synchronise(scene) == []


def test_scenes_are_folders_with_depth(tmp_path):
    touch(tmp_path / "b" / "part1" / "study_0002", [1.0])
    touch(tmp_path / "a" / "study_0001", [1.0])
    touch(tmp_path / "b" / "study_0001", [1.0])
    touch(tmp_path / "b" / "colour_only", [], [1.0])
    found = find_scenes(Work([tmp_path / "b", tmp_path / "a"], tmp_path / "out").files())
    assert [scene.folder for scene in found] == [f"{tmp_path}/b/study_0001", f"{tmp_path}/b/part1/study_0002"]


@pytest.mark.parametrize(
    ("budget", "sizes", "dealt"),
    [
        (10, [100, 100, 100], [3, 3, 4]),
        (10, [2, 100, 100], [2, 4, 4]),
        (10, [100, 1, 3], [6, 1, 3]),
        (2, [5, 5, 5, 5], [0, 0, 1, 1]),
        (99, [5, 6], [5, 6]),
        (7, [], []),
    ],
)
def test_the_budget_is_dealt_out_equally(budget, sizes, dealt):
    assert shares(budget, sizes) == dealt


def test_shares_fill_like_water():
    sizes = np.random.RandomState(0).randint(0, 400, 97).tolist()
    dealt = shares(9000, sizes)
    assert sum(dealt) == 9000
    assert all(given <= size for given, size in zip(dealt, sizes, strict=True))
    level = max(dealt)
    assert all(given == size or given >= level - 1 for given, size in zip(dealt, sizes, strict=True))


def test_frames_are_evenly_spaced():
    assert evenly(3, 9) == [1, 4, 7]
    assert evenly(1, 9) == [4]
    assert evenly(9, 9) == list(range(9))
    assert evenly(0, 9) == []
    steps = np.diff(evenly(70, 1000))
    assert set(steps.tolist()) <= {14, 15}


# Files


def test_bytes_are_swapped_and_disparity_becomes_metres(tmp_path):
    path = write_depth(tmp_path, 1.0, np.where(X == 3, 2047, 400 + X))
    disparity = read_disparity(path)
    assert disparity[5, :5].tolist() == [400, 401, 402, 2047, 404]
    metres = disparity_to_metres(disparity)
    np.testing.assert_allclose(metres[0, 4], 351.3 / (1092.5 - 404), rtol=1e-6)
    assert metres[0, 3] == 0
    far = disparity_to_metres(np.uint16([[1050, 1058, 1092, 1093, 1500, 2046]]))
    np.testing.assert_allclose(far, [[351.3 / 42.5, 0, 0, 0, 0, 0]], rtol=1e-6)  # beyond 10 m is noise


def test_damaged_files_are_named(tmp_path):
    depth, colour = write_depth(tmp_path, 1.0), write_colour(tmp_path, 1.0)
    assert read_recorded_colour(colour).shape == (480, 640, 3)
    depth.write_bytes(depth.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"d-1\.000000-60\.pgm: cut short, it holds 614399 of 614400 bytes"):
        read_disparity(depth)
    colour.write_bytes(b"")
    with pytest.raises(DataError, match=r"ppm: its header is not P6 640 480 255"):
        read_recorded_colour(colour)
    depth = write_depth(tmp_path, 1.0, 2048)
    with pytest.raises(DataError, match=r"disparity 2048 has more than 11 bits"):
        read_disparity(depth)


# Registration


def slow_register(depth, source, target, rotation, translation):
    """A pixel at a time."""
    result = np.zeros_like(depth)
    for v, u in zip(*np.nonzero(depth), strict=True):
        seen = np.array([(u - source.cx) / source.fx, (v - source.cy) / source.fy])
        ray = seen.copy()
        for _ in range(30):
            x, y = ray
            r2 = x * x + y * y
            radial = 1 + source.k1 * r2 + source.k2 * r2**2 + source.k3 * r2**3
            tangential = np.array(
                [
                    2 * source.p1 * x * y + source.p2 * (r2 + 2 * x * x),
                    source.p1 * (r2 + 2 * y * y) + 2 * source.p2 * x * y,
                ]
            )
            ray = (seen - tangential) / radial
        point = rotation @ (np.array([*ray, 1]) * float(depth[v, u])) + translation
        if point[2] <= 0:
            continue
        column = round(target.fx * point[0] / point[2] + target.cx)
        row = round(target.fy * point[1] / point[2] + target.cy)
        if 0 <= row < depth.shape[0] and 0 <= column < depth.shape[1]:
            there = result[row, column]
            result[row, column] = point[2] if there == 0 else min(there, point[2])
    return result


def scene(seed, height=480, width=640, share=0.02):
    """Depth at a few pixels, near and far side by side."""
    random = np.random.RandomState(seed)
    depth = random.uniform(0.5, 9, (height, width)).astype(np.float32)
    return np.where(random.rand(height, width) < share, depth, np.float32(0))


def test_registration_is_that_of_a_plain_loop():
    depth = scene(0, share=0.004)
    fast = register(depth)
    slow = slow_register(depth, DEPTH, COLOUR, ROTATION, TRANSLATION)
    assert 0.5 < (fast > 0).sum() / (depth > 0).sum() < 1
    np.testing.assert_allclose(fast, slow, rtol=1e-6)


def test_the_nearest_reading_wins():
    camera = Camera(fx=30, fy=30, cx=19.5, cy=14.5)
    depth = scene(1, 30, 40, share=0.9)
    turned = np.array([[0.995, 0, 0.0998], [0, 1, 0], [-0.0998, 0, 0.995]])
    given = {"rotation": turned, "translation": np.array([-0.4, 0.1, 0.2])}
    small = camera._replace(fx=15.0, fy=15.0)  # four pixels become one
    fast = register(depth, source=camera, target=small, **given)
    np.testing.assert_allclose(fast, slow_register(depth, camera, small, **given), rtol=1e-6)
    assert np.median(fast[fast > 0]) < np.median(depth[depth > 0]) - 1


def test_registration_onto_itself_changes_nothing():
    camera = Camera(*DEPTH[:4])
    depth = scene(2)
    same = {"rotation": np.eye(3), "translation": np.zeros(3)}
    np.testing.assert_allclose(register(depth, source=camera, target=camera, **same), depth, rtol=1e-6)


def test_the_colour_camera_lies_to_the_right():
    """2.5 cm: at 1 m, what both see lies 13 pixels further left in it, less what the axes differ."""
    cameras = {"source": Camera(500, 500, 320, 240), "target": Camera(500, 500, 320, 240)}
    depth = np.zeros((480, 640), np.float32)
    depth[240, 320] = 1
    assert np.argwhere(register(depth, rotation=np.eye(3), **cameras)).tolist() == [[240, 307]]


def test_rays_undo_the_distortion():
    for camera in (DEPTH, COLOUR):
        x, y, z = rays(camera, 480, 640)
        u, v = distort(camera, x, y)
        assert np.abs(camera.fx * u + camera.cx - X).max() < 0.01
        assert np.abs(camera.fy * v + camera.cy - Y).max() < 0.01
        assert (z == 1).all()


def test_undistorted_image_is_sampled_where_the_lens_put_it():
    image = np.stack([X % 256, Y % 256, (X + Y) // 5], -1).astype(np.uint8)
    plain = Camera(*COLOUR[:4])
    np.testing.assert_array_equal(undistorted(image, plain), image)
    ramp = np.stack([X * 0.39, Y * 0.53, X * 0], -1).astype(np.uint8)
    result = undistorted(ramp).astype(float)
    for v, u in ((100, 120), (400, 500), (250, 320)):
        x, y = (u - COLOUR.cx) / COLOUR.fx, (v - COLOUR.cy) / COLOUR.fy
        dx, dy = distort(COLOUR, np.float64(x), np.float64(y))
        expected = [
            (COLOUR.fx * dx + COLOUR.cx) * 0.39,
            (COLOUR.fy * dy + COLOUR.cy) * 0.53,
        ]
        np.testing.assert_allclose(result[v, u, :2], expected, atol=1.2)
    assert (result[0] == 255).all()  # the lens stretched the corners: the border saw nothing


# The recipe and its reader


def put(root, scene_name, count, start=1e9):
    for i in range(count):
        write_depth(root / scene_name, start + i, 700 + i)
        write_colour(root / scene_name, start + i + 0.01, 10 + i)
    return root


def lines(out):
    return [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]


def test_recordings_become_frames(tmp_path):
    root, out = put(tmp_path / "in", "den_0001", 5), tmp_path / "out"
    put(root, "cafe_0001a", 1)
    write_depth(root / "den_0001", 1e9 + 60)  # no colour frame within a minute
    recipe = find_recipe("nyuv2_raw")(frames=4)
    work = Work([root], out)
    recipe.convert(work)
    assert work.faults == []
    assert [line["name"] for line in lines(out)] == [
        "cafe_0001a__00000", "den_0001__00000", "den_0001__00002", "den_0001__00004",
    ]  # fmt: skip
    assert {line["scene"] for line in lines(out)} == {"cafe_0001a", "den_0001"}
    assert lines(out)[2]["gap_ms"] == pytest.approx(10, abs=0.01)
    assert lines(out)[2]["colour_time"] == pytest.approx(1e9 + 2.01)

    source = NYUv2Raw(out, border_crop=[45, 470, 41, 601])
    frames = source.frames("train", ALL)
    assert (len(frames), frames.name(2)) == (4, "den_0001__00002")
    frame = frames.load(2)
    assert set(frame) == {"image", "depth", "depth_valid", "name"}
    assert frame["image"].shape == (3, 425, 560)
    assert abs(int(frame["image"][0, 200, 200]) - 12) <= 1
    inside = frame["depth"][frame["depth_valid"]]
    assert abs(inside.median().item() - 351.3 / (1092.5 - 702)) < 0.01
    assert frame["depth_valid"].all()  # what the depth camera sees covers this window
    np.testing.assert_allclose(
        frames.intrinsics(0), COLOUR.matrix() - [[0, 0, 41], [0, 0, 45], [0, 0, 0]], atol=1e-6
    )


def test_unregistered_frames_are_as_recorded(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    disparity = np.where(X < 100, 2047, 600 + X // 10)
    write_depth(root / "s", 1.0, disparity)
    write_colour(root / "s", 1.0, 77)
    NYUv2RawRecipe(register=False).convert(Work([root], out))
    frame = NYUv2Raw(out).frames("train", ALL).load(0)
    metres = np.where(disparity == 2047, 0, 351.3 / (1092.5 - disparity))
    np.testing.assert_allclose(frame["depth"].numpy(), metres, atol=0.000501)
    assert torch.equal(frame["depth_valid"], torch.from_numpy(disparity != 2047))
    assert (frame["image"] == 77).all()
    assert NYUv2Raw(out).frames("train", ALL).intrinsics(0)[0, 2] == pytest.approx(312.044759, abs=1e-5)


def test_damaged_frames_are_told_and_the_others_go_on(tmp_path):
    root, out = put(tmp_path / "in", "den_0001", 3), tmp_path / "out"
    first = sorted((root / "den_0001").glob("d-*"))[0]
    first.write_bytes(first.read_bytes()[:1000])
    write_depth(root / "den_0001", 1e9 + 1, 2047)
    touch(root / "lonely_0001", [1.0], [5.0])
    work = Work([root], out)
    NYUv2RawRecipe().convert(work)
    assert [line["name"] for line in lines(out)] == ["den_0001__00002"]
    assert len(work.faults) == 3
    assert "lonely_0001: none of its 1 depth frames has a colour frame within 40.0 ms" in work.faults[0]
    assert "cut short" in work.faults[1]
    assert "no pixel has a reading" in work.faults[2]

    # Mended and called again: what is there is kept, the list is new.
    kept = out / "depths" / "den_0001__00002.png"
    before = kept.stat().st_mtime_ns
    write_depth(root / "den_0001", 1e9)
    NYUv2RawRecipe().convert(Work([root], out))
    assert len(lines(out)) == 2
    assert kept.stat().st_mtime_ns == before


def test_what_is_unpacked_and_what_options_may_be():
    recipe = NYUv2RawRecipe()
    assert recipe.wanted("basement_0001a/d-1316653580.471513-1316138413.pgm")
    assert recipe.wanted("basements/basement_0001a/r-1316653580.484909-1316138413.ppm")
    assert not recipe.wanted("basement_0001a/a-1316653580.465154-1316138413.dump")
    assert not recipe.wanted("basement_0001a/INDEX.txt")
    with pytest.raises(ConfigError, match="frames=0"):
        NYUv2RawRecipe(frames=0)
    with pytest.raises(ConfigError, match="max_gap_ms=-1"):
        NYUv2RawRecipe(max_gap_ms=-1)


def test_a_folder_without_scenes(tmp_path):
    with pytest.raises(DataError, match="no scene in it"):
        NYUv2RawRecipe().convert(Work([tmp_path], tmp_path / "out"))
    touch(tmp_path / "lonely_0001", [1.0], [5.0])
    with pytest.raises(DataError, match="none of its 1 depth frames has a colour frame"):
        NYUv2RawRecipe().convert(Work([tmp_path], tmp_path / "out"))


def zipped(root, path, *scene_names):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in scene_names:
            for frame in sorted((root / name).iterdir(), reverse=True):
                file.write(frame, f"{path.stem}/{name}/{frame.name}")
    return path


def prepare(out, *given):
    words = ["--from", *map(str, given), "--to", str(out), "--workers", "1"]
    return main(["data", "prepare", "nyuv2_raw", "frames=4", *words])


def written(out):
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and p.suffix != ".json"
    }


@pytest.mark.parametrize("archived", ["both", "one"])
def test_only_sampled_frames_are_unpacked(tmp_path, archived, monkeypatch, capsys):
    """From archives, and from one beside a folder, come the frames that the folder alone gives."""
    root = put(put(tmp_path / "in", "den_0001", 7), "cafe_0001", 3)
    write_depth(root / "den_0001", 1e9 + 2.5)  # has no partner, but a number
    assert prepare(tmp_path / "right", root) == 0
    right = written(tmp_path / "right")
    names = [line["name"] for line in lines(tmp_path / "right")]
    assert names == ["cafe_0001__00000", "cafe_0001__00002", "den_0001__00001", "den_0001__00006"]

    given = [
        zipped(root, tmp_path / "dens.zip", "den_0001"),
        zipped(root, tmp_path / "cafe.zip", "cafe_0001"),
    ]
    if archived == "one":
        (tmp_path / "by_hand").mkdir()
        (root / "cafe_0001").rename(tmp_path / "by_hand" / "cafe_0001")
        given[1] = tmp_path / "by_hand"
    unpacked = []
    real = archive._write
    monkeypatch.setattr(
        archive, "_write", lambda *args: (unpacked.append(args[1].name.rpartition("/")[2]), real(*args))
    )
    capsys.readouterr()
    assert prepare(tmp_path / "out", *given) == 0
    assert written(tmp_path / "out") == right
    assert len(unpacked) == (8 if archived == "both" else 4)
    assert {name[2:14] for name in unpacked if name[0] == "d"} >= {"1000000001.0", "1000000005.0"}
    assert "dens.zip (4 of 15 files, " in capsys.readouterr().out


def test_what_a_retry_needs_is_kept_and_nothing_else(tmp_path, capsys):
    root, out = put(tmp_path / "in", "den_0001", 8), tmp_path / "out"
    bad = sorted((root / "den_0001").glob("d-*"))[3]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:1000])
    archive = zipped(root, tmp_path / "dens.zip", "den_0001")
    assert prepare(out, archive) == 1
    kept = sorted(p.name for p in (out / ".unpacked").rglob("*") if p.is_file())
    assert kept == [bad.name, sorted((root / "den_0001").glob("r-*"))[3].name]
    assert ".unpacked stays" in capsys.readouterr().out
    bad.write_bytes(whole)
    zipped(root, archive, "den_0001")
    assert prepare(out, archive) == 0
    assert "dens.zip (2 of 16 files, " in capsys.readouterr().out
    assert [line["name"][-1] for line in lines(out)] == ["1", "3", "5", "7"]
    assert not (out / ".unpacked").exists()

    # A scene without pairs is told, and no retry would read more.
    write_depth(root / "lonely_0001", 1.0)
    assert prepare(out, archive, zipped(root, tmp_path / "lonely.zip", "lonely_0001")) == 1
    assert not (out / ".unpacked").exists()
    assert ".unpacked" not in capsys.readouterr().out.splitlines()[-1]


def test_it_has_train_alone_and_no_labels(tmp_path):
    put(tmp_path / "in", "s", 1)
    NYUv2RawRecipe().convert(Work([tmp_path / "in"], tmp_path / "out"))
    source = NYUv2Raw(tmp_path / "out")
    assert source.info.classes == ()
    with pytest.raises(DataError, match="no split 'val'"):
        source.frames("val", ALL)
    with pytest.raises(DataError, match="no label belongs to it"):
        source.frames("train", ALL | {"label"})
    (tmp_path / "out" / "frames.jsonl").write_text("den\n")
    with pytest.raises(DataError, match=r"frames\.jsonl: the line 'den' must be a JSON object"):
        source.frames("train", ALL)


def test_training_on_it_is_refused_before_a_network_is_made(tiny):
    from hardpix.train.build import build

    cfg = tiny("data=nyuv2_raw", "backbone.name=there_is_none")
    with pytest.raises(DataError, match=r"nyuv2_raw has no labels, only depth, depth_valid, image"):
        build(cfg)


@pytest.mark.real
def test_a_real_pair_lines_up_once_registered(real_data):
    """Pixels at depth edges have strong image edges beside them: more of them after registration than before,
    and than with the translation or the rotation turned round."""
    folder = real_data / "nyudv2_raw" / "kinect_raw"
    image, depth = read_recorded_colour(folder / "NYU_color.ppm"), read_disparity(folder / "NYU_depth.pgm")
    depth = disparity_to_metres(depth)
    assert (depth > 0).mean() > 0.8
    assert 1 < np.median(depth[depth > 0]) < 6

    def strength(image, depth):
        grey = image.mean(-1)
        edges = np.hypot(*np.gradient(grey))
        edges = np.max([np.roll(edges, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=0)
        step = np.zeros(depth.shape, bool)
        for axis in (0, 1):
            other = np.roll(depth, -1, axis)
            step |= (depth > 0) & (other > 0) & (np.abs(other - depth) > 0.08 * np.minimum(other, depth))
        inner = (slice(25, -25), slice(25, -25))
        return edges[inner][step[inner]].mean()

    flat = undistorted(image)
    registered = strength(flat, register(depth))
    assert registered > 1.4 * strength(image, depth)
    assert registered > 1.3 * strength(flat, register(depth, translation=-TRANSLATION))
    assert registered > 1.1 * strength(flat, register(depth, rotation=ROTATION.T))


@pytest.mark.real
def test_the_white_border_is_that_of_the_labelled_images(real_data):
    white = undistorted(np.zeros((480, 640, 3), np.uint8))[..., 0] == 255
    published = np.asarray(Image.open(real_data / "nyudv2" / "train" / "rgb" / "0003.jpg")).min(-1) > 235
    assert published[white].mean() > 0.9
    assert published[30:-30, 30:-30].mean() < 0.5
