"""Teachers that are not in the package: a function in the working directory, an entry point of a distribution."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from cgd import registry
from cgd.errors import InputError
from cgd.models.load import teacher
from cgd.pipeline import steps
from cgd.pipeline.recipe import change
from cgd.pipeline.steps import Session

CODE = '''
from torch import nn

from cgd.models.encoder import Encoder
from cgd.types import InputSpec


def mean_colour(argument, checkpoint, *, weights="random", power: float = 1.0):
    """Nothing but the mean colour."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    return Encoder("mean-colour", pool, InputSpec(size=32, resize="square"), 4)


def no_weights(argument, checkpoint):
    return None


def no_encoder(argument, checkpoint, *, weights="random"):
    return 3


NUMBER = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `my_teachers` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_teachers", raising=False)
    (tmp_path / "my_teachers.py").write_text(CODE)
    return tmp_path / "my_teachers.py"


@pytest.mark.usefixtures("module")
def test_a_function_of_the_users_is_a_teacher() -> None:
    path = list(sys.path)
    source = teacher("my_teachers:mean_colour?power=2", None)
    assert sys.path == path
    encoder = source.build()
    assert encoder(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    assert source.label == "my-teachers-mean-colour-power-2.0"
    assert source.identity["options"] == {"power": 2.0}
    assert source.identity["origin"] == {
        "code": registry._named_function("my_teachers", "mean_colour", "").origin["code"]
    }


def test_other_code_is_another_teacher(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = teacher("my_teachers:mean_colour", None).identity
    assert teacher("my_teachers:mean_colour", None).identity == before
    module.write_text(CODE + "\n# changed\n")
    monkeypatch.delitem(sys.modules, "my_teachers")
    assert teacher("my_teachers:mean_colour", None).identity != before


@pytest.mark.usefixtures("module")
def test_it_is_extracted_and_found_again(session: Session, tiny_recipe: Any, drawn: Path) -> None:
    from cgd.stages import select

    images = session.workspace.images(f"manifest:{drawn / 'manifest.csv'}", "lm")
    config = change(tiny_recipe, "extract", teachers=("my_teachers:mean_colour",), views=0).extract
    report = steps.extract_teachers(session, images, config)
    found = select.teachers_of(session.store(), "lm", None, ["my_teachers:mean_colour"])
    assert found == {"my-teachers-mean-colour": report.encoders["my-teachers-mean-colour"].keys}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("my_teachers:nothing", "the module my_teachers has no function 'nothing'"),
        ("my_teachers:NUMBER", "has no function 'NUMBER'"),
        ("my_teachers:no_weights", "has a keyword parameter 'weights'"),
        ("my_teacher:mean_colour", "no module 'my_teacher', neither in .* nor installed"),
        ("my_teachers", "unknown teacher 'my_teachers'"),
        ("my_teachers:mean_colour?pwoer=2", "did you mean power"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_is_no_teacher_is_one_sentence(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        teacher(text, None)


def test_an_option_of_the_functions_own_wins_over_the_inputs(module: Path) -> None:
    module.write_text(CODE.replace("power: float = 1.0", "size: int = 7"))
    assert teacher("my_teachers:mean_colour?size=9", None).identity["options"] == {"size": 9}


def test_a_function_that_fails_is_one_sentence(module: Path) -> None:
    module.write_text(CODE.replace("    pool = nn", '    raise KeyError("licence")\n    pool = nn'))
    with pytest.raises(InputError, match=r"failed \(KeyError: 'licence'\)"):
        teacher("my_teachers:mean_colour", None).build()


@pytest.mark.usefixtures("module")
def test_a_function_that_gives_something_else_is_refused() -> None:
    with pytest.raises(InputError, match=r"gave a int, not a cgd\.models\.encoder\.Encoder"):
        teacher("my_teachers:no_encoder", None).build()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import not_there_at_all\n", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("def mean_colour(:\n", "SyntaxError"),
        ("import sys\nsys.exit(3)\n", "SystemExit"),
        ("raise RuntimeError('no licence')\n", "RuntimeError: no licence"),
    ],
)
def test_a_module_that_does_not_load_is_one_sentence(module: Path, text: str, names: str) -> None:
    module.write_text(text)
    with pytest.raises(InputError, match="the module my_teachers failed") as caught:
        teacher("my_teachers:mean_colour", None)
    assert names in str(caught.value)
    assert "--debug" in str(caught.value)


class _Distribution:
    name, version = "team-teachers", "1.2"


@pytest.mark.usefixtures("module")
def test_an_entry_point_is_a_teacher_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = EntryPoint("colour", "my_teachers:mean_colour", "cgd.teachers")
    object.__setattr__(entry, "dist", _Distribution())
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "cgd.teachers" else [])
    monkeypatch.syspath_prepend(tmp_path)
    source = teacher("colour?power=2", None)
    assert source.build().embed_dim == 4
    assert source.identity["origin"] == {"distribution": "team-teachers 1.2"}
    assert source.label == "colour-power-2.0"
    with pytest.raises(InputError, match="unknown teacher 'colur': did you mean colour"):
        teacher("colur", None)
    from cgd.pipeline.teachers import list_teachers

    assert "colour" in list_teachers(None)["others"]
