"""Build data, method and trainer from a configuration: one file to read from top to bottom."""

from __future__ import annotations

import copy
import inspect
import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hardpix.config.schema import Count, Positive, PositiveShare, Share, Whole, checked
from hardpix.config.trust import check_target
from hardpix.data import DataModule
from hardpix.data.source import JudgedFrames
from hardpix.losses import CrossEntropy
from hardpix.methods import Method, Parts
from hardpix.models.layers import ONE_VALUE
from hardpix.train import rundir
from hardpix.train.callbacks import EMA, Divergence
from hardpix.train.checkpoint import AtomicCheckpointIO
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
    # Made again by the trainer; here so that an impossible rate or group is reported before anything is written.
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
    problem = method_class(cfg).parent_problem(None)
    if problem is not None and cfg.parent_config is None:
        raise ConfigError(f"parent=null: {method_class(cfg).__name__} {problem}")
    parent = None if problem is None else _method(cfg.parent_config, data, pretrained=False)
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


# The Lightning trainer, with the choices hardpix makes for everyone.


@checked
def build_trainer(
    *,
    run_dir: Path,
    callbacks: list[pl.Callback],
    loggers: list[Any],
    max_steps: Count | None,
    max_epochs: Count | None,
    accelerator: str,
    devices: int | str | list[int],
    num_nodes: Count,
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"],
    precision: Literal[32, "32", "32-true", "16-mixed", "bf16-mixed"],
    accumulate: Count,
    clip_norm: Positive | None,
    val_every_steps: Count | None,
    val_every_epochs: Count | None,
    log_every_steps: Count,
    deterministic: bool,
    benchmark: bool,
    sync_batchnorm: bool,
    compile: Literal[False, True, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
    ema_decay: Share | None,
    fast_dev_run: bool,
    limit_train_batches: Count | PositiveShare,
    limit_val_batches: Count | PositiveShare,
    limit_test_batches: Count | PositiveShare,
    sanity_steps: Annotated[int, "[-1, inf)"],
    nan: Literal["stop", "skip"],
    max_skip: Whole,
) -> pl.Trainer:
    """A trainer from the configuration; impossible combinations raise ``ConfigError`` here, before data load.

    ``max_steps`` counts optimiser steps. Exactly one of ``max_steps`` and ``max_epochs`` is given, and at most
    one of ``val_every_steps`` and ``val_every_epochs``. ``nan`` and ``max_skip``: see ``Divergence``. ``compile`` and
    ``sync_batchnorm`` change the network and are applied by the caller.
    """
    check_length(max_steps, max_epochs)
    if val_every_steps is not None and val_every_epochs is not None:
        raise ConfigError(
            "trainer.val_every_steps and trainer.val_every_epochs are both given: set one to null"
        )
    check_device(accelerator, str(precision))
    if ema_decay is not None:
        callbacks = [*callbacks, EMA(decay=ema_decay)]
    callbacks = [Divergence(run_dir, nan, max_skip), *callbacks]
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        plugins.append(
            SLURMEnvironment(auto_requeue=False)
        )  # last.ckpt is written on a signal, and one is enough
    return _made(
        pl.Trainer,
        plugins=plugins,
        default_root_dir=run_dir,
        callbacks=callbacks,
        logger=loggers,
        max_steps=-1 if max_steps is None else max_steps,
        max_epochs=-1 if max_epochs is None else max_epochs,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=str(precision),
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip_norm,
        val_check_interval=val_every_steps and val_every_steps * accumulate,
        check_val_every_n_epoch=val_every_epochs,
        log_every_n_steps=log_every_steps,
        deterministic="warn" if deterministic else False,  # None would keep the former job's
        benchmark=benchmark and not deterministic,
        fast_dev_run=fast_dev_run,
        limit_train_batches=limit_train_batches,
        limit_val_batches=limit_val_batches,
        limit_test_batches=limit_test_batches,
        num_sanity_val_steps=sanity_steps,
        use_distributed_sampler=False,  # the data module shards itself and counts no image twice
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),  # ours, or none
        enable_model_summary=False,
    )


