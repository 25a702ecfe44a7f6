"""Pre-trained weights: from the hub or a local file, and never silently none."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants

from hardpix.models import TimmBackbone
from hardpix.models.backbone import hub
from hardpix.types import ConfigError


class Malicious:
    def __reduce__(self):
        return os.getpid, ()


def load(name: str, path: object, **options) -> TimmBackbone:
    return TimmBackbone(name, pretrained=str(path), options=options)


def save(path: Path, name: str, **options) -> dict[str, torch.Tensor]:
    """Weights of a whole classifier as timm's users have them."""
    torch.manual_seed(7)
    model = timm.create_model(name, **options)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 1)
    state = model.state_dict()
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, str(path))
    else:
        torch.save({"state_dict": state}, path)
    return state


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "mobilenetv3_small_050", "swin_s3_tiny_224"]
)
def test_every_tensor_comes_from_the_file(tmp_path: Path, name: str, suffix: str) -> None:
    options = {"embed_dim": 12, "num_heads": (1, 2, 3, 3), "depths": (1, 1, 1, 1)} if "swin" in name else {}
    state = save(tmp_path / f"weights{suffix}", name, num_classes=7, **options)
    given = {key.replace(".", "_"): value for key, value in state.items()}
    net = load(name, tmp_path / f"weights{suffix}", **options).net
    for key, value in net.state_dict().items():
        assert torch.equal(value, given[key.removeprefix("model.").replace(".", "_")]), key


def test_same_features_as_the_model_the_file_is_of(tmp_path: Path) -> None:
    save(tmp_path / "weights.pth", "test_resnet")
    torch.manual_seed(7)
    whole = timm.create_model("test_resnet", checkpoint_path=str(tmp_path / "weights.pth")).eval()
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        load("test_resnet", tmp_path / "weights.pth").eval()(image)[-1], whole.forward_features(image)
    )


def test_dilation_takes_the_same_file(tmp_path: Path) -> None:
    save(tmp_path / "weights.pth", "test_resnet")
    backbone = TimmBackbone(
        "test_resnet", pretrained=str(tmp_path / "weights.pth"), options={}, output_stride=8
    )
    assert backbone.specs[-1].stride == 8


def test_a_deeper_model_is_refused_though_every_name_matches(tmp_path: Path) -> None:
    save(tmp_path / "weights.pth", "resnet18")
    with pytest.raises(ConfigError, match=r"resnet10t.*lacks"):
        load("resnet10t", tmp_path / "weights.pth")
    save(tmp_path / "deep.pth", "test_resnet", layers=(2, 1, 1, 1))
    with pytest.raises(ConfigError, match=r"foreign layer1_1_"):
        load("test_resnet", tmp_path / "deep.pth", layers=(1, 1, 1, 1))


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "weights.pth", "test_resnet", in_chans=1)
    with pytest.raises(ConfigError, match=r"another shape of conv1"):
        load("test_resnet", tmp_path / "weights.pth")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load("test_resnet", tmp_path / "none.pth")


def test_a_file_that_could_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"conv1.weight": Malicious()}}, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"weights only .it holds more than plain data") as error:
        load("test_resnet", tmp_path / "weights.pth")
    assert "weights_only" not in str(error.value)  # no advice how to run it all the same


@pytest.mark.parametrize(
    "name", ["hf_hub:a/b", "hf-hub:a/b", "local-dir:/tmp", "resnet18/../x", "HF-HUB:a/b"]
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a name of timm's own list"):
        TimmBackbone(name, pretrained=False, options={})


@pytest.mark.parametrize(
    "key", ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"]
)
def test_options_that_load_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"backbone\.options\.{key}: is not passed on"):
        TimmBackbone("test_resnet", pretrained=False, options={key: str(tmp_path / "x.pth")})


def test_offline_names_the_local_file_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"pretrained=true.*local \.safetensors") as error:
        TimmBackbone("test_resnet", pretrained=True, options={})
    assert "\n" not in str(error.value)


def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its client waits between five attempts; none is made, and what is in the cache is still looked for."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: pytest.fail("waited"))
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", here)
        with hub():
            assert constants.HF_HUB_OFFLINE is False  # it answers
    with pytest.raises(ConfigError, match=r"pretrained=true.*local \.safetensors"):
        TimmBackbone("test_resnet", pretrained=True, options={})
    with hub():
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False


def test_hub_weights_arrive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """timm is told to find the hub's file here, so that all but the download is real."""
    state = save(tmp_path / "weights.pth", "test_resnet")
    create, overlay = timm.create_model, {"file": str(tmp_path / "weights.pth")}
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **given: create(*a, pretrained_cfg_overlay=overlay, **given)
    )
    backbone = TimmBackbone("test_resnet", pretrained=True, options={})
    assert torch.equal(backbone.net["layer1"][0].conv1.weight, state["layer1.0.conv1.weight"])
