"""Train the networks that come with the demonstration, on drawn buildings that it never shows.

    python benchmarks/demo_teachers.py                    # all four into the package, about an hour on two cores
    python benchmarks/demo_teachers.py --only resnet --epochs 1 --labels 40 --out /tmp/teachers

Each of the three teachers has a character of its own: another architecture, pooling and loss, so that together they
know more than one of them. The fourth file is what the student begins from, as one begins from ImageNet's weights:
its trunk after a short training to tell buildings apart. The buildings come from another seed than any
of the demonstration. Losses and samplers are those of pytorch-metric-learning, the networks timm's. After training it
prints recall@1 on buildings it has not trained on. Weights are kept in half precision, batch norm's in single.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pytorch_metric_learning import losses, samplers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cgd.data.synthetic import draw_landmarks
from cgd.models.encoder import Encoder
from cgd.models.load import student, teacher
from cgd.pipeline.demo import NETWORK, TRAINED

SEED = 1729  # of the buildings; the demonstration draws others
BATCH, PER_LABEL = 64, 4
CROP = 96  # pixels of what is trained on: a part of the image, so that things are as large as in a whole one of 128


@dataclass(frozen=True)
class Character:
    """How a teacher is trained: its loss from the number of labels and of dimensions, and how batches are drawn."""

    loss: Callable[[int, int], nn.Module]
    epochs: int
    grouped: bool = False  # batches of a few images each of some labels
    labels: int = 480  # buildings to train on


def _softmax(labels: int, dim: int) -> nn.Module:
    return losses.NormalizedSoftmaxLoss(labels, dim, temperature=0.07)


START = "start"
CHARACTERS = {
    START: Character(_softmax, 40, labels=720),
    "resnet": Character(lambda labels, dim: losses.ArcFaceLoss(labels, dim, margin=17.0, scale=24), 60),
    "byobnet": Character(_softmax, 100),
    "efficientnet": Character(lambda _labels, _dim: losses.SupConLoss(temperature=0.1), 80, grouped=True),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", choices=list(CHARACTERS), help="only this teacher")
    arguments.add_argument("--labels", type=int, help="buildings to train on, instead of each one's own number")
    arguments.add_argument("--images", type=int, default=8, help="views of each")
    arguments.add_argument("--epochs", type=int, help="instead of each one's own number")
    arguments.add_argument("--learning-rate", type=float, default=3e-3)
    arguments.add_argument("--threads", type=int, default=1, help="several wait for each other on a busy machine")
    arguments.add_argument("--images-folder", type=Path, default=Path(".cgd/synthetic/demo-teachers"))
    arguments.add_argument("--out", type=Path, default=TRAINED)
    o = arguments.parse_args()
    torch.set_num_threads(o.threads)
    for name, character in CHARACTERS.items():
        if o.only in (None, name):
            count = o.labels or character.labels
            place = o.images_folder / str(count)
            folder = draw_landmarks(place, labels=count, seed=SEED, images=o.images, distractors=0)
            pixels, labels = read(folder, "train")
            print(f"{name}: {len(pixels)} images of {count} buildings, seed {SEED}")
            torch.manual_seed(0)
            encoder = untrained(name)
            train(name, character, encoder, pixels, labels, o)
            print(f"{name}: recall@1 on {count // 2} other buildings {100 * recall(encoder, folder):.1f} %")
            trunk = encoder.network.trunk.network
            state = {k: (v.half() if v.ndim > 1 else v).contiguous() for k, v in trunk.state_dict().items()}
            o.out.mkdir(parents=True, exist_ok=True)
            save_file(state, o.out / f"drawn-{name}.safetensors")


def untrained(name: str) -> Encoder:
    if name == START:
        return student(f"{NETWORK}0", None).build()
    return teacher(f"drawn-{name}?weights=random", None).build()


def read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images of a split (N, 3, H, W) uint8 and their labels (N,)."""
    table = pd.read_csv(folder / "manifest.csv").loc[lambda t: t["split"] == split]
    pixels = np.stack([np.asarray(Image.open(folder / path)) for path in table["path"]])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(table["label"].to_numpy())


def train(name: str, character: Character, encoder: Encoder, pixels: Tensor, labels: Tensor, o: Any) -> None:
    loss = character.loss(int(labels.max()) + 1, encoder.embed_dim)
    proxies = {"params": list(loss.parameters()), "lr": 10 * o.learning_rate, "weight_decay": 0.0}
    groups = [{"params": list(encoder.parameters()), "lr": o.learning_rate}, *([proxies] if proxies["params"] else [])]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.02)
    epochs = o.epochs or character.epochs
    steps = epochs * (len(pixels) // BATCH)
    highest = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, highest, total_steps=steps, pct_start=0.15)
    encoder.train().to(memory_format=torch.channels_last)  # half as long on a CPU
    started, done = time.monotonic(), 0
    for epoch in range(epochs):
        total = 0.0
        for rows in batches(labels, character.grouped):
            x = normalised(cropped(pixels[rows].float() / 255), encoder).to(memory_format=torch.channels_last)
            value = loss(F.normalize(encoder(x)), labels[rows])
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
            total, done = total + value.item(), done + len(rows)
        rate = done / (time.monotonic() - started)
        print(f"{name} epoch {epoch + 1}/{epochs}: loss {total / (len(pixels) // BATCH):.3f}, {rate:.0f} images/s")


def batches(labels: Tensor, grouped: bool) -> list[Tensor]:
    if grouped:
        sampler = samplers.MPerClassSampler(labels, PER_LABEL, BATCH, length_before_new_iter=len(labels))
        order = torch.tensor(list(sampler))
    else:
        order = torch.randperm(len(labels))
    return list(order[: len(order) // BATCH * BATCH].split(BATCH))


def cropped(x: Tensor) -> Tensor:
    """A random part of each image, half of them mirrored, as squares (B, 3, CROP, CROP)."""
    count = len(x)
    area, aspect = torch.empty(count).uniform_(0.45, 1), torch.empty(count).uniform_(-0.25, 0.25).exp()
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    right, down = (1 - wide) * torch.empty(count).uniform_(-1, 1), (1 - high) * torch.empty(count).uniform_(-1, 1)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    zero = torch.zeros(count)
    place = torch.stack([torch.stack([wide * mirror, zero, right], 1), torch.stack([zero, high, down], 1)], 1)
    grid = F.affine_grid(place, [count, 3, CROP, CROP], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False, padding_mode="reflection")


def normalised(x: Tensor, encoder: Encoder) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.input_spec.mean, encoder.input_spec.std))
    return (x - mean) / std


@torch.inference_mode()
def recall(encoder: Encoder, folder: Path) -> float:
    """Share of queries whose nearest image of the gallery shows the same building."""
    side = encoder.input_spec.size
    found = []
    encoder.eval()
    for split in ("query", "gallery"):
        pixels, labels = read(folder, split)
        parts = (
            F.interpolate(p.float() / 255, (side, side), mode="bilinear", antialias=True) for p in pixels.split(64)
        )
        found.append((F.normalize(torch.cat([encoder(normalised(x, encoder)) for x in parts])), labels))
    (queries, wanted), (gallery, known) = found
    return float((known[(queries @ gallery.T).argmax(dim=1)] == wanted).float().mean())


if __name__ == "__main__":
    main()
