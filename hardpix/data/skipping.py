"""Training frames that cannot be read: the end of the run, or counted, told and replaced."""

from __future__ import annotations

from typing import Any

from hardpix.types import DataError

SKIPPED = "skipped"  # in a batch on its way to the main process: {name of a frame: what is wrong with it}
TOLD = 20  # frames that an error names


class Skips:
    """Those of a run: which frames could not be read, and when there are too many of them.

    on_error: ``stop``, or ``skip``, which gives a frame's place in the batch to the next readable one of the split.
    max_skip: how many different frames may be skipped in a run (in each process).
    """

    def __init__(self, on_error: str, max_skip: int) -> None:
        self.allowed = max_skip if on_error == "skip" else 0
        self.found: dict[str, str] = {}

    def take(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch without what was skipped for it; that is told, each frame once, and counted."""
        for name, reason in batch.pop(SKIPPED, {}).items():
            if name in self.found:
                continue
            self.found[name] = reason
            if len(self.found) > self.allowed:
                raise too_many(self.found, self.allowed)
            print(f"skipped ({len(self.found)} of at most {self.allowed}): {reason}", flush=True)
        return batch


def too_many(found: dict[str, str], allowed: int) -> DataError:
    """The error that names all frames (the first twenty) which could not be read."""
    told = "; ".join(list(found.values())[:TOLD])
    more = f"; and {len(found) - TOLD} more" if len(found) > TOLD else ""
    return DataError(
        f"{len(found)} training frames cannot be read, and data.max_skip={allowed} of them may be skipped: "
        f"{told}{more}; mend them or raise data.max_skip"
    )
