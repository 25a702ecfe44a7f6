"""Configuration -> data and method: one function to read from top to bottom."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from hardpix.data import DataModule
from hardpix.data.base import JudgedFrames
from hardpix.losses import CrossEntropy
from hardpix.methods import Method, Parts
from hardpix.run.targets import check_target
from hardpix.types import ConfigError, DataError, HardpixError, NoSuchSplit


def build(cfg: DictConfig, *, training: bool = True) -> tuple[DataModule, Method]:
    """Build everything a run needs; raises ``ConfigError``/``DataError`` before a pixel is read.

    Not for ``training``: what the method needs besides image and label is loaded where the data set has it.
    """
    data: DataModule = make(cfg.data)
    needed = method_class(cfg).requires
    data.use(needed if training else needed & data.info.provides)
    if training:  # data that lack something are refused before a network is made or its weights are fetched
        for role in ("train", "val", "test"):
            _check_split(data, role)
    if training and cfg.trainer.ema_decay is not None and method_class(cfg).averages:
        raise ConfigError(
            f"trainer.ema_decay={cfg.trainer.ema_decay}: {method_class(cfg).__name__} has an averaged teacher of its "
            "own, which is what is scored; set trainer.ema_decay=null"
        )
    method = _method(cfg, data, pretrained=training)
    # Made again by the trainer; here so that a rate or a group that cannot be is told before anything is written.
    method.parts.build_scheduler(method.parts.build_optimizer(method.parameter_groups()), 1)
    return data, method


def _check_split(data: DataModule, role: str) -> None:
    """Raise ``DataError`` for what would end a run later: a split that is not there, or for ``val`` and ``test`` (a
    training frame may be skipped) a file that its header shows to be unusable.
    """
    try:
        frames = data.evaluation_dataset(role).frames
    except NoSuchSplit as error:
        raise DataError(f"{error}{data.source.advice(role, data.splits)}") from None
    if role != "train" and isinstance(frames, JudgedFrames):
        frames.check()


def _method(cfg: DictConfig, data: DataModule, *, pretrained: bool) -> Method:
    """The method and its networks; not ``pretrained``: all weights follow from a checkpoint."""
    parent = None if cfg.parent is None else _method(cfg.parent_config, data, pretrained=False)
    build_head = make(cfg.head)
    if "num_classes" in inspect.signature(build_head).parameters:
        build_head = partial(build_head, num_classes=data.info.num_classes)
    fetched = (pretrained and parent is None) or "pretrained" not in cfg.backbone
    untrained = {} if fetched else {"pretrained": False}
    build_model = partial(make(cfg.model), make(cfg.backbone, **untrained), build_head)
    supplied = {
        "ignore_index": data.info.ignore_index,
        "num_classes": data.info.num_classes,
        "class_counts": data.class_counts,
    }
    loss = _with_supplied(make(cfg.loss, _partial_=True), supplied)
    aux_loss = CrossEntropy(
        ignore_index=data.info.ignore_index, normalizer=getattr(loss, "normalizer", "valid")
    )
    parts = Parts(
        info=data.info,
        build_model=build_model,
        build_head=build_head,
        loss=loss,
        aux_loss=aux_loss,
        aux_weight=cfg.aux_weight,
        infer=make(cfg.inference),
        build_optimizer=make(cfg.optimizer),
        build_scheduler=make(cfg.scheduler),
        parent=parent,
    )
    method: Method = make(cfg.method, parts)
    _check_loss(method, loss)
    if cfg.freeze:
        method.model.backbone.freeze(cfg.freeze)
    return method


def method_class(cfg: DictConfig) -> type[Method]:
    """The class of a configuration's method, without making one."""
    return get_class(check_target(cfg, "method"))


def make(node: DictConfig, *args: Any, **given: Any) -> Any:
    """``hydra.utils.instantiate`` whose failures are hardpix's own: a fault of the user keeps its one sentence."""
    try:
        return instantiate(node, *args, **given, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, HardpixError):
            raise cause from None
        raise ConfigError(f"{node.get('_target_')}: {cause or error}") from error


def _with_supplied(factory: Any, available: dict[str, Any]) -> Any:
    """Call ``factory`` with those of ``available`` that its signature asks for."""
    names = inspect.signature(factory).parameters
    return factory(**{name: value for name, value in available.items() if name in names})


def _check_loss(method: Method, loss: Any) -> None:
    """A loss that would be silently ignored makes a table lie."""
    if not method.takes_loss and not isinstance(loss, CrossEntropy):
        raise ConfigError(
            f"loss={type(loss).__name__}: {type(method).__name__} is defined on plain cross-entropy and would "
            f"ignore it; use loss=cross_entropy, or {method.other_losses} for this loss"
        )
