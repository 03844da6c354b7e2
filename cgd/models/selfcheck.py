"""Proof that a published network is right on this machine, without its weights.

The network is filled by a rule that NumPy alone can repeat, and its descriptors of two fixed inputs are compared with
those that the published code gave for the same weights (for the ResNet-50 of the video teachers: torchvision's own).
`expected.safetensors` holds the first values of each descriptor; its header says how each was made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from cgd import registry
from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.published import COUNTER, TEACHERS, network_shapes, publication_of
from cgd.retrieval.vectors import combine_scales, l2
from cgd.types import InputSpec

EXPECTED = Path(__file__).parent / "teachers/expected.safetensors"
TOLERANCE = 1e-4
INPUTS = ((1, 3, 128, 160), (1, 3, 97, 131))


@dataclass(frozen=True)
class Case:
    """One descriptor: which form of a teacher, on which input, at which scales, l2-normalised or as it comes.

    `facts` are those of the weights file, `changes` replace fields of the input specification.
    """

    array: str
    options: Mapping[str, str]
    number: int
    scales: tuple[float, ...]
    unit: bool
    facts: Mapping[str, Any]
    changes: Mapping[str, Any]


def by_rule(name: str, shape: tuple[int, ...], gain: float = 1.0) -> np.ndarray:
    """The tensor published as `name`: normal numbers seeded by the name, scaled by what the tensor is."""
    last = name.rpartition(".")[2]
    if last == COUNTER:
        return np.zeros(shape, np.int64)
    if last in ("p", "t"):  # a pooling exponent, the margin of a classifier
        return np.full(shape, 2.7 if last == "p" else 0.0, np.float32)
    noise = np.asarray(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32))
    if last == "running_var":
        return (1 + np.float32(0.1) * np.abs(noise)).astype(np.float32)
    if last in ("running_mean", "bias"):
        return (np.float32(0.01) * noise).astype(np.float32)
    if len(shape) >= 2:
        return noise * np.float32(gain / np.sqrt(np.prod(shape[1:])))
    return (1 + np.float32(0.1) * noise).astype(np.float32)


def filled(teacher: str) -> dict[str, Tensor]:
    """Every tensor a published teacher uses, by the rule, under our names."""
    function = registry.find(TEACHERS, teacher)
    publication = publication_of(function)
    assert publication is not None, teacher
    shapes = network_shapes(function)
    expected = publication.layouts[0].expected(shapes)
    theirs = {ours: name for name, (ours, _) in expected.items() if ours and not ours.endswith(COUNTER)}
    return {ours: torch.from_numpy(by_rule(theirs[ours], shapes[ours])) for ours in sorted(theirs)}  # type: ignore[arg-type]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name and bytes of every tensor, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        plain = tensor if tensor.dtype == torch.float32 else tensor.double()  # NumPy knows no bfloat16
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(plain.numpy()).tobytes())
    return digest.hexdigest()


def network_input(number: int, spec: InputSpec) -> Tensor:
    """Random input `number` as the network wants it: normalised in RGB, then in its channel order; (1, 3, H, W)."""
    raw = np.random.default_rng(number).random(INPUTS[number], dtype=np.float32)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    pixels = (raw - mean) / std
    return torch.from_numpy(np.ascontiguousarray(pixels[:, ::-1] if spec.channels == "BGR" else pixels))


@torch.inference_mode()
def describe(encoder: Encoder, case: Case, device: torch.device) -> np.ndarray:
    """(D,) float32: the descriptor of a case on a device."""
    scales = {"scales": case.scales, "scale_on": "tensor"}
    spec = dataclasses.replace(encoder.input_spec, **(scales | dict(case.changes)))
    encoder.input_spec, before = spec, encoder.input_spec
    try:
        dtype = next(encoder.parameters()).dtype
        vectors = encoder.embed([network_input(case.number, spec).to(device, dtype)]).float().cpu().numpy()  # (1, S, D)
    finally:
        encoder.input_spec = before
    single = vectors[:, 0] if len(case.scales) == 1 else combine_scales(vectors, spec.combine)
    found: np.ndarray = (l2(single) if case.unit or len(case.scales) > 1 else single)[0]
    return found


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest value; the first values of `found` that `expected` has.

    What is not finite differs infinitely.
    """
    if not np.isfinite(found).all() or not np.isfinite(expected).all():
        return float("inf")
    return float(np.abs(found[: len(expected)] - expected).max() / max(float(np.abs(expected).max()), 1e-12))


@cache
def expectations() -> dict[str, Any]:
    """By teacher: digest of the filled tensors, source, and cases by array name, as the shipped header has them."""
    with safe_open(EXPECTED, framework="np") as handle:
        found: dict[str, Any] = json.loads(handle.metadata()["cgd"])
    return found


def cases(teacher: str) -> list[tuple[Case, np.ndarray]]:
    """What is checked of a teacher, with the descriptors that are expected."""
    with safe_open(EXPECTED, framework="np") as handle:
        return [
            (Case(**{**case, "array": name, "scales": tuple(case["scales"])}), handle.get_tensor(f"{teacher}.{name}"))
            for name, case in expectations()[teacher]["cases"].items()
        ]


def check(teacher: str, device: torch.device, tensors: Mapping[str, Tensor] | None = None) -> dict[str, float]:
    """Difference of every case on `device`; `tensors` are weights by the rule, where they were read from a file."""
    tensors = filled(teacher) if tensors is None else tensors
    function = registry.find(TEACHERS, teacher)
    built: dict[str, Encoder] = {}
    differences = {}
    for case, expected in cases(teacher):
        key = json.dumps([dict(case.options), dict(case.facts)], sort_keys=True)
        if key not in built:
            made = Checkpoint(EXPECTED, tensors, {"teacher": teacher, "facts": dict(case.facts)})
            built[key] = function(None, made, **case.options).eval().to(device)
        differences[case.array] = difference(describe(built[key], case, device), expected)
    return differences


def against_double(teacher: str, checkpoint: Checkpoint, device: torch.device) -> float:
    """Largest difference between `device` in single precision and this CPU in double, for weights of any origin."""
    function = registry.find(TEACHERS, teacher)
    copied = "pool.p" in network_shapes(function) and "pool.p" not in checkpoint.state  # from Whiten-MTD's copy
    options = {"form": "whiten-mtd"} if copied else {}
    encoder: Encoder = function(None, checkpoint, **options).eval()
    worst = 0.0
    for number in range(len(INPUTS)):
        case = Case("", {}, number, (1.0,), True, {}, {})
        exact = describe(encoder.double(), case, torch.device("cpu"))
        single = describe(encoder.float().to(device), case, device)
        encoder.cpu()
        worst = max(worst, difference(single, exact))
    return worst
