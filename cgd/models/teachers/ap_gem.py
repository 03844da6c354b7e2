"""R101-AP-GeM, `Resnet101-AP-GeM-LM18` of naver/deep-image-retrieval (Revaud et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cgd.errors import InputError
from cgd.models.checkpoints import Checkpoint, fill
from cgd.models.encoder import Encoder
from cgd.models.layers import Descriptor, unit
from cgd.models.pickles import PickledArray, PickledObject
from cgd.models.published import Facts, Layout, Publication, facts_of, published
from cgd.models.teachers._inputs import Form, expect, normalisation, stored_exponent, three_numbers, whiten_mtd_input
from cgd.models.trunks import torchvision_names, torchvision_resnet
from cgd.registry import plugin
from cgd.types import InputSpec

_OPTIONS = {"arch": "resnet101_rmac", "pooling": "gem", "out_dim": 2048, "without_fc": False, "center_bias": 0}
_PCA = {"mean": "mean_", "components": "components_", "variance": "explained_variance_"}


class PublishedWhitening(nn.Module):
    """A PCA of the file: `(x - mean) components^T / variance^power`, then l2; (B, 2048) to (B, D)."""

    mean: Tensor
    components: Tensor
    variance: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], power: float) -> None:
        super().__init__()
        for name in _PCA:
            self.register_buffer(name, tensors[name])
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return unit((x - self.mean) @ self.components.T / self.variance**self.power)


def dirtorch_facts(content: Mapping[str, Any]) -> Facts:
    """Whether pooled values are normalised, mean and deviation, and every PCA as tensors."""
    options = content.get("model_options")
    if not isinstance(options, Mapping):
        raise ValueError("it has no 'model_options'")
    expect(options, _OPTIONS, "model_options")
    normalised = options.get("norm_features", False)
    if not isinstance(normalised, bool):
        raise ValueError("its model_options say norm_features, which is neither true nor false")
    values: dict[str, Any] = {"norm_features": normalised}
    used = ["model_options"]
    preprocess = content.get("preprocess")
    if isinstance(preprocess, Mapping):
        values |= {name: three_numbers(preprocess[name], name) for name in ("mean", "std") if name in preprocess}
        used.append("preprocess")
    fitted = content.get("pca")
    tensors: dict[str, Tensor] = {}
    if isinstance(fitted, Mapping) and fitted:
        named = {str(name): pca for name, pca in fitted.items()}
        values["pca"] = {name: _whitens(pca) for name, pca in sorted(named.items())}
        for name, pca in named.items():
            tensors |= {f"pca.{name}.{key}": value for key, value in _pca_tensors(name, pca).items()}
        used.append("pca")
    return Facts(values, tensors, tuple(used))


def _whitens(pca: Any) -> bool:
    return isinstance(pca, PickledObject) and pca.state.get("whiten") is True


def _pca_tensors(name: str, pca: Any) -> dict[str, Tensor]:
    """Mean (2048), components (D, 2048) and variance (D) of a pickled scikit-learn PCA."""
    state = pca.state if isinstance(pca, PickledObject) else {}
    found = {}
    for key, attribute in _PCA.items():
        array = state.get(attribute)
        if not isinstance(array, PickledArray):
            raise ValueError(f"its PCA {name} has no array {attribute}")
        found[key] = torch.from_numpy(array.numpy().astype("float32"))
    rows = found["variance"].numel()
    if [tuple(t.shape) for t in found.values()] != [(2048,), (rows, 2048), (rows,)]:
        raise ValueError(f"its PCA {name} has arrays of shapes {[tuple(t.shape) for t in found.values()]}")
    if not bool((found["variance"] > 0).all()):
        raise ValueError(f"its PCA {name} has a variance that is not positive")
    return found


@plugin
@published(
    Publication(
        file="Resnet101-AP-GeM-LM18.pt",
        where="https://drive.google.com/open?id=1r76NLHtJsH-Ybfda4aLkUIoW3EEsi25I (a .zip)",
        layouts=(
            Layout(
                ("state_dict",),
                (*torchvision_names("module."), ("module.adpool.", "pool."), ("module.fc.", "head.")),
            ),
        ),
        facts=dirtorch_facts,
    )
)
def ap_gem(
    argument: str | None,
    checkpoint: Checkpoint | None,
    *,
    weights: str = "ap-gem.safetensors",
    form: Form = "faithful",
    pca: str | None = None,
    power: float = 0.25,
) -> Encoder:
    """2048 values: GeM with the stored exponent, l2 if the file's `norm_features` says so, linear, l2.

    Unresized images at one scale; several are made from the image (bilinear) and joined by a signed power mean.
    `pca=Landmarks_clean` adds a whitening of the file with exponent `power`, as its authors evaluate.
    `form=whiten-mtd`: exponent 3, always an l2 before the linear layer, scales 1, 1/sqrt 2, 1/2 of the tensor.
    """
    facts = facts_of(checkpoint, "ap-gem")
    pool, unused = stored_exponent(checkpoint, form)
    normal: dict[str, Any] = normalisation(facts)
    trunk, channels = torchvision_resnet("resnet101", None)
    if form == "whiten-mtd":
        network, spec = Descriptor(trunk, channels, pool, 2048), whiten_mtd_input()
    else:
        before = unit if facts.get("norm_features") else None
        network = Descriptor(trunk, channels, pool, 2048, before=before, after=unit)
        spec = InputSpec(size=1024, resize="none", scale_on="image", combine="gem3", **normal)
    if checkpoint is not None:
        fill(network, checkpoint, drop=(*unused, "pca."))
    if pca is None:
        return Encoder("ap-gem", network, spec, 2048)
    whitening = _whitening(checkpoint, facts, form, pca, power)
    # Its authors whiten after several scales are joined, which a network cannot: one scale only.
    return Encoder("ap-gem", nn.Sequential(network, whitening), spec, len(whitening.variance), single_scale=True)


def _whitening(
    checkpoint: Checkpoint | None, facts: Mapping[str, Any], form: str, name: str, power: float
) -> PublishedWhitening:
    known = facts.get("pca", {})
    if form != "faithful":
        raise InputError("ap-gem: pca belongs to the faithful form; Whiten-MTD fits its own whitening.")
    if checkpoint is None or name not in known:
        raise InputError(f"ap-gem: the weights have no PCA '{name}'; they have {', '.join(known) or 'none'}.")
    tensors = {key: checkpoint.state[f"pca.{name}.{key}"] for key in _PCA}
    return PublishedWhitening(tensors, power if known[name] else 0.0)
