"""The values that cross module borders: frozen, with C-contiguous arrays, and without any heavy import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cgd.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MARK_DIGITS = 16
LARGEST, MOST_SCALED = 16_384, 16  # pixels of an input's side; how much an image may be enlarged
_KEY = re.compile(rf"(?P<kind>[a-z]+)/(?P<label>[a-z0-9.-]+)-(?P<mark>[0-9a-f]{{{MARK_DIGITS}}})")


@dataclass(frozen=True, order=True)
class Key:
    """Name of an artifact: `kind/label-mark`, where only the mark tells artifacts of a kind apart.

    `label` is a slug of `[a-z0-9.-]` for people; `mark` is the first 16 hexadecimal digits of the SHA-256 of
    everything that determined the artifact.
    """

    kind: str
    label: str
    mark: str

    @property
    def name(self) -> str:
        return f"{self.label}-{self.mark}"

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"

    @staticmethod
    def is_name(text: str) -> bool:
        """Whether `text` is `label-mark`."""
        return _KEY.fullmatch(f"kind/{text}") is not None

    @classmethod
    def parse(cls, text: str) -> Key:
        match = _KEY.fullmatch(text)
        if match is None:
            raise InputError(f"'{text}' is no key: expected kind/label-mark; `cgd store ls` lists them.")
        return cls(**match.groupdict())


@dataclass(frozen=True)
class InputSpec:
    """What pixels a model wants; declared with its weights, never guessed by a caller.

    `size` is in pixels and bounds the side named by `resize`; of the resized image the middle `centre_crop` pixels
    square are kept (0: all of it), shrunk to `degrade` pixels on the longer side and enlarged again (0: as it is).
    `mean` and `std` are in RGB order on the scale 0 to 1; `channels` is the order the network receives. `scales` are
    factors applied to that: on the `image`, with its filter, or on the normalised `tensor`, bilinear without antialias.
    Sides become `floor(n s)`, on the tensor sampled at steps of exactly 1/s, or `round(n s)`, sampled at steps of
    n / round(n s) as OpenCV does. `combine` joins the scales' descriptors. `query_crop` says how a benchmark's box is
    cut: `scaled` keeps the full image's scale, `integer` truncates the corners, `none` ignores the box.
    """

    size: int
    resize: Literal["longest", "shortest", "square", "none"]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    enlarge: bool = False
    filter: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    channels: Literal["RGB", "BGR"] = "RGB"
    scales: tuple[float, ...] = (1.0,)
    scale_on: Literal["tensor", "image"] = "tensor"
    scale_rounding: Literal["floor", "round"] = "floor"
    combine: Literal["mean", "gem3"] = "mean"
    query_crop: Literal["scaled", "integer", "none"] = "scaled"
    centre_crop: int = 0
    degrade: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST or not 0 <= self.centre_crop <= LARGEST:
            raise InputError(
                f"an input has a positive size and a crop of at most {LARGEST} pixels, got {self.size} and "
                f"{self.centre_crop}."
            )
        if not 0 <= self.degrade <= LARGEST:
            raise InputError(f"an input is degraded to at most {LARGEST} pixels, 0 for not at all, got {self.degrade}.")
        if not self.scales or not all(0 < s <= MOST_SCALED for s in self.scales):
            raise InputError(f"an input has positive scales of at most {MOST_SCALED}, got {self.scales}.")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise InputError("an input needs three means and three standard deviations, in RGB order.")


def title_of(name: str, split: str | None) -> str:
    """`name` or `name@split`, as typed on the command line."""
    return name if split is None else f"{name}@{split}"


@dataclass(frozen=True)
class ImageList:
    """A data set, or one split of it, in a fixed order.

    `ids` (N) are unique and name rows for ever; `paths` (N) are relative to `root`, which is this machine's and
    never stored. `labels` (N), `groups` (N; frames of one video) and `boxes` (N; x1, y1, x2, y2 in pixels of
    the full image, or none) are optional.
    """

    name: str
    split: str | None
    ids: tuple[str, ...]
    paths: tuple[str, ...]
    root: Path | None = None
    labels: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    boxes: tuple[tuple[float, float, float, float] | None, ...] | None = None

    def __post_init__(self) -> None:
        for what, values in (
            ("paths", self.paths),
            ("labels", self.labels),
            ("groups", self.groups),
            ("boxes", self.boxes),
        ):
            if values is not None and len(values) != len(self.ids):
                raise InputError(f"{self.title} has {len(self.ids)} ids but {len(values)} {what}.")
        if len(set(self.ids)) != len(self.ids):
            seen: set[str] = set()
            twice = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise InputError(f"{self.title} names the image '{twice}' twice: ids must be unique.")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def title(self) -> str:
        """`name` or `name@split`, as typed on the command line."""
        return title_of(self.name, self.split)


@dataclass(frozen=True)
class View:
    """A crop relative to the decoded image (float32 fractions) and a flip: the same pixels for everyone."""

    top: float
    left: float
    height: float
    width: float
    flip: bool

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Integer pixels (left, top, right, bottom) in an image of `width` x `height`; rounded in this one place."""
        left, top = round(self.left * width), round(self.top * height)
        return left, top, left + max(1, round(self.width * width)), top + max(1, round(self.height * height))


