"""Every published network against the descriptors of its own code, all of them filled by the fixtures' rule."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cgd import registry
from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.load import STUDENTS
from cgd.models.published import TEACHERS, network_shapes, publication_of
from cgd.models.selfcheck import by_rule, network_input
from cgd.models.teachers.dolg import orthogonal
from cgd.retrieval.vectors import combine_scales, l2
from cgd.retrieval.whitening import whiten
from cgd.types import Whitening

pytestmark = pytest.mark.shared
TOLERANCE = 1e-4
THREE, OWN = (1.0, sqrt(0.5), sqrt(2)), (1.0, sqrt(0.5), 0.5)
FEYMANPRIV = (1.0, 0.7071, 1.4142)
PAPERS_DOLG = {"aspp_s0", "aspp_s1"}  # a variant of DOLG that was never published


class Arrays(dict[str, np.ndarray]):
    """A fixture's arrays, which keeps in mind those that were asked for."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            super().__init__(arrays)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.asked.add(name)
        return super().__getitem__(name)


@cache
def facts(shared: Path, name: str) -> tuple[Any, Arrays]:
    folder = shared / "reference/teachers"
    return json.loads((folder / f"{name}.json").read_text()), Arrays(folder / f"{name}.npz")


@cache
def published_tensors(shared: Path, name: str) -> dict[str, Tensor]:
    """Every tensor of a fixture under its published name; their digest is the fixture's."""
    about, _ = facts(shared, name)
    rule = about["weight_rule"]
    only = "globalmodel" if name == "r101_delg" else ""
    digest, tensors = hashlib.sha256(), {}
    for key, shape, _ in about["state_dict"]["entries"]:
        if key.startswith("att_cls") or (key == "desc_cls.weight" and only):
            continue  # 81,313 classes that nothing reads, and that the digest leaves out
        value = by_rule(key, tuple(shape), rule["gain"])
        if key.startswith(only):
            digest.update(value.tobytes())
        tensors[key] = torch.from_numpy(value)
    assert digest.hexdigest() == rule["sha256_of_all_tensors"]
    return tensors


@cache
def kept(shared: Path, teacher: str) -> dict[str, Tensor]:
    """The tensors a teacher uses, under our names."""
    function = registry.find(TEACHERS, teacher)
    publication = publication_of(function)
    assert publication is not None
    tensors = published_tensors(shared, fixture_of(teacher))
    expected = publication.layouts[0].expected(network_shapes(function))
    assert tensors.keys() <= expected.keys()
    return {ours: tensors[name] for name, (ours, _) in expected.items() if ours}


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    """The filled networks take some gigabytes."""
    yield
    for cached in (published_tensors, kept, encoder_of, student_of):
        cached.cache_clear()


def fixture_of(teacher: str) -> str:
    return f"r101_{teacher.replace('-', '_')}"


@cache
def encoder_of(shared: Path, teacher: str, form: str, said: str = "{}") -> Encoder:
    function = registry.find(TEACHERS, teacher)
    checkpoint = Checkpoint(Path(teacher), kept(shared, teacher), {"teacher": teacher, "facts": json.loads(said)})
    encoder: Encoder = function(None, checkpoint, form=form).eval()
    return encoder


