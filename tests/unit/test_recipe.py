"""Recipes: strict reading, overrides, and YAML there and back."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from cgd.config import DistillConfig, Recipe
from cgd.errors import InputError
from cgd.pipeline.recipe import build_recipe, change, override, read_recipe, row, to_plain, to_yaml


def test_an_empty_recipe_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("# nothing yet\n")
    assert read_recipe(tmp_path / "r.yaml") == build_recipe({}, "x") == Recipe()


def test_values_reach_their_fields_with_their_types() -> None:
    recipe = build_recipe(
        {
            "data": {"train": "a@train", "benchmarks": ["b", "c"]},
            "extract": {"views": 4, "crop_area": [0.5, 1]},
            "whiten-mtd": {"symmetric": False},
        },
        "x",
    )
    assert recipe.data.benchmarks == ("b", "c")
    assert recipe.extract.views == 4
    assert recipe.extract.crop_area == (0.5, 1.0)
    assert [type(v) for v in recipe.extract.crop_area] == [float, float]
    assert recipe.whiten_mtd.symmetric is False
    assert recipe.distill == DistillConfig()


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("1E-03", 0.001), ("2", 2.0), (".5", 0.5), ("1.5e2", 150)]
)
def test_numbers_as_people_write_them_are_floats(tmp_path: Path, text: str, value: float) -> None:
    (tmp_path / "r.yaml").write_text(f"distill:\n  learning_rate: {text}\n")
    read = read_recipe(tmp_path / "r.yaml").distill.learning_rate
    assert read == value
    assert type(read) is float
    assert override(Recipe(), [f"distill.learning_rate={text}"]).distill.learning_rate == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"distil": {}}, r"^r: unknown section 'distil': did you mean distill\?"),
        ({"whiten_mtd": {}}, r"unknown section 'whiten_mtd': did you mean whiten-mtd"),
        ({"distill": {"epoch": 5}}, r"^r: distill: unknown key 'epoch': did you mean epochs\?"),
        ({"distill": {"batch_norm": "freez"}}, r"^r: distill.batch_norm: unknown value 'freez': did you mean freeze"),
        ({"evaluate": {"queries": "crop"}}, r"evaluate.queries: unknown value 'crop': did you mean cropped"),
        ({"extract": {"precision": "int8"}}, r"extract.precision: unknown value 'int8'"),
        ({1: {}}, r"unknown section '1'"),
        ({"distill": {None: 1}}, r"distill: unknown key 'None'"),
    ],
)
def test_an_unknown_section_key_or_value_offers_the_nearest_spelling(content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_recipe(content, "r")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"distill": {"epochs": "many"}}, r"^r: distill.epochs: expected int, got 'many'\.$"),
        ({"distill": {"epochs": 2.0}}, r"distill.epochs: expected int, got 2.0"),
        ({"distill": {"epochs": True}}, r"distill.epochs: expected int, got True"),
        ({"distill": {"epochs": None}}, r"distill.epochs: expected int, got None"),
        ({"distill": {"learning_rate": "fast"}}, r"distill.learning_rate: expected float, got 'fast'"),
        ({"distill": {"learning_rate": True}}, r"distill.learning_rate: expected float, got True"),
        ({"distill": {"learning_rate": [1.0]}}, r"distill.learning_rate: expected float, got \[1.0\]"),
        ({"distill": {"student": 18}}, r"distill.student: expected str, got 18"),
        ({"whiten-mtd": {"symmetric": "yes"}}, r"whiten-mtd.symmetric: expected bool, got 'yes'"),
        ({"whiten-mtd": {"symmetric": 1}}, r"whiten-mtd.symmetric: expected bool, got 1"),
        ({"extract": {"teachers": "gem"}}, r"extract.teachers: expected a list, got 'gem'"),
        ({"extract": {"teachers": [3]}}, r"extract.teachers: expected str, got 3"),
        ({"extract": {"crop_area": [1.0]}}, r"extract.crop_area: expected a list of 2 values, got \[1.0\]"),
        ({"distill": 3}, r"^r: distill: expected keys and values, got 3"),
        ({"distill": None}, r"distill: expected keys and values, got None"),
        ([], r"^r: the file: expected keys and values"),
        ("text", r"the file: expected keys and values"),
    ],
)
def test_a_wrong_type_names_the_key_and_what_was_expected(content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_recipe(content, "r")


def test_a_file_that_is_not_yaml_or_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("distill: [1,\nepochs: }\n")
    (tmp_path / "binary.yaml").write_bytes(b"distill: \xff\xfe")
    (tmp_path / "code.yaml").write_text("distill: !!python/object/apply:os.getcwd []\n")
    for name in ("bad", "binary", "code"):
        with pytest.raises(InputError, match=f"{name}.yaml is not YAML") as caught:
            read_recipe(tmp_path / f"{name}.yaml")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot read the recipe"):
        read_recipe(tmp_path / "absent.yaml")


# overrides


@pytest.mark.parametrize(
    ("setting", "section", "key", "value"),
    [
        ("distill.epochs=5", "distill", "epochs", 5),
        ("distill.student=timm:resnet10t?dim=8&size=64", "distill", "student", "timm:resnet10t?dim=8&size=64"),
        ("distill.init=", "distill", "init", ""),
        ("whiten-mtd.symmetric=false", "whiten_mtd", "symmetric", False),
        ("extract.teachers=[gem, solar]", "extract", "teachers", ("gem", "solar")),
        ("extract.crop_area=[0.2, 0.5]", "extract", "crop_area", (0.2, 0.5)),
        ("evaluate.distractors=[]", "evaluate", "distractors", ()),
    ],
)
def test_an_override_reaches_one_key_and_no_other(setting: str, section: str, key: str, value: Any) -> None:
    changed = override(Recipe(), [setting])
    expected = dataclasses.replace(getattr(Recipe(), section), **{key: value})
    assert changed == dataclasses.replace(Recipe(), **{section: expected})


def test_the_last_of_several_overrides_counts() -> None:
    assert override(Recipe(), ["distill.epochs=5", "whiten.dim=8", "distill.epochs=7"]).distill.epochs == 7


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("distill.epochs", r"--set distill.epochs: expected section.key=value"),
        ("epochs=5", r"expected section.key=value"),
        ("=5", r"expected section.key=value"),
        ("distil.epochs=5", r"unknown section 'distil': did you mean distill\?"),
        ("distill.epoch=5", r"unknown key 'epoch': did you mean epochs\?"),
        ("distill.epochs=five", r"distill.epochs: expected int, got 'five'"),
        ("distill.epochs=[1", r"'\[1' is not a YAML value"),
        ("distill.batch_norm=thaw", r"unknown value 'thaw'"),
        ("distill.student.dim=3", r"unknown key 'student.dim'"),
    ],
)
def test_an_override_that_reaches_nothing_is_refused(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(Recipe(), [setting])


def test_change_leaves_out_what_is_none() -> None:
    changed = change(Recipe(), "distill", epochs=3, student=None)
    assert changed.distill == dataclasses.replace(DistillConfig(), epochs=3)
    assert Recipe().distill == DistillConfig()


# there and back


def test_a_recipe_survives_yaml(tmp_path: Path, tiny_recipe: Recipe) -> None:
    odd = change(Recipe(), "distill", learning_rate=1e-30, init="a: b #c", student="yes")
    for recipe in (Recipe(), tiny_recipe, odd):
        (tmp_path / "r.yaml").write_text(to_yaml(recipe))
        assert read_recipe(tmp_path / "r.yaml") == recipe


def test_a_written_recipe_holds_every_section_and_key() -> None:
    content = yaml.safe_load(to_yaml(Recipe()))
    assert content == to_plain(Recipe())
    spelled = {section.replace("-", "_"): list(keys) for section, keys in content.items()}
    assert spelled == {
        f.name: [g.name for g in dataclasses.fields(getattr(Recipe(), f.name))]
        for f in dataclasses.fields(Recipe)
        if f.name != "rows"
    }
    assert "whiten-mtd" in content


def test_rows_change_what_they_name_and_nothing_else() -> None:
    recipe = build_recipe(
        {"distill": {"epochs": 3}, "rows": {"a": None, "b": {"distill": {"fusion": "mean"}, "whiten": {"dim": 8}}}}, "r"
    )
    assert list(recipe.rows) == ["a", "b"]
    plain = dataclasses.replace(recipe, rows={})
    assert row(recipe, "a") == plain
    assert row(recipe, "b") == change(change(plain, "distill", fusion="mean"), "whiten", dim=8)
    assert build_recipe(yaml.safe_load(to_yaml(recipe)), "again") == recipe
    assert row(override(recipe, ["distill.epochs=9"]), "b").distill.epochs == 9


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": {"distill": {"epoch": 1}}}, r"^r: rows: a: distill: unknown key 'epoch': did you mean epochs"),
        ({"a": {"extract": {"views": 1}}}, r"^r: rows: a: 'extract' is one for all rows"),
        ({"a": {"data": {}}}, r"rows: a: 'data' is one for all rows"),
        ({"a": {"rows": {}}}, r"rows: a: 'rows' is one for all rows"),
        ({"a": 3}, r"rows: a: expected sections, got 3"),
        ({"a": {"distill": {"seed": 1}}}, r"rows: a: seeds are the same for all rows: give --seeds"),
        ({"max+min": {}, "max min": {}}, r"'max\+min' and 'max min' would share the folder max-min: rename one"),
        ({"a": {"distill": 3}}, r"rows: a: distill: expected keys and values, got 3"),
        ({3: {}}, r"r: rows: expected names"),
        (["a"], r"r: rows: expected names"),
    ],
)
def test_a_wrong_row_is_told_before_anything_runs(rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_recipe({"rows": rows}, "r")


def test_a_recipe_begins_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("distill: {epochs: 3, fusion: mean}\nwhiten: {dim: 8}\n")
    (tmp_path / "r.yaml").write_text("base: base.yaml\ndistill: {epochs: 4}\n")
    read = read_recipe(tmp_path / "r.yaml")
    assert (read.distill.epochs, read.distill.fusion, read.whiten.dim) == (4, "mean", 8)
    (tmp_path / "r.yaml").write_text("base: absent.yaml\n")
    with pytest.raises(InputError, match=r"cannot read the recipe .*absent\.yaml"):
        read_recipe(tmp_path / "r.yaml")
    (tmp_path / "base.yaml").write_text("base: other.yaml")
    (tmp_path / "r.yaml").write_text("base: base.yaml\n")
    with pytest.raises(InputError, match=r"begins from .*base\.yaml, which has a base of its own"):
        read_recipe(tmp_path / "r.yaml")
    (tmp_path / "base.yaml").write_text("[]")
    (tmp_path / "r.yaml").write_text("base: base.yaml\n")
    assert read_recipe(tmp_path / "r.yaml") == Recipe()
    (tmp_path / "base.yaml").write_text("text")
    with pytest.raises(InputError, match="the file: expected keys and values"):
        read_recipe(tmp_path / "r.yaml")


def test_the_shipped_recipes_can_be_read() -> None:
    recipes = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert read_recipe(path).data.train
