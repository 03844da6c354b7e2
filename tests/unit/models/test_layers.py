"""Shared layers against loops: pooling, the student's head, and trunks of either layout."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cgd.models.layers import Descriptor, GeM, TimmTrunk, pooling


def features(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_gem(x: Tensor, p: float) -> Tensor:
    out = torch.empty(x.shape[:2], dtype=x.dtype)
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = [max(float(v), 1e-6) ** p for v in x[b, c].flatten()]
            out[b, c] = (sum(values) / len(values)) ** (1 / p)
    return out


@pytest.mark.parametrize("p", [2.0, 3.0, 4.5])
@pytest.mark.parametrize("learned", [False, True])
def test_gem_is_the_root_of_the_mean_power_of_what_is_positive(p: float, learned: bool) -> None:
    torch.testing.assert_close(GeM(p, learned=learned)(features()).double(), naive_gem(features(), p))


def test_exponent_one_is_the_plain_mean_negative_values_included() -> None:
    assert features().min() < 0
    torch.testing.assert_close(GeM(1.0)(features()), features().mean(dim=(2, 3)))
    torch.testing.assert_close(pooling("avg")(features()), features().mean(dim=(2, 3)))


def test_gem_by_name_has_exponent_three() -> None:
    torch.testing.assert_close(pooling("gem")(features()), naive_gem(features(), 3.0))
    with pytest.raises(KeyError):
        pooling("max")


def test_a_learned_exponent_is_one_parameter_and_a_fixed_one_none() -> None:
    assert {n: tuple(p.shape) for n, p in GeM(3.0, learned=True).named_parameters()} == {"p": (1,)}
    assert not list(GeM(3.0).parameters())
    pool = GeM(3.0, learned=True)
    pool(features()).sum().backward()
    assert pool.p.grad is not None


def test_gem_grows_towards_the_maximum_with_its_exponent() -> None:
    x = features().abs()
    pooled = [GeM(p)(x) for p in (1.0, 3.0, 10.0)]
    assert (pooled[0] < pooled[1]).all()
    assert (pooled[1] < pooled[2]).all()
    assert (pooled[2] < x.amax(dim=(2, 3))).all()


def test_the_map_given_is_not_changed() -> None:
    x = features()
    GeM(3.0)(x)
    assert torch.equal(x, features())


def test_the_head_is_linear_on_the_normalised_pooled_map() -> None:
    descriptor = Descriptor(nn.Identity(), 3, GeM(1.0), 6).double()
    assert descriptor.head is not None
    out = descriptor(features())
    pooled = features().mean(dim=(2, 3))
    for b in range(2):
        unit = pooled[b] / pooled[b].square().sum().sqrt()
        torch.testing.assert_close(out[b], descriptor.head.weight @ unit + descriptor.head.bias)


def test_without_a_head_the_descriptor_is_the_pooled_map_not_normalised() -> None:
    descriptor = Descriptor(nn.Identity(), 3, GeM(1.0), 0)
    torch.testing.assert_close(descriptor(features()), features().mean(dim=(2, 3)))
    assert not list(descriptor.parameters())


def test_a_black_map_gives_the_heads_bias_not_nan() -> None:
    descriptor = Descriptor(nn.Identity(), 3, GeM(1.0), 6)
    assert descriptor.head is not None
    torch.testing.assert_close(descriptor(torch.zeros(1, 3, 2, 2))[0], descriptor.head.bias)


class Inner(nn.Module):
    """Stands for a timm network that gives `output`."""

    def __init__(self, output: Tensor, **about: Any) -> None:
        super().__init__()
        self.output = output
        for name, value in about.items():
            setattr(self, name, value)

    def forward_features(self, _: Tensor) -> Tensor:
        return self.output


def test_channels_come_first_whatever_the_layout_inside() -> None:
    x = features()
    assert torch.equal(TimmTrunk(Inner(x))(x), x)
    last = x.permute(0, 2, 3, 1).contiguous()
    assert torch.equal(TimmTrunk(Inner(last, output_fmt="NHWC"))(x), x)


def test_tokens_become_a_map_of_one_column_without_the_prefix() -> None:
    tokens = torch.randn(2, 7, 3)  # class token, one register, five patches
    out = TimmTrunk(Inner(tokens, num_prefix_tokens=2))(tokens)
    assert out.shape == (2, 3, 5, 1)
    torch.testing.assert_close(out.mean(dim=(2, 3)), tokens[:, 2:].mean(dim=1))
    assert TimmTrunk(Inner(tokens))(tokens).shape == (2, 3, 7, 1)
