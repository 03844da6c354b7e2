"""Searching for pictures with a student: table, page, index, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trained import train

from cgd.config import Recipe
from cgd.errors import CgdError, InputError
from cgd.pipeline import search, steps, text
from cgd.pipeline.recipe import override
from cgd.pipeline.search_page import search_page
from cgd.pipeline.steps import Session


@dataclasses.dataclass(frozen=True)
class Place:
    session: Session
    recipe: Recipe
    student: str
    photos: Path


@pytest.fixture(scope="module")
def place(drawn: Path, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A student of one epoch, and a folder of photographs in sub-folders, one with a name that is hostile to HTML."""
    folder = tmp_path_factory.mktemp("search")
    session, recipe, images = train(folder, drawn, tiny_recipe)
    photos = folder / "photos"
    for number, (label, path) in enumerate(zip(images.labels or (), images.paths, strict=True)):
        target = photos / label / (f"<b>&{number}.png" if number == 0 else f"{number}.png")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn / path, target)
    session.workspace.introduce("photos", f"folder:{photos}")
    return Place(session, recipe, str(folder / "student"), photos)


def found(place: Place, *pictures: Path, **changes: Any) -> dict[str, Any]:
    recipe = override(place.recipe, changes.pop("settings", ()))
    return search.search(place.session, place.student, "photos", pictures, recipe, **changes)


def first(place: Place) -> Path:
    return next(place.photos.rglob("*1.png"))


def test_a_picture_of_the_gallery_finds_itself_first_and_is_judged_by_its_label(place: Place) -> None:
    result = found(place, first(place), k=5)
    (query,) = result["queries"]
    assert query["label"] == first(place).parent.name
    assert [r["rank"] for r in query["results"]] == [1, 2, 3, 4, 5]
    top, *others = query["results"]
    assert (top["itself"], top["right"]) == (True, None)
    assert top["score"] == pytest.approx(1, abs=1e-3)
    assert [r["right"] for r in others] == [r["label"] == query["label"] for r in others]
    scores = [r["score"] for r in query["results"]]
    assert scores == sorted(scores, reverse=True)


def test_a_picture_from_elsewhere_is_judged_where_its_label_is_told(place: Place, tmp_path: Path) -> None:
    picture = tmp_path / "mine.png"
    shutil.copy(first(place), picture)
    assert found(place, picture)["queries"][0]["label"] is None
    assert {r["right"] for r in found(place, picture)["queries"][0]["results"]} == {None}
    told = found(place, picture, label=first(place).parent.name)["queries"][0]["results"]
    assert told[0]["right"] is True
    assert not told[0]["itself"]


def test_a_box_searches_for_a_part_of_the_picture(place: Place) -> None:
    whole, part = (found(place, first(place), box=box)["queries"][0] for box in (None, (4.0, 4.0, 40.0, 40.0)))
    assert part["results"][0]["score"] < whole["results"][0]["score"]


