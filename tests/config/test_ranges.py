"""Ranges and choices of settings: one statement, judged early and by the constructors alike."""

import ast
import importlib
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from hardpix.config.catalog import conf_dir
from hardpix.config.compose import PLAIN, compose, validate
from hardpix.config.schema import (
    NAMED,
    _definition,
    checked,
    find_signature,
    plain,
    range_problem,
    timm_names,
)
from hardpix.ops.depth_hardness import DEEPEST
from hardpix.types import ConfigError


def targets():
    texts = (path.read_text(encoding="utf-8") for path in conf_dir().rglob("*.yaml"))
    named = {name for text in texts for name in re.findall(r"_target_:\s*(hardpix\.[\w.]+)", text)}
    return sorted(named | {function for function, _ in PLAIN.values()})


# By the choices beneath: what is wrong with each, all told at once.
REFUSED = {
    "": {
        "loss.normalizer=foo": "valid or all",
        "optimizer.lr=-1": "above 0",
        "optimizer.momentum=5": "at least 0 and below 1",
        "+optimizer.group_options={a: {lr_mult: -1}}": "values, each at least 0, or null",
        "scheduler.warmup_steps=-1": "at least 0",
        "data.batch_size=0": "at least 1",
        "data.num_workers=-1": "at least 0",
        "data.labeled=2": "a string, or above 0 and below 1, or null",
        "data.train_transform.hflip=7": "at least 0 and at most 1",
        "data.train_transform.crop=[8, 0]": "values, each at least 1",
        "data.source.difficulty=2": "at least 0 and at most 1",
        "head.channels=0": "at least 1",
        "trainer.max_steps=-2": "at least 1, or null",
        "trainer.precision=17": "32 or 32-true or 16-mixed or bf16-mixed",
        "trainer.clip_norm=nan": "above 0, or null",
        "trainer.limit_val_batches=2.0": "an int, at least 1, or above 0 and at most 1",
        "trainer.nan=ignore": "stop or skip",
        "callbacks.refresh_every=-1": "at least 0",
        "callbacks.snapshots=[0]": "values, each at least 1",
        "callbacks.progress=loud": "auto or rich or plain or none",
    },
    "method=hardness loss=ohem optimizer=adam inference=slide": {
        "method.alpha=-1": "at least 0",
        "method.c=0": "above 0",
        "loss.thresh=7": "above 0 and at most 1, or null",
        "optimizer.lr=nan": "above 0",
        "optimizer.betas=[0.9, 1]": "values, each at least 0 and below 1",
        "inference.batch=0": "at least 1",
        "head.channels=-4": "at least 1",
        "data.train_transform.crop=[8]": "a list of 2 ints",
    },
    "method=error_prediction loss=loss_max_pooling": {
        "method.w3=-1": "share or ratio, or at least 0",
        "loss.p=1": "at least 1.01",
        "optimizer.lr=inf": "above 0 and finite",
    },
    "data=cityscapes": {  # the top level: judged before the groups
        "seed=-1": "at least 0 and at most 4294967295",
        "aux_weight=-1": "at least 0",
        "panels=-1": "at least 0",
    },
    "data=camvid": {"seed=99999999999": "at least 0 and at most 4294967295"},
}


@pytest.mark.parametrize("choices", REFUSED)
def test_a_value_out_of_range_is_one_sentence_with_key_value_and_range(choices):
    wrong = REFUSED[choices]
    needed = ["data.source.root=x"] if "data=" in choices else []
    with pytest.raises(ConfigError) as error:
        validate(compose([*choices.split(), *needed, *wrong]))
    said = {f"{override}: must be {range_}" for override, range_ in wrong.items()}
    group = "+optimizer.group_options={a: {lr_mult: -1}}"
    assert set(str(error.value).splitlines()) == {
        s.replace(group, "optimizer.group_options={'a': {'lr_mult': -1}}") for s in said
    }


