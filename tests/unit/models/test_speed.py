"""Parameters, GMACs and speed of networks, with and without parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cgd.models import speed
from cgd.models.encoder import Encoder
from cgd.models.speed import Cost, costs_of, together
from cgd.types import InputSpec

CPU = torch.device("cpu")
SPEC = InputSpec(size=8, resize="square")


class Mean(nn.Module):
    """No parameters; counts the images of each forward pass, and the threads it may use."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[tuple[int, ...]] = []
        self.threads: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(tuple(x.shape))
        self.threads.add(torch.get_num_threads())
        return x.mean(dim=(2, 3))


def test_a_network_without_parameters_costs_no_multiply_adds() -> None:
    network = Mean()
    (cost,) = costs_of([Encoder("mean", network, SPEC, 3)], CPU, 0.01)
    assert (cost.parameters, cost.gmacs, cost.batch) == (0, 0.0, speed.BATCH)
    assert cost.images_per_second > 0
    assert network.passes[0] == (1, 3, 8, 8)
    assert network.passes[-1] == (speed.BATCH, 3, 8, 8)


def test_a_network_is_counted_by_hand_and_left_as_it_was() -> None:
    convolution = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Flatten())
    (cost,) = costs_of([Encoder("convolution", convolution, SPEC, 5 * 64)], CPU, 0.01)
    assert (cost.parameters, cost.gmacs) == (3 * 5 * 9, pytest.approx(3 * 5 * 9 * 64 / 1e9))


def test_networks_take_turns_on_one_thread() -> None:
    torch.set_num_threads(2)
    networks = [Mean(), Mean()]
    costs_of([Encoder("mean", network, SPEC, 3) for network in networks], CPU, 0.0)
    assert [network.threads for network in networks] == [{1}, {1}]
    assert torch.get_num_threads() == 2
    assert all(len(network.passes) == 5 + speed.ROUNDS for network in networks)


def test_a_heavy_network_gets_fewer_images_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_forward", lambda _, pixels: 2.0 * len(pixels))
    (cost,) = costs_of([Encoder("mean", Mean(), SPEC, 3)], CPU)
    assert (cost.batch, cost.images_per_second) == (3, 0.5)


def test_a_device_that_is_too_small_for_a_batch_gets_half_of_it() -> None:
    class Full(Mean):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 10:
                raise torch.OutOfMemoryError("full")
            return super().forward(x)

    assert costs_of([Encoder("full", Full(), SPEC, 3)], CPU, 0.0)[0].batch == 8


def test_networks_one_after_the_other_add_up() -> None:
    both = together([Cost(10, 1.0, 20.0, 32), Cost(5, 0.5, 30.0, 8)])
    assert both == Cost(15, 1.5, pytest.approx(12.0), 8)
