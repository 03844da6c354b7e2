"""Published weights files, whole or damaged or hostile, through the command line."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from published_files import CLASSES, declared, hollow, pretended, ruled, save, state_of
from torch import Tensor

from cgd.cli import cli
from cgd.models.published import published_teachers
from cgd.models.selfcheck import by_rule
from cgd.store.feature_store import FeatureStore
from cgd.types import Key

TEACHERS = sorted(published_teachers())
R101 = {"gem": "r101_gem", "ap-gem": "r101_ap_gem", "solar": "r101_solar", "delg": "r101_delg", "dolg": "r101_dolg"}
State = dict[str, Tensor]


def cgd(*arguments: Any) -> Result:
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def accepted(*arguments: Any) -> dict[str, Any]:
    result = cgd(*arguments, "--json", "-q")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def refused(folder: Path, *arguments: Any) -> str:
    """The one sentence of a command that refuses and leaves `folder` as it was."""
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    result = cgd(*arguments, "-q")
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith((".", "?"))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    return line


def entries_of(shared: Path, teacher: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the fixtures list them; few classes, since nobody reads the classifiers."""
    if teacher not in R101:
        return declared(teacher)
    about = json.loads((shared / f"reference/teachers/{R101[teacher]}.json").read_text())
    found = {name: tuple(shape) for name, shape, _ in about["state_dict"]["entries"]}
    return {n: (CLASSES, *s[1:]) if s[:1] == (81313,) else s for n, s in found.items()}


@pytest.mark.shared
@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_published_file_is_imported_and_then_right(shared: Path, tmp_path: Path, teacher: str) -> None:
    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        unused = ("momentum_encoder", "predictor", "base_encoder.fc")
        return hollow(name, shape) if any(part in name for part in unused) else ruled(name, shape)

    file = save(
        tmp_path / "published.pt", teacher, state_of(entries_of(shared, teacher), make), legacy=teacher == "gem"
    )
    weights = tmp_path / "weights"
    result = accepted("teachers", "import", teacher, file, "--weights", weights)
    assert Path(result["written"]) == weights / f"{teacher}.safetensors"
    assert any("step counters" in d for d in result["dropped"])
    checked = accepted("teachers", "check", teacher, "--weights", weights, "--device", "cpu")
    assert checked["passed"]
    assert checked["max_relative_difference"] <= 1e-5
    assert checked["weights"] == {"file": result["written"], "by_rule": True, "single_against_double": None}
    listed = {entry["name"]: entry for entry in accepted("teachers", "ls", "--weights", weights)["teachers"]}
    assert listed[teacher]["weights"]["source"] == result["source"]
    assert [n for n, entry in listed.items() if entry["weights"]["present"]] == [teacher]


def test_weights_of_any_origin_are_compared_with_double_precision(tmp_path: Path) -> None:
    state = state_of(declared("barlow-twins"), ruled)
    state["conv1.weight"] = state["conv1.weight"] * 1.5
    accepted("teachers", "import", "barlow-twins", save(tmp_path / "p.pth", "barlow-twins", state))
    found = accepted("teachers", "check", "barlow-twins", "--weights", tmp_path, "--device", "cpu")
    assert found["passed"]
    assert not found["weights"]["by_rule"]
    assert 0 < found["weights"]["single_against_double"] < 1e-5


def test_a_wrong_network_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "batch_norm", _with_another_epsilon(torch.nn.functional.batch_norm))
    result = cgd("teachers", "check", "mocov3", "--device", "cpu")
    assert result.exit_code == 1
    assert "mocov3: WRONG on cpu" in result.stdout


