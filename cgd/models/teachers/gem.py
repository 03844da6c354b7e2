"""R101-GeM, `gl18-tl-resnet101-gem-w` of filipradenovic/cnnimageretrieval-pytorch."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from torch import nn

from cgd.models.checkpoints import Checkpoint, fill
from cgd.models.encoder import Encoder
from cgd.models.layers import Descriptor, unit_cirtorch
from cgd.models.published import Facts, Layout, Publication, facts_of, published
from cgd.models.teachers._inputs import Form, expect, normalisation, stored_exponent, three_numbers, whiten_mtd_input
from cgd.models.trunks import torchvision_names, torchvision_resnet
from cgd.registry import plugin
from cgd.types import InputSpec

_NAMES = tuple(
    (f"features.{place}.", f"trunk.{name}.")
    for place, name in ((0, "conv1"), (1, "bn1"), (4, "layer1"), (5, "layer2"), (6, "layer3"), (7, "layer4"))
)


def cirtorch_facts(content: Mapping[str, Any]) -> Facts:
    """Mean and deviation from `meta`; it also says which network this is (in Whiten-MTD's copy it need not)."""
    meta = content.get("meta")
    if not isinstance(meta, Mapping):
        raise ValueError("it has no 'meta'")
    expect(meta, {"architecture": "resnet101", "pooling": "gem", "regional": False}, "meta")
    return Facts({name: three_numbers(meta[name], name) for name in ("mean", "std") if name in meta}, used=("meta",))


@plugin
@published(
    Publication(
        file="gl18-tl-resnet101-gem-w-a4d43db.pth",
        where="http://cmp.felk.cvut.cz/cnnimageretrieval/data/networks/gl18/gl18-tl-resnet101-gem-w-a4d43db.pth",
        layouts=(
            Layout(("state_dict",), (*_NAMES, ("pool.", "pool."), ("whiten.", "head."))),
            # The copy that Whiten-MTD distributes as .pt: torchvision's names, no exponent.
            Layout(("state_dict",), (*torchvision_names(""), ("fc.", "head."))),
        ),
        facts=cirtorch_facts,
    )
)
def gem(
    argument: str | None, checkpoint: Checkpoint | None, *, weights: str = "gem.safetensors", form: Form = "faithful"
) -> Encoder:
    """2048 values: GeM with the stored exponent, l2, linear, l2.

    Longer side at most 1024 (Lanczos), scales 1, sqrt 2, 1/sqrt 2, a cut query keeps its scale; mean and deviation
    are the file's. `form=whiten-mtd`: exponent 3, no last l2, unresized images at scales 1, 1/sqrt 2, 1/2.
    """
    trunk, _ = torchvision_resnet("resnet101", None)
    return cirtorch_encoder("gem", trunk, checkpoint, form)


def cirtorch_encoder(name: str, trunk: nn.Module, checkpoint: Checkpoint | None, form: Form) -> Encoder:
    """The head and the pixels that GeM and SOLAR share, on a trunk of 2048 channels."""
    pool, unused = stored_exponent(checkpoint, form)
    normal: dict[str, Any] = normalisation(facts_of(checkpoint, name))
    if form == "whiten-mtd":
        network, spec = Descriptor(trunk, 2048, pool, 2048), whiten_mtd_input()
    else:
        network = Descriptor(trunk, 2048, pool, 2048, before=unit_cirtorch, after=unit_cirtorch)
        spec = InputSpec(size=1024, resize="longest", filter="lanczos", scales=(1.0, sqrt(2), 1 / sqrt(2)), **normal)
    if checkpoint is not None:
        fill(network, checkpoint, drop=unused)
    return Encoder(name, network, spec, 2048)
