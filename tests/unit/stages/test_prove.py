"""The proof that offline equals online: it succeeds where that is so, and fails where a replay is off by a pixel."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cgd.cli import cli
from cgd.data import transforms, views
from cgd.pipeline import steps
from cgd.pipeline.recipe import override
from cgd.pipeline.steps import Session
from cgd.pipeline.workspace import Workspace
from cgd.stages import select
from cgd.stages.prove import Proof
from cgd.types import View

SOFTER = "whiten-mtd.teacher_temperature=0.1"  # over 16 dimensions alone, rounding averages out less than over 512


@pytest.fixture(scope="module")
def place(drawn: Path, tiny_recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Any, Any]:
    folder = tmp_path_factory.mktemp("proof")
    session = Session(str(folder / "s.zarr"), device="cpu", workers=0, workspace=Workspace(folder / "roots.yaml"))
    images = session.workspace.images(f"manifest:{drawn / 'manifest.csv'}", "lm", "train")
    extracted = steps.extract_teachers(session, images, tiny_recipe.extract)
    recipe = override(tiny_recipe, [SOFTER])
    steps.fit_whitening(session, {n: r.keys for n, r in extracted.encoders.items()}, recipe.whiten)
    return session, images, recipe


def proof(place: tuple[Session, Any, Any], *settings: str) -> Proof:
    session, images, recipe = place
    recipe = override(recipe, settings)
    vectors = select.training_vectors(session.store(), "lm", "train", (), None, recipe.distill.space)
    sources = steps.stored_sources(session, vectors, ())
    return steps.prove(session, images, vectors, sources, recipe, count=5, samples=20)


WAYS = [
    (),
    ("distill.fusion=max-rand",),
    ("distill.space=raw",),
    ("distill.positives=image",),
    ("distill.views=fixed",),
    ("distill.method=embedding", "distill.student=mobilenet-v1?width=0.25&dim=16&size=64"),
    ("distill.method=cgd", "distill.fusion=cgd-two", "cgd.positions=4", "cgd.bits=2",
     "distill.student=mobilenet-v1?width=0.25&dim=16&size=64"),
]  # fmt: skip


@pytest.mark.parametrize("settings", WAYS, ids=lambda s: " ".join(s) or "default")
def test_training_from_the_store_is_training_with_the_teachers(place: Any, settings: tuple[str, ...]) -> None:
    found = proof(place, *settings)
    assert found.problems == []
    assert min(found.min_cosine.values()) >= 0.99999
    assert found.max_loss_difference_float32 <= 1e-5
    assert found.max_loss_difference <= 1e-3
    assert found.steps == 5
    assert len(set(found.loss)) == 5, "the student learns meanwhile"


def one_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every crop a pixel to the right, for the student and the live teachers."""
    box = View.box

    def shifted(self: View, width: int, height: int) -> tuple[int, int, int, int]:
        left, top, right, bottom = box(self, width, height)
        return left + 1, top, right + 1, bottom

    monkeypatch.setattr(View, "box", shifted)


def another_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "hashlib", _Hash())


class _Hash:
    @staticmethod
    def sha512(data: bytes) -> Any:
        import hashlib

        return hashlib.sha512(data + b"!")


def another_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "_FILTERS", dict.fromkeys(transforms._FILTERS, transforms._FILTERS["lanczos"]))


@pytest.mark.parametrize("harm", [one_pixel, another_draw, another_filter], ids=lambda h: h.__name__)
def test_a_replay_that_is_not_exact_fails_the_proof(place: Any, harm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    harm(monkeypatch)
    found = proof(place)
    assert any("least cosine" in problem for problem in found.problems)
    assert any("losses from stored float32 vectors" in problem for problem in found.problems)
    assert bool(found.geometry_differs) == (harm is another_draw)


def test_the_command_prints_a_page_and_an_object(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, recipe = place
    root = Path(session.store_url).parent
    (root / ".cgd").mkdir(exist_ok=True)
    (root / ".cgd/roots.yaml").write_bytes((root / "roots.yaml").read_bytes())
    monkeypatch.chdir(root)
    config = dataclasses.asdict(recipe.distill)
    settings = [f"--set=distill.{n}={config[n]}" for n in ("student", "batch_pairs", "image_size")]
    command = [
        "prove",
        "--dataset",
        "lm@train",
        "--store",
        "s.zarr",
        "--steps",
        "2",
        "--samples",
        "8",
        "--device",
        "cpu",
    ]
    done = CliRunner().invoke(cli, [*command, *settings, "--set", SOFTER, "--json", "-q"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["min_cosine"] >= 0.99999
    assert found["max_loss_difference"] <= 1e-3
    one_pixel(monkeypatch)
    done = CliRunner().invoke(cli, [*command, *settings, "-q"])
    assert done.exit_code == 1
    assert "NOT PROVEN" in done.stdout
    assert CliRunner().invoke(cli, ["prove"]).exit_code == 2