def _with_another_epsilon(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def changed(*arguments: Any) -> Tensor:
        return original(*arguments[:-1], 1e-3)

    return changed


@pytest.mark.parametrize("teacher", ["gem", "ap-gem"])
def test_equal_sources_give_equal_bytes(tmp_path: Path, teacher: str) -> None:
    file = save(tmp_path / "published.pt", teacher, state_of(declared(teacher)))
    written = [accepted("teachers", "import", teacher, file, "--weights", tmp_path / f"{n}")["written"] for n in (1, 2)]
    assert Path(written[0]).read_bytes() == Path(written[1]).read_bytes()


def test_the_name_of_the_file_changes_nothing(tmp_path: Path) -> None:
    file = save(tmp_path / "resnet50.pth", "barlow-twins", state_of(declared("barlow-twins")))
    other = shutil.copy(file, tmp_path / "copy of it.pt")
    written = [
        accepted("teachers", "import", "barlow-twins", path, "--weights", tmp_path / folder)["sha256"]
        for path, folder in ((file, "a"), (other, "b"))
    ]
    assert written[0] == written[1]


def test_values_that_become_nothing_fail_the_check(tmp_path: Path) -> None:
    state = state_of(declared("barlow-twins"), ruled)
    state["bn1.running_var"] = -state["bn1.running_var"]
    accepted("teachers", "import", "barlow-twins", save(tmp_path / "p.pth", "barlow-twins", state))
    result = cgd("teachers", "check", "barlow-twins", "--weights", tmp_path, "--device", "cpu")
    assert result.exit_code == 1
    assert "barlow-twins: WRONG on cpu" in result.stdout


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"{}", (8).to_bytes(8, "little") + b"[1,2,3]\n"])
def test_a_damaged_file_is_listed_as_such(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "gem.safetensors").write_bytes(content)
    listed = {entry["name"]: entry for entry in accepted("teachers", "ls", "--weights", tmp_path)["teachers"]}
    assert "gem.safetensors" in listed["gem"]["weights"]["problem"]
    assert cgd("teachers", "ls", "--weights", tmp_path).exit_code == 0


ODD: dict[str, Callable[[], Any]] = {
    "sparse": lambda: torch.sparse_coo_tensor([[0]], [1.0], (2048,), check_invariants=True),
    "meta": lambda: torch.empty(2048, device="meta"),
    "complex": lambda: torch.zeros(2048, dtype=torch.complex64),
}


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"hello\n" * 9, bytes(range(7, 250)), b""])
def test_what_is_no_weights_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.pth").write_bytes(content)
    message = refused(tmp_path, "teachers", "import", "gem", tmp_path / "p.pth")
    assert "is no weights file" in message or "is no readable weights file" in message


def test_a_wrong_name_is_told_before_the_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.pth").write_bytes(b"nothing")
    assert "unknown teacher 'gme': did you mean gem?" in refused(
        tmp_path, "teachers", "import", "gme", tmp_path / "p.pth"
    )


@pytest.mark.parametrize("kind", ODD)
def test_tensors_of_odd_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    state: dict[Any, Any] = state_of(declared("gem"))
    state["whiten.bias"] = ODD[kind]()
    refused(tmp_path, "teachers", "import", "gem", save(tmp_path / "p.pth", "gem", state))


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    state: dict[Any, Any] = state_of(declared("gem")) | {3: torch.zeros(2)}
    message = refused(tmp_path, "teachers", "import", "gem", save(tmp_path / "p.pth", "gem", state))
    assert "3 below 'state_dict' is no tensor" in message


def test_what_was_dropped_is_said(tmp_path: Path) -> None:
    file = save(tmp_path / "delg.pyth", "delg", state_of(declared("delg")))
    text = cgd("teachers", "import", "delg", file).stdout
    for part in (
        "desc_cls (2 tensors)",
        "localmodel (8 tensors)",
        "att_cls (2 tensors)",
        "epoch, optimizer_state, cfg",
    ):
        assert part in text
    assert "cgd teachers check delg --weights" in text


# damage


def missing(state: State) -> None:
    del state[min(state)]


def extra(state: State) -> None:
    state["one.more.weight"] = torch.zeros(2)


def reshaped(state: State) -> None:
    name = next(n for n, t in state.items() if t.ndim == 4)
    state[name] = hollow(name, (*state[name].shape[:3], state[name].shape[3] + 1))


def no_tensor(state: Any) -> None:
    state[max(state)] = "text"


def halved(state: State) -> None:
    name = max(n for n, t in state.items() if t.ndim == 2 or t.ndim == 4)
    state[name] = torch.zeros((), dtype=torch.float16).expand(state[name].shape)


