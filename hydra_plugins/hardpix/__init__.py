"""Names hardpix's sweepers and launcher for Hydra, which finds plugins here; the code is in ``hardpix.sweep``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _Sweeper(Sweeper):
    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config


class StudySweeper(_Sweeper):
    """``hydra/sweeper=study``"""

    def sweep(self, arguments: list[str]) -> None:
        from hardpix.sweep.sweeper import sweep

        sweep(self.settings, self.hydra_context, self.config)


class OptunaSweeper(_Sweeper):
    """``hydra/sweeper=optuna``"""

    def sweep(self, arguments: list[str]) -> None:
        from hardpix.sweep.search import sweep

        sweep(self.settings, self.hydra_context, self.config)


class PoolLauncher(Launcher):
    """``hydra/launcher=pool``"""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hardpix.sweep.pool import launch

        return launch(self.settings, self.hydra_context, self.config, job_overrides)


@dataclass
class StudyConf:
    _target_: str = "hydra_plugins.hardpix.StudySweeper"
    study: str | None = None  # a file of conf/studies/
    on_error: str | None = None  # continue | retry | stop, in place of the file's
    use: dict[str, str] = field(default_factory=dict)  # finished runs in place of stages
    max_batch_size: int | None = None  # jobs that the launcher gets at once; null: all
    take_over: bool = False  # runs whose record says that they run on another machine
    dry_run: bool = False
    every: bool = False  # list every job, not a screen of them
    commands: bool = False  # with the command that trains each
    alone: bool = False  # set by the program: the overrides are those of one run


@dataclass
class OptunaConf(StudyConf):
    _target_: str = "hydra_plugins.hardpix.OptunaSweeper"
    n_trials: int | None = None  # in place of the file's trials
    storage: str | None = None  # null: sqlite in the study's folder


@dataclass
class PoolConf:
    _target_: str = "hydra_plugins.hardpix.PoolLauncher"
    workers: Any = "auto"  # processes at once; auto: one per GPU, without a GPU one per core
    devices: Any = "auto"  # CUDA_VISIBLE_DEVICES of each: [0, 1] or ["0,1", "2,3"]; auto: all GPUs
    python: str | None = None  # what runs `-m hardpix.cli train ...`: 'torchrun --nproc_per_node=2'


for group, name, node in (
    ("sweeper", "study", StudyConf),
    ("sweeper", "optuna", OptunaConf),
    ("launcher", "pool", PoolConf),
):
    ConfigStore.instance().store(group=f"hydra/{group}", name=name, node=node, provider="hardpix")
