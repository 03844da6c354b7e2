"""Every setting that changes a result, with its default; a recipe's sections are these dataclasses.

Where things are and how fast they run (paths, devices, workers, batch sizes of extraction) is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Any, Literal

from cgd.errors import InputError


def _range(key: str, value: float, low: float, high: float = inf, *, open_low: bool = False) -> None:
    """Refuse a value that cannot mean anything, naming its key."""
    inside = isfinite(value) and (low < value if open_low else low <= value) and value <= high
    if not inside:
        least = f"more than {low:g}" if open_low else f"at least {low:g}"
        most = "" if high == inf else f" and at most {high:g}"
        raise InputError(f"{key} is {least}{most}, got {value:g}.")


def _not_negative(section: str, config: Any, *names: str) -> None:
    for name in names:
        _range(f"{section}.{name}", getattr(config, name), 0)


def _ordered(key: str, pair: tuple[float, float], high: float = inf) -> None:
    """Two positive bounds, the smaller first."""
    for value in pair:
        _range(key, value, 0, high, open_low=True)
    if pair[0] > pair[1]:
        raise InputError(f"{key} is the smaller bound, then the larger, got {pair[0]:g} and {pair[1]:g}.")


@dataclass(frozen=True)
class DataConfig:
    """Which images: names as `NAME` or `NAME@SPLIT`; where they are is told on the command line."""

    train: str = ""
    benchmarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExtractConfig:
    """Which teachers look at which views. A crop's geometry is the law of methods.md 6.3."""

    teachers: tuple[str, ...] = ()
    views: int = 0  # replayable crops beside the fixed view
    crop_size: int = 512  # pixels; teachers see every crop as a square of this side
    # how crops are resized, the student's too: one way for all (bilinear is the papers'), or each network's own
    crop_filter: Literal["own", "bilinear", "bicubic", "lanczos"] = "bilinear"
    crop_area: tuple[float, float] = (0.4, 1.0)  # smallest and largest share of the image
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)  # width over height
    flip: float = 0.5  # probability
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    images: int = field(default=0, metadata={"neutral": 0})  # at most so many are shown to a teacher; 0 = all
    images_by: Literal["image", "label"] = field(default="image", metadata={"neutral": "image"})  # label: whole ones
    images_seed: int = field(default=0, metadata={"neutral": 0})

    def __post_init__(self) -> None:
        _range("extract.images", self.images, 0)
        _range("extract.images_seed", self.images_seed, 0)
        _range("extract.views", self.views, 0)
        _range("extract.crop_size", self.crop_size, 1)
        _range("extract.flip", self.flip, 0, 1)
        _ordered("extract.crop_area", self.crop_area, 1)
        _ordered("extract.crop_aspect", self.crop_aspect)

    @property
    def of_all(self) -> ExtractConfig:
        """The same without a budget: of a benchmark every image is embedded."""
        return replace(self, images=0)


@dataclass(frozen=True)
class WhitenConfig:
    """One whitening per teacher and kind of view, fitted on the training images (methods.md 1.3)."""

    kind: Literal["pca", "zca", "standardise", "phi-s", "centre"] = "pca"
    dim: int = 512  # PCA's; the other kinds keep every dimension
    samples: int = 0  # images drawn for the fit; 0 = all of them
    floor: float = 1e-5  # smallest eigenvalue, relative to the largest
    seed: int = 0
    frames: int = field(default=0, metadata={"neutral": 0})  # at most so many of a video, drawn at random; 0 = all

    def __post_init__(self) -> None:
        _range("whiten.dim", self.dim, 1)
        _range("whiten.samples", self.samples, 0)
        _range("whiten.floor", self.floor, 0, 1, open_low=True)
        _range("whiten.seed", self.seed, 0)
        _range("whiten.frames", self.frames, 0)


