"""Any plain ViT of timm with CLS: named, pinned by its file, never downloaded here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cytosae_core.encoder import ENCODERS, load_encoder
from cytosae_core.encoder.facts import facts_of
from cytosae_core.encoder.weights import convert, demo_file
from cytosae_core.errors import SetupError
from tests.unit.test_encoder import fixed_input, official

NAME = "timm/vit_small_patch14_dinov2.lvd142m"


def published(folder: Path, img_size: int = 518) -> Path:
    """A file as timm publishes it: flat, with the 37 x 37 position table of 518 x 518 images."""
    model = timm.create_model(NAME.removeprefix("timm/"), pretrained=False, img_size=img_size, num_classes=0)
    torch.nn.init.normal_(model.pos_embed)
    save_file(model.state_dict(), folder / f"{img_size}.safetensors")
    return folder / f"{img_size}.safetensors"


def test_a_published_file_loads_and_its_table_is_resampled_as_timm_does(tmp_path: Path) -> None:
    path = published(tmp_path)
    encoder = load_encoder(NAME, path, "cpu", layer=2)
    assert (encoder.d, encoder.depth, encoder.layer) == (384, 12, 2)
    model = timm.create_model(NAME.removeprefix("timm/"), pretrained=False, img_size=518, num_classes=0)
    model.load_state_dict(load_file(path), strict=True)
    model.set_input_size(img_size=224)
    seen: list[torch.Tensor] = []
    model.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        model.eval()(fixed_input())
    assert torch.allclose(encoder.encode(fixed_input()), seen[0], atol=1e-4)
    assert encoder.digest != load_encoder(NAME, path, "cpu", layer=3).digest


def test_flat_and_wrapped_pth_files_give_the_same_tokens(tmp_path: Path) -> None:
    path = published(tmp_path, 224)
    state = {**load_file(path), "head.weight": torch.zeros(5, 384), "head.bias": torch.zeros(5)}
    expected = load_encoder(NAME, path, "cpu", layer=1).encode(fixed_input())
    for wrapped in (state, {"state_dict": state}, {"model": state}):
        torch.save(wrapped, tmp_path / "x.pth")
        assert torch.equal(
            load_encoder(NAME, tmp_path / "x.pth", "cpu", layer=1).encode(fixed_input()), expected
        )


def test_the_same_weights_under_two_names_give_the_same_tokens(tmp_path: Path) -> None:
    convert(demo_file(), tmp_path / "demo.safetensors", name="dinov2-s-demo")
    timm_one = load_encoder(NAME, tmp_path / "demo.safetensors", "cpu", layer=2)
    demo = load_encoder("dinov2-s-demo", None, "cpu", layer=2)
    assert torch.equal(timm_one.encode(fixed_input()), demo.encode(fixed_input()))
    assert timm_one.digest != demo.digest


def test_conversion_of_a_published_file(tmp_path: Path) -> None:
    path = published(tmp_path)
    name, _ = convert(path, tmp_path / "224.safetensors", name=NAME)
    pair = (load_encoder(name, file, "cpu", layer=1) for file in (path, tmp_path / "224.safetensors"))
    first, second = (encoder.encode(fixed_input()) for encoder in pair)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("timm/vit_so400m_patch14_siglip_224", "no CLS"),
        ("timm/eva02_tiny_patch14_224", "plain vision transformer"),
        ("timm/swin_tiny_patch4_window7_224", "plain vision transformer"),
        ("timm/resnet18", "vision transformer"),
        ("timm/no_such_model", "list_models"),
        ("timm/", "vision transformer"),
    ],
)
def test_models_of_another_form_are_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(SetupError, match=text):
        facts_of(name)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 256),
        ("vit_small_patch8_224", 128),
        ("vit_small_patch14_reg4_dinov2", 224),
        ("vit_base_patch32_clip_224", 512),
    ],
)
def test_other_patch_sizes_and_registers_make_the_same_grid(name: str, size: int, tmp_path: Path) -> None:
    """The model sees 16 x 16 patches, its own position table resampled; registers are left out."""
    published = timm.create_model(name, pretrained=False, num_classes=3)
    torch.nn.init.normal_(published.pos_embed)
    save_file(published.state_dict(), tmp_path / "own.safetensors")
    encoder = load_encoder(f"timm/{name}", tmp_path / "own.safetensors", "cpu", layer=2)
    picture = Image.new("RGB", (90, 70), "purple")
    images = encoder.preprocess(picture)[None]
    assert images.shape == (1, 3, size, size)
    tokens = encoder.encode(images)
    assert tokens.shape == (1, 257, encoder.d) and encoder.mask(picture).shape == (257,)
    published.set_input_size(img_size=size)
    seen: list[torch.Tensor] = []
    published.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        published.eval()(encoder._recoloured(images))
    expected = torch.cat([seen[0][:, :1], seen[0][:, -256:]], dim=1)
    assert torch.allclose(tokens, expected, atol=1e-4)


def test_weights_must_be_given_and_must_fit(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="encoder fetch timm/vit_small"):
        load_encoder(NAME)
    torch.save({"pos_embed": torch.zeros(1, 257, 384)}, tmp_path / "few.pth")
    torch.save({"state_dict": {"weight": "text"}}, tmp_path / "text.pth")
    for path in (tmp_path / "few.pth", tmp_path / "text.pth", official("dinobloom-s", tmp_path)):
        with pytest.raises(SetupError):
            load_encoder(NAME, path, "cpu").encode(fixed_input())
    base = published(tmp_path, 224)
    with pytest.raises(SetupError, match="another model"):
        load_encoder("timm/vit_base_patch14_dinov2.lvd142m", base, "cpu").encode(fixed_input())


def test_a_model_trained_with_other_colours_sees_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP's ViTs have their own mean and standard deviation: encode() takes ImageNet's and converts."""
    path = official("dinobloom-s", tmp_path)
    plain = load_encoder("dinobloom-s", path, "cpu", layer=1)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    monkeypatch.setitem(ENCODERS, "dinobloom-s", replace(ENCODERS["dinobloom-s"], mean=mean, std=std))
    other = load_encoder("dinobloom-s", path, "cpu", layer=1)
    pixels = torch.rand(1, 3, 224, 224)
    imagenet = [torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    own = [torch.tensor(values)[:, None, None] for values in (mean, std)]
    found = other.encode((pixels - imagenet[0]) / imagenet[1])
    assert torch.allclose(found, plain.encode((pixels - own[0]) / own[1]), atol=1e-4)
    assert other.digest != plain.digest
