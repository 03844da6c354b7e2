"""Barlow Twins' ResNet-50 of facebookresearch/barlowtwins (Zbontar et al., ICML 2021); a teacher for videos."""

from __future__ import annotations

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.published import Layout, Publication, published
from cgd.models.teachers.mocov3 import average_pooled_resnet50
from cgd.models.trunks import torchvision_names
from cgd.registry import plugin

_FOLDER = (
    "https://dl.fbaipublicfiles.com/barlowtwins/epochs1000_bs2048_lr0.2_lambd0.0051_proj_8192_8192_8192_scale0.024"
)


def _projector() -> dict[str, tuple[int | None, ...]]:
    """Three linear layers without bias, two of them with a batch norm, and a last batch norm without parameters."""
    shapes: dict[str, tuple[int | None, ...]] = {
        f"module.projector.{number}.weight": (8192, width) for number, width in ((0, 2048), (3, 8192), (6, 8192))
    }
    parts = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"module.projector.{number}.{part}": (8192,) for number in (1, 4) for part in parts}
    shapes |= {f"module.bn.{part}": (8192,) for part in parts[2:]}
    return shapes | {f"module.{norm}.num_batches_tracked": () for norm in ("projector.1", "projector.4", "bn")}


@plugin
@published(
    Publication(
        file="resnet50.pth",
        where=f"{_FOLDER}/resnet50.pth (or checkpoint.pth beside it)",
        layouts=(
            Layout((None,), torchvision_names("")),
            Layout(
                ("model",),
                torchvision_names("module.backbone."),
                dropped=_projector(),
                absent=("module.projector.", "module.bn."),
            ),
        ),
    )
)
def barlow_twins(
    argument: str | None, checkpoint: Checkpoint | None, *, weights: str = "barlow-twins.safetensors"
) -> Encoder:
    """2048 values, not normalised: the average-pooled trunk, without projector (methods.md 1.8, 1.11)."""
    return average_pooled_resnet50("barlow-twins", checkpoint)