@pytest.mark.parametrize("overrides", [
    "loss=ohem loss.thresh=1 optimizer.momentum=0 data.labeled=0.5 data.num_workers=0 seed=4294967295 panels=0 "
    "aux_weight=0 trainer.limit_val_batches=1 trainer.precision=32 trainer.compile=true trainer.ema_decay=1 "
    "head.num_convs=0 head.dropout=0 +optimizer.group_options.backbone.lr_mult=0",
    "loss=ohem loss.thresh=null data.labeled=list.txt seed=0 trainer.limit_val_batches=7 "
    "trainer.compile=max-autotune backbone=resnet50 backbone.name=resnet50.a1_in1k init_from=runs/study/run",
    "loss=loss_max_pooling loss.p=inf trainer.limit_val_batches=0.5 method=error_prediction method.w3=2",
])  # fmt: skip
def test_the_ends_of_a_range_that_belong_to_it_pass(overrides):
    validate(compose(overrides.split()))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=1e99", r"optimizer\.lr=1e\+99: is infinite in float32"),
        ("optimizer.lr=1e-99", r"optimizer\.lr=1e-99: is 0 in float32"),
        ("aux_weight=1e99", r"aux_weight=1e\+99: is infinite in float32"),
        ("optimizer.weight_decay=-1e-50", r"optimizer\.weight_decay=-1e-50: must be at least 0"),
        (
            "data.train_transform.ratio=[0.5,1e40]",
            r"data\.train_transform\.ratio=\[0\.5, 1e\+40\]: is infinite",
        ),
        ("+optimizer.group_options={head: {lr_mult: 1e99}}", r"optimizer\.group_options=.*is infinite"),
        (f"trainer.max_steps={10**30}", r"trainer\.max_steps=1000.*: must be at most 9223372036854775807"),
        ("trainer.clip_norm=inf", r"trainer\.clip_norm=inf: must be above 0 and finite, or null"),
    ],
)
def test_a_number_that_nothing_can_compute_with_is_refused(override, said):
    with pytest.raises(ConfigError) as error:
        validate(compose([override]))
    (line,) = str(error.value).splitlines()
    assert re.match(said, line), line


