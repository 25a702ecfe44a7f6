"""Where a backbone's weights may come from: not from names and options of timm that fetch; the hub, if it answers."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

from hardpix.types import ConfigError

HUB_SECONDS = 5.0  # to be connected with; its client alone tries for more than a minute

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


@contextmanager
def hub() -> Iterator[None]:
    """Within: timm asks the hub, or only the files that it has left here before, if nobody answers there."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(endpoint: str) -> bool:
    place = urlsplit(endpoint)
    if place.scheme in getproxies() or place.hostname is None:
        return True  # the way there is not ours to judge
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        socket.create_connection((place.hostname, port), HUB_SECONDS).close()
    except OSError:
        return False
    return True
