"""What a student sees in training: the very crops whose teacher vectors are stored, under its own light."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from cgd.config import DistillConfig
from cgd.data import photometric
from cgd.data.images import digest_of, image_bytes, read_image
from cgd.data.loading import ahead
from cgd.data.transforms import Change, crop_spec, view_pixels
from cgd.data.views import from_row
from cgd.models.devices import Compute
from cgd.stages.fuse import TargetPlan
from cgd.stages.images import check_digest
from cgd.stages.select import embeddings_behind
from cgd.store.feature_store import FeatureStore
from cgd.types import Batch, ImageList, InputSpec, View

WHOLE = View(0.0, 0.0, 1.0, 1.0, False)
CHECKED = 8  # images, before a training begins
FULL = -1  # number of the view that is the full image, whatever is stored


@dataclass(frozen=True)
class Sample:
    """One image of a batch: its row, the stored view, its place in the row of the batch, and what seeds its light."""

    row: int
    view: int
    place: int = 0
    seed: tuple[int, ...] | None = None


class StudentPixels:
    """Images under the stored views of a plan, squares of `config.image_size` pixels, degraded where that is set."""

    def __init__(
        self, store: FeatureStore, images: ImageList, plan: TargetPlan, config: DistillConfig, compute: Compute
    ) -> None:
        self.images, self.config, self.compute = images, config, compute
        artifacts = {number: store.get(key) for number, key in zip(plan.views, plan.teachers[0], strict=True)}
        self.geometry = {number: a.read("views") for number, a in artifacts.items() if "views" in a.arrays}
        first = next(iter(artifacts.values()))
        self.digests = first.read("digests")
        policy = embeddings_behind(store, first.key).settings.get("policy", {})
        self.crop_filter = str(policy.get("filter", "own"))

    @property
    def seen(self) -> np.ndarray:
        """(N,) bool: images that were read for the store, if only to find that they cannot be decoded."""
        return np.asarray(self.digests.any(axis=1))

    def samples(self, epoch: int, number: int, batch: Batch, share: slice = slice(None)) -> list[Sample]:
        """The `share` of the rows of batch `number` of an epoch, a row's images in a row."""
        seed = (self.config.seed, epoch, 4, number) if self.config.photometric != "none" else None
        places = range(batch.rows.shape[1]) if batch.rows.shape[1] > 1 else [photometric.ALONE]
        return [
            Sample(int(row), int(view), place, None if seed is None else (*seed, i, place))
            for i in range(len(batch))[share]
            for place, row, view in zip(places, batch.rows[i], batch.views[i], strict=True)
        ]

    def load(self, sample: Sample, spec: InputSpec) -> np.ndarray:
        """(3, H, W) float32, normalised as `spec` says."""
        spec = dataclasses.replace(spec, degrade=self.config.degrade or spec.degrade)
        decoded = read_image(self.images.root, self.images.paths[sample.row])
        check_digest(self.images, sample.row, decoded.digest, self.digests[sample.row])
        assert decoded.image is not None, "its bytes are those that were decoded at extraction"
        view = WHOLE
        if sample.view in self.geometry:
            view, spec = from_row(self.geometry[sample.view][sample.row]), crop_spec(spec, self.crop_filter)
        change = None if sample.seed is None else self._light(sample.place, sample.seed)
        return view_pixels(decoded.image, spec, view, self.config.image_size, change)

    def check(self, rows: np.ndarray) -> None:
        """Read a few images, spread over `rows` (M,); raises where they are not here, or not those of the store."""
        for row in rows[np.unique(np.linspace(0, max(len(rows) - 1, 0), CHECKED).astype(int))[: len(rows)]]:
            check_digest(
                self.images, row, digest_of(image_bytes(self.images.root, self.images.paths[row])), self.digests[row]
            )

    def stream(self, samples: Iterable[Sample], spec: InputSpec, depth: int) -> Iterator[np.ndarray]:
        """`load` of one sample after the other, up to `depth` of them ahead in threads."""
        return ahead(lambda sample: self.load(sample, spec), samples, self.compute.workers, depth)

    def to_device(self, pixels: Sequence[np.ndarray]) -> torch.Tensor:
        """(B, 3, H, W) on the device, channels last in memory."""
        size = self.config.image_size
        stacked = np.stack(pixels) if pixels else np.empty((0, 3, size, size), np.float32)
        return torch.from_numpy(stacked).to(self.compute.device, memory_format=torch.channels_last)

    def _light(self, place: int, seed: tuple[int, ...]) -> Change:
        generator = np.random.default_rng(np.random.SeedSequence(seed))

        def change(image: Image.Image) -> Image.Image:
            return photometric.change(image, self.config.photometric, place, generator)

        return change
