"""Scaling the tensor: by the factor itself, or to rounded sides as OpenCV's bilinear resize does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from cgd.models.encoder import Encoder
from cgd.types import InputSpec


class Whole(nn.Module):
    """Gives back its input, flattened and padded, so that a test can see what the network saw."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = torch.tensor([[float(x.shape[2]), float(x.shape[3])]] * len(x))
        return torch.cat([shape, x.flatten(1), torch.zeros(len(x), 4000 - x[0].numel())], dim=1)


def seen(height: int, width: int, scale: float, rounding: str) -> tuple[np.ndarray, np.ndarray]:
    """The image and what the network saw of it, (H, W) each."""
    image = torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(0))
    spec = InputSpec(size=8, resize="none", scales=(scale,), scale_rounding=rounding)  # type: ignore[arg-type]
    vector = Encoder("whole", Whole(), spec, 4002).embed([image])[0, 0].numpy()
    rows, columns = int(vector[0]), int(vector[1])
    return image[0, 0].numpy(), vector[2 : 2 + rows * columns].reshape(rows, columns)


def bilinear(image: np.ndarray, rows: int, columns: int, step_y: float, step_x: float) -> np.ndarray:
    """Sampled at the centres of the new pixels, `step` old pixels apart, without antialias; one value at a time."""
    out = np.empty((rows, columns))
    for i in range(rows):
        for j in range(columns):
            y = min(max((i + 0.5) * step_y - 0.5, 0), image.shape[0] - 1)
            x = min(max((j + 0.5) * step_x - 0.5, 0), image.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            fy, fx = y - top, x - left
            upper = image[top, left] * (1 - fx) + image[top, right] * fx
            lower = image[bottom, left] * (1 - fx) + image[bottom, right] * fx
            out[i, j] = upper * (1 - fy) + lower * fy
    return out


@pytest.mark.parametrize("scale", [0.7071, 0.3535, 1.4142, math.sqrt(2)])
@pytest.mark.parametrize("sides", [(17, 23), (12, 10), (9, 31)])
def test_by_the_factor_sides_are_cut_off_and_steps_exact(sides: tuple[int, int], scale: float) -> None:
    image, found = seen(*sides, scale, "floor")
    rows, columns = (math.floor(side * scale) for side in sides)
    np.testing.assert_allclose(found, bilinear(image, rows, columns, 1 / scale, 1 / scale), atol=1e-5)


@pytest.mark.parametrize("scale", [0.7071, 0.3535, 1.4142])
@pytest.mark.parametrize("sides", [(17, 23), (12, 10), (9, 31)])
def test_to_rounded_sides_steps_fit_the_sides(sides: tuple[int, int], scale: float) -> None:
    image, found = seen(*sides, scale, "round")
    rows, columns = (round(side * scale) for side in sides)
    np.testing.assert_allclose(found, bilinear(image, rows, columns, sides[0] / rows, sides[1] / columns), atol=1e-5)


def test_a_tiny_image_keeps_a_pixel() -> None:
    assert seen(3, 1, 0.3535, "round")[1].shape == (1, 1)


@pytest.mark.parametrize("rounding", ["floor", "round"])
def test_scale_one_is_the_image_itself(rounding: str) -> None:
    image, found = seen(7, 5, 1.0, rounding)
    np.testing.assert_array_equal(found, image)