def test_a_box_that_a_student_would_ignore_is_refused(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.student, tmp_path / "student")
    recipe = json.loads((tmp_path / "student/recipe.json").read_text())
    recipe["student"] += "&query_crop=none"
    (tmp_path / "student/recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(InputError, match=r"ignores boxes \(query_crop=none\): cut the picture"):
        search.search(
            place.session, str(tmp_path / "student"), "photos", [first(place)], place.recipe, box=(4.0, 4.0, 40.0, 40.0)
        )


@pytest.mark.parametrize("own", ["", "&scales=1,0.5"])
def test_scales_asked_for_replace_those_in_a_students_name(place: Place, tmp_path: Path, own: str) -> None:
    shutil.copytree(place.student, tmp_path / "student")
    recipe = json.loads((tmp_path / "student/recipe.json").read_text())
    recipe["student"] += own
    (tmp_path / "student/recipe.json").write_text(json.dumps(recipe))
    source = steps.load_student(place.session, str(tmp_path / "student"), [1.0, 0.75])
    assert source.build().input_spec.scales == (1.0, 0.75)


def test_more_than_there_is_comes_short(place: Place) -> None:
    result = found(place, first(place), k=1000)
    assert len(result["queries"][0]["results"]) == result["images"]


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_an_index_finds_what_exact_search_finds(place: Place, kind: str) -> None:
    exact, fast = (
        [r["id"] for r in found(place, first(place), settings=s)["queries"][0]["results"]]
        for s in ([], [f"evaluate.index={kind}"])
    )
    assert exact == fast


def test_building_an_index_tells_its_size_speed_and_recall(place: Place) -> None:
    result = search.index(place.session, place.student, "photos", override(place.recipe, ["evaluate.index=hnsw"]))
    assert result["vectors"] == len(list(place.photos.rglob("*.png")))
    assert 0.5 < result["recall@10"] <= 1
    assert result["bytes_per_vector"] > 0
    assert result["key"].startswith("indexes/photos.")
    lines = text.index_text(result)
    assert "hnsw index of photos" in lines
    assert "% of the 10 nearest images are found" in lines
    with pytest.raises(InputError, match="exact search needs no index: use --kind"):
        search.index(place.session, place.student, "photos", place.recipe)


def test_the_page_holds_its_pictures_and_asks_for_nothing(place: Place) -> None:
    hostile = next(p for p in place.photos.rglob("*.png") if "<b>" in p.name)
    result = found(place, first(place), hostile, k=6)
    page = search_page(result, place.session.workspace.images("photos"))
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2 * (1 + 6)
    for source in sources:
        head, data = source.split(",", 1)
        assert head == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 320
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;0.png" in page
    judged = [r["right"] for q in result["queries"] for r in q["results"]]
    assert (page.count('class="right"'), page.count('class="wrong"')) == (judged.count(True), judged.count(False))
    assert page.count("the query itself") == 2


def test_a_picture_that_broke_since_leaves_its_place_and_the_reason(place: Place, tmp_path: Path) -> None:
    result = found(place, first(place), k=2)
    images = place.session.workspace.images("photos")
    gone = dataclasses.replace(images, root=tmp_path)
    for path in images.paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    assert search_page(result, gone).count('<div class="missing">empty file</div>') == 2


def test_the_table_names_right_and_wrong(place: Place) -> None:
    lines = text.search_text(found(place, first(place), k=4)).splitlines()
    assert "images of photos" in lines[0]
    assert lines[2].endswith(f"({first(place).parent.name})")
    assert "itself" in lines[5]
    assert len(lines) == 9


def test_the_gallerys_descriptors_are_made_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found(place, first(place))
    from cgd.store.writer import Writer

    monkeypatch.setattr(Writer, "write", lambda *_: pytest.fail("something was written again"))
    assert found(place, first(place))["queries"]


@pytest.mark.parametrize(
    ("name", "content", "told"), [("a.png", b"", "empty file"), ("b.png", b"no picture", "cannot identify")]
)
def test_a_query_that_is_no_picture_is_refused(
    place: Place, tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} cannot be decoded \(.*{told}"):
        found(place, tmp_path / name)


def test_unknown_galleries_students_and_doubled_pictures_are_refused(place: Place) -> None:
    with pytest.raises(InputError, match="a picture is named twice"):
        found(place, first(place), first(place))
    with pytest.raises(CgdError, match="unknown data set 'fotos': did you mean photos"):
        search.search(place.session, place.student, "fotos", [first(place)], place.recipe)
    with pytest.raises(CgdError, match="is no folder of a student, nor its key"):
        search.search(place.session, "nobody", "photos", [first(place)], place.recipe)


def test_scores_of_unit_vectors_are_cosines(place: Place) -> None:
    scores = [r["score"] for r in found(place, first(place), k=1000)["queries"][0]["results"]]
    assert np.abs(scores).max() <= 1.001


def test_products_are_taken_where_the_networks_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from cgd.models import devices
    from cgd.models.products import TorchProducts
    from cgd.pipeline.scoring import scorer_on
    from cgd.retrieval.search import DotProducts

    assert scorer_on("cpu") is DotProducts
    if not torch.cuda.is_available():
        assert scorer_on("auto") is DotProducts
    monkeypatch.setattr(devices, "pick_device", lambda _: torch.device("cuda", 1))
    for device in ("auto", "cuda:1"):
        chosen = scorer_on(device)
        assert chosen.func is TorchProducts
        assert chosen.keywords == {"device": torch.device("cuda", 1)}
