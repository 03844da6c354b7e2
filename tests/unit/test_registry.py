"""Plug-ins: names with options, looked up by file name and bound to typed parameters."""

from typing import Any, Literal

import pytest

from cgd import registry
from cgd.errors import InputError
from cgd.registry import Spec, bind, convert, find, names, plugin, slug


@pytest.mark.parametrize(
    ("text", "name", "argument", "options"),
    [
        ("gem", "gem", None, {}),
        ("timm:resnet50", "timm", "resnet50", {}),
        ("gem?form=whiten-mtd", "gem", None, {"form": "whiten-mtd"}),
        ("timm:resnet50.a1?weights=a/b.pth&pool=gem", "timm", "resnet50.a1", {"weights": "a/b.pth", "pool": "gem"}),
        ("gem?", "gem", None, {}),
        ("gem?a=", "gem", None, {"a": ""}),
        ("gem?a=b=c", "gem", None, {"a": "b=c"}),
        ("timm:", "timm", "", {}),
    ],
)
def test_a_name_is_taken_apart(text: str, name: str, argument: str | None, options: dict[str, str]) -> None:
    spec = Spec(name, argument, options)
    assert Spec.parse(text) == spec
    assert Spec.parse(spec.typed) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gem?form", "written name=value, got 'form'"),
        ("gem?=1", "written name=value"),
        ("gem?a=1&a=2", "option 'a' twice"),
        ("?a=1", "no name in front"),
        ("", "no name in front"),
    ],
)
def test_a_name_that_cannot_be_taken_apart_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Spec.parse(text)


def test_a_label_is_a_slug_of_name_argument_and_sorted_options() -> None:
    assert Spec.parse("timm:ResNet_50?pool=avg&dim=8").label() == "timm-resnet-50-dim-8-pool-avg"
    assert Spec.parse("gem?form=faithful").label() == "gem-form-faithful"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Été à Paris", "t-paris"),
        ("a__b", "a-b"),
        ("..x--", "x"),
        ("v1.0", "v1.0"),
        ("", "unnamed"),
        ("///", "unnamed"),
    ],
)
def test_a_slug_has_no_other_characters_than_those_of_keys(text: str, expected: str) -> None:
    assert slug(text) == expected


# typed options


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("3", int, 3),
        ("1e-3", float, 0.001),
        ("x", str, "x"),
        ("True", bool, True),
        ("false", bool, False),
        ("avg", Literal["gem", "avg"], "avg"),
        ("none", Literal["same"] | None, None),
        ("same", Literal["same"] | None, "same"),
        ("0.5,1", tuple[float, ...], (0.5, 1.0)),
        ("1", tuple[float, ...], (1.0,)),
    ],
)
def test_text_becomes_a_value_of_the_declared_type(value: str, hint: Any, expected: Any) -> None:
    converted = convert(value, hint, "here")
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("3.5", int, "here should be int, got '3.5'"),
        ("many", float, "here should be float, got 'many'"),
        ("yes", bool, "here is true or false, got 'yes'"),
        ("max", Literal["gem", "avg"], "here is one of gem, avg, got 'max'"),
        ("1,x", tuple[float, ...], "here should be float, got 'x'"),
    ],
)
def test_text_of_another_type_is_refused_with_what_was_expected(value: str, hint: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(value, hint, "here")


def build(argument: str | None, *, width: float = 1.0, pool: Literal["gem", "avg"] = "gem", flat: bool = False) -> None:
    """A made-up plug-in."""


def test_options_are_bound_to_the_keyword_parameters_and_defaults_left_out() -> None:
    assert bind(build, {"width": "0.5", "flat": "true"}, "x") == {"width": 0.5, "flat": True}
    assert bind(build, {"width": "1", "pool": "gem", "flat": "false"}, "x") == {}


def test_an_unknown_option_names_the_text_and_offers_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'x\?widht=1': unknown option 'widht': did you mean width\?"):
        bind(build, {"widht": "1"}, "x?widht=1")


def test_a_positional_parameter_is_no_option() -> None:
    with pytest.raises(InputError, match="unknown option 'argument'"):
        bind(build, {"argument": "1"}, "x?argument=1")


def test_an_option_of_a_wrong_type_names_text_and_option() -> None:
    with pytest.raises(InputError, match=r"'x\?width=a': option 'width' should be float"):
        bind(build, {"width": "a"}, "x?width=a")


# looking up


def test_names_are_file_names_with_dashes_and_without_private_files() -> None:
    assert "max-min" in names("cgd.fusion")
    assert "whiten-mtd" in names("cgd.methods")
    students = names("cgd.models.students")
    assert "mobilenet-v1" in students
    assert not [n for n in students if n.startswith(("_", "-")) or "heads" in n]
    assert students == sorted(students)


@pytest.mark.parametrize("package", ["cgd.fusion", "cgd.methods", "cgd.models.teachers", "cgd.models.students"])
def test_every_file_of_a_plug_in_package_declares_one_of_its_own_name(package: str) -> None:
    for name in names(package):
        found = find(package, name)
        assert found.__module__ == f"{package}.{name.replace('-', '_')}"
        assert found.__doc__


def test_an_unknown_name_offers_the_nearest_and_names_the_kind() -> None:
    with pytest.raises(InputError, match=r"unknown fusion 'maxmin': did you mean max-min"):
        find("cgd.fusion", "maxmin")
    with pytest.raises(InputError, match=r"unknown teacher 'gme': did you mean gem"):
        find("cgd.models.teachers", "gme")


def test_a_name_unlike_all_others_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown method 'qqqq': known: .*whiten-mtd"):
        find("cgd.methods", "qqqq")


def test_a_private_file_cannot_be_asked_for() -> None:
    for name in ("_heads", "-heads", "--init--"):
        with pytest.raises(InputError, match="unknown student"):
            find("cgd.models.students", name)


def test_a_second_plug_in_in_one_file_is_a_programming_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plugins", {})

    def first() -> None: ...

    def second() -> None: ...

    plugin(first)
    assert plugin(first) is first  # imported again
    with pytest.raises(RuntimeError, match="two plug-ins"):
        plugin(second)
