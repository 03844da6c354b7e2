"""AlexNet as torchvision has it, cut after its second hidden layer; a teacher of context-unaware students."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cgd.models.checkpoints import Checkpoint, fill
from cgd.models.encoder import Encoder
from cgd.registry import plugin
from cgd.types import InputSpec

LEAST = 63  # pixels of a side that leave something behind the last pool


class _Enlarged(nn.Module):
    """Images with a side below 63 pixels, which scales can make, get that side."""

    def forward(self, x: Tensor) -> Tensor:
        sides = [max(side, LEAST) for side in x.shape[2:]]
        return x if sides == list(x.shape[2:]) else F.interpolate(x, sides, mode="bilinear", align_corners=False)


@plugin
def alexnet(argument: str | None, checkpoint: Checkpoint | None, *, weights: str = "") -> Encoder:
    """4096 values after fc7's ReLU, not normalised, from torchvision's file as it is (methods.md 5.1).

    The released code takes the 9216 values before fc6, which its 4096-dimensional student cannot repeat.
    """
    import torchvision

    network = torchvision.models.alexnet(weights=None)
    if checkpoint is not None:
        fill(network, checkpoint)
    network.classifier = nn.Sequential(*list(network.classifier)[:-1])  # without the 1000 classes
    spec = InputSpec(size=256, resize="shortest", enlarge=True, centre_crop=224)
    return Encoder("alexnet", nn.Sequential(_Enlarged(), network), spec, 4096)
