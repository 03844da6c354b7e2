"""Tiny video files: a grey level per frame, so that a frame can be told from its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np


def clip(path: Path, greys: Sequence[int], rate: int = 4, times: Sequence[float] | None = None) -> Path:
    """A film of 48 x 32 pixels, its frames evenly spaced by `rate` a second, or shown at `times` (seconds)."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.bit_rate = 1_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, grey in enumerate(greys):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), grey, np.uint8), format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = round(1000 * (number / rate if times is None else times[number]))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def levels(folder: Path) -> list[int]:
    """The grey levels of a folder's frames."""
    from PIL import Image

    return [round(float(np.asarray(Image.open(file)).mean())) for file in sorted(folder.glob("*.jpg"))]
