"""Batch norm that was folded away: recognised, frozen, un-folded, never trained by accident."""

import copy

import pytest
import torch
from torch import Tensor, nn

from cgd.errors import InputError
from cgd.models.batchnorm import decide, freeze, is_folded, norms, unfold


def network() -> nn.Sequential:
    """Two convolutions, each with a batch norm of identity statistics and other weights and biases."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4))
        for norm in norms(built):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -1, 1)
    return built.eval()


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(4 + i, 3, 12, 12, generator=generator) * 2 - 0.5 for i in range(count)]


def statistics(built: nn.Module) -> list[Tensor]:
    found = [(n.running_mean, n.running_var) for n in norms(built)]
    return [t.clone() for pair in found for t in pair if t is not None]


def test_identity_statistics_are_recognised() -> None:
    built = network()
    assert is_folded(built)
    built[4].running_var[2] = 1.001
    assert not is_folded(built)
    built = network()
    built[1].running_mean[0] = -1e-6
    assert not is_folded(built)


def test_a_network_without_batch_norm_is_not_folded() -> None:
    assert not is_folded(nn.Conv2d(3, 4, 1))
    assert not is_folded(nn.BatchNorm2d(3, track_running_stats=False))


def test_batch_norms_with_a_built_in_activation_are_found() -> None:
    from timm.layers import BatchNormAct2d

    assert len(list(norms(nn.Sequential(BatchNormAct2d(4), nn.BatchNorm2d(4), nn.BatchNorm1d(4))))) == 2


@pytest.mark.parametrize(
    ("mode", "folded", "pretrained", "expected"),
    [
        ("auto", True, True, "freeze"),
        ("auto", False, True, "train"),
        ("auto", True, False, "train"),  # untrained statistics are the identity too
        ("freeze", True, True, "freeze"),
        ("freeze", False, True, "freeze"),
        ("unfold", True, True, "unfold"),
        ("train", False, True, "train"),
        ("train", True, False, "train"),
    ],
)
def test_what_a_mode_means(mode: str, folded: bool, pretrained: bool, expected: str) -> None:
    built = network()
    if not folded:
        built[1].running_mean.fill_(0.5)
    assert decide(built, mode, pretrained) == expected


def test_folded_batch_norm_is_never_trained() -> None:
    with pytest.raises(InputError, match=r"set distill.batch_norm to freeze or unfold"):
        decide(network(), "train", pretrained=True)


def test_only_folded_batch_norm_is_unfolded() -> None:
    built = network()
    built[1].running_mean.fill_(0.5)
    with pytest.raises(InputError, match="use train"):
        decide(built, "unfold", pretrained=True)
    with pytest.raises(InputError, match="use train"):
        decide(network(), "unfold", pretrained=False)


def test_freezing_keeps_the_statistics_while_scale_and_shift_learn() -> None:
    built = network().train()
    freeze(built)
    before = statistics(built)
    built(batches()[0]).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(built), strict=True))
    assert all(n.weight.grad is not None and n.weight.requires_grad for n in norms(built))
    assert built[0].training


def test_without_freezing_the_statistics_move() -> None:
    built = network().train()
    before = statistics(built)
    built(batches()[0])
    assert not any(torch.equal(a, b) for a, b in zip(before, statistics(built), strict=True))


def test_unfolding_leaves_the_output_as_it_is() -> None:
    built = network()
    before = [built(b) for b in batches()]
    unfold(built, batches())
    for old, batch in zip(before, batches(), strict=True):
        torch.testing.assert_close(built(batch), old, atol=1e-5, rtol=1e-5)
    other = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(built(other), network()(other), atol=1e-5, rtol=1e-5)


def test_unfolding_in_double_precision_is_exact_to_rounding() -> None:
    built, whole = network().double(), network().double()
    unfold(built, [b.double() for b in batches()])
    x = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(built(x), whole(x), atol=1e-12, rtol=1e-12)


def test_unfolded_statistics_are_those_of_each_layers_input_over_all_batches() -> None:
    built = network()
    inputs: list[list[Tensor]] = [[], []]
    hooks = [
        norm.register_forward_pre_hook(lambda _, x, place=place: inputs[place].append(x[0]))
        for place, norm in enumerate(norms(built))
    ]
    for batch in batches():
        built(batch)
    for hook in hooks:
        hook.remove()
    unfold(built, batches())
    for norm, seen in zip(norms(built), inputs, strict=True):
        pixels = torch.cat([x.permute(1, 0, 2, 3).flatten(1) for x in seen], dim=1).double()  # (C, B H W)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        torch.testing.assert_close(norm.running_mean.double(), pixels.mean(1), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), pixels.var(1, correction=0), atol=1e-6, rtol=1e-5)


def test_training_on_is_gentle_after_unfolding_and_ruinous_without() -> None:
    """In training mode the un-folded network gives nearly what it gave before; the folded one does not."""
    batch = torch.cat(batches())
    whole = network()
    expected = whole(batch)
    unfolded = copy.deepcopy(whole)
    unfold(unfolded, [batch])
    torch.testing.assert_close(unfolded.train()(batch), expected, atol=1e-3, rtol=1e-3)
    assert (whole.train()(batch) - expected).abs().max() > 0.1


def test_unfolding_leaves_no_hooks_behind_even_where_it_fails() -> None:
    built = network()
    with pytest.raises(RuntimeError):
        unfold(built, [torch.rand(1, 7, 9, 9)])
    assert not any(n._forward_pre_hooks for n in norms(built))
    assert is_folded(built)
