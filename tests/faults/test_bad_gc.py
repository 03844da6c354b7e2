"""What can be wrong when garbage is collected, through the command line: one sentence, and nothing is removed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import TEACHER, accepted, cgd, refused, sealed

RECIPE = f"data: {{train: lm@train}}\nextract: {{teachers: ['{TEACHER}']}}\n"
COLLECT = ("store", "gc", "--recipes", "recipes", "--delete")

pytestmark = pytest.mark.usefixtures("place")  # afterwards all that was stored is whole


@pytest.fixture
def recipes(place: Path) -> Path:
    (place / "recipes").mkdir()
    return place / "recipes"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data: {train: [", "0.yaml is not YAML"),
        ("data: {trian: lm@train}", "unknown key 'trian': did you mean train?"),
        ("services: {}", "unknown section 'services'"),
        ("{}", "the recipe names no training images"),
        (RECIPE.replace("lm@", "lmm@"), "unknown data set 'lmm': did you mean lm?"),
        (RECIPE.replace("@train", "@trian"), "unknown split of"),
        (RECIPE + "rows: {a: {distill: {fusion: maxmin}}}\n", "unknown fusion 'maxmin'"),
        (RECIPE.replace("weights=random", "weights=none.safetensors"), "none.safetensors"),
        ("base: nowhere.yaml\n", "cannot read the recipe"),
    ],
)
def test_a_recipe_of_which_nothing_is_known(recipes: Path, text: str, told: str) -> None:
    (recipes / "0.yaml").write_text(text)
    (recipes / "1.yaml").write_text(RECIPE)  # a good one beside it does not help
    message = refused(*COLLECT)
    assert told in message
    assert "0.yaml" in message or "nowhere.yaml" in message


def test_a_folder_without_recipes_is_no_leave_to_remove_everything(recipes: Path) -> None:
    assert "recipes holds no recipe (*.yaml), so everything would be garbage" in refused(*COLLECT)
    (recipes / "notes.txt").write_text(RECIPE)
    assert "holds no recipe" in refused(*COLLECT)
    assert cgd("store", "gc", "--delete").exit_code == 2
    assert cgd("store", "gc", "--recipes", "nowhere", "--delete").exit_code == 2


def test_a_data_set_whose_images_are_gone(recipes: Path) -> None:
    (recipes / "0.yaml").write_text(RECIPE)
    moved = Path(".cgd/roots.yaml")
    lines = [
        line if "spec:" not in line else "  spec: manifest:/nowhere/manifest.csv"
        for line in moved.read_text().splitlines()
    ]
    moved.write_text("\n".join(lines))
    message = refused(*COLLECT)
    assert "0.yaml" in message
    assert "/nowhere/manifest.csv" in message


def test_a_recipe_that_was_never_run_keeps_all_of_its_data_set(place: Path, recipes: Path) -> None:
    (recipes / "0.yaml").write_text(RECIPE.replace(TEACHER, f"{TEACHER}&mean=0,0,0"))
    before = sealed(place / "features.zarr")
    found = accepted(*COLLECT)
    assert found["garbage"] == []
    assert found["recipes"][0]["lacks"].startswith("embeddings/lm-train.")
    assert sealed(place / "features.zarr") == before


def damaged_seal(store: Path) -> str:
    seal = next((store / ".cgd/seals/whitening").iterdir())
    seal.write_bytes(seal.read_bytes()[:-30])
    return "damaged"


def damaged_metadata(store: Path) -> str:
    metadata = next(path for path in (store / "whitened").iterdir() if path.is_dir()) / "zarr.json"
    metadata.write_bytes(metadata.read_bytes().replace(b'"view"', b'"veiw"'))
    return "zarr.json"


def no_store(store: Path) -> str:
    shutil.rmtree(store)
    return "there is no feature store"


@pytest.mark.parametrize("harm", [damaged_seal, damaged_metadata, no_store])
def test_a_store_that_is_not_whole(place: Path, recipes: Path, harm: Callable[[Path], str]) -> None:
    (recipes / "0.yaml").write_text(RECIPE)
    store = place / "features.zarr"
    shutil.copytree(store, place / "kept")
    told = harm(store)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert told in refused(*COLLECT)
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    shutil.rmtree(store, ignore_errors=True)
    shutil.move(place / "kept", store)