def _made(factory: Callable[..., pl.Trainer], **settings: Any) -> pl.Trainer:
    """What Lightning refuses (a strategy, a device) becomes one sentence."""
    try:
        trainer = factory(**settings)
    except (ValueError, TypeError, KeyError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {str(error).strip().splitlines()[0]}") from error
    # those of hardpix.train.signals stay: Lightning's handler would wait for all processes wherever the signal finds it
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def check_length(max_steps: int | None, max_epochs: int | None) -> None:
    if (max_steps is None) == (max_epochs is None):
        raise ConfigError(
            f"trainer.max_steps={max_steps} and trainer.max_epochs={max_epochs}: give exactly one and set the "
            "other to null, for example trainer.max_epochs=120 trainer.max_steps=null"
        )


def check_device(accelerator: str, precision: str) -> None:
    on_gpu = torch.cuda.is_available() and accelerator != "cpu"
    if accelerator in ("gpu", "cuda") and not on_gpu:
        raise ConfigError(f"trainer.accelerator={accelerator}: no usable CUDA device here; use auto, or cpu")
    if precision == "16-mixed" and not on_gpu:  # Lightning would take bfloat16 without the record saying so
        raise ConfigError("trainer.precision=16-mixed: float16 needs a GPU; on a CPU take bf16-mixed or 32")


def compile_model(method: pl.LightningModule, mode: bool | str) -> None:
    """``torch.compile`` in place (parameter names, and so checkpoints, stay as they are).

    Part by part: a method may call backbone and head apart, and every method must get the same treatment.
    """
    if not mode:
        return
    others = [
        child
        for name, child in method.named_children()
        if name not in ("model", "loss", "metrics", "extra_metrics")
    ]
    for part in [*method.model.children(), *others]:  # type: ignore[union-attr]
        part.compile(mode=None if mode is True else mode)


def quiet() -> None:
    """Lightning's advice about things that are chosen here on purpose."""
    import logging

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for text in (".*does not have many workers.*", ".*in eval mode at the start of.*",
                 ".*number of training batches.*", ".*Checkpoint directory.*",
                 ".*ckpt_path.*", ".*exists and is not empty.*", ".*isinstance.treespec.*", ".*LeafSpec.*",
                 ".*lr_scheduler.step.*before.*optimizer.step.*", ".*`log_every_n_steps`.*"):  # fmt: skip
        warnings.filterwarnings("ignore", text)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=DeprecationWarning)


# Fit parts of a network to the training labels before the first step.


LABEL_MAPS = 300  # more hardly move the leading directions of label patches and cost their decoding


def fit_to_labels(method: nn.Module, data: DataModule) -> int:
    """Call ``fit_labels(labels, ignore_index)`` of every module that has one and is not ``fitted`` yet.

    Weights that another run fitted (``init_from``, a parent run) stay. Every process does it alike. Returns how
    many modules there were.
    """
    waiting: list[Any] = [m for m in method.modules() if not getattr(m, "fitted", True)]
    for module in waiting:
        module.fit_labels(data.training_labels(LABEL_MAPS), data.info.ignore_index)
    return len(waiting)


@torch.no_grad()
def start_regressions(method: Method, data: DataModule, cfg: DictConfig) -> None:
    """Set the biases of outputs that estimate a number (:meth:`Method.regressions`) to where they start.

    To be called before weights of another run are taken over, which then stay. Every process does it alike.
    """
    for name, output in method.regressions().items():
        biases, start = method.model.output_biases(name), output.start
        if start is None:
            source = json.dumps(rundir.plain(cfg)["data"]["source"], sort_keys=True)
            start = data.training_mean(
                output.target,
                output.keys,
                what=f"the {name} of {data.info.name}",
                identity=f"{source} {output.identity}",
            )
        if start is None:  # not one frame has a target: the loss of the output is 0 throughout
            continue
        print(f"output {name}: its bias starts at {start:.4f}", flush=True)
        for bias in biases:
            bias.fill_(start)


# What the batches of an epoch are, held against the settings before anything is written.


class Plan(NamedTuple):
    """What a full run does. ``remarks``: what to print at its start, a line each."""

    steps: int  # of the optimiser, in all
    share: float  # of an epoch's batches that are trained on
    remarks: tuple[str, ...]


