"""Which of several processes this one is, where torchrun or srun started them all alike. Standard library only."""

from __future__ import annotations

import os


def rank() -> int:
    """0 of a process that stands alone, and of those that Lightning starts itself."""
    return int(os.environ.get("RANK") or (os.environ["SLURM_PROCID"] if _by_srun() else 0))


def size() -> int:
    """How many processes were started alike."""
    if "RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1"))
    return int(os.environ["SLURM_NTASKS"]) if _by_srun() else 1


def _by_srun() -> bool:
    """In a step of srun: the batch script itself has SLURM's variables too, but stands alone."""
    return "SLURM_STEP_ID" in os.environ and {"SLURM_PROCID", "SLURM_NTASKS"} <= os.environ.keys()
