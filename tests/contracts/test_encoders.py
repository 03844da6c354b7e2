"""What every registered teacher and student must do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cgd import registry
from cgd.config import ExtractConfig
from cgd.data.datasets import open_benchmark
from cgd.models import load
from cgd.models.devices import Compute
from cgd.models.encoder import Encoder, EncoderSource
from cgd.stages.embed import Look, Meter, embed_rows

ARGUMENTS = {"timm": "timm:resnet10t", "maps": "maps:timm:resnet10t"}


def teacher(name: str) -> EncoderSource:
    return load.teacher(f"{ARGUMENTS.get(name, name)}?weights=random", None)


def student(name: str, seed: int = 0) -> EncoderSource:
    return load.student(f"{ARGUMENTS.get(name, name)}?dim=24", None, seed)


SOURCES = [pytest.param(teacher, n, id=f"teacher-{n}") for n in registry.names(load.TEACHERS)]
SOURCES += [pytest.param(student, n, id=f"student-{n}") for n in registry.names(load.STUDENTS)]


def embed(encoder: Encoder, size: int = 64) -> torch.Tensor:
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, size, size + 32), np.float32))
    with torch.inference_mode():
        return encoder.eval().embed([images])


@pytest.mark.parametrize(("make", "name"), SOURCES)
def test_embeds_at_every_scale_without_depending_on_the_batch(make, name) -> None:
    encoder = make(name).build()
    encoder.input_spec = dataclasses.replace(encoder.input_spec, scales=(1.0, 0.7071), scale_on="tensor")
    vectors = embed(encoder)
    assert vectors.shape == (2, 2, encoder.embed_dim)
    assert vectors.dtype == torch.float32
    assert torch.isfinite(vectors).all()
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 64, 96), np.float32))
    with torch.inference_mode():
        alone = encoder.embed([images[1:]])
    torch.testing.assert_close(alone[0], vectors[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("make", "name"), SOURCES)
def test_is_the_same_network_whenever_it_is_built(make, name) -> None:
    torch.manual_seed(5)
    first = make(name).build().state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    second = make(name).build().state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert torch.equal(drawn, torch.rand(1)), "building disturbs the global generator"


@pytest.mark.parametrize(("make", "name"), SOURCES)
def test_identity_is_plain_and_names_the_weights(make, name) -> None:
    source = make(name)
    assert source.identity["weights"] == "random"
    assert source.label == registry.slug(source.label)
    assert "/" not in source.label


@pytest.mark.parametrize("name", registry.names(load.STUDENTS))
def test_a_students_seed_is_part_of_it(name: str) -> None:
    assert student(name, 0).identity != student(name, 1).identity
    first, second = (student(name, seed).build().state_dict() for seed in (0, 1))
    assert any(not torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", registry.names(load.STUDENTS))
def test_a_student_learns_at_any_dimension(name: str) -> None:
    encoder = student(name).build().train()
    assert encoder.embed_dim == 24
    loss = encoder(torch.ones(2, 3, 64, 64)).square().sum()
    loss.backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize(("make", "name"), SOURCES)
def test_every_view_of_an_image_is_embedded_as_its_artifact_declares(make, name, drawn) -> None:
    """The full image at every scale of the network, a query cut to its box, and a crop at one scale."""
    images = open_benchmark(f"manifest:{drawn / 'manifest.csv'}", "lm").queries
    encoder = make(name).build().eval()
    looks = [Look(encoder, view) for view in ("fixed", "cropped", "crop-1")]
    compute = Compute(torch.device("cpu"), workers=0, batch_size=2)
    blocks = embed_rows(range(1), looks, images, ExtractConfig(crop_size=224), compute, Meter())
    scales = len(encoder.input_spec.scales)
    for look, block, count in zip(looks, blocks, (scales, scales, 1), strict=True):
        assert block["vectors"].shape == look.shapes(1)["vectors"] == (1, count, encoder.embed_dim)
        assert np.isfinite(block["vectors"]).all()
        assert block["valid"].all()
