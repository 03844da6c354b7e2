"""Ground truth in the revisited form: the published files, made-up ones, and pickles that would run code."""

import collections
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgd.data.groundtruth import read_ground_truth
from cgd.errors import InputError


def content(**entry: Any) -> dict[str, Any]:
    """Three gallery images and one query, whose entry is changed by `entry`."""
    gnd = {"bbx": [1, 2, 3, 4], "easy": [0], "hard": [2], "junk": [1], **entry}
    return {"imlist": ["a", "b", "c"], "qimlist": ["q"], "gnd": [gnd]}


def as_json(folder: Path, value: Any) -> Path:
    (folder / "gnd.json").write_text(json.dumps(value))
    return folder / "gnd.json"


def as_pickle(folder: Path, value: Any, protocol: int = 2) -> Path:
    (folder / "gnd.pkl").write_bytes(pickle.dumps(value, protocol))
    return folder / "gnd.pkl"


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["roxford5k", "rparis6k"])
def test_the_published_pickle_equals_the_json(shared: Path, kind: str) -> None:
    folder = shared / "data/revisitop"
    pickled, parsed = (read_ground_truth(folder / f"gnd_{kind}{s}") for s in (".pkl", ".json"))
    assert pickled.gallery == parsed.gallery
    assert pickled.queries == parsed.queries
    assert pickled.boxes == parsed.boxes
    for part in ("easy", "hard", "junk"):
        for one, other in zip(getattr(pickled.truth, part), getattr(parsed.truth, part), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.shared
@pytest.mark.parametrize(("kind", "totals"), [("roxford5k", (3029, 2497, 1356)), ("rparis6k", (6874, 10350, 7153))])
def test_the_published_files_hold_the_numbers_their_paper_reports(
    shared: Path, kind: str, totals: tuple[int, int, int]
) -> None:
    known = read_ground_truth(shared / f"data/revisitop/gnd_{kind}.pkl")
    plain = json.loads((shared / f"data/revisitop/gnd_{kind}.json").read_text())
    assert tuple(sum(map(len, part)) for part in (known.truth.easy, known.truth.hard, known.truth.junk)) == totals
    assert list(known.queries) == plain["qimlist"]
    assert [list(b or ()) for b in known.boxes] == [g["bbx"] for g in plain["gnd"]]
    for part in ("easy", "hard", "junk"):
        assert [i.tolist() for i in getattr(known.truth, part)] == [g[part] for g in plain["gnd"]]


@pytest.mark.shared
def test_two_oxford_queries_have_no_easy_image(shared: Path) -> None:
    known = read_ground_truth(shared / "data/revisitop/gnd_roxford5k.json")
    empty = [known.queries[i] for i, easy in enumerate(known.truth.easy) if not len(easy)]
    assert empty == ["balliol_000187", "hertford_000082"]


@pytest.mark.parametrize("write", [as_json, as_pickle])
def test_a_made_up_file_is_read_as_written(tmp_path: Path, write: Any) -> None:
    known = read_ground_truth(write(tmp_path, content()))
    assert (known.gallery, known.queries, known.boxes) == (("a", "b", "c"), ("q",), ((1.0, 2.0, 3.0, 4.0),))
    assert [p[0].tolist() for p in (known.truth.easy, known.truth.hard, known.truth.junk)] == [[0], [2], [1]]
    assert known.truth.easy[0].dtype == np.int64


def test_a_box_may_be_null_and_parts_may_be_absent(tmp_path: Path) -> None:
    known = read_ground_truth(
        as_json(tmp_path, {"imlist": ["a"], "qimlist": ["q"], "gnd": [{"bbx": None, "easy": [0]}]})
    )
    assert known.boxes == (None,)
    assert len(known.truth.hard[0]) == len(known.truth.junk[0]) == 0
    assert known.truth.hard[0].dtype == np.int64


# what would run code


class Attack:
    """Calls `os.system` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_a_command_is_refused_and_never_runs_it(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Attack(marker), protocol))  # noqa: S301  (the attack itself works)
    assert marker.exists()
    marker.unlink()
    value = {**content(), "more": Attack(marker)}
    with pytest.raises(InputError, match="is refused"):
        read_ground_truth(as_pickle(tmp_path, value, protocol))
    assert not marker.exists()


@pytest.mark.parametrize(
    "value", [collections.OrderedDict(content()), np.arange(3), {**content(), "p": Path("x")}, len]
)
def test_a_pickle_that_refers_to_any_class_or_function_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match="not a pickle of plain values"):
        read_ground_truth(as_pickle(tmp_path, value))


def test_a_damaged_pickle_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    path = as_pickle(tmp_path, content())
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="is refused"):
            read_ground_truth(path)


# what is no ground truth


@pytest.mark.parametrize(
    "value",
    [
        [],
        "text",
        {},
        {"imlist": ["a"], "qimlist": ["q"]},
        {"imlist": 3, "qimlist": ["q"], "gnd": [{}]},
        {"imlist": ["a"], "qimlist": ["q"], "gnd": ["q"]},
        {"imlist": ["a"], "qimlist": ["q"], "gnd": [{"easy": 3}]},
    ],
)
def test_values_of_another_form_are_refused_with_the_form_expected(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match=r"revisited form \(imlist, qimlist, gnd\)"):
        read_ground_truth(as_json(tmp_path, value))


@pytest.mark.parametrize("index", [3, 99, -1])
def test_an_index_outside_the_gallery_is_refused(tmp_path: Path, index: int) -> None:
    with pytest.raises(InputError, match=rf"gallery image {index}, but its imlist has 3"):
        read_ground_truth(as_json(tmp_path, content(easy=[0, index], hard=[], junk=[])))


@pytest.mark.parametrize("index", ["x", 10**30, 0.7, None])
def test_an_index_that_is_no_index_is_refused(tmp_path: Path, index: Any) -> None:
    with pytest.raises(InputError):
        read_ground_truth(as_json(tmp_path, content(easy=[index], hard=[], junk=[])))


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, 4, 5], ["a", 2, 3, 4], 7, "1 2 3 4"])
def test_a_box_that_is_not_four_numbers_is_refused(tmp_path: Path, box: Any) -> None:
    with pytest.raises(InputError):
        read_ground_truth(as_json(tmp_path, content(bbx=box)))


@pytest.mark.parametrize("entry", [{"hard": [0]}, {"easy": [0, 0]}, {"junk": [2]}])
def test_an_image_named_twice_for_one_query_is_refused(tmp_path: Path, entry: dict[str, list[int]]) -> None:
    with pytest.raises(InputError, match="query 'q' names a gallery image twice"):
        read_ground_truth(as_json(tmp_path, content(**entry)))


def test_queries_without_an_entry_each_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 queries but ground truth for 1"):
        read_ground_truth(as_json(tmp_path, {**content(), "qimlist": ["q", "r"]}))


def test_a_file_that_is_not_json_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gnd.json").write_bytes(b"{\xff")
    with pytest.raises(InputError, match="is not JSON"):
        read_ground_truth(tmp_path / "gnd.json")
    with pytest.raises(InputError, match="cannot read"):
        read_ground_truth(tmp_path / "other.json")
