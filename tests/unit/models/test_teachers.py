"""Parts of the published teachers against plain formulas, and their options."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_files import declared, pca_state, save, state_of
from torchvision.models import resnet50

from cgd.errors import InputError, WeightsError
from cgd.models import published
from cgd.models.checkpoints import file_digest
from cgd.models.layers import GeM
from cgd.models.load import teacher
from cgd.models.published import convert, imported_name, published_teachers, read_published
from cgd.models.teachers.ap_gem import PublishedWhitening
from cgd.models.teachers.dolg import LocalBranch, orthogonal
from cgd.models.teachers.solar import SecondOrderAttention
from cgd.types import InputSpec


def maps(channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, channels, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_new_attention_is_the_identity() -> None:
    assert torch.equal(SecondOrderAttention(6, 3).double().eval()(maps(6)), maps(6))


@torch.inference_mode()
def test_attention_gathers_from_every_position_by_resemblance() -> None:
    block = SecondOrderAttention(6, 3).double().eval()
    torch.nn.init.normal_(block.v.weight, generator=torch.Generator().manual_seed(1))
    x = maps(6)
    out = block(x)
    f, g, h = (part(x) for part in (block.f, block.g, block.h))
    positions = [(y, c) for y in range(3) for c in range(4)]
    for b in range(2):
        for y, c in positions:
            weights = [math.exp(float(f[b, :, y, c] @ g[b, :, i, j]) / math.sqrt(3)) for i, j in positions]
            gathered = sum(w * h[b, :, i, j] for w, (i, j) in zip(weights, positions, strict=True)) / sum(weights)
            expected = x[b, :, y, c] + block.v.weight[:, :, 0, 0] @ gathered
            torch.testing.assert_close(out[b, :, y, c], expected)


def test_the_orthogonal_part_is_orthogonal_and_the_mean_over_positions() -> None:
    local, along = maps(8), torch.randn(2, 8, dtype=torch.float64)
    found = orthogonal(local, along)
    torch.testing.assert_close((found * along).sum(dim=1), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    for b in range(2):
        parts = [local[b, :, y, x] for y in range(3) for x in range(4)]
        rest = [v - along[b] * (along[b] @ v) / (along[b] @ along[b]) for v in parts]
        torch.testing.assert_close(found[b], torch.stack(rest).mean(dim=0))


def test_local_features_have_the_length_of_their_attention() -> None:
    branch = LocalBranch().eval()
    with torch.inference_mode():
        x = torch.randn(1, 1024, 2, 3)
        normed = branch.bn(branch.conv1(x))
        attention = torch.log1p(branch.conv2(normed.clamp(min=0)).exp())
        torch.testing.assert_close(branch(x).norm(dim=1, keepdim=True), attention, rtol=1e-4, atol=1e-5)


def test_a_published_pca_is_scikit_learns_transform_with_another_exponent() -> None:
    state = pca_state(dim=4, wide=6)
    names = {"mean": "mean_", "components": "components_", "variance": "explained_variance_"}
    layer = PublishedWhitening({k: torch.from_numpy(np.ascontiguousarray(state[v])) for k, v in names.items()}, 0.25)
    x = np.random.default_rng(0).standard_normal((3, 6))
    expected = (x - state["mean_"]) @ state["components_"].T / state["explained_variance_"] ** 0.25
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(layer(torch.from_numpy(x)).numpy(), expected)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with AP-GeM's imported weights: all zero, with a PCA."""
    folder = tmp_path_factory.mktemp("weights")
    file = save(folder / "published.pt", "ap-gem", state_of(declared("ap-gem")))
    (folder / "ap-gem.safetensors").write_bytes(convert("ap-gem", read_published(file), file).serialise())
    return folder


def test_ap_gem_with_its_pca_has_the_pcas_size(weights: Path) -> None:
    encoder = teacher("ap-gem?pca=Landmarks_clean", weights).build()
    assert encoder.embed_dim == 8
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 8)
    assert encoder.network[1].power == 0.25
    assert teacher("ap-gem?pca=Landmarks_clean&power=0.5", weights).build().network[1].power == 0.5


