"""Stand-ins for pickled NumPy and scikit-learn objects: right where they are numbers, an error where they are not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_files import pca_state, pretended

from cgd.errors import WeightsError
from cgd.models.checkpoints import read_torch
from cgd.models.pickles import STAND_INS, PickledArray, PickledObject, PickledType, pickled_scalar


def through_a_file(path: Path, value: Any, *, legacy: bool = False) -> Any:
    torch.save({"x": value}, path, _use_new_zipfile_serialization=not legacy)
    return read_torch(path, STAND_INS)["x"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["<f8", "<f4", ">f8", "<i8", "|u1", "|b1", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_with_their_values(tmp_path: Path, kind: str, order: Any, legacy: bool) -> None:
    expected = np.arange(6).reshape(2, 3).astype(kind, order=order)
    found = through_a_file(tmp_path / "w.pt", expected, legacy=legacy)
    assert isinstance(found, PickledArray)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.numpy().dtype == expected.dtype


@pytest.mark.parametrize("value", [np.float64(0.1), np.float32(2.5), np.int64(-3), np.bool_(True)])
def test_scalars_come_back_as_python_numbers(tmp_path: Path, value: Any) -> None:
    found = through_a_file(tmp_path / "w.pt", value)
    assert found == value.item()
    assert type(found) in (float, int, bool)


def test_a_pca_comes_back_as_its_attributes(tmp_path: Path) -> None:
    with pretended("sklearn.decomposition.pca", "PCA") as (pca,):
        fitted = pca()
        fitted.__dict__.update(pca_state())
        torch.save({"x": fitted}, tmp_path / "w.pt")
    found = read_torch(tmp_path / "w.pt", STAND_INS)["x"]
    assert isinstance(found, PickledObject)
    assert found.state["whiten"] is True
    np.testing.assert_array_equal(found.state["components_"].numpy(), pca_state()["components_"])
    assert found.state["noise_variance_"] == 0.25


@pytest.mark.parametrize(
    "value",
    [np.array([{"a": 1}], dtype=object), np.array(["text"]), np.zeros(2, [("a", "f8")]), np.array([1 + 2j])],
    ids=["objects", "text", "records", "complex"],
)
def test_an_array_of_anything_but_numbers_is_an_error(tmp_path: Path, value: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a pickled array"):
        through_a_file(tmp_path / "w.pt", value).numpy()


def typed(code: str) -> PickledType:
    kind = PickledType(code, False, True)
    kind.__setstate__((3, "<", None, None, None, -1, -1, 0))
    return kind


@pytest.mark.parametrize(
    "state",
    [
        None,
        (1, (2,), typed("f8"), False),
        (1, (2,), typed("f8"), False, b"1234"),
        (1, (-1,), typed("f8"), False, b""),
        (1, (2**40, 2**40), typed("f8"), False, b"12345678"),
        (1, (1,), "f8", False, b"12345678"),
        (1, (1,), typed("O"), False, b"12345678"),
        (1, (1,), typed("f8"), False, [1]),
        (1, ("1",), typed("f8"), False, b"12345678"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error_not_memory(state: Any) -> None:
    array = PickledArray()
    array.__setstate__(state)
    with pytest.raises(ValueError, match="a pickled array"):
        array.numpy()


def test_a_scalar_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="no number"):
        pickled_scalar("f8", b"12345678")
    with pytest.raises(ValueError, match="no number"):
        pickled_scalar(typed("f8"), "text")


def test_nothing_else_is_allowed(tmp_path: Path) -> None:
    for harmful in (np.load, np.fromfile, pickle.loads, eval, Path):
        torch.save({"x": _Call(harmful)}, tmp_path / "w.pt")
        with pytest.raises(WeightsError, match="pickled code or objects"):
            read_torch(tmp_path / "w.pt", STAND_INS)


class _Call:
    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, ("/nowhere",)


def test_stand_ins_are_known_only_while_they_are_asked_for(tmp_path: Path) -> None:
    torch.save({"x": np.zeros(2)}, tmp_path / "w.pt")
    before = set(torch.serialization.get_safe_globals())
    read_torch(tmp_path / "w.pt", STAND_INS)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(WeightsError, match="pickled code or objects"):
        read_torch(tmp_path / "w.pt")


def test_what_other_libraries_allow_is_not_allowed_here(tmp_path: Path) -> None:
    torch.save({"x": _Call(Path)}, tmp_path / "w.pt")
    with torch.serialization.safe_globals([Path]):
        assert torch.load(tmp_path / "w.pt", weights_only=True)["x"] == Path("/nowhere")
        with pytest.raises(WeightsError, match="pickled code or objects"):
            read_torch(tmp_path / "w.pt", STAND_INS)
        assert Path in torch.serialization.get_safe_globals()
