"""The light residual network of context-unaware distillation, with its features or with a layer of hash codes."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1

from cgd.errors import WeightsError
from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.registry import plugin
from cgd.types import InputSpec

BLOCKS, STRIDES = (2, 3, 5, 3, 2), (1, 2, 2, 2, 2)
LAST = {"v1": 128, "v2": 256}  # channels of the last stage; 2048 and 4096 features, as ResNet-50 and AlexNet have
SIDE = 4  # of the last map at 224 pixels; maps of other images are averaged to it


class _HashNet(nn.Module):
    """Features (B, 16 C) of the flattened map; with `bits`, a linear layer with bias on them: (B, bits).

    The released code has a ReLU between the two, which changes nothing: features leave a ReLU.
    """

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.trunk = _trunk((64, 64, 128, 128, channels))
        self.pool = nn.AdaptiveAvgPool2d(SIDE)
        self.head = nn.Linear(channels * SIDE * SIDE, bits) if bits else None

    def forward(self, x: Tensor) -> Tensor:
        features = self.pool(self.trunk(x)).flatten(1)
        return features if self.head is None else self.head(features)


def _trunk(widths: tuple[int, ...]) -> nn.Sequential:
    """A stem as ResNet's, then stages of basic blocks: (B, 3, 224, 224) to (B, C, 4, 4)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    before = 64
    for width, blocks, stride in zip(widths, BLOCKS, STRIDES, strict=True):
        for step in (stride, *[1] * (blocks - 1)):
            shortcut = None
            if step != 1 or before != width:
                shortcut = nn.Sequential(conv1x1(before, width, step), nn.BatchNorm2d(width))
            layers.append(BasicBlock(before, width, step, shortcut))
            before = width
    return nn.Sequential(*layers)


@plugin
def context_unaware(
    argument: str | None, checkpoint: Checkpoint | None, *, form: Literal["v1", "v2"] = "v1", dim: int = 0
) -> Encoder:
    """3.31 M parameters as v1, 4.80 M as v2, without a hash layer of `dim` bits (methods.md 5.1).

    Middle 224 pixels of an image whose shorter side is 256. Nobody publishes its weights: `checkpoint` is refused.
    """
    if checkpoint is not None:
        raise WeightsError(
            f"{checkpoint.path} holds no tensors of a context-unaware student: begin with the model.safetensors of "
            "one that `cgd distill` made with the same form, or without --init."
        )
    channels = LAST[form]
    spec = InputSpec(size=256, resize="shortest", enlarge=True, centre_crop=224)
    return Encoder("context-unaware", _HashNet(channels, dim), spec, dim or channels * SIDE * SIDE)
