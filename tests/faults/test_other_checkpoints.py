"""A checkpoint of another architecture, number of classes or version, or a damaged one: what is told, at each door."""

import json
import shutil

import pytest
import torch

from hardpix import record
from hardpix.cli import main
from hardpix.train import rundir
from hardpix.train.checkpoint import load_weights
from hardpix.train.train import train
from hardpix.types import ConfigError, HardpixError


@pytest.fixture(scope="module")
def trained(tmp_path_factory, composed_tiny):
    runs = tmp_path_factory.mktemp("made") / "runs"
    train(
        composed_tiny(
            runs, ("run=a", "trainer.max_steps=2", "callbacks.checkpoint_every_steps=1", "panels=0")
        )
    )
    return runs / "default/a"


@pytest.fixture
def run_dir(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs/default/a")
    return tmp_path / "runs/default/a"


def repacked(run_dir, change):
    """Another content of ``last.ckpt``, with a checksum that is right."""
    path = run_dir / rundir.LAST
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    (path.parent / "manifest.json").unlink()
    (run_dir / "checkpoints/previous.ckpt").unlink(missing_ok=True)


def widen(content):
    state = content["state_dict"]
    key = next(k for k, v in state.items() if v.dim() == 4)
    state[key] = torch.zeros(3, 3, 3, 3)
    del state[list(state)[-1]]
    state["model.head.newer"] = torch.zeros(2)


def test_first_keys_and_shapes_of_another_architecture(run_dir, capsys):
    repacked(run_dir, widen)
    assert main(["evaluate", str(run_dir), "--out", str(run_dir / "out")]) == 2
    said = capsys.readouterr().err
    assert "last.ckpt does not fit the configured model: " in said
    assert " missing" in said
    assert "model.head.newer unexpected" in said
    assert " is [3, 3, 3, 3], not [" in said
    assert said.count("\n") == 1


def test_the_version_it_was_made_with(run_dir, capsys):
    repacked(run_dir, widen)
    path = run_dir / record.FILE_NAME
    content = json.loads(path.read_text())
    content["code"]["hardpix"] = "0.0.0"
    path.write_text(json.dumps(content))
    assert main(["evaluate", str(run_dir)]) == 2
    assert "(it was made with hardpix 0.0.0, here " in capsys.readouterr().err


def test_another_number_of_classes(run_dir, tiny, capsys):
    few = ["data=synthetic", "data.source.classes=[wall,floor]"]
    assert main(["evaluate", str(run_dir), *few]) == 2
    assert "was trained on 18 classes, synthetic has 2, and they differ" in capsys.readouterr().err
    with pytest.raises(
        ConfigError, match=r"already holds a run .*data\.source\.classes: None -> \['wall', 'floor'\]"
    ):
        train(tiny("run=a", "data.source.classes=[wall,floor]"))


def test_resuming_under_another_network_tells_the_setting(run_dir, tiny):
    with pytest.raises(ConfigError, match=r"another configuration \(.*head\.channels: 8 -> 16"):
        train(
            tiny(
                "run=a",
                "head.channels=16",
                "trainer.max_steps=2",
                "callbacks.checkpoint_every_steps=1",
                "panels=0",
            )
        )


def test_a_start_from_networks_with_nothing_in_common(run_dir, tiny):
    """Tensors are renamed: a ResNet has some in common with itself."""
    repacked(run_dir, lambda c: c.update(state_dict={f"other.{k}": v for k, v in c["state_dict"].items()}))
    with pytest.raises(HardpixError, match=r"no tensor matches this model: .* missing") as caught:
        train(tiny("run=b", f"init_from='{run_dir}'", "head.channels=16"))
    assert "(that run -> this one: head.channels: 8 -> 16)" in str(caught.value)


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(path.read_bytes()[:-100]),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:5000] + b"\xff" + path.read_bytes()[5001:]),
])  # fmt: skip
def test_damage_is_called_damage(run_dir, damage):
    damage(run_dir / rundir.LAST)
    with pytest.raises(HardpixError, match=r"last\.ckpt is damaged"):
        load_weights(torch.nn.Linear(1, 1), run_dir, "last")
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(HardpixError, match=r"last\.ckpt does not exist"):
        load_weights(torch.nn.Linear(1, 1), run_dir, "last")
