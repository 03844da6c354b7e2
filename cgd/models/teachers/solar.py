"""R101-SOLAR, `resnet101-solar-best` of tonyngjichun/SOLAR (Ng et al., ECCV 2020)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.published import Facts, Layout, Publication, published
from cgd.models.teachers._inputs import Form, expect
from cgd.models.teachers.gem import cirtorch_encoder, cirtorch_facts
from cgd.models.trunks import torchvision_resnet
from cgd.registry import plugin

_NAMES = (
    ("features.conv1.0.", "trunk.conv1."),
    ("features.conv1.1.", "trunk.bn1."),
    ("features.conv2_x.2.", "trunk.layer1."),
    ("features.conv3_x.", "trunk.layer2."),
    ("features.conv4_x.", "trunk.layer3."),
    ("features.conv5_x.", "trunk.layer4."),
    ("features.soa4.", "trunk.soa4."),
    ("features.soa5.", "trunk.soa5."),
    ("pool.", "pool."),
    ("whiten.", "head."),
)


class SecondOrderAttention(nn.Module):
    """Every position gathers from all others what resembles it: `x + v(softmax(f^T g / sqrt(mid)) h)`.

    (B, C, H, W) to the same. `f` and `g` are convolution, batch norm and ReLU; a new block is the identity.
    """

    def __init__(self, channels: int, mid: int) -> None:
        super().__init__()
        self.f, self.g = (nn.Sequential(nn.Conv2d(channels, mid, 1), nn.BatchNorm2d(mid), nn.ReLU()) for _ in range(2))
        self.h = nn.Conv2d(channels, mid, 1)
        self.v = nn.Conv2d(mid, channels, 1)
        nn.init.zeros_(self.v.weight)
        nn.init.zeros_(self.v.bias)  # type: ignore[arg-type]
        self.scale = mid**-0.5

    def forward(self, x: Tensor) -> Tensor:
        f, g, h = (part(x).flatten(2) for part in (self.f, self.g, self.h))  # (B, mid, N)
        attention = (self.scale * f.transpose(1, 2) @ g).softmax(dim=-1)  # (B, N, N): row = position asking
        gathered = h @ attention.transpose(1, 2)  # (B, mid, N)
        return x + self.v(gathered.unflatten(2, x.shape[2:]))


def solar_facts(content: Mapping[str, Any]) -> Facts:
    """As cnnimageretrieval-pytorch's, and the places of the attention blocks."""
    facts = cirtorch_facts(content)
    expect(content["meta"], {"soa_layers": "45"}, "meta")
    return facts


@plugin
@published(
    Publication(
        file="resnet101-solar-best.pth",
        where="https://imperialcollegelondon.box.com/shared/static/fznpeayct6btel2og2wjjgvqw0ziqnk4.pth",
        layouts=(Layout(("state_dict",), _NAMES),),
        facts=solar_facts,
    )
)
def solar(
    argument: str | None, checkpoint: Checkpoint | None, *, weights: str = "solar.safetensors", form: Form = "faithful"
) -> Encoder:
    """2048 values: second-order attention after the last two stages, GeM with the stored exponent, l2, linear, l2.

    Images as for `gem`. `form=whiten-mtd`: exponent 3, no last l2, unresized images at scales 1, 1/sqrt 2, 1/2.
    """
    plain, _ = torchvision_resnet("resnet101", None)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for name, part in plain.named_children():
        parts[name] = part
        if name == "layer3":
            parts["soa4"] = SecondOrderAttention(1024, 256)
        if name == "layer4":
            parts["soa5"] = SecondOrderAttention(2048, 1024)
    return cirtorch_encoder("solar", nn.Sequential(parts), checkpoint, form)
