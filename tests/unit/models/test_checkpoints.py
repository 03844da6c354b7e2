"""Weights files: read without running any of them, and filled into a network strictly."""

import io
import os
import pickle
import random
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cgd.errors import WeightsError
from cgd.models.checkpoints import Checkpoint, file_digest, fill, read_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5])}


def torch_file(path: Path, value: Any, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def equal(checkpoint: Checkpoint) -> bool:
    return checkpoint.state.keys() == STATE.keys() and all(
        torch.equal(checkpoint.state[k], v) for k, v in STATE.items()
    )


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    assert equal(read_checkpoint(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_torch_files_of_either_format_are_read_bare_or_wrapped(tmp_path: Path, legacy: bool, wrapped: bool) -> None:
    value = {"state_dict": STATE, "epoch": 3} if wrapped else STATE
    assert equal(read_checkpoint(torch_file(tmp_path / "w.pth", value, legacy=legacy)))


def test_plain_values_of_imported_weights_are_kept_and_others_ignored(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors", metadata={"cgd": '{"teacher": "gem"}', "format": "pt"})
    assert read_checkpoint(tmp_path / "w.safetensors").meta == {"teacher": "gem"}
    save_file(STATE, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert read_checkpoint(tmp_path / "w.safetensors").meta == {}
    assert read_checkpoint(torch_file(tmp_path / "w.pth", {"state_dict": STATE, "meta": {"a": 1}})).meta == {}


@pytest.mark.parametrize("header", ["[1]", "{", ""])
def test_a_damaged_header_is_refused(tmp_path: Path, header: str) -> None:
    save_file(STATE, tmp_path / "w.safetensors", metadata={"cgd": header})
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        read_checkpoint(tmp_path / "w.safetensors")


def test_values_that_are_no_tensors_are_left_out_of_the_state(tmp_path: Path) -> None:
    assert equal(read_checkpoint(torch_file(tmp_path / "w.pth", {**STATE, "epoch": 3})))


@pytest.mark.parametrize("value", [[1, 2], 3, {"epoch": 3}, {}, {"state_dict": [1]}, torch.zeros(3)])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(WeightsError, match=r"w\.pth holds"):
        read_checkpoint(torch_file(tmp_path / "w.pth", value))


# damage


def test_truncated_safetensors_are_refused_wherever_they_are_cut(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    for length in range(len(data)):
        (tmp_path / "w.safetensors").write_bytes(data[:length])
        with pytest.raises(WeightsError, match="no readable weights file"):
            read_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_torch_file_is_refused_wherever_it_is_cut(tmp_path: Path, legacy: bool) -> None:
    data = torch_file(tmp_path / "w.pth", STATE, legacy=legacy).read_bytes()
    for length in [*range(0, len(data), 7), len(data) - 1]:
        (tmp_path / "w.pth").write_bytes(data[:length])
        with pytest.raises(WeightsError) as caught:
            read_checkpoint(tmp_path / "w.pth")
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_with_bytes_overwritten_is_read_or_refused(tmp_path: Path, legacy: bool) -> None:
    data = torch_file(tmp_path / "w.pth", STATE, legacy=legacy).read_bytes()
    draw = random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        (tmp_path / "w.pth").write_bytes(damaged)
        with suppress(WeightsError):  # anything else that is raised fails this test
            read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\0" * 100])
def test_a_file_of_something_else_is_refused(tmp_path: Path, suffix: str, data: bytes) -> None:
    (tmp_path / f"w{suffix}").write_bytes(data)
    with pytest.raises(WeightsError, match=rf"w{suffix}"):
        read_checkpoint(tmp_path / f"w{suffix}")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for name in ("w.pth", "w.safetensors"):
        with pytest.raises(WeightsError):
            read_checkpoint(tmp_path / name)
        with pytest.raises(WeightsError, match="cannot read the weights file"):
            file_digest(tmp_path / name)


# pickled code


class Attack:
    """Calls `os.system` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def bare_pickle(path: Path, value: Any) -> Path:
    path.write_bytes(pickle.dumps(value, 2))
    return path


def zip_with_pickle(path: Path, value: Any) -> Path:
    """A torch file whose pickle was exchanged, records padded as torch writes them."""
    good = io.BytesIO()
    torch.save(STATE, good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, pickle.dumps(value, 2) if name.endswith("data.pkl") else old.read(name))
    return path


@pytest.mark.parametrize("write", [bare_pickle, zip_with_pickle, torch_file])
def test_pickled_code_is_refused_and_never_runs(tmp_path: Path, write: Any) -> None:
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Attack(marker), 2))  # noqa: S301  (the attack itself works)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(WeightsError, match="refused: it holds pickled code"):
        read_checkpoint(write(tmp_path / "w.pth", {"a": Attack(marker), "b": 1}))
    assert not marker.exists()


def test_a_whole_network_instead_of_its_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds pickled code or objects, not only tensors"):
        read_checkpoint(torch_file(tmp_path / "w.pth", nn.Linear(2, 3)))


def test_pickled_code_under_the_other_suffix_is_refused_too(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with pytest.raises(WeightsError):
        read_checkpoint(torch_file(tmp_path / "w.safetensors", {"a": Attack(marker)}))
    assert not marker.exists()


# digests


def test_the_digest_follows_the_files_bytes(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"abc")
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"abcd")
    assert file_digest(path) == "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"


# filling


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def checkpoint(state: dict[str, torch.Tensor]) -> Checkpoint:
    return Checkpoint(Path("weights/w.pth"), state, {})


def test_every_tensor_reaches_its_place() -> None:
    source, target = network(), network()
    source[1].running_mean.fill_(3)
    fill(target, checkpoint(source.state_dict()))
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_only_batch_norms_counter_may_be_absent() -> None:
    state = network().state_dict()
    del state["1.num_batches_tracked"]
    target = network()
    target[1].num_batches_tracked.fill_(7)
    fill(target, checkpoint(state))
    assert target[1].num_batches_tracked == 7
    assert torch.equal(target[0].weight, state["0.weight"])


def test_another_network_is_named_with_counts_and_an_example_of_each() -> None:
    state = network().state_dict()
    del state["1.running_mean"], state["1.running_var"]
    state["0.weight"] = torch.zeros(4, 3, 3, 3)
    state["head.weight"] = state["head.bias"] = state["z"] = torch.zeros(1)
    before = network()
    kept = {k: v.clone() for k, v in before.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        fill(before, checkpoint(state))
    assert str(caught.value) == (
        f"{Path('weights/w.pth')} belongs to another network: 2 tensors missing (first: 1.running_mean), "
        "3 unknown tensors (first: head.bias), 1 of another shape (first: 0.weight)."
    )
    assert all(torch.equal(v, kept[k]) for k, v in before.state_dict().items())


def test_dropped_prefixes_are_the_only_surplus_allowed() -> None:
    state = {**network().state_dict(), "fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}
    fill(network(), checkpoint(state), drop=("fc.",))
    with pytest.raises(WeightsError, match=r"2 unknown tensors \(first: fc.bias\)"):
        fill(network(), checkpoint(state))
    with pytest.raises(WeightsError, match=r"1 unknown tensors \(first: fcx\)"):
        fill(network(), checkpoint({**network().state_dict(), "fcx": torch.zeros(1)}), drop=("fc.",))
