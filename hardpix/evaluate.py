"""``hardpix evaluate``: the scores of a run on a split, with any inference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hardpix import record
from hardpix.config import safe_files
from hardpix.config.command_line import Parser
from hardpix.config.compose import compose_group, nearest, validate
from hardpix.config.trust import check_trust, named_trust
from hardpix.record import IGNORED, TESTED, TRAINING, covers
from hardpix.record import TRAINED_ON as TRAINED
from hardpix.train import parent, rundir
from hardpix.train.parent import only_recorded
from hardpix.types import ConfigError, HardpixError

REPLACEABLE = ("data", "inference", "trainer")
CELLS = "reproduces"  # of a published table


def main(arguments: list[str]) -> int:
    parser = Parser(
        "hardpix evaluate",
        description="Score a run: mIoU, accuracies, per-class table, panels. Overrides may choose another "
        "inference=whole|slide|multiscale, another data=NAME with the same classes, or set any data., inference. "
        "and trainer. key; reproduces=[PAPER/TABLE/ROW/COLUMN] says for which published cells it stands, in place of "
        "those of the run. A run with code of its own needs trusted=[PACKAGE].",
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("overrides", nargs="*", help="for example inference=slide inference.stride=[256,256]")
    parser.add_argument("--split", default="test", help="train, val or test (default: test)")
    parser.add_argument("--weights", default="last", choices=("last", "best"))
    parser.add_argument("--out", type=Path, help="folder for the results (default: RUN/evaluations/NAME)")
    given = parser.parse_intermixed_args(arguments)
    if given.out is None:
        safe_files.check_run_files(given.run)
    record.read(given.run)  # says in one sentence if this is no run
    cfg = override(rundir.read_config(given.run), given.overrides)
    validate(cfg)
    cfg = rundir.with_absolute_paths(cfg)
    if not any(
        word.startswith("data=") for word in given.overrides
    ):  # another data set says itself what it lacks
        rundir.check_data_paths(cfg, given.run)
    named = [o for o in given.overrides if not o.startswith(("reproduces=", "trusted="))]
    out = given.out or given.run / "evaluations" / _name(given.split, given.weights, named)
    record.check_output("--out", out, folder=True)
    evaluate(given.run, cfg, split=given.split, weights=given.weights, out=out)
    return 0


def override(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """A saved configuration with some of it replaced: ``inference=slide`` a group, ``data.num_workers=0`` a key.

    Code that is no part of hardpix is executed only where ``trusted=[PACKAGE]`` is among the overrides.
    """
    cfg = cfg.copy()
    check_trust(cfg, named_trust(overrides))
    own_words = [text for text in overrides if not text.lstrip("+").startswith("trusted=")]
    for text in sorted(own_words, key=lambda o: "." in o.split("=", 1)[0]):  # groups first
        key, equals, value = text.partition("=")
        group = key.split(".", 1)[0]
        own = [f"method.{name}" for name in _of_method(cfg)] if group == "method" else []
        if not equals or (group not in REPLACEABLE and key not in (CELLS, *own)):
            known = (*REPLACEABLE, CELLS, *own)
            raise ConfigError(f"{text}: an evaluation can set {', '.join(known)}{nearest(group, known)}")
        if key in REPLACEABLE:
            chosen = compose_group(group, value)
            OmegaConf.set_struct(cfg, False)
            cfg[group] = chosen[group]
            OmegaConf.set_struct(cfg, True)
            continue
        _check_known(cfg, key)
        try:
            OmegaConf.update(cfg, key, OmegaConf.create({"v": None}).v if value == "null" else _value(value))
        except (HydraException, OmegaConfBaseException, AttributeError) as error:
            raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from None
    return cfg


def _of_method(cfg: DictConfig) -> tuple[str, ...]:
    """The settings of a run's method that do not belong to its training."""
    from hardpix.train.build import method_class

    return method_class(cfg).at_inference


def _check_known(cfg: DictConfig, key: str) -> None:
    """Raise with the nearest known key if a part of a dotted key is not in the configuration."""
    node = cfg
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return
        known = [str(k) for k in node]
        if part not in known:
            raise ConfigError(f"{key}: no such key{nearest(part, known)}")
        if OmegaConf.is_missing(node, part):  # what this override gives
            return
        node = node[part]