@dataclass(frozen=True)
class DistillConfig:
    """How the student is trained; the defaults are Whiten-MTD's recipe (methods.md 1.9).

    With `validation`, the published student is that of the epoch with the highest leave-one-out mAP among images of the
    classes held out; otherwise that of the last epoch.
    """

    method: str = "whiten-mtd"
    fusion: str = "max-min"
    student: str = "resnet18"
    init: str = ""  # file name of pretrained trunk weights in the weights folder
    batch_norm: Literal["auto", "train", "freeze", "unfold"] = "auto"
    teachers: tuple[str, ...] = field(default=(), metadata={"neutral": ()})  # labels; none = all that were extracted
    space: Literal["whitened", "raw"] = field(default="whitened", metadata={"neutral": "whitened"})
    positives: Literal["label", "image"] = "label"  # a pair: two images of a label, or two views of an image
    views: Literal["crop", "fixed"] = "crop"
    crops: int = field(default=0, metadata={"neutral": 0})  # train on the first so many stored crops; 0 = all
    # what an epoch sees of a video: all of its frames, or one drawn anew (methods.md 1.11)
    frames: Literal["all", "one-per-video"] = field(default="all", metadata={"neutral": "all"})
    epochs: int = 200
    batch_pairs: int = 256  # global; images where a method looks at single ones
    images_per_class: int = field(default=8, metadata={"neutral": 8})  # where a method's batches are of a few classes
    image_size: int = 512
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6  # cosine, stepped every iteration
    weight_decay: float = 1e-6  # coupled, as Adam has it
    seed: int = 0
    optimiser: Literal["adam", "rmsprop"] = field(default="adam", metadata={"neutral": "adam"})
    precision: Literal["fp32", "bf16"] = field(default="fp32", metadata={"neutral": "fp32"})
    chunk_images: int = field(default=0, metadata={"neutral": 0})  # images per forward pass; 0 = the whole batch
    photometric: Literal["none", "jitter", "video"] = field(default="none", metadata={"neutral": "none"})
    validation: float = field(default=0.0, metadata={"neutral": 0.0})  # share of classes held out
    exclude: str = field(default="", metadata={"neutral": ""})  # file of labels not to train on, one per line
    images: int = field(default=0, metadata={"neutral": 0})  # at most so many, drawn as extract.images draws them
    images_by: Literal["image", "label"] = field(default="image", metadata={"neutral": "image"})
    images_seed: int = field(default=0, metadata={"neutral": 0})
    labelled: float = field(default=1.0, metadata={"neutral": 1.0})  # share of the labels that batches by class use
    unlabelled: float = field(default=0.0, metadata={"neutral": 0.0})  # images without appended, as a share of a batch
    degrade: int = field(default=0, metadata={"neutral": 0})  # pixels that the student's crops are shrunk to; 0 = not

    def __post_init__(self) -> None:
        _range("distill.images", self.images, 0)
        if self.images == 1:
            raise InputError("distill.images=1 leaves a single image, and training needs two: set more, or 0 for all.")
        _range("distill.images_seed", self.images_seed, 0)
        _range("distill.labelled", self.labelled, 0, 1, open_low=True)
        _range("distill.unlabelled", self.unlabelled, 0, 16)
        _range("distill.degrade", self.degrade, 0)
        _range("distill.chunk_images", self.chunk_images, 0)
        _range("distill.validation", self.validation, 0, 0.9)
        _range("distill.crops", self.crops, 0)
        _range("distill.epochs", self.epochs, 1)
        _range("distill.batch_pairs", self.batch_pairs, 2)
        _range("distill.images_per_class", self.images_per_class, 1)
        _range("distill.image_size", self.image_size, 1)
        _range("distill.learning_rate", self.learning_rate, 0, open_low=True)
        _range("distill.final_learning_rate", self.final_learning_rate, 0)
        _range("distill.weight_decay", self.weight_decay, 0)
        _range("distill.seed", self.seed, 0)


@dataclass(frozen=True)
class WhitenMtdConfig:
    """The loss of Whiten-MTD (methods.md 1.5); the defaults are the released code's, not equation 2 of the paper."""

    student_temperature: float = 0.05
    teacher_temperature: float = 0.05
    kl_direction: Literal["teacher-student", "student-teacher"] = "teacher-student"
    symmetric: bool = True  # row and column term, summed
    shared_mask: bool = field(default=False, metadata={"neutral": False})  # random fusions draw once for both terms

    def __post_init__(self) -> None:
        _range("whiten-mtd.student_temperature", self.student_temperature, 0, open_low=True)
        _range("whiten-mtd.teacher_temperature", self.teacher_temperature, 0, open_low=True)


@dataclass(frozen=True)
class EmbeddingConfig:
    """Embedding distillation, the baseline ED of Whiten-MTD (methods.md 1.6)."""

    squared: bool = False  # squared distances instead of distances


@dataclass(frozen=True)
class ContrastiveConfig:
    """Contrastive learning, the baseline CL of Whiten-MTD (methods.md 1.6)."""

    temperature: float = 0.05
    symmetric: bool = True  # row and column term, summed

    def __post_init__(self) -> None:
        _range("contrastive.temperature", self.temperature, 0, open_low=True)


