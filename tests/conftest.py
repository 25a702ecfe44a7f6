"""Fixtures that several folders share: tiny configurations on synthetic rooms, one cache for the session."""

import functools
import json
import os
import struct
import sys
import time
from pathlib import Path

import pytest

REAL = Path(os.environ.get("HARDPIX_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

# Everything small: eight 32x48 frames, a ResNet of a few thousand weights, no W&B, no workers, one device.
TINY = (
    "data.source.height=32",
    "data.source.width=48",
    "data.source.train_frames=8",
    "data.source.val_frames=3",
    "data.source.test_frames=3",
    "data.train_transform.crop=[32,48]",
    "data.batch_size=4",
    "data.eval_batch_size=2",
    "data.num_workers=0",
    "backbone.name=test_resnet",
    "head.channels=8",
    "model.aux_channels=8",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.max_steps=4",
    "trainer.log_every_steps=1",
    "trainer.sanity_steps=0",
    "callbacks.progress=none",
    "logger=csv",
    "panels=1",
)


def pytest_collection_modifyitems(items):
    """What trains the three stages of a cascade is slow."""
    for item in items:
        if "cascade" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _quiet_and_offline(tmp_path_factory):
    """No network, no account, and a cache of rendered rooms and class counts that ends with the session."""
    values = {
        "WANDB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
        "HARDPIX_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in values.items():
            patch.setenv(key, value)
        yield


@pytest.fixture(autouse=True)
def _seeded():
    """What a test draws does not depend on the tests that ran before it in the same process."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def tiny(tmp_path):
    """``tiny("method=hardness", ...)``: a small composed configuration whose runs lie in ``tmp_path``."""
    return lambda *overrides: compose_tiny(tmp_path / "runs", overrides)


@pytest.fixture(scope="session")
def composed_tiny():
    """``composed_tiny(runs_dir, overrides)``: as ``tiny``, for fixtures of a whole module."""
    return compose_tiny


def compose_tiny(runs_dir, overrides):
    given = {o.split("=")[0] for o in overrides}  # a group can be chosen once
    kept = [o for o in TINY if o.split("=")[0] not in given]
    if any(
        o.startswith(("head=refinenet", "head=segnet", "head=smp")) for o in overrides
    ):  # of widths of their own
        kept.remove("head.channels=8")
    if "backbone=segnet" in overrides:
        kept[kept.index("backbone.name=test_resnet")] = "backbone.widths=[4,4,4,4,4]"
        kept.append("backbone.pretrained=false")
    if "backbone=bisenetv2" in overrides:
        kept.remove("backbone.name=test_resnet")
    if "data" in given:
        kept = [o for o in kept if not o.startswith("data.source.")]
    cfg = _composed(tuple(kept), tuple(overrides)).copy()
    cfg.runs_dir = str(runs_dir)
    return cfg


@functools.cache
def _composed(kept, overrides):
    """Composing takes an eighth of a second, and many tests ask for the same."""
    from hardpix.config.compose import compose

    return compose([*kept, *overrides])


@pytest.fixture
def stacked(tiny):
    """``stacked("method=detail", "method=error_prediction", "head=psp")``: a configuration on others, top down.

    Each text has overrides; no run is behind them, so that networks are as initialised.
    """
    from hardpix.train.parent import with_parent

    def make(*cases):
        cfg = tiny(*cases[-1].split())
        for case in reversed(cases[:-1]):
            cfg = with_parent(tiny(*case.split(), "parent=nowhere"), cfg, "parent")
        return cfg

    return make


@pytest.fixture(scope="session")
def cascade(tmp_path_factory):
    """``cascade("error_prediction")``: the directory of that stage's run of two steps, trained once; not to be changed.

    ``semantic`` (DeepLabv3+), ``error_prediction`` on it, ``detail`` on that.
    """
    from hardpix.train.train import train

    folder = tmp_path_factory.mktemp("cascade")
    below = {"semantic": None, "error_prediction": "semantic", "detail": "error_prediction"}

    def run_of(stage):
        directory = folder / "default" / stage
        if not directory.is_dir():
            given = ["head=deeplabv3plus", "head.low_channels=4"]
            if below[stage]:
                given = [f"method={stage}", "method.channels=8", f"parent='{run_of(below[stage])}'"]
            given += [f"run={stage}", "trainer.max_steps=2", "panels=0", "scheduler=constant"]
            train(compose_tiny(folder, given), [])
        return directory

    return run_of


@pytest.fixture(scope="session")
def real_data():
    """The folder of real frames; skips where it is absent."""
    if not REAL.is_dir():
        pytest.skip(f"no real frames at {REAL}; set HARDPIX_REAL_DATA to their folder")
    return REAL


# W&B's offline files, read back.


BLOCK, HEADER = 32768, 7  # LevelDB's log format, in which W&B writes its records


def records(path):
    """The protobuf records of a ``.wandb`` file; whole ones, as of a process that was killed."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        parts += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # whole, or the last part
            found = Record()
            found.ParseFromString(parts)
            yield found
            parts = b""


def whole(path):
    from google.protobuf.message import DecodeError  # wandb's, which some machines are without

    try:
        return any(one.WhichOneof("record_type") == "exit" for one in records(path))
    except DecodeError:  # a record that is being written
        return False


class Offline:
    """What W&B would be sent of a run's folder."""

    def __init__(self, run_dir):
        (self.path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
        self.rows, self.summary, self.config, self.exit_code, self.run = {}, {}, {}, None, None
        limit = time.monotonic() + 60  # wandb's own process writes the end of a file when the run has gone on
        while not whole(self.path):
            assert time.monotonic() < limit, "the file has no end"
            time.sleep(0.05)
        for one in records(self.path):
            kind = one.WhichOneof("record_type")
            if kind == "run":
                self.run = one.run
                self.config |= {
                    u.key or tuple(u.nested_key): json.loads(u.value_json) for u in one.run.config.update
                }
            elif kind == "history":
                row = {}
                for i in one.history.item:
                    path = [i.key] if i.key else list(i.nested_key)
                    node = row
                    for part in path[:-1]:
                        node = node.setdefault(part, {})
                    node[path[-1]] = json.loads(i.value_json)
                step = row.pop("_step")
                assert step not in self.rows, "a step twice"
                self.rows[step] = row
            elif kind == "summary":
                self.summary |= {
                    u.key or ".".join(u.nested_key): json.loads(u.value_json) for u in one.summary.update
                }
            elif kind == "exit":
                self.exit_code = one.exit.exit_code

    def scalars(self):
        plain = {
            step: {k: v for k, v in row.items() if not k.startswith(("_", "panels/", "per_class"))}
            for step, row in self.rows.items()
        }
        return {step: row for step, row in plain.items() if row}


@pytest.fixture(scope="session")
def offline():
    """``offline(run_dir)``: the rows, summary, configuration of the one W&B file in a run's folder."""
    return Offline
