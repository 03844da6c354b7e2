"""The students of context-unaware distillation, what they cost, how one begins with another, and AlexNet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from cgd.errors import WeightsError
from cgd.models.checkpoints import WeightsFile, file_digest
from cgd.models.encoder import Encoder, gmacs
from cgd.models.load import student, teacher

COSTS = {"v1": (3_305_920, 1.09, 2048), "v2": (4_798_144, 1.11, 4096)}  # methods.md 5.1


def parameters(encoder: Encoder) -> int:
    return sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("form", COSTS)
def test_parameters_and_operations_are_those_published(form: str) -> None:
    trunk, operations, width = COSTS[form]
    features = student(f"context-unaware?form={form}", None).build()
    codes = student(f"context-unaware?form={form}&dim=48", None).build()
    assert (parameters(features), features.embed_dim) == (trunk, width)
    assert (parameters(codes), codes.embed_dim) == (trunk + 48 * width + 48, 48)
    assert round(gmacs(features), 2) == operations


def test_features_are_the_flattened_map_and_never_negative_and_codes_a_linear_map_of_them() -> None:
    encoder = student("context-unaware?dim=16", None).build().eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        mapped = encoder.network.trunk(images)  # type: ignore[operator,union-attr]
        head = encoder.network.head
        assert mapped.shape == (2, 128, 4, 4)
        assert (mapped >= 0).all()
        expected = mapped.reshape(2, 2048) @ head.weight.T + head.bias  # type: ignore[union-attr,operator]
        torch.testing.assert_close(encoder(images), expected)
        encoder.network.head = None  # type: ignore[assignment]
        torch.testing.assert_close(encoder(images), mapped.reshape(2, 2048))


def test_alexnet_gives_what_its_second_hidden_layer_gives() -> None:
    encoder = teacher("alexnet?weights=random", None).build()
    theirs = torchvision.models.alexnet(weights=None)
    own = {k.removeprefix("1."): v for k, v in encoder.network.state_dict().items()}
    theirs.load_state_dict(theirs.state_dict() | own)
    seen: list[torch.Tensor] = []
    theirs.classifier[5].register_forward_hook(lambda _, __, output: seen.append(output))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs.eval()(images)
        torch.testing.assert_close(encoder(images), seen[0])
    assert (encoder.embed_dim, len(seen[0][0])) == (4096, 4096)
    assert (seen[0] >= 0).all()


# a student begins with another


def saved(encoder: Encoder, path: Path, changed: str = "") -> WeightsFile:
    """The tensors of a student as `distill` writes them, each one more than drawn; one of them `changed`."""
    state = {k: v + 1 for k, v in encoder.network.state_dict().items()}
    if changed:
        tensor = state.pop(changed.removesuffix("?"))
        state |= {} if changed.endswith("?") else {changed + "er": tensor}  # or it is missing
    save_file(state, path)
    return WeightsFile(path.name, file_digest(path), path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("context-unaware", "context-unaware?dim=16"),
        ("mobilenet-v1?dim=0", "mobilenet-v1?dim=16"),
        ("mobilenet-v1?dim=24", "mobilenet-v1?dim=16"),
        ("mobilenet-v1?dim=24", "mobilenet-v1?dim=0"),
        ("timm:resnet10t?dim=24", "timm:resnet10t?dim=16"),
        ("resnet18?dim=24", "resnet18?dim=16"),
    ],
)
def test_a_student_begins_with_a_distilled_one_and_a_head_of_its_own(
    before: str, after: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = student(before, None).build()
    drawn = student(after, None).build().network.state_dict()
    with caplog.at_level("INFO", "cgd"):
        begun = student(after, saved(first, tmp_path / "model.safetensors")).build().network.state_dict()
    for name, tensor in begun.items():
        expected = drawn[name] if name.startswith("head.") else first.network.state_dict()[name] + 1
        assert torch.equal(tensor, expected), name
    assert "gives all but the head" in caplog.text


def test_a_head_of_the_shape_asked_for_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = student("mobilenet-v1?dim=16", None).build()
    begun = student("mobilenet-v1?dim=16", saved(first, tmp_path / "a.safetensors")).build().network.state_dict()
    assert torch.equal(begun["head.weight"], first.network.state_dict()["head.weight"] + 1)
    assert not caplog.text


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("context-unaware?form=v2", "context-unaware?form=v1&dim=16", ""),
        ("mobilenet-v1?width=0.25", "mobilenet-v1?width=0.5", ""),
        ("mobilenet-v1?dim=24", "mobilenet-v1?dim=16", "trunk.network.conv_stem.weight"),
        ("mobilenet-v1?dim=24", "mobilenet-v1?dim=16", "trunk.network.conv_stem.weight?"),
        ("mobilenet-v1?dim=24", "context-unaware?dim=16", ""),
    ],
)
def test_what_does_not_match_below_the_head_is_refused(before: str, after: str, changed: str, tmp_path: Path) -> None:
    init = saved(student(before, None).build(), tmp_path / "model.safetensors", changed)
    with pytest.raises(WeightsError, match=r"belongs to another network|holds no tensors of a context-unaware student"):
        student(after, init).build()
