"""The Lightning trainer, with the choices hardpix makes for everyone."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from hardpix.ranges import Count, Positive, PositiveShare, Share, Whole, checked
from hardpix.run.checkpoint_files import AtomicCheckpointIO
from hardpix.run.divergence import Divergence
from hardpix.run.ema import EMA
from hardpix.types import ConfigError


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
    strategy: str,
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
    # those of hardpix.run.signals stay: Lightning's handler would wait for all processes wherever the signal finds it
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
