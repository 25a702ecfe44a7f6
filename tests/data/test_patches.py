"""Tiles and stitching: the windows of a frame, their names, and labels put back together."""

import numpy as np
import pytest
from PIL import Image

from hardpix.cli import main
from hardpix.data.patches import Tile, read_name, read_sizes, stitch, stitch_files, tiles, write_sizes
from hardpix.types import ConfigError, DataError

SIZES = [(8, 8), (5, 3), (5, 20), (20, 5), (16, 24), (13, 17), (8, 12), (9, 8), (40, 8)]


def cut(label, side, overlap, frame="P1"):
    """(tile, patch) pairs; the frame is padded with 255 where it is smaller than a tile."""
    padded = np.full(np.maximum(label.shape, side), 255, label.dtype)
    padded[: label.shape[0], : label.shape[1]] = label
    return [(t, padded[t.top : t.bottom, t.left : t.right]) for t in tiles(frame, label.shape, side, overlap)]


def save(folder, patches):
    folder.mkdir(parents=True, exist_ok=True)
    for tile, patch in patches:
        Image.fromarray(patch).save(folder / f"{tile.name}.png")
    return sorted(folder.iterdir())


def random_label(size, seed=0):
    return np.random.default_rng(seed).integers(1, 16, size, dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 3, 4, 7])
def test_cutting_and_stitching_gives_the_label_back(size, overlap):
    label = random_label(size)
    patches = cut(label, 8, overlap)
    np.testing.assert_array_equal(stitch(size, patches), label)
    np.testing.assert_array_equal(stitch(size, patches[::-1]), label)


def test_windows_are_mmsegmentations():
    # 1147 x 1023 pixels, patch 896, overlap 384: a step of 512, the last window shifted back inside.
    found = [tile[1:] for tile in tiles("P0003", (1023, 1147), 896, 384)]
    assert found == [(0, 896, 0, 896), (0, 896, 251, 1147), (127, 1023, 0, 896), (127, 1023, 251, 1147)]
    assert [t[1:] for t in tiles("a", (1408, 700), 896, 384)] == [(0, 896, 0, 896), (512, 1408, 0, 896)]
    starts = {t.left for t in tiles("a", (800, 2000), 896, 384)}
    assert starts == {0, 512, 1024, 1104}


def test_rows_stand_before_columns_in_names(tmp_path):
    tile = Tile("P_3", 0, 896, 512, 1408)
    assert tile.name == "P_3_0_896_512_1408"
    assert read_name(tmp_path / "P_3_0_896_512_1408.png") == tile
    for wrong in ("P0003.png", "P0003_1_2_3.png", "P0003_5_5_0_4.png", "P0003_0_8_9_4.png"):
        with pytest.raises(DataError, match=r"tells of no patch; it must be FRAME_TOP_BOTTOM_LEFT_RIGHT"):
            read_name(tmp_path / wrong)


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_an_overlap_that_leaves_no_step_is_refused(overlap):
    with pytest.raises(
        ConfigError, match=r"overlap=-?\d+: must be 0 or more and less than the patch, which is 8"
    ):
        tiles("a", (20, 20), 8, overlap)


def test_a_pixel_takes_the_patch_in_which_it_lies_deepest():
    # Two tiles of 8 side by side share columns 4..7: the left one keeps 4 and 5, the right one takes 6 and 7.
    side_by_side = [(t, np.full((8, 8), i + 1, np.uint8)) for i, t in enumerate(tiles("a", (8, 12), 8, 4))]
    assert stitch((8, 12), side_by_side)[0].tolist() == [1] * 6 + [2] * 6
    one_above_the_other = [
        (t, np.full((8, 8), i + 1, np.uint8)) for i, t in enumerate(tiles("a", (12, 8), 8, 4))
    ]
    assert stitch((12, 8), one_above_the_other)[:, 0].tolist() == [1] * 6 + [2] * 6
    # An odd overlap has a middle column: the earlier tile keeps it.
    odd = [(t, np.full((8, 8), i + 1, np.uint8)) for i, t in enumerate(tiles("a", (8, 13), 8, 3))]
    assert stitch((8, 13), odd)[0].tolist() == [1] * 7 + [2] * 6


def test_the_frames_own_edges_are_not_inner():
    # Four tiles of 8 on 12x12: the corner of each is its own, and each takes the quarter it reaches the border in.
    four = [(t, np.full((8, 8), i + 1, np.uint8)) for i, t in enumerate(tiles("a", (12, 12), 8, 4))]
    out = stitch((12, 12), four)
    expected = np.block([[np.full((6, 6), 1), np.full((6, 6), 2)], [np.full((6, 6), 3), np.full((6, 6), 4)]])
    np.testing.assert_array_equal(out, expected)


def test_the_nearest_inner_edge_decides(tmp_path):
    # The naive rule, pixel by pixel, on a frame with tiles whose overlaps differ along the two sides.
    size, side, overlap = (19, 26), 8, 3
    patches = [(t, np.full((8, 8), i, np.uint8)) for i, t in enumerate(tiles("a", size, side, overlap))]
    out = stitch(size, patches)
    for y in range(size[0]):
        for x in range(size[1]):
            depth = []
            for t, _ in patches:
                inside = t.top <= y < t.bottom and t.left <= x < t.right
                edges = [y - t.top] * (t.top > 0) + [t.bottom - 1 - y] * (t.bottom < size[0])
                edges += [x - t.left] * (t.left > 0) + [t.right - 1 - x] * (t.right < size[1])
                depth.append(min(edges, default=99) if inside else -1)
            assert out[y, x] == int(np.argmax(depth)), (y, x)


