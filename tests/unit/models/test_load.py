"""Teachers and students from their names: options, weights, identity, and untrained networks that never vary."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cgd import registry
from cgd.errors import InputError, WeightsError
from cgd.models.checkpoints import WeightsFile, file_digest
from cgd.models.encoder import Encoder
from cgd.models.load import STUDENTS, TEACHERS, pinned, student, teacher, trained_student

SMALL = "mobilenet-v1?width=0.25&weights=random"
SMALL_STUDENT = "mobilenet-v1?width=0.25&dim=8"
ARGUMENT = {"timm": "timm:resnet10t", "maps": "maps:timm:resnet10t"}


def equal(one: Encoder, other: Encoder) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a width-0.25 trunk's weights, and a file of something else."""
    folder = tmp_path_factory.mktemp("weights")
    trunk = teacher(SMALL, None).build().network.trunk.network
    state = {k: v.clone() for k, v in trunk.state_dict().items()}
    state["conv_stem.weight"] += 1
    save_file(state, folder / "w025.safetensors")
    save_file({"a": torch.zeros(1)}, folder / "other.safetensors")
    return folder


# names and options


@pytest.mark.parametrize("name", registry.names(TEACHERS))
def test_every_teacher_builds_untrained_and_gives_a_descriptor_per_scale(name: str) -> None:
    encoder = teacher(f"{ARGUMENT.get(name, name)}?weights=random&size=64&scales=1,0.5&scale_on=tensor", None).build()
    with torch.inference_mode():
        vectors = encoder.embed([torch.zeros(2, 3, 64, 64)])
    assert vectors.shape == (2, 2, encoder.embed_dim)
    assert not encoder.training


@pytest.mark.parametrize("name", registry.names(STUDENTS))
def test_every_student_builds_untrained_and_gives_a_descriptor_of_the_size_asked_for(name: str) -> None:
    encoder = student(f"{ARGUMENT.get(name, name)}?dim=8&size=64&scales=1,0.5,0.7", None).build()
    with torch.inference_mode():
        vectors = encoder.eval().embed([torch.zeros(2, 3, 64, 64)])
    assert vectors.shape == (2, 3, 8)
    assert encoder.embed_dim == 8