def embed(encoder: Encoder, number: int, scales: tuple[float, ...] = (1.0,), **changes: Any) -> np.ndarray:
    """(S, D) of a fixture's input, at scales of the tensor."""
    before = encoder.input_spec
    encoder.input_spec = dataclasses.replace(before, scales=scales, scale_on="tensor", **changes)
    try:
        with torch.inference_mode():
            vectors: np.ndarray = encoder.embed([network_input(number, encoder.input_spec)])[0].numpy()
    finally:
        encoder.input_spec = before
    return vectors


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """The fixtures' measure: largest difference over the largest value."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def together(vectors: np.ndarray, rule: str = "mean") -> np.ndarray:
    joined: np.ndarray = l2(combine_scales(vectors[None], rule))[0]
    return joined


def whitening(dim: int) -> Whitening:
    """A whitening layer of Whiten-MTD filled by the rule."""
    mean, projection = by_rule("mean", (1, dim))[0], by_rule("dvt", (512, dim))
    return Whitening(mean.astype(np.float64), projection.astype(np.float64), np.ones(dim), 0, 0, "crop")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("teacher", ["gem", "ap-gem", "solar", "delg", "dolg"])
def test_a_teacher_at_one_scale(shared: Path, teacher: str, number: int) -> None:
    _, arrays = facts(shared, fixture_of(teacher))
    found = embed(encoder_of(shared, teacher, "faithful"), number)[0]
    if f"orig_raw_s{number}" in arrays:
        assert_close(found, arrays[f"orig_raw_s{number}"])
    assert_close(l2(found), arrays[f"orig_s{number}"])


@pytest.mark.parametrize(
    ("teacher", "array", "scales"),
    [
        ("gem", "orig_ms_s0", THREE),
        ("solar", "orig_ms_s0", THREE),
        ("ap-gem", "orig_ms_gem_s0", THREE),
        ("delg", "orig_ms_s0", FEYMANPRIV),
        ("dolg", "orig_ms_s0", FEYMANPRIV),
        ("dolg", "orig_ms5_s0", None),
    ],
)
def test_a_teacher_at_several_scales(shared: Path, teacher: str, array: str, scales: tuple[float, ...] | None) -> None:
    encoder = encoder_of(shared, teacher, "faithful")
    vectors = embed(encoder, 0, scales or encoder.input_spec.scales)
    assert_close(together(vectors, encoder.input_spec.combine), facts(shared, fixture_of(teacher))[1][array])


def test_ap_gem_at_several_scales_by_plain_mean(shared: Path) -> None:
    vectors = embed(encoder_of(shared, "ap-gem", "faithful"), 0, THREE)
    assert_close(together(vectors, "mean"), facts(shared, "r101_ap_gem")[1]["orig_ms_mean_s0"])


@pytest.mark.parametrize("number", [0, 1])
def test_ap_gem_normalises_pooled_values_where_its_file_says_so(shared: Path, number: int) -> None:
    encoder = encoder_of(shared, "ap-gem", "faithful", json.dumps({"norm_features": True}))
    assert_close(embed(encoder, number)[0], facts(shared, "r101_ap_gem")[1][f"orig_nf_s{number}"])


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("teacher", ["gem", "ap-gem", "solar", "delg", "dolg"])
def test_a_teacher_as_whiten_mtd_used_it(shared: Path, teacher: str, number: int) -> None:
    _, arrays = facts(shared, fixture_of(teacher))
    encoder = encoder_of(shared, teacher, "whiten-mtd")
    found = embed(encoder, number)[0]
    assert len(found) == encoder.embed_dim
    assert_close(found, arrays[f"wmtd_raw_s{number}"])
    assert_close(l2(found), arrays[f"wmtd_s{number}"])
    white = whiten(found[None, None], whitening(len(found)))[0]
    assert_close(white, arrays[f"wmtd_pca_s{number}"])


@pytest.mark.parametrize("teacher", ["gem", "ap-gem", "solar", "delg", "dolg"])
def test_several_scales_as_whiten_mtd_joined_them(shared: Path, teacher: str) -> None:
    _, arrays = facts(shared, fixture_of(teacher))
    encoder = encoder_of(shared, teacher, "whiten-mtd")
    assert encoder.input_spec.scales == pytest.approx(OWN)
    assert_close(together(embed(encoder, 0, encoder.input_spec.scales)), arrays["wmtd_ms_own_s0"])
    vectors = embed(encoder, 0, THREE)
    assert_close(together(vectors), arrays["wmtd_ms_s0"])
    white = whiten(vectors[None], whitening(encoder.embed_dim), "mean")
    assert_close(l2(white)[0], arrays["wmtd_ms_pca_s0"])


@pytest.mark.parametrize("teacher", ["gem", "ap-gem", "solar", "delg"])
def test_what_happens_between_trunk_and_descriptor(shared: Path, teacher: str) -> None:
    _, arrays = facts(shared, fixture_of(teacher))
    for form, array in (("faithful", "gem_s0"), ("whiten-mtd", "wmtd_gem_p3_s0")):
        encoder = encoder_of(shared, teacher, form)
        network: Any = encoder.network
        with torch.inference_mode():
            pooled = network.pool(network.trunk(network_input(0, encoder.input_spec)))
            projected = network.head(pooled if network.before is None else network.before(pooled))
        assert_close(pooled[0].numpy(), arrays[array])
        if form == "faithful" and "fc_s0" in arrays:
            assert_close(projected[0].numpy(), arrays["fc_s0"])


def test_the_two_branches_of_dolg(shared: Path) -> None:
    _, arrays = facts(shared, "r101_dolg")
    encoder = encoder_of(shared, "dolg", "faithful")
    network: Any = encoder.network
    with torch.inference_mode():
        third = network.trunk[:-1](network_input(0, encoder.input_spec))
        pooled = network.pool(network.trunk[-1](third))
        overall = network.global_head(pooled)
        local = orthogonal(network.local(third), overall)
    for found, array in (
        (pooled, "gem_p3_s0"),
        (pooled, "wmtd_gem_p3_s0"),
        (overall, "fc_t_s0"),
        (local, "local_orth_s0"),
    ):
        assert_close(found[0].numpy(), arrays[array])


@pytest.mark.parametrize("number", [0, 1])
def test_dolg_as_cgd_ran_it(shared: Path, number: int) -> None:
    """A defect of that code, offered for comparison only."""
    _, arrays = facts(shared, "r101_dolg")
    encoder = encoder_of(shared, "dolg", "cgd")
    assert_close(embed(encoder, number)[0], arrays[f"cgd_dolg512_raw_s{number}"])
    assert_close(embed(encoder, number, channels="RGB")[0], arrays[f"cgd_dolg_rgb_raw_s{number}"])


# students


def trained_names(name: str, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """A published student's tensors under our names."""
    if name.startswith("resnet"):
        for key, value in state.items():
            rest = key.removeprefix("module.base_encoder.")
            yield f"head.{rest[3:]}" if rest.startswith("fc.") else f"trunk.{rest}", value
        return
    parts = ("conv_stem", "bn1", "blocks", "conv_head", "bn2")
    for key, value in state.items():
        first, _, rest = key.removeprefix("base_encoder.features.").partition(".")
        if first == "whiten":
            yield f"head.{rest}", value
        elif int(first) < len(parts):
            yield f"trunk.0.network.{parts[int(first)]}.{rest}", value
        else:
            yield f"trunk.1.{rest}", value


