"""Extraction from image files into a store, against the bare network on ready tensors.

Usage: python benchmarks/extraction.py [--images N] [--device cpu|cuda] [--json]. Draws photographs-sized JPEG
files, embeds them with an untrained ResNet-50 (size 224) and MobileNetV1 (size 160) into a fresh store, and in turns
runs the same networks on as many ready batches of the same shape.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import ratio, report, take_turns

from cgd.config import ExtractConfig
from cgd.data.datasets import open_dataset
from cgd.models.devices import Compute, pick_device
from cgd.models.load import teacher
from cgd.stages.extract import extract
from cgd.store.feature_store import FeatureStore
from cgd.types import ImageList

TEACHERS = {
    "mobilenet_v1_160": "mobilenet-v1?weights=random&size=160",
    "resnet50_224": "timm:resnet50?weights=random",
}
BATCH, ROUNDS = 32, 3


def argument(name: str, default: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def draw_photographs(folder: Path, count: int) -> None:
    """JPEG files of 500 x 375 pixels with the statistics of a smooth picture."""
    draw = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(draw.integers(0, 255, (24, 32, 3), np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=90)


def measure(text: str, images: ImageList, folder: Path, device: torch.device) -> dict[str, list[float]]:
    """Seconds of extraction into fresh stores and of the bare network, in turns."""
    source = teacher(text, None)
    encoder = source.build().to(device, memory_format=torch.channels_last)
    ready = dataclasses.replace(source, build=lambda: encoder)  # building the network is not timed
    size = encoder.input_spec.size
    batch = torch.zeros(BATCH, 3, size, size, device=device).to(memory_format=torch.channels_last)
    numbers = itertools.count()

    def ours() -> None:
        store = FeatureStore.open(folder / f"{source.label}-{next(numbers)}.zarr", write=True)
        compute = Compute(device, workers=2, batch_size=BATCH)
        extract(store=store, images=images, sources=[ready], views=["fixed"], config=ExtractConfig(), compute=compute)

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                encoder.embed([batch[: min(BATCH, len(images) - start)]]).float().cpu().numpy()

    return take_turns({"ours": ours, "bare": bare}, ROUNDS)


def main() -> None:
    count, device = int(argument("--images", "128")), pick_device(argument("--device", "auto"))
    result: dict[str, object] = {"images": count, "device": str(device)}
    with tempfile.TemporaryDirectory() as name:
        photographs = Path(name) / "photographs"
        photographs.mkdir()
        draw_photographs(photographs, count)
        images = open_dataset(f"folder:{photographs}")
        for label, text in TEACHERS.items():
            seconds = measure(text, images, Path(name), device)
            result[f"{label}_images_per_second"] = count / min(seconds["ours"])
            result[f"{label}_ours_over_bare"] = ratio(seconds, "bare", "ours")
    result["ours_over_bare_network"] = result["resnet50_224_ours_over_bare"]
    report("extraction from files, as a share of the bare network's rate on ready tensors", result)


if __name__ == "__main__":
    main()
