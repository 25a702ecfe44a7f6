"""Files of configuration that Hydra reads by itself, judged first where they are not hardpix's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult

from hardpix.plain_yaml import read_text
from hardpix.run.catalog import conf_dir


@contextmanager
def files_judged() -> Iterator[None]:
    """Within the block a file of too many bytes, levels or repetitions is refused before Hydra loads it."""
    load, own = ConfigRepository.load_config, conf_dir().resolve()

    def judged(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path=config_path, object_type=ObjectType.CONFIG)
        if source is not None and source.scheme() == "file":
            path = Path(source.path, source._normalize_file_name(config_path)).resolve()
            if not path.is_relative_to(own):
                read_text(path)
        return load(self, config_path)

    ConfigRepository.load_config = judged  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigRepository.load_config = load  # type: ignore[method-assign]