@dataclass(frozen=True)
class Whitening:
    """`whiten(x) = projection @ (x - mean)`, fitted on `n_fit` l2-normalised rows of one kind of view.

    `mean` (D,), `projection` (D', D) and `eigenvalues` (D,) descending, all float64; `n_clamped` eigenvalues
    were raised to the floor.
    """

    mean: NDArray[np.float64]
    projection: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    n_fit: int
    n_clamped: int
    view_kind: str


@dataclass(frozen=True)
class Codebook:
    """Anchor directions of every sub-vector, and how teachers are turned before they are fused.

    `centroids` (m, n, c) are unit vectors, n for each of m positions; `rotations` (K, D, D) are orthogonal, D = m c,
    and turn teacher k by `rotations[k] @ v`, or there are none.
    """

    centroids: NDArray[np.float32]
    rotations: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Batch:
    """One global batch: `rows` (B, V) int64 of the image list, `views` (B, V) int64 view numbers; V is 1 or 2.

    Where a method asks for them, `labels` (B, V) int64 number the images' labels in their order; -1 is of none.
    """

    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)


Target = Mapping[str, "NDArray[np.float32]"]
"""What a method's loss compares the student with: named arrays without gradient."""


@dataclass(frozen=True)
class GroundTruth:
    """Gallery indices (int64) of each of Q queries: a positive is easy or hard, junk is taken out of a ranking."""

    easy: tuple[NDArray[np.int64], ...]
    hard: tuple[NDArray[np.int64], ...]
    junk: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class Benchmark:
    """Queries searched in a gallery; with a `truth` in the revisited form, or scored by label without one.

    `queries` equal to `gallery` means leave-one-out. Boxes of the queries stand in `queries.boxes`. `recall_at` are
    the k at which a labelled benchmark's recall is published.
    """

    name: str
    gallery: ImageList
    queries: ImageList
    truth: GroundTruth | None
    recall_at: tuple[int, ...] = (1, 5, 10)

    @property
    def leave_one_out(self) -> bool:
        return self.queries.ids == self.gallery.ids

    @property
    def of_videos(self) -> bool:
        """Whether images are frames, and their videos are searched; the ground truth is then over videos."""
        return self.gallery.groups is not None


@dataclass(frozen=True)
class Score:
    """One protocol's result: fractions, not percent; NaN in `average_precision` (Q,) where a query has no positive."""

    protocol: str
    mean_ap: float
    queries: int
    average_precision: NDArray[np.float64]
    precision_at: Mapping[int, float] = field(default_factory=dict)
    recall_at: Mapping[int, float] = field(default_factory=dict)


Settings = Mapping[str, Any]
"""JSON values that determine an artifact."""