def _norm(name: str, width: int, *, affine: bool = True) -> dict[str, tuple[int, ...]]:
    own = ("weight", "bias") if affine else ()
    return {f"{name}.{part}": (width,) for part in (*own, "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": ()
    }


def test_moco_v3s_heads_are_those_of_the_released_code() -> None:
    """As facebookresearch/moco-v3 builds its ResNet, with the predictor of the released weights."""
    trunk = {f"module.base_encoder.{n}": tuple(t.shape) for n, t in resnet50().state_dict().items() if n[:3] != "fc."}
    projector = {"fc.0.weight": (4096, 2048), "fc.3.weight": (256, 4096)}
    projector |= _norm("fc.1", 4096) | _norm("fc.4", 256, affine=False)
    encoder = trunk | {f"module.base_encoder.{n}": s for n, s in projector.items()}
    momentum = {n.replace("base_encoder", "momentum_encoder"): s for n, s in encoder.items()}
    predictor = {"module.predictor.0.weight": (4096, 256), "module.predictor.3.weight": (256, 4096)}
    predictor |= _norm("module.predictor.1", 4096)
    released = encoder | momentum | predictor
    for state in (released, released | _norm("module.predictor.4", 256, affine=False), encoder, trunk):
        content = {"state_dict": state_of(state)}
        assert set(convert("mocov3", content, Path(__file__)).tensors) == _used("mocov3")
    with pytest.raises(WeightsError, match=r"1 missing \(first: module.predictor.1.bias\)"):
        convert("mocov3", {"state_dict": state_of({n: s for n, s in released.items() if n[-6:] != "1.bias"
                                                  or "predictor" not in n})}, Path(__file__))  # fmt: skip


def test_barlow_twins_heads_are_those_of_the_released_code() -> None:
    """As facebookresearch/barlowtwins builds its projector, 8192-8192-8192."""
    trunk = {f"module.backbone.{n}": tuple(t.shape) for n, t in resnet50().state_dict().items() if n[:3] != "fc."}
    projector = {"0.weight": (8192, 2048), "3.weight": (8192, 8192), "6.weight": (8192, 8192)}
    projector |= _norm("1", 8192) | _norm("4", 8192)
    whole = trunk | {f"module.projector.{n}": s for n, s in projector.items()} | _norm("module.bn", 8192, affine=False)
    alone = {n.removeprefix("module.backbone."): s for n, s in trunk.items()}
    for content in ({"model": state_of(whole), "optimizer": {}}, {"model": state_of(trunk)}, state_of(alone)):
        assert set(convert("barlow-twins", content, Path(__file__)).tensors) == _used("barlow-twins")


def _used(name: str) -> set[str]:
    function, _ = published_teachers()[name]
    return {n for n in published.network_shapes(function) if not n.endswith("num_batches_tracked")}


def test_a_known_digest_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save(tmp_path / "p.pth", "gem", state_of(declared("gem")))
    content, publication = read_published(file), published_teachers()["gem"][1]
    for digest, fits in ((file_digest(file), True), ("0" * 64, False)):
        known = dataclasses.replace(publication, sha256=digest)
        monkeypatch.setattr(published, "publication_of", lambda _, known=known: known)
        if fits:
            assert convert("gem", content, file).source["sha256"] == digest
        else:
            with pytest.raises(WeightsError, match=f"p.pth has the SHA-256 .*, {publication.file} has {digest}"):
                convert("gem", content, file)


@pytest.mark.parametrize("text", ["size=100000000", "scales=nan", "scales=inf", "scales=1e9", "size=0", "scales=-1"])
def test_an_input_of_no_use_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="an input has"):
        teacher(f"mocov3?weights=random&{text}", None).build()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ap-gem?pca=Landmarks_full", "have no PCA 'Landmarks_full'; they have Landmarks_clean"),
        ("ap-gem?pca=x&weights=random", "have no PCA 'x'; they have none"),
        ("ap-gem?pca=Landmarks_clean&form=whiten-mtd", "belongs to the faithful form"),
    ],
)
def test_a_pca_that_is_not_there(weights: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        teacher(text, weights).build()


def test_what_ap_gems_file_says_is_kept(tmp_path: Path) -> None:
    options = {"arch": "resnet101_rmac", "norm_features": True}
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": (3, 224, 224)}
    file = save(tmp_path / "p.pt", "ap-gem", state_of(declared("ap-gem")), model_options=options, preprocess=preprocess)
    imported = convert("ap-gem", read_published(file), file)
    assert imported.facts == {"norm_features": True, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
                              "pca": {"Landmarks_clean": True}}  # fmt: skip
    np.testing.assert_allclose(imported.tensors["pca.Landmarks_clean.mean"], pca_state()["mean_"], rtol=1e-6)
    (tmp_path / "ap-gem.safetensors").write_bytes(imported.serialise())
    encoder: Any = teacher("ap-gem", tmp_path).build()
    assert (encoder.input_spec.mean, encoder.input_spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert encoder.network.before is not None


def test_every_published_teacher_declares_its_pixels() -> None:
    """The table of docs/teachers.md, in code."""
    specs = {name: function(None, None).input_spec for name, (function, _) in published_teachers().items()}
    assert {n for n, s in specs.items() if s.channels == "BGR"} == {"delg", "dolg"}
    root = math.sqrt(2)
    assert specs["gem"] == specs["solar"] == InputSpec(1024, "longest", filter="lanczos", scales=(1.0, root, 1 / root))
    assert specs["ap-gem"] == InputSpec(1024, "none", scale_on="image", combine="gem3")
    assert specs["delg"].scales == pytest.approx((1 / root, 1, root))
    assert specs["dolg"].scales == (0.3535, 0.5, 0.7071, 1.0, 1.4142)
    for name in ("delg", "dolg"):
        s = specs[name]
        assert (s.resize, s.scale_on, s.scale_rounding, s.query_crop) == ("none", "tensor", "round", "integer")
    for name in ("mocov3", "barlow-twins"):
        assert specs[name] == InputSpec(256, "shortest", enlarge=True, centre_crop=224)
    for name in ("gem", "ap-gem", "solar", "delg", "dolg"):
        spec = published_teachers()[name][0](None, None, form="whiten-mtd").input_spec
        assert (spec.resize, spec.scale_on, spec.scale_rounding) == ("none", "tensor", "floor")
        assert spec.scales == pytest.approx((1, 1 / root, 0.5))
        assert spec.channels == specs[name].channels


def test_every_layout_names_each_tensor_of_its_network_once() -> None:
    for name, (function, publication) in published_teachers().items():
        assert imported_name(function) == f"{name}.safetensors"
        shapes = published.network_shapes(function)
        for number, layout in enumerate(publication.layouts):
            ours = [mine for mine, _ in layout.expected(shapes).values() if mine]
            assert len(ours) == len(set(ours))
            left = set(shapes) - set(ours)
            assert left == ({"pool.p"} if (name, number) == ("gem", 1) else set()), name


# timm


@pytest.mark.parametrize("pool", ["cls", "avg", "gem"])
def test_a_vision_transformer_by_its_class_token_or_its_patches(pool: str) -> None:
    encoder: Any = teacher(f"timm:vit_tiny_patch16_224?pool={pool}&weights=random", None).build()
    network = encoder.network.trunk.network
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        tokens = network.forward_features(x)
        found = encoder(x)
    patches = tokens[:, 1:].transpose(1, 2).unsqueeze(-1)
    expected = {"cls": tokens[:, 0], "avg": tokens[:, 1:].mean(dim=1), "gem": GeM(3.0)(patches)}[pool]
    torch.testing.assert_close(found, expected)
    assert encoder.embed_dim == found.shape[1] == 192
    if pool == "cls":  # what timm itself gives without a classifier
        torch.testing.assert_close(found, network(x))


@pytest.mark.parametrize("size", [160, 224, 256])
def test_a_vision_transformer_takes_other_sizes(size: int) -> None:
    encoder = teacher("timm:vit_tiny_patch16_224?pool=cls&weights=random", None).build()
    with torch.inference_mode():
        assert encoder(torch.randn(1, 3, size, size + 32)).shape == (1, 192)


def test_registers_are_no_patches() -> None:
    encoder: Any = teacher("timm:vit_small_patch14_reg4_dinov2?pool=avg&weights=random&size=56", None).build()
    x = torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        tokens = encoder.network.trunk.network.forward_features(x)
        assert tokens.shape[1] == 1 + 4 + 16
        torch.testing.assert_close(encoder(x), tokens[:, 5:].mean(dim=1))


@pytest.mark.parametrize("pool", ["avg", "gem"])
def test_convnext_pools_its_map(pool: str) -> None:
    encoder: Any = teacher(f"timm:convnext_atto?pool={pool}&weights=random", None).build()
    x = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        features = encoder.network.trunk.network.forward_features(x)
        expected = features.mean(dim=(2, 3)) if pool == "avg" else GeM(3.0)(features)
        torch.testing.assert_close(encoder(x), expected)


@pytest.mark.parametrize("name", ["convnext_atto", "resnet10t", "vit_base_patch16_siglip_224"])
def test_a_network_without_a_class_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"timm:{name} has no class token: use pool=avg or pool=gem"):
        teacher(f"timm:{name}?pool=cls&weights=random", None).build()


def test_baselines_are_means_of_pixels_and_shares_of_colours() -> None:
    x = torch.zeros(1, 3, 32, 64)
    x[:, 0, :, :48] = 1.0
    x[:, 2, :, 48:] = 0.99
    colours, pixels = (teacher(name, None).build()(x)[0] for name in ("colours", "pixels"))
    torch.testing.assert_close(colours[[7 * 64, 7]], torch.tensor([48 * 32.0, 16 * 32.0]).sqrt())
    assert int((colours > 0).sum()) == 2
    red = pixels.reshape(3, 16, 16)[0]
    torch.testing.assert_close(red[:, :12] - red[:, 12:13], torch.ones(16, 12))
    assert abs(float(pixels.mean())) < 1e-6
