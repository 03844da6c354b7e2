"""What a working directory remembers of its data sets."""

from pathlib import Path

import pytest
import yaml
from PIL import Image

from cgd.errors import InputError
from cgd.pipeline.workspace import Workspace
from cgd.store.keys import ids_digest


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """In an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return Workspace()


def photos(folder: Path, *names: str) -> Path:
    for name in names or ("a/1.png", "b/2.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def test_a_name_is_enough_once_its_place_was_told(workspace: Workspace, tmp_path: Path) -> None:
    told = workspace.images(f"folder:{photos(tmp_path / 'photos')}")
    assert told.name == "photos"
    assert Workspace().images("photos") == told


def test_a_relative_place_is_remembered_wherever_one_stands(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "photos")
    workspace.images("folder:photos", "mine")
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    found = Workspace(tmp_path / ".cgd/roots.yaml").images("mine")
    assert found.root == tmp_path / "photos"


def test_splits_are_asked_for_by_name_at_split_or_by_option(workspace: Workspace, drawn: Path) -> None:
    train = workspace.images(f"manifest:{drawn / 'manifest.csv'}", "lm", "train")
    assert train.title == "lm@train"
    assert workspace.images("lm@train") == train
    assert workspace.images("lm@gallery").title == "lm@gallery"
    assert workspace.images("lm", split="train") == train
    assert len(workspace.images("lm")) > len(train)


def test_a_benchmark_is_remembered_like_a_list(workspace: Workspace, drawn: Path) -> None:
    told = workspace.benchmark(f"manifest:{drawn / 'manifest.csv'}", "lm")
    found = Workspace().benchmark("lm")
    assert found.gallery == told.gallery
    assert found.queries == told.queries
    assert workspace.images("lm@train").name == "lm"


def test_introducing_a_name_is_telling_its_place(workspace: Workspace, drawn: Path) -> None:
    workspace.introduce("lm", f"manifest:{drawn / 'manifest.csv'}")
    assert workspace.images("lm@query").name == "lm"


def test_the_newest_place_of_a_name_counts(workspace: Workspace, tmp_path: Path) -> None:
    workspace.images(f"folder:{photos(tmp_path / 'old')}", "mine")
    workspace.images(f"folder:{photos(tmp_path / 'new', 'x/9.png')}", "mine")
    assert workspace.images("mine").root == tmp_path / "new"
    workspace.images(f"folder:{tmp_path / 'old'}", "mine")
    assert workspace.images("mine").root == tmp_path / "old"


def test_several_data_sets_are_remembered_side_by_side(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        workspace.images(f"folder:{photos(tmp_path / name)}")
    assert [workspace.images(n).root for n in ("one", "two", "three")] == [
        tmp_path / "one",
        tmp_path / "two",
        tmp_path / "three",
    ]


def test_entries_are_found_by_the_digest_of_the_ids(workspace: Workspace, tmp_path: Path) -> None:
    images = workspace.images(f"folder:{photos(tmp_path / 'photos')}")
    entries = yaml.safe_load((tmp_path / ".cgd/roots.yaml").read_text())
    assert entries == {
        ids_digest(images): {"name": "photos", "split": None, "spec": f"folder:{tmp_path / 'photos'}"},
    }
    assert [p.name for p in (tmp_path / ".cgd").iterdir()] == ["roots.yaml"]


def test_what_is_known_already_is_not_written_again(workspace: Workspace, tmp_path: Path) -> None:
    workspace.images(f"folder:{photos(tmp_path / 'photos')}")
    stamp = (tmp_path / ".cgd/roots.yaml").stat().st_mtime_ns
    workspace.images("photos")
    assert (tmp_path / ".cgd/roots.yaml").stat().st_mtime_ns == stamp


def test_drawn_images_are_remembered_by_their_options(workspace: Workspace) -> None:
    text = "synthetic:landmarks?labels=2&images=2&distractors=0"
    workspace.images(text, "lm")
    assert workspace.images("lm@train").labels == ("0000", "0000", "0001", "0001")


def test_an_unknown_name_offers_the_nearest_and_says_how_to_tell_its_place(
    workspace: Workspace, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"unknown data set 'photos': known: none.*KIND:PATH"):
        workspace.images("photos")
    workspace.images(f"folder:{photos(tmp_path / 'photos')}")
    with pytest.raises(InputError, match=r"unknown data set 'fotos': did you mean photos\?.*KIND:PATH"):
        workspace.images("fotos")


def test_a_place_that_vanished_is_named(workspace: Workspace, tmp_path: Path) -> None:
    workspace.images(f"folder:{photos(tmp_path / 'photos')}")
    (tmp_path / "photos").rename(tmp_path / "gone")
    with pytest.raises(InputError, match=r"photos does not exist"):
        workspace.images("photos")


@pytest.mark.parametrize(
    "damage",
    [
        b"a: [1,\n}",
        b"\xff\xfe\x00",
        b"just text",
        b"- a\n- b\n",
        b"3\n",
        b"0123: text\n",
        b"0123:\n  name: photos\n",
        b"0123:\n  spec: folder:photos\n",
    ],
)
def test_a_damaged_memory_is_named_and_left_alone(workspace: Workspace, tmp_path: Path, damage: bytes) -> None:
    photos(tmp_path / "photos")
    (tmp_path / ".cgd").mkdir()
    (tmp_path / ".cgd/roots.yaml").write_bytes(damage)
    for text in ("photos", "folder:photos"):
        with pytest.raises(InputError, match=r"roots\.yaml"):
            workspace.images(text)
    assert (tmp_path / ".cgd/roots.yaml").read_bytes() == damage
