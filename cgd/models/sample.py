"""Unit descriptors of images by an exported student.

python sample.py a.jpg b.jpg                      a JSON object per image, on a line of its own
python sample.py a.jpg b.jpg --out vectors.npy    an array (images, dimensions), float32
python sample.py query.jpg --box 10,20,200,180    a query, cut to its box: left, top, right, bottom in pixels

Needs numpy, Pillow, and onnxruntime for a model in .onnx, torch for one in .pt2. The similarity of two images is the
dot product of their descriptors. Written by `cgd students export`; yours to change.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MODEL = "student.onnx"
INPUT: dict[str, Any] = {}

Box = tuple[float, ...]
Model = Callable[[np.ndarray], np.ndarray]


def read(path: str | Path) -> Image.Image:
    """The file's first frame in RGB as it is stored: orientation tags are ignored, transparency is dropped."""
    image: Image.Image = Image.open(path)
    image.load()
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey is scaled to 8 bits
        values = np.asarray(image, np.float64)
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        image = Image.fromarray(np.clip(values * (255 / top), 0, 255).round().astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def prepared(image: Image.Image, box: Box | None = None, rule: dict[str, Any] = INPUT) -> list[np.ndarray]:
    """What the model takes, (1, H, W, 3) uint8: the image, or a query cut to its `box`; one per scale of the image."""
    limit = float(rule["size"])
    if box is not None and rule["query_crop"] != "none":
        whole = max(image.size)
        left, top, right, bottom = (int(v) if rule["query_crop"] == "integer" else round(v) for v in box)
        image = image.crop((left, top, max(left + 1, right), max(top + 1, bottom)))
        if rule["query_crop"] == "scaled" and rule["resize"] == "longest":
            limit = max(1.0, limit * max(image.size) / whole)  # a cut query keeps the scale of its full image
    image = resized(image, limit, rule)
    if side := rule["centre_crop"]:
        left, top = round((image.width - side) / 2), round((image.height - side) / 2)
        image = image.crop((left, top, left + side, top + side))
    rounding = round if rule["scale_rounding"] == "round" else math.floor
    images = []
    for scale in rule["image_scales"]:
        width, height = (max(1, rounding(side * scale)) for side in image.size)
        images.append(np.asarray(_to(image, (width, height), rule))[None])
    return images


def resized(image: Image.Image, limit: float, rule: dict[str, Any]) -> Image.Image:
    """The image with its longer or shorter side at `limit`, or square."""
    longer, shorter = max(image.size), min(image.size)
    if rule["resize"] == "square":
        return _to(image, (rule["size"], rule["size"]), rule)
    if rule["resize"] == "longest" and longer > limit:
        small = image.copy()
        small.thumbnail((limit, limit), Image.Resampling[rule["filter"].upper()], reducing_gap=None)
        return small
    if rule["resize"] == "longest" and rule["enlarge"]:
        factor = limit / longer
        return _to(image, (max(1, round(image.width * factor)), max(1, round(image.height * factor))), rule)
    if rule["resize"] == "shortest" and (limit <= shorter or rule["enlarge"]):
        return _to(image, (int(limit * image.width / shorter), int(limit * image.height / shorter)), rule)
    return image


def _to(image: Image.Image, size: tuple[int, int], rule: dict[str, Any]) -> Image.Image:
    return image if size == image.size else image.resize(size, Image.Resampling[rule["filter"].upper()])


def open_model(path: Path) -> Model:
    """What maps pixels (B, H, W, 3) uint8 to unit descriptors (B, D) float32."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda pixels: np.asarray(session.run(None, {"pixels": pixels})[0])
    import torch

    module = torch.export.load(path).module()  # unpickles parts of it: open what you made, or those you trust made

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = module(torch.tensor(pixels)).numpy()
        return found

    return run


def describe(model: Model, image: Image.Image, box: Box | None = None, rule: dict[str, Any] = INPUT) -> np.ndarray:
    """(D,) float32 of length 1: the model's own descriptor, or those of the image's scales combined."""
    units = np.concatenate([model(pixels) for pixels in prepared(image, box, rule)]).astype(np.float64)
    if rule["combine"] == "gem3" and len(units) > 1:
        vector = _power(_power(units, 3).mean(axis=0), 1 / 3)
    else:
        vector = units.mean(axis=0)
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)


def _power(x: np.ndarray, power: float) -> np.ndarray:
    return np.asarray(np.sign(x) * np.maximum(np.abs(x), 1e-6) ** power)


def main() -> None:
    """Describe the images named on the command line."""
    parser = argparse.ArgumentParser(description="Unit descriptors of images.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name(MODEL), help="the exported student")
    parser.add_argument("--box", help="left,top,right,bottom: cut the image, a query, to this box")
    parser.add_argument("--out", type=Path, help="write an array to this .npy file instead of printing")
    given = parser.parse_args()
    box = tuple(float(v) for v in given.box.split(",")) if given.box else None
    if box is not None and (len(box) != 4 or len(given.images) != 1):
        parser.error("--box takes four numbers, and one image")
    model = open_model(given.model)
    vectors = [describe(model, read(path), box) for path in given.images]
    if given.out:
        np.save(given.out, np.stack(vectors))
        return
    for path, vector in zip(given.images, vectors, strict=True):
        print(json.dumps({"image": path, "descriptor": [round(float(v), 8) for v in vector]}))


if __name__ == "__main__":
    main()