def check_batches(
    cfg: DictConfig, data: DataModule, method: Method, trainer: pl.Trainer, *, synchronised: bool
) -> Plan:
    """Refuse batches from which a run cannot train as it is set.

    ``synchronised``: batch norms share their statistics over the processes, so one image in each can train.
    """
    data.trainer = trainer  # as in training: a process sees its share of the frames
    loader = data.train_dataloader()
    if not synchronised:
        _check_single(cfg, data, method, loader, trainer)
    count, epochs = batches_per_epoch(trainer, loader), cfg.trainer.max_epochs
    remarks = _check_groups(cfg, count, trainer)
    steps = cfg.trainer.max_steps or epochs * math.ceil(len(loader) / trainer.accumulate_grad_batches)
    return Plan(steps, count / len(loader), remarks)


def batches_per_epoch(trainer: pl.Trainer, loader: DataLoader) -> int:
    """As Lightning counts them: ``trainer.limit_train_batches`` is a number of batches, or a share of them."""
    limit = trainer.limit_train_batches
    return min(len(loader), limit) if isinstance(limit, int) else int(len(loader) * limit)


def _check_groups(cfg: DictConfig, count: int, trainer: pl.Trainer) -> tuple[str, ...]:
    """An optimiser step never goes beyond an epoch of ``count`` batches."""
    each, rest = trainer.accumulate_grad_batches, count % trainer.accumulate_grad_batches
    if trainer.fast_dev_run or not rest:  # type: ignore[attr-defined]
        return ()
    number = "1 batch" if count == 1 else f"{count} batches"
    if each > count:
        raise ConfigError(
            f"trainer.accumulate={each}: an epoch has {number}, and a step ends with the epoch; set "
            f"trainer.accumulate={count} or less"
        )
    if cfg.trainer.val_every_steps is not None:
        raise ConfigError(
            f"trainer.val_every_steps={cfg.trainer.val_every_steps}: trainer.accumulate={each} does not divide the "
            f"{number} of an epoch, so validations would fall within steps; set trainer.val_every_steps=null "
            "trainer.val_every_epochs=1"
        )
    return (
        f"trainer.accumulate={each}: the last step of each epoch ({number}) has {rest}, and its loss is their mean",
    )


def _check_single(
    cfg: DictConfig, data: DataModule, method: Method, loader: DataLoader, trainer: pl.Trainer
) -> None:
    """Refuse a batch of one image, where one occurs and the networks cannot train on it."""
    frames, size = len(loader.sampler), loader.batch_size or 1  # type: ignore[arg-type]
    count, steps = batches_per_epoch(trainer, loader), cfg.trainer.max_steps
    last = count == len(loader) and (steps is None or steps * trainer.accumulate_grad_batches >= count)
    left = last and not loader.drop_last and frames % size == 1
    if not (size == 1 or left) or not (problem := single_problem(method, next(data.training_frames(0, 1)))):
        return
    if size == 1:
        raise ConfigError(f"data.batch_size=1: {problem}; set data.batch_size=2 or more")
    share = " in each process" if trainer.world_size > 1 else ""
    raise ConfigError(
        f"data.drop_last=false: {frames} frames{share} leave one over from batches of data.batch_size={size}, and "
        f"{problem}; set data.drop_last=true, or another data.batch_size"
    )


def single_problem(method: Method, batch: Mapping[str, Any]) -> str | None:
    """Why the networks of ``method`` cannot train on ``batch``, one image; None if they can.

    The losses are computed on a copy that has shapes and no values, which takes neither time nor memory. Where that
    ends for another reason (a loss that asks for a value), the networks have done their part by then.
    """
    tensors = [*method.parameters(), *method.buffers()]
    shapes = copy.deepcopy(method, {id(x): x.detach().to("meta") for x in tensors})
    empty: Any = {k: x.to("meta") if isinstance(x, Tensor) else x for k, x in batch.items()}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            shapes.losses(empty)
    except Exception as error:
        # By hardpix's own layers, and by torch's norms.
        refused = (ONE_VALUE, "Expected more than 1 value per channel")
        return ONE_VALUE if str(error).startswith(refused) else None
    return None
