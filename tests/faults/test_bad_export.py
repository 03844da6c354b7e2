"""Students that cannot be exported: one sentence each, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import accepted, distill, refused


@pytest.fixture
def student(place: Path) -> Path:
    """The folder of a student."""
    accepted(*distill())
    return place / "student"


def export(*arguments: str) -> tuple[str, ...]:
    return ("students", "export", *arguments, "--format", "safetensors")


def test_a_student_whose_files_are_damaged(student: Path) -> None:
    before = sorted(student.iterdir())
    whole = (student / "model.safetensors").read_bytes()
    (student / "model.safetensors").write_bytes(whole[:-8])
    assert "is no readable weights file, perhaps cut short" in refused(*export("student"))
    (student / "model.safetensors").unlink()
    assert "cannot read the weights file student/model.safetensors" in refused(*export("student"))
    (student / "model.safetensors").write_bytes(whole)
    about = json.loads((student / "recipe.json").read_text())
    (student / "recipe.json").write_text(json.dumps(about | {"student": "mobilenet-v1?width=0.5&dim=8"}))
    assert "belongs to another network" in refused(*export("student"))
    (student / "recipe.json").write_text("{")
    assert "recipe.json is damaged" in refused(*export("student"))
    assert sorted(student.iterdir()) == before


def test_a_place_that_cannot_be_written(student: Path) -> None:
    (student / "file").touch()
    message = refused(*export("student", "--out", "student/file/student.safetensors"))
    assert "cannot write student/file/student.safetensors: name another place with --out" in message


@pytest.mark.usefixtures("student")
def test_scales_that_are_none() -> None:
    assert "positive scales" in refused(*export("student", "--scales", "1,0"))


@pytest.mark.usefixtures("bare")
def test_without_any_student() -> None:
    assert "'student' is no folder of a student, nor its key" in refused(*export("student"))
    assert "there is no feature store" in refused("students", "ls")


@pytest.mark.usefixtures("place")
def test_a_store_without_students() -> None:
    assert accepted("students", "ls")["students"] == []