DECODED = "is a text, as every environment variable is: write"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=${oc.env:N}", f"optimizer.lr=3: must be a float; '3' {DECODED} "
         "'optimizer.lr=\"${oc.decode:${oc.env:N}}\"'"),
        ("optimizer.lr=${oc.env:NONE,abc}", "optimizer.lr=abc: must be a float (from ${oc.env:NONE,abc})"),
        ("optimizer.lr=${oc.env:NONE,0.1}", "'optimizer.lr=\"${oc.decode:${oc.env:NONE,0.1}}\"'"),
        ("seed=${oc.env:N}", "'seed=\"${oc.decode:${oc.env:N}}\"'"),
        ("panels=${oc.env:N}", "'panels=\"${oc.decode:${oc.env:N}}\"'"),
        ("data.labeled=${oc.env:SHARE}", "'data.labeled=\"${oc.decode:${oc.env:SHARE}}\"'"),
        ("trainer.benchmark=${oc.env:ON}", "'trainer.benchmark=\"${oc.decode:${oc.env:ON}}\"'"),
        ("backbone.pretrained=${oc.env:ON}", "'backbone.pretrained=\"${oc.decode:${oc.env:ON}}\"'"),
        ("data.train_transform.crop=['${oc.env:N}',64]", f"'3' {DECODED} " '"${oc.decode:${oc.env:N}}"'),
        ("+optimizer.group_options={head: {lr_mult: '${oc.env:N}'}}",
         "'optimizer.group_options.head.lr_mult=\"${oc.decode:${oc.env:N}}\"'"),
        ('optimizer.lr="${oc.decode:${oc.env:QUOTED}}"', "take out the quotes that ${oc.decode:"),
        ("optimizer.lr=${oc.env:NOT_THERE}", "optimizer.lr: Environment variable 'NOT_THERE' not found"),
        ("data.batch_size='4'", "must be an int; '4' is a text: write data.batch_size=4 without quotes"),
    ],
)  # fmt: skip
def test_a_text_in_the_place_of_a_number_is_named(override, said, monkeypatch):
    for name, value in {"N": "3", "SHARE": "0.5", "ON": "true", "QUOTED": "'0.1'"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        validate(compose([override]))
    (line,) = str(error.value).splitlines()
    assert said in line


@pytest.mark.parametrize(
    "override",
    [
        'optimizer.lr="${oc.decode:${oc.env:N}}"',
        "optimizer.lr=1e30",
        "study='2024'",
        "run=7",
        "init_from='7'",
    ],
)
def test_texts_and_numbers_that_are_meant_pass(override, monkeypatch):
    monkeypatch.setenv("N", "3")
    validate(compose([override]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optm.lr=3", "optm.lr: no such key; did you mean 'optimizer'?"),
        ("los.thresh=1", "los.thresh: no such key; did you mean 'loss'?"),
        ("modle.aux_channels=3", "modle.aux_channels: no such key; did you mean 'model'?"),
        ("data.train_transfrom.hflip=1", "data.train_transfrom.hflip: no such key; did you mean 'train_transform'?"),
        ("model.aux_chanels=3", "model.aux_chanels: no such key; did you mean 'aux_channels'?"),
    ],
)  # fmt: skip
def test_the_first_part_that_is_no_key_is_compared(override, said):
    with pytest.raises(ConfigError) as error:
        compose([override])
    assert str(error.value) == said


def test_ranges_and_names_are_told_before_torch_is_imported(tmp_path):
    code = (
        "import sys; from hardpix.cli import main\n"
        "for line in sys.argv[1:]: print(main(['train', *line.split()]), file=sys.stderr)\n"
        "print({'torch', 'timm', 'pytorch_lightning'} & set(sys.modules), file=sys.stderr)"
    )
    told = {
        "loss=ohem loss.thresh=7": "loss.thresh=7: must be above 0 and at most 1, or null",
        "seed=-1": "seed=-1: must be at least 0 and at most 4294967295",
        "optm.lr=3": "optm.lr: no such key; did you mean 'optimizer'?",
        "backbone=resnet50 backbone.name=resnet5O":
            "backbone.name=resnet5O: timm has no such model; nearest: resnet50, resnet51q, resnet50t",
        "init_from=http://h/x.ckpt":
            "init_from=http://h/x.ckpt: a URL is not read; fetch the file and give its path",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *told], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    lines = [line for said in told.values() for line in (f"hardpix: {said}", "2")]
    assert done.stderr.splitlines() == [*lines, "set()"]


def test_the_names_of_timm_are_those_that_it_lists():
    import timm

    assert timm_names() == set(timm.list_models())


def test_names_of_a_trusted_package_are_left_to_it():
    validate(compose(["backbone=resnet50", "backbone.name=ournet", "trusted=[ourlab]"]))


# One statement


def intervals(annotation):
    """The intervals and literals of an annotation's own union (not of list elements)."""
    for part in annotation.split(" | "):
        if part in NAMED:
            yield NAMED[part]
        elif found := re.fullmatch(r"Annotated\[(\w+), '(.*)'\]", part):
            yield found.groups()


def boundary(kind, interval):
    """``(value, allowed)`` at both ends of an interval and just beyond."""
    step = 1 if kind == "int" else 1e-6
    for end, outward, sign in zip(
        interval[1:-1].split(","), (interval[0], interval[-1]), (-1, 1), strict=True
    ):
        if "inf" not in end:
            value = int(end) if kind == "int" else float(end)
            yield value, outward in "[]"
            yield value + sign * step, False
            yield value - sign * step, True


def test_what_a_constructor_refuses_is_refused_early_and_the_other_way_round():
    """Each boundary value: by the text of the source, and by the callable itself (which then lacks other arguments)."""
    judged = 0
    for target in targets():
        module, _, name = target.rpartition(".")
        made = getattr(importlib.import_module(module), name)
        call = made if callable(made) and not isinstance(made, type) else made.__init__
        if not hasattr(call, "__wrapped__"):
            ranged = [a for a in find_signature(target).types.values() if list(intervals(a))]
            # Networks, and the plain record of a method's numbers, are built from configurations alone.
            assert not ranged or module == "hardpix.models" or name == "ContrastSettings", target
            continue
        first = () if call is made else (None,)
        for key, annotation in find_signature(target).types.items():
            found = list(intervals(annotation))
            if len(found) != 1 or " | Sequence" in annotation:
                continue
            for value, allowed in boundary(*found[0]):
                assert (range_problem(value, annotation) is None) == allowed, (target, key, value)
                with pytest.raises(
                    TypeError if allowed else ConfigError, match="" if allowed else f"{key}={value}: must"
                ):
                    call(*first, **{key: value})
                judged += 1
    assert judged > 150


def test_no_range_is_stated_a_second_time():
    """No constructor compares an argument of its own with a number to refuse it: its annotation says the range."""
    for target in targets():
        _, node = _definition(*target.rpartition(".")[::2])
        parameters = find_signature(target).types
        for test in (n.test for n in ast.walk(node) if isinstance(n, ast.If) and refuses(n)):
            for compare in (n for n in ast.walk(test) if isinstance(n, ast.Compare)):
                sides = [compare.left, *compare.comparators]
                numbers = [
                    s for s in sides if isinstance(s, ast.Constant) and isinstance(s.value, int | float)
                ]
                names = {s.id for s in sides if isinstance(s, ast.Name)} & set(parameters)
                ordered = any(isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in compare.ops)
                assert not (numbers and names and ordered), (target, ast.unparse(compare))


def refuses(node):
    return any(isinstance(n, ast.Raise) and "ConfigError" in ast.unparse(n) for n in node.body)


def test_every_number_that_a_constructor_takes_from_the_configuration_is_within_its_range():
    """Defaults too: they are never judged when a run starts."""
    for target in targets():
        home, node = _definition(*target.rpartition(".")[::2])
        functions = [node] if isinstance(node, ast.FunctionDef) else [
            f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"
        ]  # fmt: skip
        for function in functions:
            for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
                if isinstance(default, ast.Constant) and argument.annotation is not None:
                    assert range_problem(default.value, ast.unparse(argument.annotation)) is None, (
                        home,
                        argument.arg,
                    )


def test_an_interval_that_repeats_a_constant():
    assert f"{DEEPEST:g}]" in find_signature("hardpix.methods.LossWeightModule").types["bin_size"]


@pytest.mark.parametrize(
    ("value", "annotation", "wanted"),
    [
        (0, "Positive", "above 0"),
        (float("inf"), "Positive", "above 0 and finite"),
        (float("nan"), "Share", "at least 0 and at most 1"),
        (1, "ShareBelowOne", "at least 0 and below 1"),
        (1, "PositiveShare", None),
        (True, "Count", "at least 1"),
        (2.0, "Count", "an int, at least 1"),
        (-2, "int", None),
        ("x", "str", None),
        (3, "Path", None),
        ([1, 0], "Sequence[Count]", "values, each at least 1"),
        ([[1], [0]], "Sequence[Sequence[Count]]", "values, each at least 1"),
        (OmegaConf.create([1, 0]), "Sequence[Count]", "values, each at least 1"),
        ([1, -1], "tuple[Count, Whole]", "values, each at least 0"),
        ([1], "tuple[Count, Count]", "2 values"),
        ([0.5, 2], "tuple[Share, ...]", "values, each at least 0 and at most 1"),
        ({"a": -1}, "Mapping[str, NonNegative]", "values, each at least 0"),
        (3, "Count | Sequence[Count]", None),
        (0, "Count | Sequence[Count]", "at least 1, or a list"),
        (None, "Count | None", None),
        (None, "Count", "an int, at least 1"),
        (True, "Literal[1, 2]", "1 or 2"),
        (1.005, 'Annotated[float, "[1.01, inf]"]', "at least 1.01"),
    ],
)
def test_what_an_annotation_takes(value, annotation, wanted):
    assert range_problem(value, annotation) == wanted


@pytest.mark.parametrize(
    ("annotation", "types"),
    [
        ("Count | Sequence[Count] | None", "int | Sequence[int] | None"),
        ('Annotated[float, "[0, 1]"]', "float"),
        ("Mapping[str, Share]", "Mapping[str, float]"),
    ],
)
def test_the_types_of_an_annotation(annotation, types):
    assert plain(annotation) == types


def test_a_checked_callable_judges_positional_arguments_and_none_that_is_only_typed():
    namespace = {"checked": checked}
    exec("@checked\ndef f(a: 'Share', b: 'str', *, c: 'Count' = 1): return a, b, c", namespace)
    assert namespace["f"](1, 2, c=3) == (1, 2, 3)
    with pytest.raises(ConfigError, match=r"^f: a=2: must be at least 0 and at most 1$"):
        namespace["f"](2, "x")
    with pytest.raises(ConfigError, match=r"^f: c=0: must be at least 1$"):
        namespace["f"](1, "x", c=0)
