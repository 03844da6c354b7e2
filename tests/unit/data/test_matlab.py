"""MATLAB's files: what SciPy writes is read back, and no damaged byte does more than end in one sentence."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from cgd.data.matlab import read_matlab
from cgd.errors import InputError

FILE = Path("lists.mat")
STRUCTS = np.array(
    [[("car_ims/000001.jpg", 5.0, [1, 2]), ("a/é.jpg", 196, [])]],
    dtype=[("path", object), ("class", object), ("more", object)],
)
CONTENT = {
    "annotations": STRUCTS,
    "names": np.array([["one", "two words"]], dtype=object),
    "matrix": np.arange(6.0).reshape(2, 3) / 4,
    "large": np.array([2**40, -1]),
}


def written(content: dict[str, Any] = CONTENT, **options: Any) -> bytes:
    file = io.BytesIO()
    savemat(file, content, **options)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_what_scipy_writes_is_read_back(compressed: bool) -> None:
    found = read_matlab(written(do_compression=compressed), FILE)
    assert list(found) == list(CONTENT)
    assert [(s["path"], s["class"].tolist(), s["more"].tolist()) for s in found["annotations"]] == [
        ("car_ims/000001.jpg", [5], [1, 2]),
        ("a/é.jpg", [196], []),
    ]
    assert found["names"] == ["one", "two words"]
    assert found["matrix"].tolist() == CONTENT["matrix"].ravel("F").tolist()
    assert found["large"].tolist() == [2**40, -1]


def test_the_bytes_of_another_machine_are_read() -> None:
    """One array of two bytes and a text, as a big-endian machine writes them."""

    def element(kind: int, data: bytes) -> bytes:
        return np.array([kind, len(data)], ">u4").tobytes() + data + bytes(-len(data) % 8)

    def array(kind: int, name: bytes, data: bytes) -> bytes:
        head = element(6, np.array([kind, 0], ">u4").tobytes()) + element(5, np.array([1, 2], ">i4").tobytes())
        return element(14, head + element(1, name) + data)

    data = b"".ljust(124) + b"\x01\x00MI" + array(9, b"n", element(3, b"\x00\x01\x01\x00"))
    data += array(4, b"text", element(4, "hé".encode("utf-16-be")))
    found = read_matlab(data, FILE)
    assert found["n"].tolist() == [1, 256]
    assert found["text"] == "hé"


def test_damage_ends_in_one_sentence_and_never_in_a_crash() -> None:
    """SciPy's own reader ends the process on some of these files."""
    draw = random.Random(0)
    files = [written(), written(do_compression=True)]
    told = []
    for _ in range(600):
        data = bytearray(draw.choice(files))
        if draw.random() < 0.2:
            data = data[: draw.randrange(len(data))]
        for _ in range(draw.choice([1, 1, 2, 8])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            read_matlab(bytes(data), FILE)
        except InputError as error:
            told.append(str(error))
    assert len(told) > 300
    assert all("lists.mat" in text and "\n" not in text for text in told)


def test_nested_deeper_than_can_be_followed_is_damage() -> None:
    def element(kind: int, data: bytes) -> bytes:
        return np.array([kind, len(data)], "<u4").tobytes() + data + bytes(-len(data) % 8)

    head = (
        element(6, np.array([1, 0], "<u4").tobytes()) + element(5, np.array([1, 1], "<i4").tobytes()) + element(1, b"")
    )
    cell = b""
    for _ in range(2000):
        cell = element(14, head + cell)
    with pytest.raises(InputError, match=r"lists\.mat is damaged"):
        read_matlab(b"".ljust(124) + b"\x00\x01IM" + cell, FILE)


def test_a_small_element_holds_four_bytes_at_most() -> None:
    """Its size shares a word with its type, so that damage there could claim the bytes of what comes next."""
    data = bytearray(written({"x": np.array([1, 2, 3], np.uint8)}, do_compression=False))
    at = data.index(np.array([2 | 3 << 16], "<u4").tobytes())
    data[at + 2] = 5
    with pytest.raises(InputError, match="a small element of 5 bytes"):
        read_matlab(bytes(data), Path("x.mat"))
