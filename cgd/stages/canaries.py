"""Canaries: drawn images that every machine embeds before it writes, so that no machine embeds differently.

Many machines may share one extraction. On one of them the channels may be swapped, another resize filter linked, single
precision rounded, batch norm left in training mode; its vectors would be wrong without an error. The first run keeps
its vectors of the canaries, every later one is compared with them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cgd.config import ExtractConfig
from cgd.data.images import DecodedImage
from cgd.data.views import CROP, FIXED, crop_name, view_kind
from cgd.errors import StoreError
from cgd.models.devices import Compute
from cgd.models.encoder import Encoder, EncoderSource
from cgd.stages.embed import Look, Meter, embed_rows, policy_settings
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import Identity, identify
from cgd.types import ImageList

VERSION = 1
SIZES = ((200, 150), (150, 200), (231, 173), (96, 96))  # width, height
CROPS = 2  # a crop is as large as those of the run, so two must do
LONGEST = 96  # where the longer side is bounded, canaries shrink to it: otherwise their filter would do nothing
# Largest difference, relative to the largest value. A wrong epsilon moves a ResNet by 4.5e-4 and more, another
# order of additions by 1e-6; half precision by 1e-2 (bf16) and 2e-3 (fp16).
TOLERANCE = {"fp32": 2e-4, "bf16": 3e-2, "fp16": 5e-3}


def check_canaries(
    store: FeatureStore,
    looks: Sequence[tuple[EncoderSource, Look]],
    config: ExtractConfig,
    compute: Compute,
) -> dict[str, float]:
    """Embed the canaries as each look would embed images; refuses where they differ from the first run's vectors.

    Returns the difference by key. Reduced precision is checked as such and, more sharply, in single precision.
    """
    encoders = {(source.label, view_kind(look.view)): (source, look.encoder) for source, look in looks}
    seen: list[tuple[Identity, EncoderSource, np.ndarray]] = []
    found: dict[str, float] = {}
    for (_, kind), (source, encoder) in encoders.items():
        for precision in dict.fromkeys(("fp32", config.precision)):
            run = dataclasses.replace(config, precision=precision)
            identity = _identity(source, kind, run)
            seen.append((identity, source, _embed(encoder, kind, run, compute)))
            if store.is_sealed(identity.key):
                found[str(identity.key)] = _compare(store, *seen[-1], precision)
    for identity, source, vectors in seen:  # only a machine that was never refused becomes the reference
        store.write_whole(identity, {"vectors": vectors}, attributes={"label": source.label})
        found[str(identity.key)] = _compare(store, identity, source, vectors, identity.settings["precision"])
    return found


def draw_canary(number: int) -> Image.Image:
    """One of the pack: stripes, checks and a block of colour, by whole numbers, the same pixels everywhere."""
    width, height = SIZES[number]
    y, x = np.mgrid[0:height, 0:width]
    red = 7 * x + 3 * y * (number + 1)
    green = 255 * ((x // (number + 2) + y // 3) % 2)
    blue = (x * y) // 5 + 40 * number
    pixels = np.stack([red, green, blue], axis=-1) % 256
    pixels[height // 4 : height // 2, width // 3 : width // 2] = (230, 40, 90 + 30 * number)
    return Image.fromarray(pixels.astype(np.uint8))


def _embed(encoder: Encoder, kind: str, config: ExtractConfig, compute: Compute) -> np.ndarray:
    """(C, S, D) through the very code that embeds images."""
    names = tuple(f"canary-{number}" for number in range(len(SIZES)))
    small = copy.copy(encoder)  # the same network; only the copy's specification changes
    if small.input_spec.resize == "longest":
        small.input_spec = dataclasses.replace(small.input_spec, size=min(small.input_spec.size, LONGEST))
    look = Look(small, FIXED if kind == FIXED else crop_name(1))
    rows = range(len(SIZES) if kind == FIXED else CROPS)
    (block,) = embed_rows(rows, [look], ImageList("canaries", None, names, names), config, compute, Meter(), _drawn)
    return block["vectors"]


def _drawn(_: ImageList, row: int) -> DecodedImage:
    return DecodedImage(draw_canary(row), np.zeros(32, np.uint8), "")


def _identity(source: EncoderSource, kind: str, config: ExtractConfig) -> Identity:
    settings: dict[str, Any] = {"encoder": source.identity, "kind": kind, "precision": config.precision}
    if kind == CROP:
        settings |= {"policy": policy_settings(config), "size": config.crop_size}
    return identify("canaries", [source.label, kind, config.precision], VERSION, settings)


def _compare(
    store: FeatureStore, identity: Identity, source: EncoderSource, vectors: np.ndarray, precision: str
) -> float:
    """The difference of `vectors` from those of the first run; refuses where it is too large."""
    first = store.get(identity.key).read("vectors")
    if first.shape != vectors.shape:
        raise StoreError(f"{identity.key} holds vectors of shape {first.shape}, this run makes {vectors.shape}.")
    difference = float(np.abs(vectors - first).max() / max(np.abs(first).max(), 1e-12))
    if not difference <= TOLERANCE[precision]:
        kind = identity.settings["kind"]
        raise StoreError(
            f"{source.label} embeds the canaries ({kind} views, {precision}) differently from the first run: "
            f"{difference:.1e} from {identity.key}, allowed {TOLERANCE[precision]:.0e}; nothing was written. "
            f"{_first_run(store.provenance(identity.key))} Compare the libraries, and run `cgd teachers check` on both "
            "machines; if the first one was wrong, so are the vectors it wrote: extract into another store."
        )
    return difference


def _first_run(provenance: Sequence[Mapping[str, Any]]) -> str:
    if not provenance:
        return "Where the first run was is not known."
    libraries = provenance[0]["libraries"]
    named = ", ".join(
        f"{name} {libraries[name]}" for name in ("torch", "torchvision", "timm", "pillow") if name in libraries
    )
    return f"The first run was on {provenance[0]['host']} with {named}."
