"""Extraction from image files into a store, against the bare network on ready tensors.

Usage: python benchmarks/extraction.py [--published] [--images N] [--workers N] [--device cpu|cuda] [--json]. Draws
photographs-sized JPEG files, embeds them with an untrained ResNet-50 (size 224) and MobileNetV1 (size 160) into a
fresh store, and in turns runs the same networks on as many ready batches of the same shape. With --published the
networks are the published teachers at 512 x 512, in fp32 and bf16. `waiting` is the share of an extraction's time in
which the network waited for images to be read and decoded.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Literal

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
PUBLISHED = {
    f"{name}_512": f"{name}?weights=random&size=512&resize=square&centre_crop=0&scales=1&scale_on=tensor"
    for name in ("gem", "ap-gem", "solar", "delg", "dolg", "mocov3", "barlow-twins")
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


def measure(
    text: str, images: ImageList, folder: Path, compute: Compute, precision: Literal["fp32", "bf16"]
) -> tuple[dict[str, list[float]], float]:
    """Seconds of extraction into fresh stores and of the bare network, in turns; and the share of waiting."""
    source = teacher(text, None)
    encoder = source.build().to(compute.device, memory_format=torch.channels_last)
    ready = dataclasses.replace(source, build=lambda: encoder)  # building the network is not timed
    size = encoder.input_spec.size
    batch = torch.zeros(BATCH, 3, size, size, device=compute.device).to(memory_format=torch.channels_last)
    numbers = itertools.count()
    config = ExtractConfig(precision=precision)
    waiting: list[float] = []

    def ours() -> None:
        store = FeatureStore.open(folder / f"{source.label}-{precision}-{next(numbers)}.zarr", write=True)
        done = extract(store=store, images=images, sources=[ready], views=["fixed"], config=config, compute=compute)
        waiting.append(done.waiting)

    def bare() -> None:
        reduced = torch.autocast(compute.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
        with torch.inference_mode(), reduced:
            for start in range(0, len(images), BATCH):
                encoder.embed([batch[: min(BATCH, len(images) - start)]]).float().cpu().numpy()

    return take_turns({"ours": ours, "bare": bare}, ROUNDS), statistics.median(waiting[1:])


def main() -> None:
    published = "--published" in sys.argv
    count, device = int(argument("--images", "128")), pick_device(argument("--device", "auto"))
    compute = Compute(device, workers=int(argument("--workers", "2")), batch_size=BATCH)
    result: dict[str, object] = {"images": count, "device": str(device), "workers": compute.workers}
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16") if published else ("fp32",)
    with tempfile.TemporaryDirectory() as name:
        photographs = Path(name) / "photographs"
        photographs.mkdir()
        draw_photographs(photographs, count)
        images = open_dataset(f"folder:{photographs}")
        for (label, text), precision in itertools.product((PUBLISHED if published else TEACHERS).items(), precisions):
            seconds, waiting = measure(text, images, Path(name), compute, precision)
            case = f"{label}_{precision}" if published else label
            result[f"{case}_images_per_second"] = count / min(seconds["ours"])
            result[f"{case}_ours_over_bare"] = ratio(seconds, "bare", "ours")
            result[f"{case}_waiting"] = waiting
    if not published:
        result["ours_over_bare_network"] = result["resnet50_224_ours_over_bare"]
    report("extraction from files, as a share of the bare network's rate on ready tensors", result)


if __name__ == "__main__":
    main()
