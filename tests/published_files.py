"""Files in the layouts in which teachers were published, filled by any rule, and damaged in any way."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgd import registry
from cgd.models.published import TEACHERS, network_shapes, publication_of
from cgd.models.selfcheck import by_rule

CLASSES = 7  # of the classifiers that nobody reads; any number will do
Make = Callable[[str, tuple[int, ...]], Tensor]


def ruled(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of that name by the fixtures' rule."""
    return torch.from_numpy(by_rule(name, shape))


def hollow(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of that shape that takes a few bytes, in memory and in a file."""
    kind = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
    return torch.zeros((), dtype=kind).expand(shape)


def declared(teacher: str, layout: int = 0) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file as the package expects them."""
    function = registry.find(TEACHERS, teacher)
    publication = publication_of(function)
    assert publication is not None
    expected = publication.layouts[layout].expected(network_shapes(function))
    return {name: tuple(CLASSES if side is None else side for side in shape) for name, (_, shape) in expected.items()}


def state_of(entries: Mapping[str, tuple[int, ...]], make: Make = hollow) -> dict[str, Tensor]:
    return {name: make(name, shape) for name, shape in entries.items()}


class _Pickled:
    """An object of a library that is not there: pickled under the name its class pretends to have."""


@contextmanager
def pretended(module: str, *names: str) -> Iterator[list[type]]:
    """Classes that pickle as `module.name`, whose module exists only meanwhile."""
    before = {name: sys.modules.get(name) for name in _parents(module)}
    for name in _parents(module):
        sys.modules[name] = types.ModuleType(name)
    made = [type(name, (_Pickled,), {"__module__": module}) for name in names]
    for one in made:
        setattr(sys.modules[module], one.__name__, one)
    try:
        yield made
    finally:
        for name, old in before.items():
            sys.modules.pop(name)
            if old is not None:
                sys.modules[name] = old


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def pca_state(dim: int = 8, wide: int = 2048) -> dict[str, Any]:
    """The attributes of a fitted scikit-learn PCA."""
    draw = np.random.default_rng(3)
    return {
        "n_components": dim,
        "whiten": True,
        "svd_solver": "full",
        "random_state": None,
        "mean_": draw.standard_normal(wide),
        "components_": np.asfortranarray(draw.standard_normal((dim, wide))),
        "explained_variance_": draw.uniform(0.5, 2, dim),
        "noise_variance_": np.float64(0.25),
        "n_samples_": 10,
    }


def save(
    path: Path, teacher: str, state: Mapping[str, Any], *, legacy: bool = False, fitted: Any = None, **beside: Any
) -> Path:
    """`state` as the file that the authors of `teacher` published, with what stands beside it there.

    `fitted` are the attributes of AP-GeM's PCA.
    """
    content: Any
    if teacher in ("gem", "solar"):
        normal = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        meta = {"architecture": "resnet101", "pooling": "gem", "outputdim": 2048, "whitening": True, "soa_layers": "45"}
        content = {"meta": meta | normal, "state_dict": state}
    elif teacher == "ap-gem":
        options = {"arch": "resnet101_rmac", "out_dim": 2048, "pooling": "gem", "gemp": 3}
        content = {"model_options": options, "state_dict": state, "epoch": 3}
    elif teacher in ("delg", "dolg"):
        rates = {"param_groups": [{"lr": np.float64(0.01), "params": [0]}], "state": {}}
        content = {"epoch": 99, "model_state": state, "optimizer_state": rates, "cfg": "MODEL: {}\n"}
    elif teacher == "mocov3":
        content = {"epoch": 1000, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}
    else:
        content = dict(state)
    content |= beside
    if teacher != "ap-gem":
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        return path
    with pretended("sklearn.decomposition.pca", "PCA") as (pca,):
        one = pca()
        one.__dict__.update(pca_state() if fitted is None else fitted)
        torch.save({"pca": {"Landmarks_clean": one}, **content}, path, _use_new_zipfile_serialization=not legacy)
    return path
