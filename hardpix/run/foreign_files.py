"""Files of configuration that Hydra reads by itself, judged first where they are not hardpix's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigResult
from omegaconf.errors import OmegaConfBaseException

from hardpix.plain_yaml import read_text
from hardpix.run.catalog import conf_dir
from hardpix.types import ConfigError


@contextmanager
def files_judged() -> Iterator[None]:
    """Within the block a file of too many bytes, levels or repetitions is refused before Hydra loads it."""
    load, own = FileConfigSource.load_config, conf_dir().resolve()

    def judged(self: FileConfigSource, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path)).resolve()
        if not path.is_relative_to(own) and path.exists():
            read_text(path)
        try:
            return load(self, config_path)
        except (RecursionError, ValueError) as error:
            if isinstance(error, OmegaConfBaseException):
                raise
            raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None

    FileConfigSource.load_config = judged  # type: ignore[method-assign]
    try:
        yield
    finally:
        FileConfigSource.load_config = load  # type: ignore[method-assign]
