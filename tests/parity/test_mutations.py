"""The typical mistakes, each made on purpose: a parity test or a canary must turn red, or it proves nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cgd.config import ExtractConfig
from cgd.data import transforms
from cgd.errors import StoreError
from cgd.models.checkpoints import Checkpoint
from cgd.models.devices import Compute
from cgd.models.encoder import Encoder, EncoderSource
from cgd.models.layers import GeM, unit, unit_cirtorch
from cgd.models.load import teacher
from cgd.models.published import published_teachers
from cgd.models.selfcheck import TOLERANCE, Case, cases, describe, difference, filled
from cgd.models.teachers import dolg as dolg_module
from cgd.stages.canaries import check_canaries
from cgd.stages.embed import Look
from cgd.store.feature_store import FeatureStore

CPU = torch.device("cpu")
R101 = ("gem", "ap-gem", "solar", "delg", "dolg")
Mutation = Callable[[Encoder], None]


@cache
def right(name: str) -> Encoder:
    """A teacher by the fixtures' rule."""
    function, _ = published_teachers()[name]
    encoder: Encoder = function(None, Checkpoint(Path(name), filled(name), {"teacher": name, "facts": {}})).eval()
    return encoder


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    right.cache_clear()


def worst(encoder: Encoder, name: str) -> float:
    """Largest difference of the faithful form at one scale from what the published code gave."""
    faithful = [
        (c, e) for c, e in cases(name) if not c.options and not c.facts and not c.changes and len(c.scales) == 1
    ]
    assert faithful
    return max(difference(describe(encoder, case, CPU), expected) for case, expected in faithful)


# in a network


def channels_swapped(encoder: Encoder) -> None:
    other = "BGR" if encoder.input_spec.channels == "RGB" else "RGB"
    encoder.input_spec = dataclasses.replace(encoder.input_spec, channels=other)


def exponent_three(encoder: Encoder) -> None:
    encoder.network.pool = GeM(3.0)


def exponent_of_the_file(encoder: Encoder) -> None:
    """DOLG's published loader ignores the one in its file."""
    encoder.network.pool = GeM(2.7)


def batch_norm_epsilon(encoder: Encoder) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3


def stride_on_the_first_convolution(encoder: Encoder) -> None:
    for stage in (2, 3, 4):
        block: Any = encoder.get_submodule(f"network.trunk.layer{stage}.0")
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


def training_mode(encoder: Encoder) -> None:
    encoder.train()


def normalisation_missing(encoder: Encoder) -> None:
    assert encoder.network.before is not None
    encoder.network.before = None


def normalisation_extra(encoder: Encoder) -> None:
    assert encoder.network.before is None
    encoder.network.before = unit


def last_normalisation_missing(encoder: Encoder) -> None:
    assert encoder.network.after is not None
    encoder.network.after = None


def without_bias(encoder: Encoder) -> None:
    nn.init.zeros_(encoder.network.head.bias)  # type: ignore[union-attr,arg-type]


def without_attention(encoder: Encoder) -> None:
    encoder.network.trunk.soa4 = nn.Identity()


def drawing_mode(encoder: Encoder) -> None:
    encoder.network.trunk.soa5.scale = 1024**-0.75


EVERYWHERE = [channels_swapped, batch_norm_epsilon, stride_on_the_first_convolution, training_mode, without_bias]
CASES = [
    *((name, mutation) for name in R101 for mutation in EVERYWHERE),
    *((name, exponent_three) for name in R101 if name != "dolg"),
    ("dolg", exponent_of_the_file),
    *((name, normalisation_missing) for name in ("gem", "solar")),
    *((name, normalisation_extra) for name in ("ap-gem", "delg")),
    *((name, last_normalisation_missing) for name in ("gem", "ap-gem", "solar")),
    ("solar", without_attention),
    ("solar", drawing_mode),
    *((name, mutation) for name in ("mocov3", "barlow-twins") for mutation in (channels_swapped, batch_norm_epsilon)),
]


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_unchanged_it_is_right(name: str) -> None:
    assert worst(right(name), name) <= TOLERANCE


@pytest.mark.parametrize(("name", "mutate"), CASES, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_a_mistake_in_a_network_turns_its_parity_test_red(name: str, mutate: Mutation) -> None:
    changed = copy.deepcopy(right(name))
    mutate(changed)
    assert worst(changed, name) > TOLERANCE


def test_dolg_without_its_orthogonal_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dolg_module, "orthogonal", lambda local, _: local.mean(dim=(-2, -1)))
    assert worst(right("dolg"), "dolg") > TOLERANCE