def test_a_head_of_no_dimensions_is_the_pooled_trunk() -> None:
    encoder = student("mobilenet-v1?width=0.25&dim=0", None).build().eval()
    assert encoder.embed_dim == 256
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 256)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gme", r"unknown teacher 'gme': did you mean gem"),
        ("mobilenet_v1", r"unknown teacher 'mobilenet_v1': did you mean mobilenet-v1"),
        ("mobilenet-v1?widht=0.5", r"unknown option 'widht': did you mean width"),
        ("mobilenet-v1?width=wide", r"option 'width' should be float, got 'wide'"),
        ("mobilenet-v1?pool=max", r"option 'pool' is one of gem, avg, got 'max'"),
        ("mobilenet-v1?resize=squared", r"option 'resize' is one of longest, shortest, square, none"),
        ("mobilenet-v1:0.25", r"options after '\?', not an argument after ':'"),
        ("timm?weights=random", r"names no network: write timm:NAME"),
        ("mobilenet-v1", r"'mobilenet-v1' needs weights: name a file with \?weights=FILE, or .*weights=random"),
        ("mobilenet-v1?width=0.25", r"needs weights"),
    ],
)
def test_a_name_that_means_nothing_is_refused_before_anything_is_built(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        teacher(text, None)


def test_a_misspelt_student_offers_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown student 'resnet81': did you mean resnet18"):
        student("resnet81", None)
    with pytest.raises(InputError, match=r"unknown option 'weights'"):
        student("resnet18?weights=random", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:resnet81?weights=random", r"unknown timm network 'resnet81': did you mean"),
        ("timm:?weights=random", r"needs the name of a network"),
        ("mobilenet-v1?width=3&weights=random", r"width between 0 and 2"),
        ("mobilenet-v1?width=nan&weights=random", r"width between 0 and 2"),
        ("mobilenet-v1?width=0.25&size=0&weights=random", r"positive size"),
        ("mobilenet-v1?width=0.25&mean=0.5&weights=random", r"three means"),
        ("timm:resnet10t.bogus?weights=random", r"bogus"),
        ("timm:resnet10t?pad_type=same&weights=random", r"pad_type"),
        ("mobilenet-v1?width=0.001&weights=random", r"width"),
    ],
)
def test_a_network_that_cannot_be_is_refused_when_it_is_built(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        teacher(text, None).build()


def test_options_of_the_input_replace_what_the_network_declares() -> None:
    text = "mobilenet-v1?width=0.25&weights=random"
    plain = teacher(text, None).build().input_spec
    changed = teacher(
        f"{text}&size=99&resize=longest&scales=1,0.5&channels=BGR&mean=0.1,0.2,0.3&enlarge=true", None
    ).build()
    spec = changed.input_spec
    assert (plain.size, plain.resize, plain.scales, plain.channels, plain.enlarge) == (
        224,
        "square",
        (1.0,),
        "RGB",
        False,
    )
    assert (spec.size, spec.resize, spec.scales, spec.channels, spec.enlarge) == (
        99,
        "longest",
        (1.0, 0.5),
        "BGR",
        True,
    )
    assert spec.mean == (0.1, 0.2, 0.3)
    assert (spec.std, spec.filter) == (plain.std, plain.filter)


# untrained networks


def test_an_untrained_network_is_always_the_same() -> None:
    torch.manual_seed(1)
    first = teacher(SMALL, None).build()
    torch.manual_seed(2)
    torch.rand(7)
    second = teacher(SMALL, None).build()
    assert equal(first, second)
    assert equal(student(SMALL_STUDENT, None, 3).build(), student(SMALL_STUDENT, None, 3).build())


def test_drawing_a_network_does_not_disturb_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    teacher(SMALL, None).build()
    student(SMALL_STUDENT, None, 9).build()
    assert torch.equal(torch.rand(4), expected)


def test_another_seed_draws_another_student_of_another_identity() -> None:
    first, second = student(SMALL_STUDENT, None, 0), student(SMALL_STUDENT, None, 1)
    assert not equal(first.build(), second.build())
    assert first.identity != second.identity
    assert first.label != second.label


# weights


def test_weights_are_read_from_the_folder_and_their_digest_is_the_identity(weights: Path) -> None:
    source = teacher("mobilenet-v1?width=0.25&weights=w025.safetensors", weights)
    digest = hashlib.sha256((weights / "w025.safetensors").read_bytes()).hexdigest()
    assert source.identity["weights"] == digest
    assert str(weights) not in json.dumps(dict(source.identity))
    assert "w025" not in json.dumps(dict(source.identity))
    assert "w025" not in source.label
    untrained = teacher(SMALL, None)
    assert untrained.identity == {**source.identity, "weights": "random"}
    stems = [s.build().state_dict()["network.trunk.network.conv_stem.weight"] for s in (source, untrained)]
    torch.testing.assert_close(stems[0], stems[1] + 1)


def test_the_same_weights_under_another_name_are_the_same_teacher(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "renamed.safetensors").write_bytes((weights / "w025.safetensors").read_bytes())
    first = teacher("mobilenet-v1?width=0.25&weights=w025.safetensors", weights)
    second = teacher("mobilenet-v1?width=0.25&weights=renamed.safetensors", tmp_path)
    assert (first.identity, first.label) == (second.identity, second.label)


def test_default_options_and_their_order_change_neither_identity_nor_network(weights: Path) -> None:
    plain = teacher("mobilenet-v1?width=0.25&weights=w025.safetensors", weights)
    spelled = teacher("mobilenet-v1?pool=gem&weights=w025.safetensors&width=0.25", weights)
    assert plain.identity == spelled.identity


def test_options_that_change_vectors_change_the_identity() -> None:
    plain = teacher(SMALL, None)
    for change in ("pool=avg", "size=64", "scales=1,0.5", "mean=0,0,0"):
        assert teacher(f"{SMALL}&{change}", None).identity != plain.identity, change


def test_nothing_is_read_before_the_network_is_built(weights: Path) -> None:
    (weights / "garbage.safetensors").write_bytes(b"garbage")
    source = teacher("mobilenet-v1?width=0.25&weights=garbage.safetensors", weights)
    with pytest.raises(WeightsError, match="no readable weights file"):
        source.build()


def test_weights_of_another_network_are_refused_with_counts(weights: Path) -> None:
    with pytest.raises(WeightsError, match=r"another network: \d+ tensors missing .*1 unknown tensors \(first: a\)"):
        teacher("mobilenet-v1?width=0.25&weights=other.safetensors", weights).build()
    with pytest.raises(WeightsError, match=r"another network: 135 of another shape"):
        teacher("mobilenet-v1?width=0.5&weights=w025.safetensors", weights).build()


@pytest.mark.parametrize("text", ["gem", "mobilenet-v1?width=0.25&weights=nowhere.safetensors"])
def test_missing_weights_name_the_file_and_the_option(text: str, tmp_path: Path) -> None:
    file = "gem.safetensors" if text == "gem" else "nowhere.safetensors"
    with pytest.raises(WeightsError, match=rf"{file}.*--weights DIR"):
        teacher(text, None)
    with pytest.raises(WeightsError, match=rf"{file} is not in {tmp_path}"):
        teacher(text, tmp_path)


def test_a_classifier_in_a_timm_file_is_left_out(tmp_path: Path) -> None:
    import timm

    whole = timm.create_model("resnet10t", num_classes=5)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    encoder = teacher("timm:resnet10t?weights=w.safetensors", tmp_path).build()
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = whole.eval().forward_features(x).clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)
        torch.testing.assert_close(encoder(x), expected)


