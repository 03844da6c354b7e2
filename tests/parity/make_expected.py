"""Writes cgd/models/teachers/expected.safetensors from the published implementations' fixtures.

    python tests/parity/make_expected.py ../shared/reference/teachers

For the two ResNet-50 of the video teachers there is no fixture: torchvision's network in double precision is expected.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from safetensors.numpy import save_file

from cgd.models.selfcheck import EXPECTED, by_rule, filled, network_input, tensors_digest
from cgd.types import InputSpec

KEPT = 512  # first values of each descriptor: the file stays small
THREE = (1.0, 1 / sqrt(2), sqrt(2))
OWN = (1.0, 1 / sqrt(2), 0.5)
FEYMANPRIV = (1.0, 0.7071, 1.4142)


def case(number: int, scales: tuple[float, ...] = (1.0,), *, unit: bool = False, facts: Any = None, changes: Any = None,
         **options: str) -> dict[str, Any]:  # fmt: skip
    return {
        "number": number,
        "scales": list(scales),
        "unit": unit,
        "facts": facts or {},
        "changes": changes or {},
        "options": options,
    }


def whiten_mtd() -> dict[str, Any]:
    form = {"form": "whiten-mtd"}
    return {
        "wmtd_raw_s0": case(0, **form),
        "wmtd_raw_s1": case(1, **form),
        "wmtd_s0": case(0, unit=True, **form),
        "wmtd_ms_own_s0": case(0, OWN, **form),
    }


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (f"r101_{name}", {"orig_s0": case(0), "orig_s1": case(1), "orig_ms_s0": case(0, THREE), **whiten_mtd()})
    for name in ("gem", "solar")
}
CASES["ap-gem"] = (
    "r101_ap_gem",
    {
        "orig_s0": case(0),
        "orig_s1": case(1),
        "orig_nf_s0": case(0, facts={"norm_features": True}),
        "orig_ms_gem_s0": case(0, THREE),
        **whiten_mtd(),
    },
)
CASES["delg"] = (
    "r101_delg",
    {
        "orig_raw_s0": case(0),
        "orig_raw_s1": case(1),
        "orig_s0": case(0, unit=True),
        "orig_ms_s0": case(0, FEYMANPRIV),
        **whiten_mtd(),
    },
)
CASES["dolg"] = (
    "r101_dolg",
    {
        "orig_raw_s0": case(0),
        "orig_raw_s1": case(1),
        "orig_s0": case(0, unit=True),
        "orig_ms5_s0": case(0, (0.3535, 0.5, *FEYMANPRIV)),
        **whiten_mtd(),
        "cgd_dolg512_raw_s0": case(0, form="cgd"),
        "cgd_dolg_rgb_raw_s1": case(1, changes={"channels": "RGB"}, form="cgd"),
    },
)
VIDEO = {"mocov3": "module.base_encoder.", "barlow-twins": ""}


def from_fixture(folder: Path, fixture: str, wanted: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], str]:
    about = json.loads((folder / f"{fixture}.json").read_text())
    arrays = np.load(folder / f"{fixture}.npz")
    first = about["sources"][0]
    source = f"{first['repository']} at {first['commit']}, run on the rule's weights"
    return {name: arrays[name][:KEPT] for name in wanted}, source


def from_torchvision(prefix: str) -> dict[str, np.ndarray]:
    network = torchvision.models.resnet50(weights=None)
    network.fc = torch.nn.Identity()
    state = {n: torch.from_numpy(by_rule(prefix + n, tuple(t.shape))) for n, t in network.state_dict().items()}
    network.load_state_dict(state)
    network.double().eval()
    with torch.inference_mode():
        inputs = [network_input(n, InputSpec(size=224, resize="none")).double() for n in (0, 1)]
        return {f"trunk_s{n}": network(x)[0].float().numpy()[:KEPT] for n, x in enumerate(inputs)}


def main(folder: Path) -> None:
    header, arrays = {}, {}
    for teacher, (fixture, wanted) in CASES.items():
        found, source = from_fixture(folder, fixture, wanted)
        header[teacher] = {"source": source, "cases": wanted}
        arrays |= {f"{teacher}.{name}": array for name, array in found.items()}
    for teacher, prefix in VIDEO.items():
        wanted = {f"trunk_s{n}": case(n) for n in (0, 1)}
        header[teacher] = {
            "source": "torchvision's resnet50 in double precision on the rule's weights",
            "cases": wanted,
        }
        arrays |= {f"{teacher}.{name}": array for name, array in from_torchvision(prefix).items()}
    for teacher, about in header.items():
        about["tensors_sha256"] = tensors_digest(filled(teacher))
    save_file(arrays, EXPECTED, metadata={"cgd": json.dumps(header, sort_keys=True)})
    print(f"{EXPECTED}: {EXPECTED.stat().st_size} bytes, {len(arrays)} arrays")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
