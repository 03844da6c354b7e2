"""The shared pretrained networks give the feature maps their digests promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cgd.models.checkpoints import file_digest
from cgd.models.load import teacher

pytestmark = pytest.mark.shared
SPECS = {
    "mobilenetv2_100": "timm:mobilenetv2_100?pad_type=same",
    "mobilenetv1_100": "mobilenet-v1?width=1.0",
    "mobilenetv1_075": "mobilenet-v1?width=0.75",
    "mobilenetv1_050": "mobilenet-v1?width=0.5",
    "mobilenetv1_025": "mobilenet-v1?width=0.25",
}


@pytest.mark.parametrize("name", SPECS)
def test_feature_map(shared: Path, name: str) -> None:
    about = json.loads((shared / "data/weights/weights.json").read_text())[name]
    folder = shared / "data/weights"
    source = teacher(f"{SPECS[name]}&weights={about['file']}", folder)
    assert source.weights is not None
    assert source.weights.digest == file_digest(folder / about["file"]) == about["sha256"]
    network = source.build().network
    with torch.inference_mode():
        features = network.trunk(torch.linspace(-1, 1, 3 * 96 * 96).reshape(1, 3, 96, 96))  # type: ignore[operator]
    check = about["check"]
    assert list(features.shape) == check["feature_map_shape"]
    assert features.mean().item() == pytest.approx(check["mean"], abs=1e-5)
    assert features.std(unbiased=False).item() == pytest.approx(check["std"], abs=1e-5)
    means = features.mean(dim=(0, 2, 3))[:8].tolist()
    assert means == pytest.approx(check["channel_means_first8"], abs=1e-5)
