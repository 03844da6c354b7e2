"""R101-GeM and the ResNet students against descriptors of the published code, filled by the fixtures' rule."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.students.resnet18 import resnet18
from cgd.models.students.resnet34 import resnet34
from cgd.models.teachers.gem import gem
from cgd.retrieval.vectors import combine_scales, l2

pytestmark = pytest.mark.shared


@cache
def facts(shared: Path, name: str) -> tuple[Any, Any]:
    folder = shared / "reference/teachers"
    return json.loads((folder / f"{name}.json").read_text()), np.load(folder / f"{name}.npz")


def filled(about: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Every tensor by the rule of the fixtures' README; `prefix` is cut from the names."""
    rule = about["weight_rule"]
    state, digest = {}, hashlib.sha256()
    for name, shape, _ in about["state_dict"]["entries"]:
        value = fill_rule(name, tuple(shape), rule)
        digest.update(value.tobytes())
        state[name.removeprefix(prefix)] = torch.from_numpy(value)
    assert digest.hexdigest() == rule["sha256_of_all_tensors"]
    return state


def fill_rule(name: str, shape: tuple[int, ...], rule: Mapping[str, Any]) -> np.ndarray:
    last = name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if name in rule["constants"]:
        return np.full(shape, rule["constants"][name], np.float32)
    noise = np.asarray(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32))
    if last == "running_var":
        return (1 + np.float32(0.1) * np.abs(noise)).astype(np.float32)
    if last in ("running_mean", "bias"):
        return (np.float32(0.01) * noise).astype(np.float32)
    if len(shape) >= 2:
        return noise * np.float32(rule["gain"] / np.sqrt(np.prod(shape[1:])))
    return (1 + np.float32(0.1) * noise).astype(np.float32)


def pixels(number: int, encoder: Encoder) -> Tensor:
    shape = ((1, 3, 128, 160), (1, 3, 97, 131))[number]
    raw = np.random.default_rng(number).random(shape, dtype=np.float32)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (encoder.input_spec.mean, encoder.input_spec.std))
    return torch.from_numpy((raw - mean) / std)


def embed(encoder: Encoder, number: int, scales: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """(S, D) at the given scales."""
    import dataclasses

    encoder.input_spec = dataclasses.replace(encoder.input_spec, scales=scales)
    with torch.inference_mode():
        vectors: np.ndarray = encoder.eval().embed([pixels(number, encoder)])[0].numpy()
    return vectors


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """The fixtures' measure: largest difference over the largest value, 1e-4."""
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.fixture(scope="module")
def faithful(shared: Path) -> Encoder:
    about, _ = facts(shared, "r101_gem")
    return gem(None, Checkpoint(Path("gem.pth"), filled(about), {"architecture": "resnet101", "pooling": "gem"}))


def test_gem_at_one_scale(shared: Path, faithful: Encoder) -> None:
    _, arrays = facts(shared, "r101_gem")
    for number in (0, 1):
        assert_close(embed(faithful, number)[0], arrays[f"orig_s{number}"])


def test_gem_at_three_scales(shared: Path, faithful: Encoder) -> None:
    _, arrays = facts(shared, "r101_gem")
    scales = (1.0, float(np.sqrt(0.5)), float(np.sqrt(2)))
    assert_close(l2(combine_scales(embed(faithful, 0, scales)[None], "mean"))[0], arrays["orig_ms_s0"])


def test_gem_in_the_form_of_whiten_mtd(shared: Path) -> None:
    about, arrays = facts(shared, "r101_gem")
    encoder = gem(None, Checkpoint(Path("gem.pth"), filled(about), {}), form="whiten-mtd")
    assert_close(embed(encoder, 0)[0], arrays["wmtd_raw_s0"])
    own = combine_scales(embed(encoder, 0, (1.0, float(np.sqrt(0.5)), 0.5))[None], "mean")
    assert_close(l2(own)[0], arrays["wmtd_ms_own_s0"])


@pytest.mark.parametrize("make", [resnet18, resnet34])
def test_students_of_whiten_mtd(shared: Path, make: Any) -> None:
    about, arrays = facts(shared, f"wmtd_{make.__name__}")
    encoder: Encoder = make(None, None)
    state = filled(about, "module.base_encoder.")
    renamed = {("head" if k.startswith("fc.") else "trunk") + "." + k.removeprefix("fc."): v for k, v in state.items()}
    encoder.network.load_state_dict(renamed)
    for number in (0, 1):
        assert_close(embed(encoder, number)[0], arrays[f"raw_s{number}"])
    own = combine_scales(embed(encoder, 0, (1.0, float(np.sqrt(0.5)), 0.5))[None], "mean")
    assert_close(l2(own)[0], arrays["ms_own_s0"])
    assert (
        sum(p.numel() for p in encoder.parameters()) == {"resnet18": 11_439_168, "resnet34": 21_547_328}[make.__name__]
    )
