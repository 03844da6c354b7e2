"""A student in Python: `cgd.load_student(DIR).embed(paths)`."""

import numpy as np
import pytest
from trained import train

import cgd
from cgd.errors import InputError, MissingError
from cgd.pipeline import scoring


@pytest.fixture(scope="module")
def made(tmp_path_factory, drawn, tiny_recipe):
    folder = tmp_path_factory.mktemp("embedder")
    return folder, *train(folder, drawn, tiny_recipe)


def test_it_gives_the_descriptors_that_search_uses(made, drawn):
    folder, session, recipe, images = made
    student = cgd.load_student(folder / "student", device="cpu")
    found = student.embed([drawn / path for path in images.paths[:5]])
    assert (found.shape, found.dtype) == ((5, student.dim), np.float32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    key = scoring.embed(session, images, [student.source], "fixed", recipe.extract)[student.source.label]
    stored = session.store().get(key).read("vectors")[:5, 0].astype(np.float32)
    np.testing.assert_allclose(found, stored / np.linalg.norm(stored, axis=1, keepdims=True), atol=2e-3)


def test_the_same_picture_twice_none_and_one_at_a_time(made, drawn):
    folder, _, _, images = made
    student = cgd.load_student(str(folder / "student"), device="cpu")
    twice = student.embed([drawn / images.paths[0]] * 2)
    np.testing.assert_array_equal(twice[0], twice[1])
    assert student.embed([]).shape == (0, student.dim)
    assert student.source.build() is student.source.build()


def test_what_is_no_picture_or_no_student_is_told(made, tmp_path):
    folder, *_ = made
    student = cgd.load_student(folder / "student", device="cpu")
    (tmp_path / "note.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"note\.txt cannot be decoded"):
        student.embed([tmp_path / "note.txt"])
    with pytest.raises(InputError, match="list of image files"):
        student.embed("a.jpg")
    with pytest.raises(MissingError, match="holds no finished student"):
        cgd.load_student(tmp_path)


def test_scales_replace_the_students_own(made, drawn):
    folder, _, _, images = made
    one, several = (cgd.load_student(folder / "student", device="cpu", scales=s) for s in ((), (1, 0.5)))
    paths = [drawn / images.paths[0]]
    assert not np.allclose(one.embed(paths), several.embed(paths), atol=1e-3)
