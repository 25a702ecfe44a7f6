"""Which code and which machine a run had; never a factor of a comparison."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import hardpix
from hardpix.run.rundir import process_began

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "torchmetrics", "hydra-core", "numpy")


def code_versions() -> dict[str, str]:
    """Versions of what computes, and the commit of the checkout (with whether it has uncommitted changes)."""
    found = {"hardpix": hardpix.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    commit = _git("rev-parse", "HEAD")
    if commit:
        found |= {"commit": commit, "dirty": str(bool(_git("status", "--porcelain")))}
    return found


def host_facts(accelerator: str, precision: str) -> dict[str, str]:
    gpu = torch.cuda.is_available() and accelerator != "cpu"
    device = torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU"
    threads = str(torch.get_num_threads())
    return {
        "device": device,
        "precision": precision,
        "threads": threads,
        "system": platform.system(),
        "hostname": platform.node(),
        "pid": str(os.getpid()),
        "pid_began": process_began(os.getpid()),
    }


def _git(*arguments: str) -> str:
    """Output of git in the checkout that holds the package; empty where there is no such checkout."""
    root = Path(hardpix.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
