"""Canaries in an extraction: kept once, compared by every later run, and refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgd.data.synthetic import draw_landmarks
from cgd.errors import StoreError
from cgd.models.encoder import Encoder
from cgd.pipeline import scoring, steps
from cgd.pipeline.recipe import change
from cgd.pipeline.steps import Session
from cgd.stages.canaries import SIZES, draw_canary
from cgd.store.keys import sha256

TEACHER = "mobilenet-v1?width=0.25&size=64&weights=random"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_landmarks(tmp_path_factory.mktemp("other") / "other", labels=2, images=2, distractors=2)


def extract(session: Session, recipe: Any, folder: Path, name: str, views: int = 1) -> Any:
    images = session.workspace.images(f"manifest:{folder / 'manifest.csv'}", name)
    return steps.extract_teachers(session, images, change(recipe, "extract", views=views, teachers=(TEACHER,)).extract)


def written(session: Session) -> list[str]:
    return [str(entry.key) for entry in session.store().entries()]


def test_the_pack_has_the_same_pixels_everywhere() -> None:
    pixels = b"".join(np.asarray(draw_canary(n)).tobytes() for n in range(len(SIZES)))
    assert [draw_canary(n).size for n in range(len(SIZES))] == list(SIZES)
    assert sha256(pixels) == "aa45dee03de5f9dbef7a5f5d8d9cd5c05ccfb291a6260728ff407c1183fe2f70"


def test_an_extraction_keeps_canaries_of_every_kind_of_view_once(
    session: Session, tiny_recipe: Any, drawn: Path, other: Path
) -> None:
    extract(session, tiny_recipe, drawn, "lm")
    kept = [k for k in written(session) if k.startswith("canaries/")]
    assert [k.rpartition("-")[0].rpartition(".")[0].rpartition(".")[2] for k in kept] == ["crop", "fixed"]
    extract(session, tiny_recipe, other, "other")
    assert [k for k in written(session) if k.startswith("canaries/")] == kept
    assert not any(problems for _, problems in session.store().verify())


def test_another_network_is_refused_before_anything_is_written(
    session: Session, tiny_recipe: Any, drawn: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(session, tiny_recipe, drawn, "lm")
    before = written(session)
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, x: forward(self, x.flip(1)))
    with pytest.raises(StoreError, match=r"embeds the canaries \(fixed views, fp32\) differently") as caught:
        extract(session, tiny_recipe, other, "other")
    assert "The first run was on" in str(caught.value)
    assert written(session) == before


def test_a_machine_that_was_refused_is_no_reference_for_another_teacher(
    session: Session, tiny_recipe: Any, drawn: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(session, tiny_recipe, drawn, "lm")
    before = written(session)
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, x: forward(self, x.flip(1)))
    images = session.workspace.images(f"manifest:{other / 'manifest.csv'}", "other")
    both = (TEACHER.replace("0.25", "0.5"), TEACHER)  # the new one comes first
    with pytest.raises(StoreError, match="differently"):
        steps.extract_teachers(session, images, change(tiny_recipe, "extract", views=0, teachers=both).extract)
    assert written(session) == before


def test_finished_work_needs_no_canaries(
    session: Session, tiny_recipe: Any, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(session, tiny_recipe, drawn, "lm")
    monkeypatch.setattr(Encoder, "forward", lambda *_: pytest.fail("a network ran"))
    assert extract(session, tiny_recipe, drawn, "lm").encoders


def test_a_network_that_ignores_boxes_is_not_asked_for_cropped_queries(
    session: Session, tiny_recipe: Any, drawn: Path
) -> None:
    benchmark = session.workspace.benchmark(f"manifest:{drawn / 'manifest.csv'}", "lm")
    sources = steps.teacher_sources(session, [f"{TEACHER}&query_crop=none"])
    with pytest.raises(ValueError, match=r"ignores the boxes of queries.*--queries full"):
        scoring.evaluate(session, benchmark, sources, tiny_recipe)
    full = change(tiny_recipe, "evaluate", queries="full")
    assert scoring.evaluate(session, benchmark, sources, full)[0]["card"]["query_crop"] is False


# memory


def test_out_of_memory_halves_the_batch_and_says_so(
    session: Session, tiny_recipe: Any, drawn: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward, largest = Encoder.forward, []

    def limited(self: Encoder, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        largest.append(len(x))
        return forward(self, x)

    expected = extract(session, tiny_recipe, drawn, "lm", views=0)
    again = Session(session.store_url + "2", device="cpu", workers=0, workspace=session.workspace)
    monkeypatch.setattr(Encoder, "forward", limited)
    found = extract(again, tiny_recipe, drawn, "lm", views=0)
    assert max(largest) <= 3
    assert "out of memory with 32 images at once; going on with 16" in caplog.text
    assert "out of memory with 4 images at once; going on with 2" in caplog.text
    label = next(iter(found.encoders))
    one, two = (s.store().get(r.encoders[label].keys["fixed"]) for s, r in ((session, expected), (again, found)))
    np.testing.assert_allclose(one.read("vectors"), two.read("vectors"), atol=1e-5)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_one_image_too_large_for_the_memory_is_named(
    session: Session, tiny_recipe: Any, drawn: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Encoder, "forward", fail)
    with pytest.raises(ValueError, match=r"needs more memory than cpu has for one image"):
        extract(session, tiny_recipe, drawn, "lm", views=0)


def test_the_share_of_waiting_is_reported(session: Session, tiny_recipe: Any, drawn: Path) -> None:
    report = extract(session, tiny_recipe, drawn, "lm").as_json()
    assert 0 < report["waiting_for_images"] < 1
