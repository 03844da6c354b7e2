"""What no recipe names: listed, and removed when told; nothing that a recipe could still ask for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cgd.cli import cli
from cgd.config import Recipe
from cgd.pipeline import garbage
from cgd.pipeline.recipe import override, to_yaml
from cgd.pipeline.runner import run
from cgd.pipeline.steps import Session
from cgd.pipeline.workspace import Workspace
from cgd.store import catalog
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify
from cgd.types import Key

FEW = ["extract.views=1", "distill.epochs=1"]
OTHER = ["distill.learning_rate=0.01"]


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    return override(tiny_recipe, [*FEW, f"extract.teachers=['{tiny_recipe.extract.teachers[0]}']"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, drawn: Path, recipe: Recipe) -> tuple[Session, set[Key]]:
    """A store of two recipes that share their teachers, the first one with two seeds; and what only the second made."""
    folder = tmp_path_factory.mktemp("made")
    session = Session(str(folder / "s.zarr"), device="cpu", workers=0, workspace=Workspace(folder / "roots.yaml"))
    session.workspace.introduce("lm", f"manifest:{drawn}/manifest.csv")
    run(session, recipe, seeds=(0, 1), out=folder / "first")
    first = keys(session)
    run(session, override(recipe, OTHER), out=folder / "second")
    return session, {key for key in keys(session) - first if key.kind != "canaries"}  # they are always kept


@pytest.fixture
def session(made: tuple[Session, set[Key]], tmp_path: Path) -> Session:
    """A copy of that store, to remove from."""
    shutil.copytree(made[0].store_url, tmp_path / "s.zarr")
    return Session(str(tmp_path / "s.zarr"), device="cpu", workers=0, workspace=made[0].workspace)


@pytest.fixture
def second(made: tuple[Session, set[Key]]) -> set[Key]:
    return made[1]


def keys(session: Session) -> set[Key]:
    return {entry.key for entry in session.store().entries() if entry.sealed}


def recipes(folder: Path, *which: Recipe) -> Path:
    (folder / "recipes").mkdir()
    for number, each in enumerate(which):
        (folder / f"recipes/{number}.yaml").write_text(to_yaml(each))
    return folder / "recipes"


def listed(session: Session, folder: Path, *, delete: bool = False) -> set[Key]:
    return {Key.parse(each["key"]) for each in garbage.collect(session, folder, delete=delete)["garbage"]}


def test_what_two_recipes_made_is_named_by_them(session: Session, recipe: Recipe, tmp_path: Path) -> None:
    both = recipes(tmp_path, recipe, override(recipe, OTHER))
    found = garbage.collect(session, both, delete=True)
    assert found["garbage"] == found["unfinished"] == []
    assert [each["lacks"] for each in found["recipes"]] == [None, None]
    assert found["kept"] == len(keys(session))


def test_what_only_a_recipe_elsewhere_made_is_listed_and_removed_when_told(
    session: Session, recipe: Recipe, second: set[Key], tmp_path: Path
) -> None:
    folder, before = recipes(tmp_path, recipe), keys(session)
    assert {key.kind for key in second} == {"students", "embeddings", "descriptors", "scores"}
    catalog.publish(session.store(write=True).files)
    found = garbage.collect(session, folder)
    assert {Key.parse(each["key"]) for each in found["garbage"]} == second
    assert all(each["bytes"] > 0 and each["last"][:2] == "20" for each in found["garbage"])
    assert found["bytes"] == sum(each["bytes"] for each in found["garbage"])
    assert keys(session) == before  # nobody said --delete
    assert listed(session, folder, delete=True) == second
    assert keys(session) == before - second
    assert {Key.parse(name) for name in catalog.read(session.store().files)} == before - second
    assert not any(problems for _, problems in session.store().verify())
    assert listed(session, folder) == set()
    run(session, recipe, seeds=(0, 1), out=tmp_path / "again")
    assert keys(session) == before - second  # the recipe finds everything


def test_students_of_seeds_that_the_recipe_does_not_name_are_kept(
    session: Session, recipe: Recipe, second: set[Key], tmp_path: Path
) -> None:
    for entry in list(session.store().entries("scores")):  # as if no run had scored them
        (Path(session.store_url) / f".cgd/seals/{entry.key}.json").unlink()
    run(session, recipe, out=tmp_path / "again")
    seeds = {e.key: e.settings["seed"] for e in session.store().entries("students") if e.key not in second}
    assert sorted(seeds.values()) == [0, 1]
    assert not set(seeds) & listed(session, recipes(tmp_path, recipe))


def test_of_a_recipe_that_is_not_finished_nothing_is_listed_and_nothing_is_computed(
    session: Session, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: object, **__: object) -> None:
        raise AssertionError("it computes")

    for work in (
        "cgd.stages.training.Training.run",
        "cgd.stages.extract.check_canaries",
        "cgd.stages.evaluate.score_images",
    ):
        monkeypatch.setattr(work, computed)
    store = session.store(write=True)
    alone = store.write_whole(identify("whitening", ["other"], 1, {"dataset": "other"}), whitening())
    before = keys(session)
    for number, changes in enumerate((["distill.epochs=9"], ["extract.views=3"], ["evaluate.ap=mean-precision"])):
        (tmp_path / str(number)).mkdir()
        found = garbage.collect(session, recipes(tmp_path / str(number), override(recipe, changes)))
        assert [each["key"] for each in found["garbage"]] == [str(alone)]
        lacks = Key.parse(found["recipes"][0]["lacks"])
        assert lacks.kind == ("students", "embeddings", "scores")[number]
        assert "is not finished" in garbage.garbage_text(found)
    assert keys(session) == before


def whitening() -> dict[str, np.ndarray]:
    return {"mean": np.zeros(2), "projection": np.eye(2), "eigenvalues": np.ones(2)}


def test_indexes_over_what_is_kept_are_kept(session: Session, recipe: Recipe, second: set[Key], tmp_path: Path) -> None:
    store = session.store(write=True)
    descriptors = sorted(key for key in keys(session) if key.kind == "descriptors")
    made = {
        key: store.write_whole(identify("indexes", ["i"], 1, {}, [key]), {}, blobs={"index.faiss": b"i"})
        for key in descriptors
    }
    wanted = second | {index for key, index in made.items() if key in second}
    assert listed(session, recipes(tmp_path, recipe)) == wanted
    assert set(made.values()) - wanted


def test_what_is_not_sealed_stays_and_so_does_what_it_is_made_from(
    session: Session, recipe: Recipe, second: set[Key], tmp_path: Path
) -> None:
    store = session.store(write=True)
    source = store.write_whole(identify("whitening", ["other"], 1, {"dataset": "other"}), whitening())
    begun = identify("whitened", ["begun"], 1, {}, [source])
    store.writer(begun, {"ids": (4,), "vectors": (4, 2), "valid": (4,), "digests": (4, 32)})
    found = garbage.collect(session, recipes(tmp_path, recipe), delete=True)
    assert {Key.parse(each["key"]) for each in found["garbage"]} == second
    assert found["unfinished"] == [{"key": str(begun.key), "shards": 0}]
    assert (Path(session.store_url) / str(begun.key) / "zarr.json").is_file()


def test_stores_behind_this_one_are_not_touched(
    session: Session, recipe: Recipe, second: set[Key], tmp_path: Path
) -> None:
    mine = Session(str(tmp_path / "mine.zarr"), (session.store_url,), device="cpu", workspace=session.workspace)
    own = mine.store(write=True).write_whole(identify("whitening", ["other"], 1, {"dataset": "other"}), whitening())
    before = keys(session)
    assert second < before
    assert listed(mine, recipes(tmp_path, recipe), delete=True) == {own}
    assert keys(session) == before
    assert list(FeatureStore.open(mine.store_url).entries()) == []


def test_the_command_prints_keys_sizes_and_dates(
    session: Session, recipe: Recipe, second: set[Key], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".cgd").mkdir()
    shutil.copy(session.workspace.file, tmp_path / ".cgd/roots.yaml")
    arguments = ["store", "gc", "--recipes", str(recipes(tmp_path, recipe)), "--store", session.store_url]
    told = CliRunner().invoke(cli, arguments)
    assert (told.exit_code, told.stderr) == (0, "")
    *lines, last = told.stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(map(str, second))
    assert last.startswith(f"{len(second)} artifacts (")
    assert last.endswith("are kept; --delete removes them")
    found = json.loads(CliRunner().invoke(cli, [*arguments, "--json", "--delete"]).stdout)
    assert found["deleted"] is True
    assert not second & keys(session)
