"""Near-duplicate videos made of photographs: two teachers, a student without labels, and five similarities.

Usage: python benchmarks/video_clips.py [--images FOLDER --weights FOLDER] [--out FOLDER] [--epochs N] [--clips N]
[--json]. A clip is a window that moves over a photograph. The near-duplicates of a query show half of its picture,
mirror it, have passed through a few kilobits, or begin later and run at double speed; some are all of that.
Distractors are clips of other photographs, those of the query's folder (its class) first. `--images` is a folder with
one per class, and `--weights` has the MobileNets; without them landmarks are drawn, and the teachers are those of the
demonstration.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageOps
from timing import option

SIDE, WINDOW, RATE, SECONDS = 256, (160, 120), 6, 5  # the photograph's shorter side, what is seen of it, pixels
KINDS = ("cf", "fme", "fmx", "sme", "smx")
RECIPE = """
data: {train: clips, benchmarks: [near-duplicates]}
extract: {views: 2, crop_size: 128}
whiten: {dim: 64, frames: 60}
distill:
  positives: image
  photometric: video
  frames: one-per-video
  batch_pairs: 40
  image_size: 96
"""
REAL = (
    "extract.teachers=['mobilenet-v1?weights=mobilenetv1_100.safetensors&size=128', "
    "'timm:mobilenetv2_100?weights=mobilenetv2_100.safetensors&pad_type=same&size=128&mean=0.5,0.5,0.5&std=0.5,0.5,0.5']",
    "distill.student=mobilenet-v1?width=0.25&dim=0&size=128",
    "distill.init=mobilenetv1_025.safetensors",
    "distill.batch_norm=unfold",
    "distill.learning_rate=3e-4",
)
DRAWN = (
    "extract.teachers=[drawn-resnet, drawn-byobnet]",
    "distill.student=timm:test_byobnet?size=96&dim=0",
    "distill.init=drawn-start.safetensors",
    "distill.learning_rate=2e-3",
)


@dataclass(frozen=True)
class Edit:
    """What is done to a clip: the part that is seen, mirrored, bits a second, where it begins and how fast it runs."""

    zoom: float = 1.0
    mirrored: bool = False
    bits: int = 1_000_000
    shrink: int = 1
    begin: float = 0.0
    speed: float = 1.0


EDITS = {
    "crop": Edit(zoom=0.7),
    "flip": Edit(mirrored=True),
    "quality": Edit(bits=2_000, shrink=4),
    "speed": Edit(begin=0.3, speed=2.0),
    "all": Edit(zoom=0.7, mirrored=True, bits=8_000, shrink=2, begin=0.3, speed=2.0),
}


def moving(picture: Image.Image, edit: Edit, draw: np.random.Generator) -> Iterator[Image.Image]:
    """Frames of a window that moves in a straight line over `picture`, which `draw` begins and ends."""
    picture = ImageOps.fit(picture, (SIDE * 4 // 3, SIDE), Image.Resampling.BICUBIC)
    room = np.array(picture.size) - WINDOW
    ends = np.stack([draw.uniform(0, 1, 2), draw.uniform(0, 1, 2)]) * room  # in pixels
    corner = draw.uniform(0, 1, 2)
    for number in range(int(RATE * SECONDS * (1 - edit.begin) / edit.speed)):
        place = edit.begin + number * edit.speed / (RATE * SECONDS)
        left, top = (1 - place) * ends[0] + place * ends[1]
        seen = np.array(WINDOW) * edit.zoom
        left, top = np.array([left, top]) + corner * (WINDOW - seen)
        frame = picture.resize(WINDOW, Image.Resampling.BILINEAR, (left, top, left + seen[0], top + seen[1]))
        frame = ImageOps.mirror(frame) if edit.mirrored else frame
        yield frame.resize((WINDOW[0] // edit.shrink, WINDOW[1] // edit.shrink))


def film(path: Path, picture: Path, edit: Edit, seed: int) -> None:
    """Encode one clip; equal seeds move alike."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(picture) as image, av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height = (side // edit.shrink for side in WINDOW)
        stream.pix_fmt, stream.bit_rate = "yuv420p", edit.bits
        for frame in moving(image.convert("RGB"), edit, np.random.default_rng(seed)):
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))