@dataclass(frozen=True)
class CgdConfig:
    """CGD's codebook and loss (methods.md 2.3, 2.4); what its authors do not say is SSP's or that chapter's default."""

    positions: int = 32  # sub-vectors
    bits: int = 8  # 2^bits anchors per position
    codebook: Literal["cosine", "euclid"] = "cosine"  # spherical k-means, or plain product quantisation as SSP's
    iterations: int = 20
    restarts: int = 2  # the best by mean cosine is kept
    points: int = 1000  # training rows per anchor, at most
    seed: int = 0  # of the rows drawn and the first anchors
    align: bool = False  # turn every teacher onto the first one before fusing (orthogonal Procrustes)
    multiplier: float = 10.0  # one over the temperature of both soft codes
    direct: float = 0.0  # weight of 1 - cosine between student and fused vector

    def __post_init__(self) -> None:
        _range("cgd.positions", self.positions, 1)
        _range("cgd.bits", self.bits, 1, 16)
        _range("cgd.iterations", self.iterations, 1)
        _range("cgd.restarts", self.restarts, 1)
        _range("cgd.points", self.points, 1)
        _range("cgd.seed", self.seed, 0)
        _range("cgd.multiplier", self.multiplier, 0, open_low=True)
        _range("cgd.direct", self.direct, 0)


@dataclass(frozen=True)
class AbsoluteTeacherConfig:
    """Triplets and absolute teacher (methods.md 3.2); the authors' weights per data set are in docs/training.md."""

    weight: float = 1.0  # of the distillation term, lambda in the paper
    triplet: float = 1.0  # weight of the triplet term; 0 = distillation alone
    margin: float = 0.0  # of the triplet term, as released
    hint: float = field(default=0.0, metadata={"neutral": 0.0})  # weight of the hint layer; 0 = none
    attention: float = field(default=0.0, metadata={"neutral": 0.0})  # weight of the attention layer; 0 = none

    def __post_init__(self) -> None:
        _not_negative("absolute-teacher", self, "weight", "triplet", "margin", "hint", "attention")


@dataclass(frozen=True)
class RelativeTeacherConfig:
    """Triplets and relative teacher (methods.md 3.2); the authors' weights per data set are in docs/training.md."""

    weight: float = 0.3  # of the distillation term, lambda in the paper; of the Frobenius norm at 32 images
    triplet: float = 1.0  # weight of the triplet term; 0 = distillation alone
    margin: float = 0.0  # of the triplet term, as released
    hint: float = field(default=0.0, metadata={"neutral": 0.0})  # weight of the hint layer; 0 = none
    attention: float = field(default=0.0, metadata={"neutral": 0.0})  # weight of the attention layer; 0 = none
    relative_reduction: Literal["frobenius", "mean_abs_offdiag"] = "frobenius"  # as released, or the mean over pairs

    def __post_init__(self) -> None:
        _not_negative("relative-teacher", self, "weight", "triplet", "margin", "hint", "attention")


@dataclass(frozen=True)
class RankingConfig:
    """Ranking distillation with interpolated virtual vectors (methods.md 4)."""

    loss: Literal["rank_mse", "rank_listkl", "rank_rkd"] = "rank_mse"  # of cosines, of their softmax, of distances
    alpha: float = 1.0  # the share of the first of two vectors is drawn from Beta(alpha, alpha); 1 = uniform
    virtual: int = 0  # virtual vectors per batch; 0 = as many as it has images
    temperature: float = 0.05  # of rank_listkl

    def __post_init__(self) -> None:
        _range("ranking.alpha", self.alpha, 0, open_low=True)
        _range("ranking.virtual", self.virtual, 0)
        _range("ranking.temperature", self.temperature, 0, open_low=True)


@dataclass(frozen=True)
class FeatureRegressionConfig:
    """Feature regression (methods.md 5.1) has no settings of its own; it wants `distill.space: raw`."""


@dataclass(frozen=True)
class DchConfig:
    """Deep Cauchy hashing (methods.md 5.2)."""

    gamma: float = 20.0  # scale of the Cauchy distribution, in bits
    quantisation: float = 0.1  # weight of the distance from +-1

    def __post_init__(self) -> None:
        _range("dch.gamma", self.gamma, 0, open_low=True)
        _range("dch.quantisation", self.quantisation, 0)


@dataclass(frozen=True)
class CsqConfig:
    """Central similarity quantisation (methods.md 5.3)."""

    quantisation: float = 1e-4  # weight of the distance from +-1
    seed: int = 0  # of random centres, and of the bits on which an image's classes are divided

    def __post_init__(self) -> None:
        _range("csq.quantisation", self.quantisation, 0)
        _range("csq.seed", self.seed, 0)


