"""What a student is outside this package: RGB pixels in, unit descriptors out, in operations that a graph can hold."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cgd.models.encoder import Encoder
from cgd.types import InputSpec


class Deployed(nn.Module):
    """An encoder with all that comes before and after its network: (B, H, W, 3) uint8 RGB to (B, D) unit rows.

    The pixels are resized already, as the `InputSpec` says: Pillow's filters average over areas, which no operation of
    ONNX repeats to the bit. Inside are normalisation, channel order, the scales taken on the tensor, the network at
    each of them, their combination and l2. Where an encoder takes its scales on the image, a call is one of them.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        spec = encoder.input_spec
        self.encoder = _traceable(copy.deepcopy(encoder).eval())
        self.scales = scales_inside(spec)
        self.scaled: Callable[[Tensor, float], Tensor] = _floored if spec.scale_rounding == "floor" else _rounded
        self.combine, self.reverse = spec.combine, spec.channels == "BGR"
        std, mean = np.asarray(spec.std, np.float64), np.asarray(spec.mean, np.float64)
        self.gain: Tensor
        self.shift: Tensor
        self.register_buffer(
            "gain", torch.from_numpy((1 / (255 * std)).astype(np.float32))
        )  # as data/transforms has it
        self.register_buffer("shift", torch.from_numpy((mean / std).astype(np.float32)))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float() * self.gain - self.shift  # (B, H, W, 3)
        x = (x.flip(-1) if self.reverse else x).permute(0, 3, 1, 2)
        at_scales = [self.encoder(x if scale == 1 else self.scaled(x, scale)) for scale in self.scales]
        units = F.normalize(torch.stack(at_scales, dim=1), dim=-1, eps=1e-12)  # (B, S, D)
        if self.combine == "gem3" and len(self.scales) > 1:
            return F.normalize(_power(_power(units, 3).mean(dim=1), 1 / 3), dim=-1, eps=1e-12)
        return F.normalize(units.mean(dim=1), dim=-1, eps=1e-12)


def scales_inside(spec: InputSpec) -> tuple[float, ...]:
    """The scales that a deployed network takes itself: all of them, or one where they are taken on the image."""
    return spec.scales if spec.scale_on == "tensor" else (1.0,)


def _power(x: Tensor, power: float) -> Tensor:
    return x.sign() * x.abs().clamp(min=1e-6).pow(power)


def _side(pixels: int, scale: float, rounding: Callable[[Tensor], Tensor]) -> Any:
    """`floor` or `round` of `pixels * scale` in double precision, at least 1, in a graph too.

    A runtime's own resizing multiplies in single precision, where 90 pixels at scale 0.7 are 63 instead of 62.
    """
    exact = torch.scalar_tensor(pixels, dtype=torch.float64) * torch.tensor(scale, dtype=torch.float64)
    side: Any = rounding(exact).clamp(min=1).long().item()  # a number, or a symbol for it
    torch._check(side >= 1)
    return side


def _floored(x: Tensor, scale: float) -> Tensor:
    """`interpolate` with the factor itself: floored sides, sampled at steps of exactly 1 / scale."""
    return _sampled(_sampled(x, 3, scale), 2, scale)


def _sampled(x: Tensor, dim: int, scale: float) -> Tensor:
    """One dimension of it, 2 or 3: linear between the two nearest pixels."""
    pixels = x.shape[dim]
    places = torch.arange(_side(pixels, scale, torch.floor), device=x.device)
    at = ((places + 0.5) * (1 / scale) - 0.5).clamp(min=0)
    low = at.long().clamp(max=pixels - 1)
    high = (low + 1).clamp(max=pixels - 1)
    share = (at - low).reshape([-1, 1] if dim == 2 else [-1])
    return x.index_select(dim, low) * (1 - share) + x.index_select(dim, high) * share


def _rounded(x: Tensor, scale: float) -> Tensor:
    """`interpolate` to rounded sides."""
    size = [_side(pixels, scale, torch.round) for pixels in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _traceable(network: nn.Module) -> nn.Module:
    """`network` without branches on an image's size: in timm's `same` padding, in pooling that rounds up.

    Nothing is done in place either: with its ReLU6 in place, MobileNetV1 takes three times as long to translate.
    """
    from timm.layers.conv2d_same import Conv2dSame

    if isinstance(network, Conv2dSame):
        return _Same(network)
    if isinstance(network, nn.AvgPool2d) and network.ceil_mode and _numbers(network) == [2, 2, 0]:
        return _Halved()
    if getattr(network, "inplace", False):
        network.inplace = False  # type: ignore[assignment]
    for name, child in network.named_children():
        setattr(network, name, _traceable(child))
    return network


def _numbers(pool: nn.AvgPool2d) -> list[int]:
    """Kernel, stride and padding, where each is one number."""
    given = (pool.kernel_size, pool.stride, pool.padding)
    return [n if isinstance(n, int) else n[0] if len(set(n)) == 1 else -1 for n in given]


class _Halved(nn.Module):
    """Means of 2 x 2 pixels, at an odd border of those there are: `AvgPool2d(2, ceil_mode=True)`, as in ResNet-D."""

    def forward(self, x: Tensor) -> Tensor:
        for dim in (2, 3):
            places = torch.arange(2 * ((x.shape[dim] - 1) // 2 + 1), device=x.device)
            x = x.index_select(dim, places.clamp(max=x.shape[dim] - 1))  # an odd border twice
        return F.avg_pool2d(x, 2)


class _Same(nn.Module):
    """A convolution padded to `ceil(side / stride)` outputs by TensorFlow's rule."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        c = self.convolution
        padding: list[Any] = []  # numbers, or symbols for them
        for axis in (1, 0):  # `pad` begins with the last dimension
            side, stride = x.shape[2 + axis], c.stride[axis]
            reach = (c.kernel_size[axis] - 1) * c.dilation[axis] + 1
            total: Any = ((side + stride - 1) // stride - 1) * stride + reach - side
            total = total if reach >= stride else torch.sym_max(total, 0)  # the first is never negative
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, padding), c.weight, c.bias, c.stride, 0, c.dilation, c.groups)