def make_clips(pictures: Sequence[Path], out: Path, count: int) -> None:
    """`2 count` clips in `train/`; `count` queries, five near-duplicates of each and `4 count` others in `test/`."""
    draw = np.random.default_rng(0)
    order = [pictures[row] for row in draw.permutation(len(pictures))]
    queries, rest = order[:count], order[count:]
    classes = {picture.parent for picture in queries}
    rest.sort(key=lambda picture: picture.parent not in classes)  # stable: those of a query's class first
    others, training = rest[: 4 * count], rest[4 * count :][: 2 * count]
    if len(training) < 2 * count:
        sys.exit(f"{len(pictures)} photographs are too few for --clips {count}: {7 * count} are needed.")
    lines = []
    for number, picture in enumerate(queries):
        film(out / f"test/query{number:04d}.mp4", picture, Edit(), number)
        for name, edit in EDITS.items():
            film(out / f"test/{name}{number:04d}.mp4", picture, edit, number)
            lines.append(f"query{number:04d}\t{name}{number:04d}\t1\n")
    for split, chosen in (("test/other", others), ("train/", training)):
        for number, picture in enumerate(chosen):
            film(out / f"{split}{number:04d}.mp4", picture, Edit(), 10_000 + number)
    (out / "test/pairs.txt").write_text("".join(lines))


def scores_of(networks: Sequence[str], weights: Path, epochs: int) -> list[dict[str, Any]]:
    """`cgd run` in the working directory, once per similarity; what is stored is not done again for the next."""
    from cgd.pipeline import runner
    from cgd.pipeline.recipe import build_recipe, override
    from cgd.pipeline.steps import Session

    session = Session("features.zarr", weights=weights, device="cpu", workers=1)
    for name, folder in (("clips", "train"), ("near-duplicates", "test")):
        session.workspace.introduce(name, f"videos:{folder}?rate=1")
    recipe = override(build_recipe(yaml.safe_load(RECIPE), "recipe"), [*networks, f"distill.epochs={epochs}"])
    scores = []
    for kind in KINDS:
        report = runner.run(session, override(recipe, [f"evaluate.video={kind}"]), out=Path("run"))
        scores += [{**score, "kind": kind} for score in report.scores]
    return scores


def table(scores: Sequence[dict[str, Any]]) -> list[list[str]]:
    """mAP of every model by similarity; that of `cf` also among the first hundred, with its interval."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for score in scores:
        name = score["row"] if score["row"].startswith("student") else score["model"]
        name = "student after" if name == "student" else name
        rows.setdefault(name, {})[score["kind"]] = score["protocols"]
    lines = [["mAP x 100", *KINDS, "cf, 95 %", "cf, @100"]]
    for name, kinds in rows.items():
        low, high = kinds["cf"]["all"]["mAP_interval"]
        values = [f"{kinds[kind]['all']['mAP']:.2f}" for kind in KINDS]
        lines.append([name, *values, f"{low:.1f} to {high:.1f}", f"{kinds['cf']['top-100']['mAP']:.2f}"])
    return lines


def main() -> None:
    from cgd.data.images import EXTENSIONS
    from cgd.data.synthetic import draw_landmarks
    from cgd.pipeline import demo
    from cgd.pipeline.text import card_line, render

    images, weights = option("--images", ""), Path(option("--weights", "weights")).absolute()
    clips, epochs = int(option("--clips", "40")), int(option("--epochs", "40"))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(option("--out", temporary)).absolute()
        out.mkdir(parents=True, exist_ok=True)
        folder = Path(images).absolute()
        os.chdir(out)
        if not images:
            demo.prepare(out)
            folder = draw_landmarks(out / "landmarks", labels=4 * clips, images=2, searched=2, distractors=0)
            weights = out / "weights"
        pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not (out / "test/pairs.txt").is_file():
            make_clips(pictures, out, clips)
        made = time.perf_counter()
        scores = scores_of(REAL if images else DRAWN, weights, epochs)
    seconds = {"clips": made - started, "all": time.perf_counter() - started, "cpu": time.process_time()}
    if "--json" in sys.argv:
        print(json.dumps({"scores": scores, "seconds": seconds}))
        return
    print(render(table(scores)))
    card = scores[0]["card"]
    print(f"{scores[0]['queries']} queries, {scores[0]['gallery']} videos; {card_line(card)}")
    print(f"{seconds['all']:.0f} seconds, {seconds['cpu']:.0f} of them on a core; clips took {seconds['clips']:.0f}")


if __name__ == "__main__":
    main()
