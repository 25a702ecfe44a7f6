"""What a backbone's settings must not load: names and options of timm that fetch or read files of their own."""

from __future__ import annotations

import re
from typing import Any

from hardpix.types import ConfigError

LOADING = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def check_source(name: str, options: dict[str, Any]) -> None:
    """Refuse names such as ``hf-hub:OWNER/NAME`` and ``local-dir:PATH``, and options that load."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(
            f"backbone.name={name}: must be a name of timm's own list; weights from elsewhere are a file, "
            "backbone.pretrained=FILE.safetensors"
        )
    if loading := sorted(set(options) & set(LOADING)):
        raise ConfigError(
            f"backbone.options.{loading[0]}: is not passed on; weights are given by backbone.pretrained"
        )
