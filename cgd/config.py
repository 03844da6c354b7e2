"""Every setting that changes a result, with its default; a recipe's sections are these dataclasses.

Where things are and how fast they run (paths, devices, workers, batch sizes of extraction) is not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


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
    crop_area: tuple[float, float] = (0.4, 1.0)  # smallest and largest share of the image
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)  # width over height
    flip: float = 0.5  # probability
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


@dataclass(frozen=True)
class WhitenConfig:
    """One whitening per teacher and kind of view, fitted on the training images (methods.md 1.3)."""

    kind: Literal["pca"] = "pca"
    dim: int = 512
    samples: int = 0  # images drawn for the fit; 0 = all of them
    floor: float = 1e-5  # smallest eigenvalue, relative to the largest
    seed: int = 0


@dataclass(frozen=True)
class DistillConfig:
    """How the student is trained; the defaults are Whiten-MTD's recipe (methods.md 1.9)."""

    method: str = "whiten-mtd"
    fusion: str = "max-min"
    student: str = "resnet18"
    init: str = ""  # file name of pretrained trunk weights in the weights folder
    batch_norm: Literal["auto", "train", "freeze", "unfold"] = "auto"
    positives: Literal["label", "image"] = "label"  # a pair: two images of a label, or two views of an image
    views: Literal["crop", "fixed"] = "crop"
    epochs: int = 200
    batch_pairs: int = 256  # global
    image_size: int = 512
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6  # cosine, stepped every iteration
    weight_decay: float = 1e-6  # coupled, as Adam has it
    seed: int = 0


@dataclass(frozen=True)
class WhitenMtdConfig:
    """The loss of Whiten-MTD (methods.md 1.5); the defaults are the released code's, not equation 2 of the paper."""

    student_temperature: float = 0.05
    teacher_temperature: float = 0.05
    kl_direction: Literal["teacher-student", "student-teacher"] = "teacher-student"
    symmetric: bool = True  # row and column term, summed


@dataclass(frozen=True)
class EvaluateConfig:
    """The protocol of a score; every field stands on its card."""

    queries: Literal["cropped", "full", "both"] = "cropped"
    ap: Literal["trapezoid", "mean-precision"] = "trapezoid"
    distractors: tuple[str, ...] = ()
    ensemble: bool = True  # also the mean of the teachers' similarities


@dataclass(frozen=True)
class Recipe:
    """A whole experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    whiten: WhitenConfig = field(default_factory=WhitenConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    whiten_mtd: WhitenMtdConfig = field(default_factory=WhitenMtdConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