def test_dolg_with_its_branches_the_other_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    join = torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts, dim: join(parts[::-1], dim=dim))
    assert worst(right("dolg"), "dolg") > TOLERANCE


@pytest.mark.parametrize("name", ["gem", "delg"])
def test_scaling_by_the_other_rule(name: str) -> None:
    """A target size for the factor, and the factor for a target size, sample other grids."""
    case, expected = next((c, e) for c, e in cases(name) if c.array == "orig_ms_s0")
    other = "round" if right(name).input_spec.scale_rounding == "floor" else "floor"
    assert difference(describe(right(name), case, CPU), expected) <= TOLERANCE
    # Input 0 has sides for which both rules give the same size; input 1 tells them apart.
    odd = dataclasses.replace(case, number=1, scales=(0.7071,))
    changed: Case = dataclasses.replace(odd, changes={"scale_rounding": other})
    assert difference(describe(right(name), changed, CPU), describe(right(name), odd, CPU)) > TOLERANCE


def test_the_two_epsilons_of_l2_differ_where_values_are_small() -> None:
    x = torch.full((1, 4), 1e-4)
    assert not torch.allclose(unit(x), unit_cirtorch(x), rtol=TOLERANCE)


# on one machine of many


@pytest.fixture
def machines(tmp_path: Path) -> Callable[..., dict[str, float]]:
    """Check the canaries in one store as another machine would, with a network changed or not."""

    def run(
        text: str, mutate: Mutation | None = None, view: str = "fixed", precision: Any = "fp32"
    ) -> dict[str, float]:
        source: EncoderSource = teacher(f"{text}&weights=random", None)
        encoder = source.build()
        if mutate:
            mutate(encoder)
        store = FeatureStore.open(tmp_path / "features.zarr", write=True)
        config = ExtractConfig(crop_size=64, precision=precision)
        return check_canaries(store, [(source, Look(encoder, view))], config, Compute(CPU, workers=0))

    return run


SMALL = "timm:resnet10t?size=64"


@pytest.mark.parametrize("mutate", [channels_swapped, batch_norm_epsilon, training_mode], ids=lambda m: m.__name__)
@pytest.mark.parametrize("view", ["fixed", "crop-1"])
def test_a_mistake_on_one_machine_turns_its_canary_red(machines: Any, mutate: Mutation, view: str) -> None:
    assert max(machines(SMALL, view=view).values()) == 0
    assert max(machines(SMALL, view=view).values()) == 0
    with pytest.raises(StoreError, match=r"differently from the first run: .*nothing was written.*cgd teachers check"):
        machines(SMALL, mutate, view=view)
    assert max(machines(SMALL, view=view).values()) == 0, "the first run's vectors stay"


@pytest.mark.parametrize(
    ("text", "view"),
    [("timm:resnet10t?size=64", "fixed"), ("timm:resnet10t?size=1024&resize=longest", "fixed"),
     ("timm:resnet10t?resize=none", "crop-1"), ("timm:resnet10t?size=64&resize=shortest", "fixed")],
)  # fmt: skip
def test_another_resize_filter_turns_a_canary_red(
    machines: Any, monkeypatch: pytest.MonkeyPatch, text: str, view: str
) -> None:
    machines(text, view=view)
    filters = transforms._FILTERS
    monkeypatch.setattr(
        transforms, "_FILTERS", {**filters, "bicubic": filters["lanczos"], "bilinear": filters["bicubic"]}
    )
    with pytest.raises(StoreError, match="differently from the first run"):
        machines(text, view=view)


def test_rounded_single_precision_turns_a_canary_red(machines: Any) -> None:
    """As TF32 would: ten bits of mantissa."""

    def rounded(encoder: Encoder) -> None:
        for parameter in encoder.parameters():
            values = parameter.data.numpy().view(np.int32)
            parameter.data = torch.from_numpy(((values + 0x1000) & ~0x1FFF).view(np.float32))

    machines(SMALL)
    with pytest.raises(StoreError, match=r"fp32\) differently"):
        machines(SMALL, rounded)


def test_reduced_precision_has_canaries_of_its_own_and_those_of_single_precision(machines: Any) -> None:
    keys = machines(SMALL, precision="bf16")
    assert [key.rpartition("-")[0].rpartition(".")[2] for key in keys] == ["fp32", "bf16"]
    with pytest.raises(StoreError, match="fp32"):
        machines(SMALL, batch_norm_epsilon, precision="bf16")