def test_labels_above_255_stay(tmp_path):
    label = np.arange(8 * 12, dtype=np.uint16).reshape(8, 12) * 100
    np.testing.assert_array_equal(stitch((8, 12), cut(label, 8, 4)), label)


def test_files_of_several_frames(tmp_path):
    labels = {"P1": random_label((13, 17), 1), "P2": random_label((5, 20), 2), "P3": random_label((8, 8), 3)}
    for frame, label in labels.items():
        files = save(tmp_path / "patches", cut(label, 8, 3, frame))
    sizes = {frame: label.shape for frame, label in labels.items()}
    assert stitch_files(files, tmp_path / "out", overlap=3, sizes=sizes) == []
    for frame, label in labels.items():
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / f"{frame}.png")), label)


def test_without_sizes_a_small_frame_keeps_its_padding(tmp_path):
    label = random_label((5, 12))
    files = save(tmp_path / "patches", cut(label, 8, 4))
    assert stitch_files(files, tmp_path / "out", overlap=4) == []
    out = np.asarray(Image.open(tmp_path / "out" / "P1.png"))
    assert out.shape == (8, 12)
    np.testing.assert_array_equal(out[:5], label)
    assert (out[5:] == 255).all()


def test_missing_patches_are_named_and_other_frames_go_on(tmp_path):
    files = save(
        tmp_path / "p", cut(random_label((13, 17)), 8, 3, "P1") + cut(random_label((8, 8)), 8, 3, "P2")
    )
    for name in ("P1_0_8_5_13", "P1_5_13_9_17"):
        (tmp_path / "p" / f"{name}.png").unlink()
    files = sorted((tmp_path / "p").iterdir())
    faults = stitch_files(files, tmp_path / "out", overlap=3)
    assert len(faults) == 1
    assert faults[0].startswith(
        "P1: 2 of its 6 patches are missing: P1_0_8_5_13, P1_5_13_9_17; the frame is left out"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["P2.png"]


def test_a_whole_missing_side_is_seen_with_sizes_alone(tmp_path):
    patches = [(tile, patch) for tile, patch in cut(random_label((8, 20)), 8, 4) if tile.right < 20]
    files = save(tmp_path / "p", patches)
    assert stitch_files(files, tmp_path / "out", overlap=4) == []
    faults = stitch_files(files, tmp_path / "out", overlap=4, sizes={"P1": (8, 20)})
    assert "1 of its 4 patches are missing: P1_0_8_12_20" in faults[0]
    faults = stitch_files(files, tmp_path / "out", overlap=4, sizes={"P2": (8, 20)})
    assert "P1: the table of sizes does not name this frame" in faults[0]


def test_a_patch_that_contradicts_its_name(tmp_path):
    files = save(tmp_path / "p", cut(random_label((8, 12)), 8, 4))
    Image.fromarray(np.zeros((8, 7), np.uint8)).save(files[1])
    faults = stitch_files(files, tmp_path / "out", overlap=4)
    assert "P1_0_8_4_12.png measures 7x8 pixels, but its name says 8x8" in faults[0]


def test_patches_that_do_not_belong_together(tmp_path):
    files = save(tmp_path / "p", cut(random_label((8, 16)), 8, 4))
    faults = stitch_files(files, tmp_path / "out", overlap=3)
    assert "P1_0_8_4_12.png: no patch of the frame lies there; the overlap and the frame's size" in faults[0]
    with pytest.raises(DataError, match="must be squares of one size"):
        stitch_files([*files, tmp_path / "P1_0_9_0_9.png"], tmp_path / "out", overlap=4)
    with pytest.raises(DataError, match="are the same patch"):
        stitch_files([*files, tmp_path / "q" / files[0].name], tmp_path / "out", overlap=4)


def test_sizes_are_read_as_written(tmp_path):
    write_sizes(tmp_path / "sizes.csv", {"P1": (13, 17), "P2": (5, 20)})
    assert (tmp_path / "sizes.csv").read_text() == "frame,height,width\nP1,13,17\nP2,5,20\n"
    assert read_sizes(tmp_path / "sizes.csv") == {"P1": (13, 17), "P2": (5, 20)}
    (tmp_path / "sizes.csv").write_text("frame,height\nP1,13\n")
    with pytest.raises(DataError, match=r"sizes\.csv: not readable as a table frame,height,width"):
        read_sizes(tmp_path / "sizes.csv")


def test_the_command(tmp_path, capsys):
    label = random_label((5, 12))
    save(tmp_path / "p", cut(label, 8, 4))
    write_sizes(tmp_path / "sizes.csv", {"P1": (5, 12)})
    given = ["data", "stitch", f"{tmp_path}/p", "--out", f"{tmp_path}/out", "--overlap", "4"]
    assert main([*given, "--sizes", f"{tmp_path}/sizes.csv"]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "P1.png")), label)
    (tmp_path / "p" / "P1_0_8_4_12.png").unlink()
    assert main([*given, "--sizes", f"{tmp_path}/sizes.csv"]) == 1
    assert "hardpix: P1: 1 of its 2 patches are missing" in capsys.readouterr().err
    assert main(["data", "stitch", f"{tmp_path}/none", "--out", f"{tmp_path}/out"]) == 2
    assert "none: no such folder" in capsys.readouterr().err
