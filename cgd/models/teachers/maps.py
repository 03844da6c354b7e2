"""A teacher's last feature map instead of its descriptor: `maps:TEACHER?grid=4&kind=features&weights=FILE`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from cgd import registry
from cgd.errors import InputError
from cgd.models.checkpoints import Checkpoint
from cgd.models.encoder import Encoder
from cgd.models.maps import GRID, MapNetwork, channels_of, trunk_of
from cgd.registry import Spec, plugin


@plugin
def maps(
    argument: str | None,
    checkpoint: Checkpoint | None,
    *,
    weights: str = "",
    kind: Literal["features", "attention"] = "features",
    grid: int = GRID,
) -> Encoder:
    """C x grid x grid values of the trunk's map (`features`), or grid x grid of its `attention` (methods.md 3.4).

    TEACHER is a teacher's name with an argument if it takes one, e.g. `maps:timm:resnet50`, without options; its pixels
    are seen at one scale.
    """
    if not argument:
        raise InputError("maps needs the name of a teacher, e.g. maps:timm:resnet50?weights=r50.safetensors.")
    if not 1 <= grid <= 64:
        raise InputError(f"maps:{argument}: grid is between 1 and 64, got {grid}.")
    named = Spec.parse(argument)
    if named.name == "maps":
        raise InputError(f"maps:{argument}: maps of maps are none.")
    teacher: Encoder = registry.find("cgd.models.teachers", named.name)(named.argument, checkpoint)
    network, channels = MapNetwork(trunk_of(teacher), kind, grid), channels_of(teacher)
    width = grid * grid * (channels if kind == "features" else 1)
    spec = dataclasses.replace(teacher.input_spec, scales=(1.0,))
    return Encoder(f"maps:{argument}", network, spec, width)