def _value(text: str) -> object:
    """A value as Hydra's command line would read it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(f"v={text}").value()


def _name(split: str, weights: str, overrides: list[str]) -> str:
    return rundir.short_name([f"split={split}", f"weights={weights}", *overrides])


def evaluate(run_dir: Path, cfg: DictConfig, *, split: str, weights: str, out: Path) -> dict[str, float]:
    """Score ``run_dir`` under ``cfg``: record, ``per_class.csv``, ``confusion.npy`` and panels go to ``out``."""
    import pytorch_lightning as pl

    from hardpix.train import results
    from hardpix.train.build import build, quiet
    from hardpix.train.checkpoint import load_weights
    from hardpix.train.cost import BranchTime
    from hardpix.train.provenance import data_record, depth_remarks, label_verdict, unread_file_remarks
    from hardpix.train.results import write_panels

    quiet()
    trained = record.read(run_dir)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data, method = build(cfg, training=False)
    rundir.check_classes(run_dir, data.info.classes, data.info.name)
    data.evaluation_dataset(split)  # raises where there is none; only an opened one knows what is left out
    of_labels = label_verdict(data, [split])
    parts = (
        *data.source.remarks(),
        *unread_file_remarks(data, [split]),
        *depth_remarks(data, [split]),
        *of_labels.lines,
        of_labels.refusal,
    )
    for line in filter(None, parts):
        print(line)
    load_weights(method, run_dir, weights)
    trainer = pl.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        precision=str(cfg.trainer.precision),  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_test_batches=cfg.trainer.limit_test_batches,
        callbacks=[BranchTime()],
    )
    scores = trainer.test(method, data.evaluation_loader(split), verbose=False)[0]
    metrics = {k.replace("test/", f"{split}/"): v for k, v in scores.items() if k.startswith(TESTED)}
    results.write(out, method.confusion.numpy(), data.info, method.images)
    results.show(
        method.confusion.numpy(), data.info, title=f"{run_dir.name}: {split} split, {weights} weights"
    )
    rundir.write_config(out, cfg)
    factors = record.flatten(rundir.plain(cfg)) | {"evaluation.split": split, "evaluation.weights": weights}
    factors |= only_recorded(trained)
    factors |= trained_on(trained, data.info.name)
    metrics |= {key: value for key, value in trained.metrics.items() if key in TRAINING}
    seen = data_record(data, [split])
    done = replace(
        trained, run_id=rundir.new_id(), parent=trained.run_id, status="done", error=None,
        factors=factors, metrics=metrics, started=rundir.utc_now(), overrides=[],
        dataset=data.info.name, frames=trained.frames | seen["frames"],
        data=trained.data | seen["data"] | parent.file_digests(cfg),
    )  # fmt: skip
    record.write(done, out)
    write_panels(method, data, out / "panels", split=split, count=cfg.panels)
    print(f"written to {out}")
    return metrics


def trained_on(trained: record.RunRecord, scored: str) -> dict[str, Any]:
    """Of a run that is scored on another data set than its own: that one, and how it was read."""
    if scored == trained.dataset:
        return {}
    own = {k: v for k, v in trained.factors.items() if k.startswith("data.") and not covers(IGNORED, k)}
    return {f"{TRAINED}{key}": value for key, value in own.items()} | {f"{TRAINED}dataset": trained.dataset}


def loaded(run_dir: Path, weights: str, overrides: list[str]):
    """(cfg, data, method in eval mode) of a run, for prediction and notebooks."""
    from hardpix.train.build import build
    from hardpix.train.checkpoint import load_weights

    if not (run_dir / rundir.CONFIG).is_file():
        raise HardpixError(f"{run_dir} is not a run directory: it has no {rundir.CONFIG}")
    cfg = override(rundir.read_config(run_dir), overrides)
    validate(cfg)
    data, method = build(cfg, training=False)
    rundir.check_classes(run_dir, data.info.classes, data.info.name)
    load_weights(method, run_dir, weights)
    return cfg, data, method.eval()
