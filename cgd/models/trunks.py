"""Trunks that are more than one line: convolutional networks without their classifier."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from cgd.errors import InputError
from cgd.models.checkpoints import Checkpoint, fill
from cgd.models.layers import TimmTrunk
from cgd.models.published import Names

TENSORFLOW_MEAN = TENSORFLOW_STD = (0.5, 0.5, 0.5)


def mobilenet_v1(width: float, checkpoint: Checkpoint | None) -> tuple[TimmTrunk, int]:
    """MobileNetV1 (Howard et al. 2017) at any width, and its channels.

    27 convolutions with ReLU6 and TensorFlow's `same` padding; a width scales stem and head too. timm registers
    only a few widths, so its builder is given the block arguments.
    """
    from timm.models import EfficientNet
    from timm.models._efficientnet_builder import decode_arch_def

    if not 1 / 32 <= width <= 2:
        raise InputError(f"mobilenet-v1 has a width between 0 and 2 (at least 1/32), got {width}.")
    blocks = [
        ["dsa_r1_k3_s1_c64"],
        ["dsa_r2_k3_s2_c128"],
        ["dsa_r2_k3_s2_c256"],
        ["dsa_r6_k3_s2_c512"],
        ["dsa_r2_k3_s2_c1024"],
    ]
    network = EfficientNet(
        decode_arch_def(blocks),
        num_classes=0,
        num_features=0,
        stem_size=32,
        round_chs_fn=lambda channels: int(channels * width),
        pad_type="same",
        act_layer=nn.ReLU6,
    )
    if checkpoint is not None:
        fill(network, checkpoint, drop=("classifier.",))
    return TimmTrunk(network), int(1024 * width)


def timm_network(
    name: str | None, checkpoint: Checkpoint | None, pad_type: str | None, pool: str = "gem"
) -> tuple[TimmTrunk, int, dict[str, Any]]:
    """A timm network by name without its classifier, its channels, and its pretrained configuration.

    With `pool` `cls` the trunk gives the class token; a network without one is refused.
    """
    import timm

    from cgd.errors import unknown

    if not name:
        raise InputError("timm needs the name of a network, e.g. timm:resnet50.")
    if name.partition(".")[0] not in (known := timm.list_models()):
        raise unknown("timm network", name, known)
    options: dict[str, Any] = {"pad_type": pad_type} if pad_type else {}
    try:
        network: Any = timm.create_model(name, pretrained=False, num_classes=0, **options)
        if isinstance(
            network, (timm.models.VisionTransformer, timm.models.Eva)
        ):  # takes other sizes than the one it was trained at
            network = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, **options)
    except (RuntimeError, TypeError) as error:  # an unknown tag after the dot; an option the network has not
        raise InputError(f"timm:{name} cannot be built: {' '.join(str(error).split())}.") from error
    config = dict(network.pretrained_cfg)
    if checkpoint is not None:
        classifier = config.get("classifier") or ()
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        fill(network, checkpoint, drop=tuple(f"{head}." for head in heads))
    if pool == "cls" and (not getattr(network, "num_prefix_tokens", 0) or getattr(network, "cls_token", None) is None):
        raise InputError(f"timm:{name} has no class token: use pool=avg or pool=gem.")
    return TimmTrunk(network, "class" if pool == "cls" else "patches"), int(network.num_features), config


def torchvision_names(prefix: str) -> Names:
    """Pairs of prefixes, published and ours, of a ResNet under torchvision's names below `prefix`."""
    parts = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
    return tuple((prefix + part, f"trunk.{part}") for part in parts)


def pycls_names(prefix: str) -> Names:
    """The same for a ResNet-101 under pycls' names, as DELG and DOLG have it."""
    inside = {
        "f.a.": "conv1.",
        "f.a_bn.": "bn1.",
        "f.b.": "conv2.",
        "f.b_bn.": "bn2.",
        "f.c.": "conv3.",
        "f.c_bn.": "bn3.",
        "proj.": "downsample.0.",
        "bn.": "downsample.1.",
    }
    blocks = [(stage, block) for stage, count in enumerate((3, 4, 23, 3), 1) for block in range(count)]
    return (
        (f"{prefix}stem.conv.", "trunk.conv1."),
        (f"{prefix}stem.bn.", "trunk.bn1."),
        *(
            (f"{prefix}s{stage}.b{block + 1}.{theirs}", f"trunk.layer{stage}.{block}.{ours}")
            for stage, block in blocks
            for theirs, ours in inside.items()
        ),
    )


def torchvision_resnet(name: str, checkpoint: Checkpoint | None) -> tuple[nn.Sequential, int]:
    """A torchvision ResNet up to its last feature map, under torchvision's names, and its channels."""
    import torchvision

    network = getattr(torchvision.models, name)(weights=None)
    children = OrderedDict((n, m) for n, m in network.named_children() if n not in ("avgpool", "fc"))
    trunk = nn.Sequential(children)
    if checkpoint is not None:
        fill(trunk, checkpoint, drop=("fc.",))
    return trunk, int(network.fc.in_features)
