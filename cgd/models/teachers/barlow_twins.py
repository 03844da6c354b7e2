"""Barlow Twins' ResNet-50 of facebookresearch/barlowtwins (Zbontar et al., ICML 2021); a teacher for videos."""

from __future__ import annotations

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.published import Layout, Publication, published
from cgd.models.teachers.mocov3 import average_pooled_resnet50, mlp
from cgd.models.trunks import torchvision_names
from cgd.registry import plugin

_FOLDER = (
    "https://dl.fbaipublicfiles.com/barlowtwins/epochs1000_bs2048_lr0.2_lambd0.0051_proj_8192_8192_8192_scale0.024"
)


def _projector() -> dict[str, tuple[int | None, ...]]:
    """Three linear layers without bias; the last batch norm, without parameters, stands beside them as `bn`."""
    shapes = mlp("module.projector.", 2048, 8192, 8192, 8192)
    return {name.replace("projector.7.", "bn."): shape for name, shape in shapes.items()}


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