def infinite(state: State) -> None:
    name = next(n for n in state if n.endswith("bn1.bias") or n.endswith("bn.bias") or n.endswith("a_bn.bias"))
    state[name] = torch.full(tuple(state[name].shape), float("inf"))


HARMS: dict[Callable[[Any], None], str] = {
    missing: "1 missing (first: ",
    extra: "1 unknown (first: one.more.weight)",
    reshaped: "1 of another shape (first: ",
    halved: "1 of another type (first: ",
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda h: h.__name__)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_file_of_other_tensors_is_refused(tmp_path: Path, teacher: str, harm: Callable[[Any], None]) -> None:
    state = state_of(declared(teacher))
    harm(state)
    file = save(tmp_path / "published.pt", teacher, state)
    message = refused(tmp_path, "teachers", "import", teacher, file, "--weights", tmp_path)
    assert f"published.pt is not {teacher} as published" in message
    assert HARMS[harm] in message


@pytest.mark.parametrize("teacher", TEACHERS)
def test_any_one_tensor_missing_is_refused(tmp_path: Path, teacher: str) -> None:
    """Of those that the network does not use too: the file is not the published one."""
    entries = declared(teacher)
    for name in list(entries)[:: max(1, len(entries) // 6)]:
        state = state_of({n: s for n, s in entries.items() if n != name})
        file = save(tmp_path / "published.pt", teacher, state)
        assert f"1 missing (first: {name})" in refused(tmp_path, "teachers", "import", teacher, file)


def test_a_value_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    state = state_of(declared("gem"))
    state["whiten.bias"] = torch.full((2048,), float("nan"))
    message = refused(tmp_path, "teachers", "import", "gem", save(tmp_path / "p.pth", "gem", state))
    assert "holds values that are not finite" in message


@pytest.mark.parametrize("teacher", ["gem", "delg"])
def test_something_that_is_no_tensor_among_the_tensors_is_refused(tmp_path: Path, teacher: str) -> None:
    state = state_of(declared(teacher))
    no_tensor(state)
    message = refused(tmp_path, "teachers", "import", teacher, save(tmp_path / "p.pth", teacher, state))
    assert "is no" in message


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_file_cut_short_is_refused(tmp_path: Path, teacher: str, legacy: bool) -> None:
    whole = save(tmp_path / "whole.pt", teacher, state_of(declared(teacher)), legacy=legacy).read_bytes()
    file = tmp_path / "published.pt"
    file.write_bytes(whole[: len(whole) * 9 // 10])
    message = refused(tmp_path, "teachers", "import", teacher, file)
    assert "published.pt is no readable weights file, perhaps cut short" in message


class Attack:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("teacher", TEACHERS)
def test_pickled_code_is_refused_and_never_runs(tmp_path: Path, teacher: str, legacy: bool) -> None:
    marker = tmp_path / "ran"
    file = save(tmp_path / "published.pt", teacher, state_of(declared(teacher)), legacy=legacy, extra=Attack(marker))
    message = refused(tmp_path, "teachers", "import", teacher, file)
    assert "is refused: it holds pickled code or objects" in message
    assert not marker.exists()
    with pretended("sklearn.decomposition.pca", "PCA"):
        torch.load(file, weights_only=False)  # the attack itself works, where it is let
    assert marker.exists()


def test_code_inside_a_pca_is_refused_too(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    file = save(tmp_path / "p.pt", "ap-gem", state_of(declared("ap-gem")), fitted={"mean_": Attack(marker)})
    assert "pickled code" in refused(tmp_path, "teachers", "import", "ap-gem", file)
    assert not marker.exists()


# files of something else


@pytest.mark.parametrize(
    ("teacher", "beside", "told"),
    [
        ("gem", {"meta": {"architecture": "vgg16"}}, "its meta says architecture = 'vgg16'"),
        ("gem", {"meta": {"pooling": "mac"}}, "its meta says pooling = 'mac'"),
        ("gem", {"meta": {"mean": [0.5, "x", 0.5]}}, "its mean is not three numbers"),
        ("gem", {"meta": 3}, "it has no 'meta'"),
        ("solar", {"meta": {"soa_layers": "5"}}, "soa_layers = '5'"),
        ("ap-gem", {"model_options": None}, "it has no 'model_options'"),
        ("ap-gem", {"model_options": {"arch": "resnet50_rmac"}}, "arch = 'resnet50_rmac'"),
        ("ap-gem", {"model_options": {"without_fc": True}}, "without_fc = True"),
        ("ap-gem", {"pca": {"Landmarks_clean": 3}}, "its PCA Landmarks_clean has no array mean_"),
    ],
)
def test_a_file_of_another_network_is_refused(tmp_path: Path, teacher: str, beside: dict[str, Any], told: str) -> None:
    file = save(tmp_path / "p.pt", teacher, state_of(declared(teacher)), **beside)
    assert told in refused(tmp_path, "teachers", "import", teacher, file)


def test_another_teachers_file_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "p.pyth", "delg", state_of(declared("delg")))
    assert "is not dolg as published" in refused(tmp_path, "teachers", "import", "dolg", file)
    assert "it has no 'meta'" in refused(tmp_path, "teachers", "import", "gem", file)


def test_the_archive_around_a_file_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("Resnet101-AP-GeM-LM18.pt", b"1")
    message = refused(tmp_path, "teachers", "import", "ap-gem", tmp_path / "p.zip")
    assert "is an archive that holds Resnet101-AP-GeM-LM18.pt: unpack it" in message


def test_a_name_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "p.pth", "gem", state_of(declared("gem")))
    assert "did you mean gem" in cgd("teachers", "import", "gme", file, "-q").stderr
    assert "all forms share one weights file" in refused(tmp_path, "teachers", "import", "gem?form=whiten-mtd", file)
    assert "timm has no published file" in refused(tmp_path, "teachers", "import", "timm", file)


def test_other_weights_under_the_name_are_never_overwritten(tmp_path: Path) -> None:
    state = state_of(declared("gem"))
    accepted("teachers", "import", "gem", save(tmp_path / "one.pth", "gem", state))
    state["whiten.bias"] = torch.ones(2048)
    other = save(tmp_path / "two.pth", "gem", state)
    assert "is there already and holds other weights" in refused(tmp_path, "teachers", "import", "gem", other)


def test_a_published_file_used_as_it_is_names_the_command(tmp_path: Path) -> None:
    save(tmp_path / "p.pth", "gem", state_of(declared("gem")))
    arguments = ("extract-teachers", "--dataset", "synthetic:landmarks?labels=2&images=2", "--weights", tmp_path)
    result = cgd(*arguments, "--store", tmp_path / "s", "--teachers", "gem?weights=p.pth", "--device", "cpu", "-q")
    assert result.exit_code == 1
    assert "p.pth was not made by `cgd teachers import gem FILE`" in result.stderr


# other layouts


def test_whiten_mtds_copy_of_gem_serves_its_form_only(tmp_path: Path) -> None:
    from cgd.models.load import teacher

    state = state_of(declared("gem", layout=1))
    assert "pool.p" not in state
    assert "fc.weight" in state
    file = save(tmp_path / "copy.pt", "gem", state, meta={"outputdim": 2048})
    accepted("teachers", "import", "gem", file)
    assert teacher("gem?form=whiten-mtd", tmp_path).build().embed_dim == 2048
    with pytest.raises(ValueError, match=r"has no pooling exponent: use form=whiten-mtd"):
        teacher("gem", tmp_path).build()


def test_the_full_checkpoint_of_barlow_twins_is_read_too(tmp_path: Path) -> None:
    state = state_of(declared("barlow-twins", layout=1))
    torch.save({"epoch": 1000, "model": state, "optimizer": {}}, tmp_path / "checkpoint.pth")
    result = accepted("teachers", "import", "barlow-twins", tmp_path / "checkpoint.pth")
    assert result["tensors"] == 265
    assert {"module.projector (11 tensors)", "module.bn (2 tensors)"} <= set(result["dropped"])


@pytest.mark.parametrize("group", ["desc_cls.", "att_cls."])
def test_classifiers_may_be_left_out(tmp_path: Path, group: str) -> None:
    state = state_of({n: s for n, s in declared("delg").items() if not n.startswith(group)})
    accepted("teachers", "import", "delg", save(tmp_path / "p.pyth", "delg", state))


def test_a_file_without_any_step_counter_is_read(tmp_path: Path) -> None:
    state = state_of({n: s for n, s in declared("gem").items() if not n.endswith("num_batches_tracked")})
    accepted("teachers", "import", "gem", save(tmp_path / "p.pth", "gem", state))


# whitening layers


def layer(dim: int, make: Callable[[str, tuple[int, ...]], Tensor] = ruled) -> dict[str, Tensor]:
    """A whitening of Whiten-MTD by the fixtures' rule; eigenvalues are positive here."""
    return {
        "dim1": torch.tensor(dim),
        "dim2": torch.tensor(512),
        "whit": torch.tensor(0.5),
        "d": make("d", (dim,)).abs(),
        "v": hollow("v", (dim, dim)),
        "n_0": torch.tensor(0),
        "mean": make("mean", (1, dim)),
        "dvt": make("dvt", (512, dim)),
    }


@pytest.mark.parametrize(("teacher", "dim"), [("gem", 2048), ("delg", 512), ("dolg", 1024)])
def test_a_whitening_of_whiten_mtd_is_kept_for_both_kinds_of_view(tmp_path: Path, teacher: str, dim: int) -> None:
    accepted("teachers", "import", teacher, save(tmp_path / "p.pt", teacher, state_of(declared(teacher))))
    torch.save(layer(dim), tmp_path / "pca_512d.pt")
    store = tmp_path / "s.zarr"
    result = accepted("teachers", "import", teacher, tmp_path / "pca_512d.pt", "--store", store)
    assert set(result["whitening"]) == {"fixed", "crop"}
    for kind, key in result["whitening"].items():
        found = FeatureStore.open(store).get(Key.parse(key))
        assert found.settings["view_kind"] == kind
        assert found.settings["encoder"]["options"] == {"form": "whiten-mtd"}
        assert found.attributes["source"] == result["source"]
        assert (found.read("projection") == by_rule("dvt", (512, dim))).all()
        assert (found.read("mean") == by_rule("mean", (1, dim))[0]).all()
        values = found.read("eigenvalues")
        assert (values[:-1] >= values[1:]).all()
        assert values.min() >= 1e-5 * values.max()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dvt": torch.zeros(512, 4)}, "dvt has the shape"),
        ({"mean": torch.zeros(512)}, "mean has the shape"),
        ({"d": torch.full((512,), float("nan"))}, "d holds values that are not finite"),
        ({"whit": 0.5}, "whit is no plain tensor"),
        ({"more": torch.zeros(1)}, "unknown more"),
        ({"v": None}, "v is no plain tensor"),
        ({"dvt": torch.zeros(512, 512, dtype=torch.complex64)}, "dvt has the type torch.complex64"),
        ({"mean": torch.zeros(1, 512, dtype=torch.int64)}, "mean has the type torch.int64"),
        ({"dim2": torch.tensor(600)}, "dim1, dim2, n_0 and whit are [512, 600,"),
        ({"whit": torch.tensor(0.3, dtype=torch.float32)}, "whit are [512, 512, 0, 0.3"),
        ({"d": torch.zeros(512)}, "its largest eigenvalue is not positive"),
    ],
)
def test_a_damaged_whitening_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    torch.save(layer(512) | change, tmp_path / "pca.pt")
    store = ("--store", tmp_path / "s.zarr")
    assert told in refused(tmp_path, "teachers", "import", "delg", tmp_path / "pca.pt", *store)


def test_a_whitening_needs_its_teacher_and_its_width(tmp_path: Path) -> None:
    torch.save(layer(512), tmp_path / "pca.pt")
    store = ("--store", tmp_path / "s.zarr")
    message = refused(tmp_path, "teachers", "import", "delg", tmp_path / "pca.pt", *store)
    assert "delg.safetensors is not in" in message
    accepted("teachers", "import", "gem", save(tmp_path / "p.pth", "gem", state_of(declared("gem"))))
    message = refused(tmp_path, "teachers", "import", "gem", tmp_path / "pca.pt", *store)
    assert "whitens 512 values, 'gem?form=whiten-mtd' gives 2048" in message
