"""What tables compare of data and processes: what lies at a path and not the path, unknown where a record is old."""

from dataclasses import replace

import pytest

from hardpix.page.runs import automatic_rows
from hardpix.record import SCHEMA, RunRecord, read, with_batch, write
from hardpix.tables.columns import phrases
from hardpix.tables.compare import Run, disagreements, group, warnings
from hardpix.tables.protocol_check import Use, refuse_unequal
from hardpix.tables.protocol_check import departure as departure_of
from hardpix.types import HardpixError

DATA = {"folder/train": "t", "folder/val": "v", "folder/test": "x", "folder/test content": "c"}


def run(name, root="/a", data=DATA, dataset="folder", **factors):
    own = {"method._target_": "hardpix.methods.Baseline", "data.source.root": root, "seed": 0, **factors}
    made = RunRecord(
        schema=SCHEMA, run_id=name, status="done", factors=own, metrics={"test/miou": 0.5}, seed=0, parent=None,
        code={}, host={}, started="", dataset=dataset, data=dict(data),
    )  # fmt: skip
    return Run(name, made)


def rows(*runs, by=("method._target_",), ignore=()):
    return [[one.directory for one in row.runs] for row in group(runs, by, ignore)]


def test_the_same_data_at_two_places_are_the_same():
    two = run("a"), run("b", "/b/copy")
    assert rows(*two) == [["a", "b"]]
    assert disagreements(two) == []
    assert group(two, ["data"])[0].runs == two
    assert rows(*two, by=("data.source.root",)) == [["a", "b"]]
    assert automatic_rows(two) == ["method"]


@pytest.mark.parametrize("key", ["folder/train", "folder/val", "folder/test", "folder/test content"])
@pytest.mark.parametrize("root", ["/a", "/b"])
def test_other_data_are_refused_wherever_they_lie(key, root):
    two = run("a"), run("b", root, DATA | {key: "other"})
    with pytest.raises(HardpixError, match=rf"data\.fingerprint\.{key.partition('/')[2]} \("):
        rows(*two)
    assert rows(*two, ignore=["data.fingerprint"]) == [["a", "b"]]
    assert any("data.fingerprint" in line for line in warnings(two, ["data.fingerprint"]))
    assert rows(*two, by=("data.source.root",)) == [["a"], ["b"]]
    assert rows(*two, by=("data",)) == [["a"], ["b"]]


def test_another_data_set_of_the_same_settings_is_refused():
    with pytest.raises(HardpixError, match=r"data\.fingerprint\.train"):
        rows(run("a"), run("b", "/b", {"rooms/train": "r", "rooms/test": "s"}, "rooms"))


def test_without_fingerprints_the_paths_are_compared():
    old = run("old", data={})
    assert rows(old, run("b", "/a")) == [["old", "b"]]
    for other in (run("b", "/b"), run("b", "/b", {})):
        with pytest.raises(HardpixError, match=r"data\.source\.root \(/a in old, /b in b"):
            rows(old, other)


def test_splits_that_one_record_lacks_are_not_compared():
    """Of an old run only the split that is scored now is known."""
    full, part = run("a"), run("b", "/b", {"folder/test": "x"})
    assert rows(full, part) == [["a", "b"]]
    with pytest.raises(HardpixError, match=r"data\.fingerprint\.test"):
        rows(full, run("b", "/b", {"folder/test": "y"}))


def test_a_run_that_is_scored_on_other_data_keeps_those_of_its_training():
    def scored(name, root, trained):
        data = {"rooms/train": trained, "folder/test": "x"}
        return run(
            name, root, data, **{"trained.dataset": "rooms", "trained.data.source.root": f"{root}/rooms"}
        )

    assert rows(scored("a", "/a", "r"), scored("b", "/b", "r")) == [["a", "b"]]
    with pytest.raises(HardpixError, match=r"trained\.data\.fingerprint\.train"):
        rows(scored("a", "/a", "r"), scored("b", "/b", "s"))


def test_the_data_of_the_run_below_count_too():
    def standing(name, root, below):
        data = DATA | {f"parent_config.folder/{split}": below for split in ("train", "val", "test")}
        return run(name, "/a", data, **{"parent_config.data.source.root": root, "parent_config.seed": 1})

    assert rows(standing("a", "/a", "p"), standing("b", "/b", "p")) == [["a", "b"]]
    with pytest.raises(HardpixError, match=r"parent_config\.data\.fingerprint\.train"):
        rows(standing("a", "/a", "p"), standing("b", "/a", "q"), by=())


@pytest.mark.parametrize("key", ["data.source.classes", "data.labeled", "backbone.pretrained", "init_from"])
def test_files_that_settings_name_are_compared_by_content(key):
    def naming(name, path, content):
        return run(name, data=DATA | ({key: content} if content else {}), **{key: path})

    assert rows(naming("a", "/a/f", "1"), naming("b", "/b/f", "1")) == [["a", "b"]]
    for other in (naming("b", "/a/f", "2"), naming("b", "/b/f", ""), run("b", **{key: None})):
        with pytest.raises(HardpixError, match=rf"{key} \("):
            rows(naming("a", "/a/f", "1"), other)


# -- processes ---------------------------------------------------------------------------------------------------------

ONE = {"data.batch_size": 4, "trainer.accumulate": 2, "trainer.devices": 1, "trainer.num_nodes": 1}


