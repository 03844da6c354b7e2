"""Changes of light and sharpness that only the student sees, on top of the crop that it shares with its teachers.

The strengths are published ones (methods.md 1.11 and 2.6): colour jitter (0.4, 0.4, 0.2, 0.1) with probability 0.8; the
video form adds grey, blur and solarisation, with other probabilities for the second view of a pair, and for images
that have none.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

STRENGTHS = (0.4, 0.4, 0.2)  # brightness, contrast, saturation
HUE, GREY, SIGMA = 0.1, 0.2, (0.1, 2.0)
BLUR, SOLARISE = (1.0, 0.1, 0.5), (0.0, 0.2, 0.2)  # first view, second view, image without a pair
ALONE = 2


def change(image: Image.Image, kind: str, place: int, generator: np.random.Generator) -> Image.Image:
    """`image` (RGB) under chain `kind` (`jitter` or `video`) as view `place` (0, 1) of its pair, or `ALONE`."""
    if generator.random() < 0.8:
        image = _jitter(image, generator)
    if kind == "video":
        if generator.random() < GREY:
            image = ImageOps.grayscale(image).convert("RGB")
        if generator.random() < BLUR[place]:
            image = image.filter(ImageFilter.GaussianBlur(generator.uniform(*SIGMA)))
        if generator.random() < SOLARISE[place]:
            image = ImageOps.solarize(image, 128)
    return image


def _jitter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue, each by a random amount, in random order."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    amounts = [generator.uniform(1 - s, 1 + s) for s in STRENGTHS]
    turn = generator.uniform(-HUE, HUE)
    for step in generator.permutation(4):
        image = _turn_hue(image, turn) if step == 3 else enhancers[step](image).enhance(amounts[step])
    return image


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Hue turned by the share `turn` of the circle."""
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(round(turn * 255) % 256)
    return Image.fromarray(hsv, "HSV").convert("RGB")
