"""DCH, CSQ and hash centres against numbers of the released code (methods.md 5.2, 5.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgd.config import CsqConfig, DchConfig
from cgd.methods import csq as csq_module
from cgd.methods._hash_centres import centres_of, distances, hash_centres
from cgd.methods.csq import Csq
from cgd.methods.dch import Dch
from cgd.types import Batch

pytestmark = pytest.mark.shared
NOBODY: Any = None
TOLERANCES = [("f64", 1e-10), ("f32", 1e-5)]
CSQ_SETS = [("cifar10-1", 32, "single"), ("nuswide_21_m", 64, "multi"), ("nuswide_21_m", 16, "multi")]


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Any:
    return np.load(shared / "reference/losses/hashing_losses.npz")


def test_no_number_of_the_fixture_is_left_out(fixture: Any) -> None:
    """What is named here is what the tests below read."""
    assert set(fixture.files) == {
        "labels_single", "labels_multi", "centre_facts_rows_bit_nclass_min_mean_max",
        "centres_random_b32_c100_seed0", "centres_random_b16_c38_seed0",
        *(f"dch_u_{bits}" for bits in (16, 48)),
        *(f"dch_{case}_{bits}_{kind}_{what}" for case in ("single", "multi") for bits in (16, 48)
          for kind in ("f64", "f32") for what in ("loss", "grad")),
        *(f"dch_allsimilar_{bits}_f64_{what}" for bits in (16, 48) for what in ("loss", "grad")),
        *(f"csq_u_{name}_{bits}" for name, bits, _ in CSQ_SETS),
        *(f"csq_{name}_{bits}_{what}" for name, bits, _ in CSQ_SETS
          for what in ("f64_loss", "f64_grad", "f32_loss", "f32_grad", "centers", "random_center", "target")),
    }  # fmt: skip


def one_label_each(members: np.ndarray) -> Batch:
    """A batch whose image i has the i-th label of a table."""
    rows = np.arange(len(members))[:, None]
    return Batch(rows, rows, rows)


def loss_and_gradient(own: Any, members: np.ndarray, outputs: np.ndarray) -> tuple[float, np.ndarray]:
    student = torch.tensor(outputs[:, None], requires_grad=True)
    target = own.target([], one_label_each(members), NOBODY)
    loss = own.loss(student, {name: torch.from_numpy(values) for name, values in target.items()})
    loss.backward()
    assert student.grad is not None
    return loss.item(), student.grad[:, 0].numpy()


@pytest.mark.parametrize(("kind", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("bits", [16, 48])
@pytest.mark.parametrize("case", ["single", "multi", "allsimilar"])
def test_dch(fixture: Any, case: str, bits: int, kind: str, tolerance: float) -> None:
    if case == "allsimilar":
        members, expected = np.ones((24, 1), bool), f"dch_allsimilar_{bits}_f64"
    else:
        members, expected = fixture[f"labels_{case}"] > 0, f"dch_{case}_{bits}_{kind}"
    outputs = fixture[f"dch_u_{bits}"].astype({"f64": np.float64, "f32": np.float32}[kind])
    loss, gradient = loss_and_gradient(Dch(DchConfig(), NOBODY, None, members), members, outputs)
    assert loss == pytest.approx(float(fixture[f"{expected}_loss"]), abs=tolerance)
    np.testing.assert_allclose(gradient, fixture[f"{expected}_grad"], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("kind", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(("name", "bits", "labels"), CSQ_SETS)
def test_csq(
    fixture: Any, name: str, bits: int, labels: str, kind: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits on which an image's classes are divided are drawn: here as the released run drew them."""
    members, drawn = fixture[f"labels_{labels}"] > 0, np.sign(fixture[f"csq_{name}_{bits}_random_center"] - 0.5)
    monkeypatch.setattr(csq_module, "centres_of", lambda members, centres, _: centres_of(members, centres, drawn))
    outputs = fixture[f"csq_u_{name}_{bits}"].astype({"f64": np.float64, "f32": np.float32}[kind])
    loss, gradient = loss_and_gradient(Csq(CsqConfig(), NOBODY, None, members), members, outputs)
    assert loss == pytest.approx(float(fixture[f"csq_{name}_{bits}_{kind}_loss"]), abs=tolerance)
    np.testing.assert_allclose(gradient, fixture[f"csq_{name}_{bits}_{kind}_grad"], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "bits", "labels"), CSQ_SETS)
def test_centres_and_what_images_are_pulled_to(fixture: Any, name: str, bits: int, labels: str) -> None:
    members = fixture[f"labels_{labels}"]
    centres = hash_centres(bits, members.shape[1], 0)
    np.testing.assert_array_equal(centres, fixture[f"csq_{name}_{bits}_centers"])
    drawn = np.sign(fixture[f"csq_{name}_{bits}_random_center"] - 0.5)
    np.testing.assert_array_equal(centres_of(members, centres, drawn), fixture[f"csq_{name}_{bits}_target"])


def test_facts_of_centres(fixture: Any) -> None:
    """Where centres are random ours are others, and their smallest distance is no smaller."""
    stored = {(32, 100): "centres_random_b32_c100_seed0", (16, 38): "centres_random_b16_c38_seed0"}
    for bits, classes, *facts in fixture["centre_facts_rows_bit_nclass_min_mean_max"]:
        own = hash_centres(int(bits), int(classes), 0)
        if classes <= 2 * bits:
            assert distances(own) == pytest.approx(tuple(facts), abs=1e-12)
            continue
        assert distances(own)[0] >= facts[0]
        assert distances(own)[1] == pytest.approx(facts[1], abs=0.1)
        if (int(bits), int(classes)) in stored:
            theirs = fixture[stored[int(bits), int(classes)]]
            assert distances(theirs) == pytest.approx(tuple(facts), abs=1e-12)
            np.testing.assert_array_equal(own[: 2 * int(bits)], theirs[: 2 * int(bits)])
