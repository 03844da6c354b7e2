"""Image files to RGB pixels: every mode found in the wild, and files that are no images."""

import hashlib
import struct
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image, features

from cgd.data.images import read_image
from cgd.errors import InputError

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20  # (H, W)


def rgb(folder: Path, name: str) -> np.ndarray:
    """(H, W, 3) as `read_image` gives them."""
    decoded = read_image(folder, name)
    assert decoded.reason == ""
    assert decoded.image is not None
    assert decoded.image.mode == "RGB"
    return np.asarray(decoded.image)


def grey(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=-1)


def opened(path: Path) -> Image.Image:
    """As Pillow has it, with the file closed."""
    with Image.open(path) as image:
        image.load()
        return image


def colours(channels: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (3, 4, channels), dtype=np.uint8)


def test_rgb_pixels_are_as_stored(tmp_path: Path) -> None:
    Image.fromarray(colours(3)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(rgb(tmp_path, "a.png"), colours(3))


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    np.testing.assert_array_equal(rgb(tmp_path, "a.png"), grey(RAMP))


def test_black_and_white_becomes_0_and_255(tmp_path: Path) -> None:
    bits = RAMP > 100
    Image.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(rgb(tmp_path, "a.png"), grey(bits * np.uint8(255)))


def test_transparency_is_dropped_and_colours_stay(tmp_path: Path) -> None:
    pixels = colours(4)
    pixels[0, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(rgb(tmp_path, "a.png"), pixels[:, :, :3])


def test_grey_with_transparency_drops_it(tmp_path: Path) -> None:
    Image.fromarray(colours(2)).save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png").mode == "LA"
    np.testing.assert_array_equal(rgb(tmp_path, "a.png"), grey(colours(2)[:, :, 0]))


@pytest.mark.parametrize("transparent", [None, 1, bytes([0, 100, 255])])
def test_a_palette_gives_its_colours_transparent_or_not(tmp_path: Path, transparent: int | bytes | None) -> None:
    palette = np.array([[10, 20, 30], [200, 100, 50], [0, 255, 128]], np.uint8)
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    image = Image.frombytes("P", (4, 3), indices.tobytes())
    image.putpalette(palette.tobytes())
    options = {} if transparent is None else {"transparency": transparent}
    image.save(tmp_path / "a.png", **options)
    assert opened(tmp_path / "a.png").mode == "P"
    np.testing.assert_array_equal(rgb(tmp_path, "a.png"), palette[indices])


def test_cmyk_follows_the_ink_formula(tmp_path: Path) -> None:
    inks = colours(4).astype(np.float64)
    Image.frombytes("CMYK", (4, 3), colours(4).tobytes()).save(tmp_path / "a.tif")
    expected = (255 - inks[:, :, :3]) * (255 - inks[:, :, 3:]) / 255
    np.testing.assert_allclose(rgb(tmp_path, "a.tif"), expected, atol=1)


def test_16_bit_grey_is_scaled_to_8_bits(tmp_path: Path) -> None:
    values = np.array([[0, 128, 257, 1000], [32768, 40000, 65000, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(rgb(tmp_path, "a.png"), grey((values / 257).round().astype(np.uint8)))


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    """Its scale is that of its format, not of its brightest pixel."""
    values = np.array([[0, 100], [200, 255]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert rgb(tmp_path, "a.png").max() <= 1


def png_of_16_bit_colour(pixels: np.ndarray) -> bytes:
    """A PNG that Pillow cannot write: three channels of 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colour_keeps_its_upper_byte(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (2, 3, 3), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png_of_16_bit_colour(pixels))
    np.testing.assert_array_equal(rgb(tmp_path, "a.png"), (pixels >> 8).astype(np.uint8))


def test_numbers_of_32_bits_are_clipped_to_what_fits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-5, 0], [200, 255]], np.int32)).save(tmp_path / "small.tif")
    np.testing.assert_array_equal(rgb(tmp_path, "small.tif"), grey(np.array([[0, 0], [200, 255]], np.uint8)))
    Image.fromarray(np.array([[0.0, 99.6]], np.float32)).save(tmp_path / "float.tif")
    np.testing.assert_array_equal(rgb(tmp_path, "float.tif"), grey(np.array([[0, 100]], np.uint8)))


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), c) for c in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as written:
        assert getattr(written, "n_frames", 1) == 3
    np.testing.assert_array_equal(rgb(tmp_path, "a.gif"), np.broadcast_to(np.uint8([255, 0, 0]), (3, 4, 3)))


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    Image.fromarray(grey(RAMP)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(grey(RAMP)).save(tmp_path / "plain.jpg", quality=95)
    assert opened(tmp_path / "turned.jpg").getexif()[0x0112] == 6
    np.testing.assert_array_equal(rgb(tmp_path, "turned.jpg"), rgb(tmp_path, "plain.jpg"))
    assert rgb(tmp_path, "turned.jpg").shape == (3, 4, 3)


def test_the_digest_is_that_of_the_files_bytes(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    for name in ("a.png", "broken.png"):
        digest = read_image(tmp_path, name).digest
        assert digest.tobytes() == hashlib.sha256((tmp_path / name).read_bytes()).digest()
        assert (digest.shape, digest.dtype) == ((32,), np.uint8)


# files that are no images


def refused(folder: Path, name: str) -> str:
    """The reason, which is one line of at most 200 characters."""
    decoded = read_image(folder, name)
    assert decoded.image is None
    assert 0 < len(decoded.reason) <= 200
    assert "\n" not in decoded.reason
    return decoded.reason


def test_an_empty_file_and_text_have_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture\n" * 50)
    assert refused(tmp_path, "empty.jpg") == "empty file"
    assert "UnidentifiedImageError" in refused(tmp_path, "text.jpg")


def test_a_long_reason_of_several_lines_becomes_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> NoReturn:
        raise ValueError("first\nsecond " + "x" * 500)

    (tmp_path / "a.png").write_bytes(b"anything")
    monkeypatch.setattr(Image, "open", fail)
    assert refused(tmp_path, "a.png").startswith("ValueError: first second xxx")


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "gif", "bmp", "ppm", "webp"])
def test_a_file_cut_in_half_is_refused_not_half_decoded(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{kind}")
    data = (tmp_path / f"whole.{kind}").read_bytes()
    (tmp_path / f"half.{kind}").write_bytes(data[: len(data) // 2])
    refused(tmp_path, f"half.{kind}")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF decoder")
def test_a_damaged_avif_is_refused(tmp_path: Path) -> None:
    Image.fromarray(grey(RAMP)).save(tmp_path / "whole.avif")
    data = bytearray((tmp_path / "whole.avif").read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    (tmp_path / "damaged.avif").write_bytes(data)
    refused(tmp_path, "damaged.avif")


@pytest.mark.filterwarnings("default")
def test_an_image_of_absurd_size_is_refused_and_a_large_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow warns from here on
    assert rgb(tmp_path, "a.png").shape == (30, 30, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # and refuses the double of it
    assert "DecompressionBombError" in refused(tmp_path, "a.png")


# files that are not there


def test_a_missing_file_is_an_error_not_an_invalid_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a/1.png is missing below"):
        read_image(tmp_path, "a/1.png")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="cannot read the image"):
        read_image(tmp_path, "folder.png")


def test_without_a_root_the_message_tells_what_to_give() -> None:
    with pytest.raises(InputError, match="--dataset KIND:PATH"):
        read_image(None, "a.png")
