"""MoCo v3's ResNet-50, `r-50-1000ep` of facebookresearch/moco-v3 (Chen et al., ICCV 2021); a teacher for videos."""

from __future__ import annotations

from itertools import pairwise

from cgd.models.checkpoints import Checkpoint, fill
from cgd.models.encoder import Encoder
from cgd.models.layers import Descriptor, GeM
from cgd.models.published import Layout, Publication, facts_of, published
from cgd.models.trunks import torchvision_names, torchvision_resnet
from cgd.registry import plugin
from cgd.types import InputSpec


def mlp(prefix: str, *widths: int) -> dict[str, tuple[int | None, ...]]:
    """Tensors of a head: linear layers without bias, each with a batch norm, the last one without parameters."""
    shapes: dict[str, tuple[int | None, ...]] = {}
    for number, (before, after) in enumerate(pairwise(widths)):
        shapes[f"{prefix}{3 * number}.weight"] = (after, before)
        norm = f"{prefix}{3 * number + 1}."
        last = number == len(widths) - 2
        names = ("running_mean", "running_var") if last else ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"{norm}{name}": (after,) for name in names} | {f"{norm}num_batches_tracked": ()}
    return shapes


@plugin
@published(
    Publication(
        file="r-50-1000ep.pth.tar",
        where="https://dl.fbaipublicfiles.com/moco-v3/r-50-1000ep/r-50-1000ep.pth.tar",
        layouts=(
            Layout(
                ("state_dict",),
                torchvision_names("module.base_encoder."),
                dropped=mlp("module.base_encoder.fc.", 2048, 4096, 256) | mlp("module.predictor.", 256, 4096, 256),
                # The released predictor has no last batch norm; earlier code gave it one.
                absent=(
                    "module.base_encoder.fc.",
                    "module.predictor.",
                    "module.predictor.4.",
                    "module.momentum_encoder.",
                ),
                twins=(("module.base_encoder.", "module.momentum_encoder."),),
            ),
        ),
    )
)
def mocov3(argument: str | None, checkpoint: Checkpoint | None, *, weights: str = "mocov3.safetensors") -> Encoder:
    """2048 values, not normalised: the average-pooled trunk, without projector (methods.md 1.8, 1.11)."""
    return average_pooled_resnet50("mocov3", checkpoint)


def average_pooled_resnet50(name: str, checkpoint: Checkpoint | None) -> Encoder:
    """The trunk alone, seen as ImageNet networks are tested: shorter side 256, centre of 224 pixels, bilinear."""
    facts_of(checkpoint, name)
    trunk, channels = torchvision_resnet("resnet50", None)
    network = Descriptor(trunk, channels, GeM(1.0), 0)
    if checkpoint is not None:
        fill(network, checkpoint)
    return Encoder(name, network, InputSpec(size=256, resize="shortest", enlarge=True, centre_crop=224), channels)