@cache
def student_of(shared: Path, name: str) -> Encoder:
    fixture = f"wmtd_{name}" if name.startswith("resnet") else f"cgd_{name.replace('-', '_')}"
    encoder: Encoder = registry.find(STUDENTS, name)(None, None).eval()
    encoder.network.load_state_dict(dict(trained_names(name, published_tensors(shared, fixture))))
    return encoder


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_439_168), ("resnet34", 21_547_328)], ids=lambda v: str(v)
)
def test_students_of_whiten_mtd(shared: Path, name: str, parameters: int) -> None:
    _, arrays = facts(shared, f"wmtd_{name}")
    encoder = student_of(shared, name)
    network: Any = encoder.network
    for number in (0, 1):
        found = embed(encoder, number)[0]
        assert_close(found, arrays[f"raw_s{number}"])
        assert_close(l2(found), arrays[f"s{number}"])
    with torch.inference_mode():
        assert_close(network.pool(network.trunk(network_input(0, encoder.input_spec)))[0].numpy(), arrays["gem_p3_s0"])
    assert_close(together(embed(encoder, 0, encoder.input_spec.scales)), arrays["ms_own_s0"])
    assert_close(together(embed(encoder, 0, THREE)), arrays["ms_s0"])
    assert sum(p.numel() for p in encoder.parameters()) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("mobilenetv2", 5_894_400), ("efficientnet-b3", 14_891_048)])
def test_students_of_cgd(shared: Path, name: str, parameters: int) -> None:
    _, arrays = facts(shared, f"cgd_{name.replace('-', '_')}")
    encoder = student_of(shared, name)
    network: Any = encoder.network
    for number in (0, 1):
        assert_close(embed(encoder, number)[0], arrays[f"s{number}"])
    with torch.inference_mode():
        pooled = network.pool(network.trunk(network_input(0, encoder.input_spec)))
        projected = network.head(pooled)
    assert_close(pooled[0].numpy(), arrays["gem_p3_s0"])
    assert_close(projected[0].numpy(), arrays["raw_s0"])
    assert_close(together(embed(encoder, 0, encoder.input_spec.scales)), arrays["ms_s0"])
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_every_array_of_the_fixtures_is_compared(shared: Path, request: pytest.FixtureRequest) -> None:
    """An array that no test asks for is one that nothing checks."""
    here = Path(__file__)
    tests = {item.originalname for item in request.session.items if item.path == here}  # type: ignore[attr-defined]
    if tests != {name for name in globals() if name.startswith("test_")}:
        pytest.skip("only some of the comparisons were asked for")
    for file in sorted((shared / "reference/teachers").glob("*.npz")):
        arrays = facts(shared, file.stem)[1]
        assert arrays.keys() - arrays.asked <= PAPERS_DOLG, file.name
