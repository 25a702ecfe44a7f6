"""The names of timm's models, read from its source text: a wrong one is told before timm and torch are imported."""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

TIMM_BACKBONE = "hardpix.models.TimmBackbone"
REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)", re.MULTILINE)


@cache
def timm_names() -> frozenset[str]:
    """What ``timm.list_models()`` gives; empty where timm is not installed."""
    found = find_spec("timm")
    folders = (found.submodule_search_locations if found else None) or ()
    files = (path for folder in folders for path in Path(folder, "models").rglob("*.py"))
    return frozenset(name for path in files for name in REGISTERED.findall(path.read_text(encoding="utf-8")))


def name_problem(name: object) -> str | None:
    """What is wrong with ``backbone.name``, with the nearest names there are; None for a model of timm's.

    A tag of weights (``resnet50.a1_in1k``) is not judged.
    """
    base, known = str(name).partition(".")[0], timm_names()
    if not known or base in known or not re.fullmatch(r"[\w.-]+", str(name)):
        return None  # the last are told by the backbone, with what they would have loaded
    near = difflib.get_close_matches(base, sorted(known), n=3, cutoff=0.4)
    return "timm has no such model" + (f"; nearest: {', '.join(near)}" if near else "")
