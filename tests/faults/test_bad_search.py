"""Benchmarks, galleries and pictures that cannot be searched: one sentence each, and nothing stored is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import CPU, accepted, benchmark, cgd, distill, evaluate, photos, refused, sealed


@pytest.fixture
def student(place: Path) -> Path:
    """A folder with a student, and photographs to search in."""
    accepted(*distill())
    photos(place / "photos", *(f"{n}.png" for n in range(12)))
    return place


def search(*arguments: str, gallery: str = "folder:photos") -> tuple[str, ...]:
    return ("search", "--student", "student", "--gallery", gallery, *CPU, *arguments)


def test_ground_truth_that_points_past_the_gallery(bare: Path) -> None:
    text = benchmark(bare / "made")
    known = json.loads((bare / "made/gnd.json").read_text())
    known["gnd"][0]["hard"] = [4]
    (bare / "made/gnd.json").write_text(json.dumps(known))
    assert "points at gallery image 4, but its imlist has 4" in refused(*evaluate(text))


def test_an_empty_gallery(bare: Path) -> None:
    text = benchmark(bare / "made")
    known = json.loads((bare / "made/gnd.json").read_text()) | {"imlist": []}
    known["gnd"] = [{"bbx": None}]
    (bare / "made/gnd.json").write_text(json.dumps(known))
    assert "made@gallery of made holds no image, so there is nothing to score" in refused(*evaluate(text))


def test_a_query_without_positives_is_left_out_and_said(bare: Path) -> None:
    text = benchmark(bare / "made", gallery="hard junk negative")
    report = accepted(*evaluate(text))
    assert report["protocols"]["easy"] == {"mAP": None, "mP@1": None, "mP@5": None, "mP@10": None, "queries": 0}
    assert report["protocols"]["hard"]["queries"] == 1
    said = cgd(*evaluate(text)).stderr
    assert "made, easy: 1 of 1 queries have no positive and are left out" in said
    assert "made, hard" not in said


def test_an_index_of_codes_over_a_gallery_too_small_for_it(bare: Path) -> None:
    message = refused(*evaluate(benchmark(bare / "made"), "--index", "ivf-pq"))
    assert "ivf-pq learns 256 codes, but the gallery has 4 images: use exact search" in message
    assert {"scores", "indexes"}.isdisjoint(k.kind for k in sealed(bare / "features.zarr"))


def test_settings_of_an_index_that_mean_nothing(bare: Path) -> None:
    text = benchmark(bare / "made")
    assert "index.probes is at least 1, got 0" in refused(*evaluate(text, "--set", "index.probes=0"))
    assert "evaluate.k is at least 1, got 0" in refused(*evaluate(text, "--set", "evaluate.k=0"))
    assert "index.rotation" in refused(*evaluate(text, "--set", "index.rotation=sideways"))


def test_pictures_galleries_and_pages_that_are_not_there(student: Path) -> None:
    assert cgd(*search("nowhere.png")).exit_code == 2
    (student / "text.png").write_text("no picture")
    assert "text.png cannot be decoded" in refused(*search("text.png"))
    assert "unknown data set 'fotos'" in refused(*search("photos/1.png", gallery="fotos"))
    (student / "file").write_text("")
    assert "cannot write file/found.html" in refused(*search("photos/1.png", "--html", "file/found.html"))
    assert "a box ends before it begins" in refused(*search("photos/1.png", "--box", "9", "9", "3", "20"))


def test_a_search_prints_one_object_and_writes_one_page(student: Path) -> None:
    report = accepted(*search("photos/3.png", "-k", "4", "--html", "found.html"))
    (query,) = report["queries"]
    assert [r["rank"] for r in query["results"]] == [1, 2, 3, 4]
    assert query["results"][0]["id"] == "3.png"
    assert (student / "found.html").read_text().startswith("<!doctype html>")
    shown = cgd(*search("photos/3.png", "-k", "4", gallery="photos")).stdout
    assert "3.png" in shown
    assert "itself" in shown


def test_the_index_of_another_gallery_is_never_searched(student: Path) -> None:
    index = ("index", "--student", "student", "--kind", "hnsw", *CPU)
    first = accepted(*index, "--gallery", "folder:photos")
    photos(student / "other", *(f"{n}.png" for n in range(7)), seed=9)
    second = accepted(*index, "--gallery", "folder:other")
    assert first["key"] != second["key"]
    assert second["extends"] is None
    report = accepted(*search("other/2.png", "--index", "hnsw", "-k", "9", gallery="other"))
    assert len(report["queries"][0]["results"]) == 7
    blob = student / "features.zarr" / second["key"] / "index.faiss"
    blob.write_bytes((student / "features.zarr" / first["key"] / "index.faiss").read_bytes())
    message = refused(*search("other/2.png", "--index", "hnsw", gallery="other"))
    assert "index.faiss differs from its seal" in message