# recipes that know their weights


def test_a_pinned_teacher_needs_no_file_until_it_is_built(weights: Path, tmp_path: Path) -> None:
    source = teacher("mobilenet-v1?width=0.25&weights=w025.safetensors", weights)
    name = pinned(source)
    assert name == f"{source.text}&sha256={source.identity['weights']}"
    elsewhere = teacher(name, tmp_path)
    assert (elsewhere.identity, elsewhere.label) == (source.identity, source.label)
    with pytest.raises(WeightsError, match=r"w025.safetensors is needed now"):
        elsewhere.build()
    assert equal(teacher(name, weights).build(), source.build())
    assert pinned(teacher(name, weights)) == name
    assert pinned(teacher(SMALL, None)) == SMALL


def test_weights_with_another_digest_than_the_recipes_are_refused(weights: Path) -> None:
    with pytest.raises(WeightsError, match=r"has the SHA-256 [0-9a-f]{64}, the recipe was made with 00"):
        teacher(f"mobilenet-v1?width=0.25&weights=w025.safetensors&sha256={'00' * 32}", weights)
    with pytest.raises(WeightsError, match="is no SHA-256"):
        teacher("mobilenet-v1?width=0.25&weights=w025.safetensors&sha256=00", weights)


# students


def test_initial_weights_fill_the_trunk_and_the_seed_draws_the_head(weights: Path) -> None:
    file = weights / "w025.safetensors"
    init = WeightsFile(file.name, hashlib.sha256(file.read_bytes()).hexdigest(), file)
    first, second = student(SMALL_STUDENT, init, 0), student(SMALL_STUDENT, init, 1)
    one, other = first.build().state_dict(), second.build().state_dict()
    differing = {k for k in one if not torch.equal(one[k], other[k])}
    assert differing == {"network.head.weight", "network.head.bias"}
    assert first.identity["weights"] == init.digest
    assert first.identity["seed"] == 0


def test_a_trained_student_is_its_file_not_its_seed(tmp_path: Path) -> None:
    trained = student(SMALL_STUDENT, None, 4).build()
    path = tmp_path / "model.safetensors"
    save_file(trained.network.state_dict(), path)
    source = trained_student(SMALL_STUDENT, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert equal(source.build(), trained)
    assert not source.build().training
    assert source.identity["weights"] == digest
    assert "seed" not in source.identity
    assert source.label.endswith(digest[:8])


def test_a_student_whose_file_lacks_tensors_is_refused(tmp_path: Path) -> None:
    state = student(SMALL_STUDENT, None).build().network.state_dict()
    del state["head.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 tensors missing \(first: head.bias\)"):
        trained_student(SMALL_STUDENT, tmp_path / "model.safetensors").build()
    with pytest.raises(WeightsError, match="cannot read the weights file"):
        trained_student(SMALL_STUDENT, tmp_path / "absent.safetensors")


def test_one_network_has_one_name_however_it_is_typed() -> None:
    spellings = ("width=0.25", "width=0.250", "width=2.5e-1", "width=0.25&pool=gem")
    sources = [teacher(f"mobilenet-v1?{spelling}&weights=random", None) for spelling in spellings]
    assert {s.label for s in sources} == {"mobilenet-v1-width-0.25"}
    assert all(s.identity == sources[0].identity for s in sources)
    assert teacher("mobilenet-v1?width=1&weights=random", None).label == "mobilenet-v1"


def test_weights_known_by_their_digest_alone_are_found_under_any_name(tmp_path: Path) -> None:
    network = teacher("mobilenet-v1?width=0.25&weights=random", None).build().network.trunk.network
    save_file(network.state_dict(), tmp_path / "whatever.safetensors")
    save_file({"other": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "folder.pt").mkdir()
    digest = file_digest(tmp_path / "whatever.safetensors")
    found = teacher(f"mobilenet-v1?width=0.25&sha256={digest}", tmp_path)
    assert found.weights is not None
    assert found.weights.path == tmp_path / "whatever.safetensors"
    found.build()
    absent = teacher(f"mobilenet-v1?width=0.25&sha256={'0' * 64}", tmp_path).weights
    assert absent is not None
    assert absent.path is None
