"""W&B's offline files, read back."""

import json
import struct
import time

import pytest

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
