"""Pixels as a network wants them, against a loop over every pixel and Pillow's own resize."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from cgd.data.transforms import full_pixels, normalise, view_pixels
from cgd.types import InputSpec, View

MEAN, STD = (0.48, 0.45, 0.4), (0.23, 0.22, 0.21)
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def spec(**changes: Any) -> InputSpec:
    return InputSpec(**{"size": 32, "resize": "none", "mean": MEAN, "std": STD, **changes})


def naive(image: Image.Image, channels: str = "RGB") -> np.ndarray:
    """(3, H, W) in float64, one value at a time."""
    out = np.empty((3, image.height, image.width))
    for y in range(image.height):
        for x in range(image.width):
            pixel = image.getpixel((x, y))
            assert isinstance(pixel, tuple)
            for place, channel in enumerate(channels):
                c = "RGB".index(channel)
                out[place, y, x] = (pixel[c] / 255 - MEAN[c]) / STD[c]
    return out


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_every_pixel_is_normalised_in_rgb_and_handed_over_in_the_networks_order(channels: str) -> None:
    image = noise(7, 5)
    pixels = normalise(image, spec(channels=channels))
    np.testing.assert_allclose(pixels, naive(image, channels), atol=2e-6)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous


def test_by_default_pixels_are_normalised_as_imagenet_has_it() -> None:
    image = Image.new("RGB", (1, 1), (255, 0, 51))
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    pixels = normalise(image, InputSpec(size=8, resize="none"))
    np.testing.assert_allclose(pixels[:, 0, 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("resize", "enlarge", "before", "after"),
    [
        ("longest", False, (64, 48), (32, 24)),
        ("longest", False, (48, 64), (24, 32)),
        ("longest", False, (65, 33), (32, 16)),  # 32 x 33 / 65 = 16.2
        ("longest", False, (20, 10), (20, 10)),
        ("longest", True, (20, 10), (32, 16)),
        ("longest", False, (4000, 3), (32, 1)),
        ("longest", False, (1000, 421), (32, 13)),  # 13.47; the side nearest in aspect, as Pillow has it
        ("shortest", False, (64, 48), (42, 32)),  # 64 x 32 / 48 = 42.7, truncated as torchvision has it
        ("shortest", False, (100, 20), (100, 20)),
        ("shortest", True, (100, 20), (160, 32)),
        ("square", False, (64, 48), (32, 32)),
        ("square", False, (10, 20), (32, 32)),
        ("none", False, (100, 7), (100, 7)),
        ("none", True, (10, 7), (10, 7)),
    ],
)
def test_sizes_follow_the_rule_of_the_specification(
    resize: str, enlarge: bool, before: tuple[int, int], after: tuple[int, int]
) -> None:
    (pixels,) = full_pixels(noise(*before), spec(resize=resize, enlarge=enlarge))
    assert pixels.shape == (3, after[1], after[0])


@pytest.mark.parametrize("size", [(641, 480), (480, 641), (1001, 333), (97, 131), (65, 64), (33, 32), (2000, 7)])
@pytest.mark.parametrize("limit", [32, 61, 64])
def test_the_longest_side_is_bounded_as_pillows_thumbnail_does(size: tuple[int, int], limit: int) -> None:
    expected = noise(*size)
    expected.thumbnail((limit, limit), FILTERS["lanczos"], reducing_gap=None)
    (pixels,) = full_pixels(noise(*size), spec(size=limit, resize="longest", filter="lanczos"))
    np.testing.assert_allclose(pixels, naive(expected), atol=2e-6)


def test_a_cut_query_shrinks_to_whole_pixels_below_its_limit() -> None:
    """cnnimageretrieval-pytorch: the limit times the longer side of the cut over that of the full image, then floor."""
    image = noise(300, 200)
    box = (10, 20, 210, 150)  # 64 * 200 / 300 = 42.67
    (pixels,) = full_pixels(image, spec(size=64, resize="longest"), box)
    expected = image.crop(box)
    expected.thumbnail((64 * 200 / 300,) * 2, FILTERS["bilinear"], reducing_gap=None)
    assert expected.width == 42
    np.testing.assert_allclose(pixels, naive(expected), atol=2e-6)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (33, 100), (20, 20), (31, 17)])
def test_shorter_side_and_centre_as_torchvision_has_them(size: tuple[int, int]) -> None:
    from torchvision import transforms as reference

    chain = reference.Compose([reference.Resize(32), reference.CenterCrop(28)])
    chosen = spec(size=32, resize="shortest", enlarge=True, centre_crop=28)
    (pixels,) = full_pixels(noise(*size), chosen)
    np.testing.assert_allclose(pixels, naive(chain(noise(*size))), atol=2e-6)


@pytest.mark.parametrize("name", FILTERS)
def test_pixels_are_resized_with_the_filter_of_the_specification(name: str) -> None:
    image = noise(64, 48)
    (pixels,) = full_pixels(image, spec(resize="longest", filter=name))
    np.testing.assert_allclose(pixels, naive(image.resize((32, 24), FILTERS[name])), atol=2e-6)


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    image = noise(32, 24)
    (pixels,) = full_pixels(image, spec(resize="longest", filter="lanczos"))
    np.testing.assert_allclose(pixels, naive(image), atol=2e-6)


def test_scales_on_the_tensor_leave_one_array() -> None:
    arrays = full_pixels(noise(20, 10), spec(scales=(1.0, 0.5)))
    assert [a.shape for a in arrays] == [(3, 10, 20)]


@pytest.mark.parametrize(("rounding", "small"), [("floor", (14, 7)), ("round", (15, 7))])
def test_scales_on_the_image_resize_it_with_the_sides_rounded_as_declared(
    rounding: str, small: tuple[int, int]
) -> None:
    image = noise(21, 10)  # times 0.7: 14.7 and 7.0
    chosen = spec(scales=(1.0, 0.7, 2.0), scale_on="image", scale_rounding=rounding)
    whole, reduced, enlarged = full_pixels(image, chosen)
    np.testing.assert_allclose(whole, naive(image), atol=2e-6)
    np.testing.assert_allclose(reduced, naive(image.resize(small, FILTERS["bilinear"])), atol=2e-6)
    assert enlarged.shape == (3, 20, 42)


def test_a_scale_never_shrinks_a_side_to_nothing() -> None:
    (pixels,) = full_pixels(noise(40, 2), spec(scales=(0.25,), scale_on="image"))
    assert pixels.shape == (3, 1, 10)


# queries cut to their box


def test_a_scaled_crop_keeps_the_scale_of_the_full_image() -> None:
    image = noise(128, 96)  # at size 32 the full image shrinks by 4
    box = (8.4, 9.6, 71.6, 57.4)  # corners round to 8, 10, 72, 57: 64 x 47 pixels
    (pixels,) = full_pixels(image, spec(resize="longest", query_crop="scaled"), box)
    expected = image.crop((8, 10, 72, 57)).resize((16, 12), FILTERS["bilinear"])  # 47 / 4 = 11.75
    np.testing.assert_allclose(pixels, naive(expected), atol=2e-6)


def test_an_integer_crop_truncates_its_corners_and_fills_the_size() -> None:
    image = noise(128, 96)
    (pixels,) = full_pixels(image, spec(resize="longest", query_crop="integer"), (8.9, 9.9, 72.9, 57.9))
    expected = image.crop((8, 9, 72, 57)).resize((32, 24), FILTERS["bilinear"])
    np.testing.assert_allclose(pixels, naive(expected), atol=2e-6)


def test_without_query_crops_the_box_is_ignored() -> None:
    image = noise(30, 20)
    (pixels,) = full_pixels(image, spec(query_crop="none"), (5, 5, 10, 10))
    np.testing.assert_allclose(pixels, naive(image), atol=2e-6)


@pytest.mark.parametrize("crop", ["scaled", "integer"])
def test_an_unresized_crop_is_the_very_pixels(crop: str) -> None:
    image = noise(30, 20)
    (pixels,) = full_pixels(image, spec(query_crop=crop), (5, 6, 15, 18))
    np.testing.assert_allclose(pixels, naive(image)[:, 6:18, 5:15], atol=2e-6)


@pytest.mark.parametrize("crop", ["scaled", "integer"])
def test_a_box_thinner_than_a_pixel_is_one_pixel(crop: str) -> None:
    (pixels,) = full_pixels(noise(30, 20), spec(query_crop=crop), (5.1, 6.1, 5.3, 6.2))
    assert pixels.shape == (3, 1, 1)


def test_a_square_network_sees_a_crop_as_a_square() -> None:
    image = noise(128, 96)
    (pixels,) = full_pixels(image, spec(resize="square"), (0, 0, 60, 30))
    np.testing.assert_allclose(
        pixels, naive(image.crop((0, 0, 60, 30)).resize((32, 32), FILTERS["bilinear"])), atol=2e-6
    )


# views


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", FILTERS)
def test_a_view_is_its_box_as_a_square_mirrored_or_not(name: str, flip: bool) -> None:
    image = noise(40, 20)
    pixels = view_pixels(image, spec(filter=name), View(0.25, 0.1, 0.5, 0.6, flip), 12)
    expected = naive(image.crop((4, 5, 28, 15)).resize((12, 12), FILTERS[name]))
    np.testing.assert_allclose(pixels, expected[:, :, ::-1] if flip else expected, atol=2e-6)


def test_a_view_has_the_size_asked_for_not_that_of_the_network() -> None:
    assert view_pixels(noise(40, 20), spec(resize="longest"), View(0, 0, 1, 1, False), 50).shape == (3, 50, 50)


def test_the_image_given_is_never_changed() -> None:
    image = noise(40, 20)
    full_pixels(image, spec(resize="square", channels="BGR"), (1, 1, 9, 9))
    view_pixels(image, spec(), View(0, 0, 0.5, 0.5, True), 8)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(noise(40, 20)))


@pytest.mark.parametrize(("size", "small"), [((40, 30), (10, 8)), ((30, 40), (8, 10)), ((9, 10), (9, 10))])
def test_a_degraded_image_is_shrunk_and_enlarged_again(size: tuple[int, int], small: tuple[int, int]) -> None:
    image = noise(*size)
    expected = image.resize(small, FILTERS["bicubic"]).resize(size, FILTERS["bicubic"]) if small != size else image
    (found,) = full_pixels(image, spec(filter="bicubic", degrade=10))
    np.testing.assert_array_equal(found, normalise(expected, spec()))


def test_a_degraded_crop_is_the_same_crop() -> None:
    image, view = noise(60, 50), View(0.2, 0.1, 0.6, 0.5, True)
    good = image.crop(view.box(60, 50)).resize((32, 32), FILTERS["bilinear"])
    worse = good.resize((6, 6), FILTERS["bilinear"]).resize((32, 32), FILTERS["bilinear"])
    expected = normalise(worse.transpose(Image.Transpose.FLIP_LEFT_RIGHT), spec())
    np.testing.assert_array_equal(view_pixels(image, spec(degrade=6), view, 32), expected)
