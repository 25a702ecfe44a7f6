"""What a run says at its start about settings that its optimiser makes idle."""

import pytest
import torch

from hardpix.train import train
from hardpix.train.build import build
from hardpix.types import ConfigError


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(train, "_printed_remarks", set())


def told(tiny, *overrides):
    return train.start_remarks(*build(tiny(*overrides)))


def test_alpha_under_adam_is_told_once_in_a_sweep(tiny):
    adam = ("method=hardness", "optimizer=adamw", "scheduler=constant")
    (line,) = told(tiny, *adam, "method.alpha=0.1")
    assert line.startswith("method.alpha: under AdamW, which divides by the gradient's size")
    assert told(tiny, *adam, "method.alpha=1") == ()


def test_adam_itself_is_told_and_sgd_and_other_methods_are_not(tiny):
    assert told(tiny, "method=hardness", "optimizer=sgd") == ()
    assert told(tiny, "method=baseline", "optimizer=adam", "scheduler=constant") == ()
    assert "under Adam," in told(tiny, "method=hl_released", "optimizer=adam", "scheduler=constant")[0]


@pytest.mark.parametrize(("optimizer", "factor"), [("adam", 1), ("sgd", 100)])
def test_what_the_remark_says_is_so(tiny, optimizer, factor):
    """With alpha 10 instead of 0.1 the hardness head goes a hundred times as far under SGD, and alike under Adam."""
    ways = []
    for alpha in (0.1, 10):
        torch.manual_seed(0)
        given = [f"optimizer={optimizer}", "scheduler=constant", "optimizer.weight_decay=0", "head.dropout=0"]
        given += ["optimizer.eps=1e-30"] * (
            optimizer == "adam"
        )  # else it counts beside gradients as small as these
        data, method = build(tiny("method=hardness", f"method.alpha={alpha}", *given))
        label = torch.randint(0, data.info.num_classes, (2, 32, 48))
        batch = {"image": torch.randn(2, 3, 32, 48), "label": label, "name": ["a", "b"]}
        made = method.parts.build_optimizer(method.parameter_groups())
        before = torch.cat([p.detach().flatten() for p in method.hardness.parameters()])
        torch.stack(list(method.losses(batch).values())).sum().backward()
        made.step()
        ways.append((torch.cat([p.detach().flatten() for p in method.hardness.parameters()]) - before).norm())
    assert float(ways[1] / ways[0]) == pytest.approx(factor, rel=0.1)


def test_an_auxiliary_head_beside_a_first_stage_is_told(tiny):
    given = ("head=ocr", "head.ocr_channels=4")
    for aux, told in ((), True), (("model.aux_level=null",), False):
        data, method = build(tiny(*given, *aux))
        assert any("model.aux_level=null" in line for line in train.start_remarks(data, method)) is told


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["loss=balanced_cityscapes"],
            r"loss\.weights has 19 numbers, .* one per class, 18; .*loss=balanced,",
        ),
        (
            ["loss=balanced", "loss.weighting=fixed", "loss.weights=[1,2]"],
            r"loss\.weights has 2 numbers, but must have one per class, 18",
        ),
        (
            ["method=u2pl", "method.contrastive=true", "data.source.classes=[wall,floor]"],
            r"no rank of 2 classes .* set method\.contrast\.low_rank=1 method\.contrast\.high_rank=2",
        ),
        (
            [
                "method=u2pl_hl",
                "method.contrastive=true",
                "method.contrast.low_rank=8",
                "method.contrast.high_rank=5",
            ],
            r"low_rank=8 method\.contrast\.high_rank=5: no rank .*set method\.contrast\.low_rank=3",
        ),
    ],
)
def test_numbers_made_for_other_classes_are_refused(tiny, settings, said):
    """Before anything is trained: the classes are those of the synthetic rooms, 18, or fewer."""
    with pytest.raises(ConfigError, match=said):
        build(tiny("data.labeled=0.5", *settings))


@pytest.mark.parametrize(
    ("high", "ranks", "advice"),
    [(20, "3 to 17 of 0 to 17", False), (10, "3 to 9 of 0 to 17", True)],
)
def test_ranks_of_a_contrast_are_printed_for_other_numbers_of_classes(tiny, high, ranks, advice):
    contrast = (
        "method=u2pl",
        "method.contrastive=true",
        f"method.contrast.high_rank={high}",
        "method.contrast.bank=8",
    )
    (line,) = [x for x in told(tiny, "data.labeled=0.5", *contrast) if x.startswith("contrast")]
    assert ranks in line
    assert "chosen for 19 classes" in line
    assert ("method.contrast.high_rank=18" in line) is advice