@dataclass(frozen=True)
class EvaluateConfig:
    """The protocol of a score; every field stands on its card."""

    queries: Literal["cropped", "full", "both"] = "cropped"
    mode: Literal["symmetric", "asymmetric", "both"] = "symmetric"  # asymmetric: a gallery of the fused teachers
    ap: Literal["trapezoid", "mean-precision"] = "trapezoid"
    distractors: tuple[str, ...] = ()
    ensemble: bool = True  # also the mean of the teachers' similarities
    descriptors: Literal["half", "single"] = "half"  # of gallery and distractors; queries are always single
    index: Literal["exact", "flat", "ivf-pq", "hnsw"] = "exact"
    k: int = 1000  # nearest images looked at by an index that is not exact; positives beyond them are missed
    # sign: binary codes by Hamming distance, a bit for each dimension; AP among the first `top`, 0 = all
    codes: Literal["none", "sign"] = field(default="none", metadata={"neutral": "none"})
    top: int = field(default=0, metadata={"neutral": 0})
    # of benchmarks scored by label; none = where the benchmark's papers have it, or 1, 5 and 10
    recall_at: tuple[int, ...] = field(default=(), metadata={"neutral": ()})
    # score so many queries at most, drawn at random, as EmbeddingDistillation does with 10,000; 0 = all
    random_queries: int = field(default=0, metadata={"neutral": 0})
    seed: int = field(default=0, metadata={"neutral": 0})  # of the queries that are drawn
    # how alike two videos are, from their frames' vectors (methods.md 8.5), and how many of the first frames count
    video: Literal["cf", "fme", "fmx", "sme", "smx"] = field(default="cf", metadata={"neutral": "cf"})
    frames: int = field(default=60, metadata={"neutral": 60})  # 0 = all
    degrade: int = field(default=0, metadata={"neutral": 0})  # pixels that images are shrunk to, and enlarged again

    def __post_init__(self) -> None:
        _range("evaluate.degrade", self.degrade, 0)
        _range("evaluate.k", self.k, 1)
        _range("evaluate.top", self.top, 0)
        if self.codes != "none" and self.index != "exact":
            raise InputError(f"binary codes have an index of their own: set evaluate.index to exact, not {self.index}.")
        if self.top and self.codes == "none":
            raise InputError("evaluate.top cuts the ranking of binary codes: set evaluate.codes to sign, or top to 0.")
        for k in self.recall_at:
            _range("evaluate.recall_at", k, 1)
        if len(set(self.recall_at)) != len(self.recall_at):
            raise InputError(f"evaluate.recall_at names a number twice: {', '.join(map(str, self.recall_at))}.")
        _range("evaluate.random_queries", self.random_queries, 0)
        _range("evaluate.seed", self.seed, 0)
        _range("evaluate.frames", self.frames, 0)


@dataclass(frozen=True)
class IndexConfig:
    """How approximate indexes are built and searched; only what belongs to the kind in use enters its artifacts."""

    lists: int = 0  # ivf-pq: cells; 0 = the power of two nearest to the square root of the number of images
    code_bytes: int = 64  # ivf-pq: of a vector; divides the dimensions
    rotation: Literal["random", "opq"] = "random"  # ivf-pq: opq finds more after minutes of training
    probes: int = 64  # ivf-pq: cells looked into
    links: int = 32  # hnsw: neighbours of a node
    build_breadth: int = 80  # hnsw: candidates while building (efConstruction)
    breadth: int = 256  # hnsw: candidates while searching (efSearch); at least the number of results
    seed: int = 0  # of the rows that cells and codes are trained on

    def __post_init__(self) -> None:
        _range("index.lists", self.lists, 0)
        for name in ("code_bytes", "probes", "links", "build_breadth", "breadth"):
            _range(f"index.{name}", getattr(self, name), 1)
        _range("index.seed", self.seed, 0)

    def built_with(self, kind: str) -> dict[str, Any]:
        """The settings that an index of `kind` is made with."""
        names = {"ivf-pq": ("lists", "code_bytes", "rotation", "seed"), "hnsw": ("links", "build_breadth")}.get(
            kind, ()
        )
        return {name: getattr(self, name) for name in names}

    def of(self, kind: str) -> dict[str, Any]:
        """The settings that determine what is found with an index of `kind`."""
        names = {"ivf-pq": ("probes",), "hnsw": ("breadth",)}.get(kind, ())
        return self.built_with(kind) | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Recipe:
    """A whole experiment, or a table of them: each of `rows` has a name and the settings it differs in."""

    data: DataConfig = field(default_factory=DataConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    whiten: WhitenConfig = field(default_factory=WhitenConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    whiten_mtd: WhitenMtdConfig = field(default_factory=WhitenMtdConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    cgd: CgdConfig = field(default_factory=CgdConfig)
    absolute_teacher: AbsoluteTeacherConfig = field(default_factory=AbsoluteTeacherConfig)
    relative_teacher: RelativeTeacherConfig = field(default_factory=RelativeTeacherConfig)
    ranking: RankingConfig = field(default_factory=RankingConfig)
    feature_regression: FeatureRegressionConfig = field(default_factory=FeatureRegressionConfig)
    dch: DchConfig = field(default_factory=DchConfig)
    csq: CsqConfig = field(default_factory=CsqConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    rows: Mapping[str, Any] = field(default_factory=dict)