@pytest.mark.parametrize(
    ("factors", "auto", "found"),
    [
        (ONE, None, (1, 8)),
        (ONE | {"trainer.devices": 3, "trainer.num_nodes": 2}, None, (6, 48)),
        (ONE | {"trainer.devices": [0, 5]}, None, (2, 16)),
        (ONE | {"trainer.devices": "auto"}, None, (None, None)),
        (ONE | {"trainer.devices": -1}, None, (None, None)),
        (ONE | {"trainer.devices": "auto"}, 1, (1, 8)),
        (ONE | {"trainer.devices": "auto", "trainer.world_size": 8}, None, (8, 64)),
        ({"seed": 1}, 1, (None, None)),
    ],
)
def test_processes_and_batch_follow_where_they_are_not_told(factors, auto, found):
    complete = with_batch(factors, auto)
    assert (complete.get("trainer.world_size"), complete.get("trainer.effective_batch")) == found
    below = with_batch({f"parent_config.{key}": value for key, value in factors.items()} | ONE, 1)
    if auto is None:
        assert below.get("parent_config.trainer.world_size") == found[0]


def test_records_of_earlier_versions_are_completed_as_they_are_read(tmp_path):
    old = run("a", **ONE).record
    write(old, tmp_path)
    assert read(tmp_path).factors == old.factors | {"trainer.world_size": 1, "trainer.effective_batch": 8}
    for device, known in (("NVIDIA A100", None), ("x86_64 CPU", 1)):
        write(
            replace(old, factors=old.factors | {"trainer.devices": "auto"}, host={"device": device}), tmp_path
        )
        assert read(tmp_path).factors.get("trainer.world_size") == known


def trained(name, size, **changes):
    own = {"data.batch_size": 4, "trainer.accumulate": 1, "trainer.devices": size, **changes}
    known = {} if size == "auto" else {"trainer.world_size": size}
    return run(name, **with_batch(own | known))


def test_runs_of_other_processes_are_refused_or_stand_in_a_column():
    two = trained("a", 1), trained("b", 2)
    with pytest.raises(
        HardpixError, match=r"trainer\.effective_batch \(4 in a, 8 in b\); trainer\.world_size"
    ):
        rows(*two)
    assert rows(*two, by=("trainer.world_size",)) == [["a"], ["b"]]
    assert automatic_rows(two) == ["trainer.world_size"]
    halved = trained("c", 2, **{"data.batch_size": 2})
    with pytest.raises(HardpixError, match=r"data\.batch_size.*trainer\.world_size"):
        rows(two[0], halved)
    assert rows(
        two[0], halved, by=("trainer.effective_batch",), ignore=["data.batch_size", "trainer.world_size"]
    ) == [["a", "c"]]
    assert "processes 2" in phrases(two[1].record.factors)
    assert not any("processes" in phrase for phrase in phrases(two[0].record.factors))


@pytest.mark.parametrize("key", ["data.batch_size", "trainer.accumulate"])
def test_a_declared_part_of_the_batch_explains_it(key):
    two = trained("a", 1), trained("b", 1, **{key: 8})
    assert rows(*two, by=(key,)) == [["a"], ["b"]]
    assert automatic_rows(two) == [key]


def test_declared_devices_explain_the_processes():
    assert rows(trained("a", 1), trained("b", 2), by=("trainer.devices",)) == [["a"], ["b"]]


def test_how_processes_were_asked_for_does_not_count():
    own = {"trainer.strategy": "ddp", "trainer.num_nodes": 1}
    assert rows(trained("a", 1), run("b", **trained("b", 1).record.factors | own | {"trainer.devices": [3]}))


def test_unknown_processes_are_told_and_not_refused():
    two = trained("a", 1), trained("b", "auto")
    assert rows(*two) == [["a", "b"]]
    assert [line for line in warnings(two) if "how many processes" in line] == [
        "1 of 2 runs do not record how many processes they trained in (trainer.devices=auto of an earlier version), "
        "and so not how large their batch was."
    ]
    assert not any("how many processes" in line for line in warnings([trained("a", 1), run("c")]))


# -- published tables --------------------------------------------------------------------------------------------------


def use(name, role="test", **changes):
    return Use(run(name, **changes), f"t/{name}/miou", "folder", "test", role)


def unequal(*uses):
    refuse_unequal(uses, [departure_of(one, []) for one in uses], [])


def test_rows_of_a_published_table_are_scored_on_the_same_data():
    unequal(use("a"), use("b", root="/b"), use("c", data={}))
    for key, said in (
        ("folder/test", "scored data"),
        ("folder/test content", "scored data"),
        ("folder/train", "training"),
    ):
        with pytest.raises(HardpixError, match=said):
            unequal(use("a"), use("b", data=DATA | {key: "other"}))
    unequal(use("a"), use("b", data=DATA | {"folder/val": "other"}))
    another = {"data.source.exclude_nyu": True}  # reads other frames by design
    unequal(use("a"), use("b", data=DATA | {"folder/train": "other", "folder/test": "other"}, **another))


def test_a_packed_set_is_another_reading():
    own = {"data.source._target_": "hardpix.data.Packed"}
    unequal(use("a"), use("b", data=DATA | {"folder/train": "p", "folder/test": "q"}, **own))
