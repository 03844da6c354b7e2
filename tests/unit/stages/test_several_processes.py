"""Several processes, and several pieces of a batch, make the student that one would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from several import together
from torch import nn

from cgd import registry
from cgd.config import DistillConfig, WhitenMtdConfig
from cgd.errors import CgdError, InputError
from cgd.methods import Method
from cgd.models.encoder import Encoder
from cgd.models.load import student
from cgd.stages.distill import _identity, _plan, distill
from cgd.stages.processes import Processes, joined
from cgd.stages.update import Clock, Update
from cgd.types import Batch, InputSpec

SIZE = 10  # rows of the batch; not divisible by four
NO_BATCH = Batch(np.empty((0, 2), np.int64), np.empty((0, 2), np.int64))


def whiten_mtd() -> Method:
    found: Method = registry.find("cgd.methods", "whiten-mtd")(
        WhitenMtdConfig(), registry.find("cgd.fusion", "max-min"), None
    )
    return found


def batch_of(size: int = SIZE) -> tuple[torch.Tensor, Any]:
    """Pixels (2 B, 3, 64, 64) and a target, from a seed."""
    draw = np.random.default_rng(0)
    target = whiten_mtd().target(
        [draw.normal(size=(size, 2, 8)).astype(np.float32) for _ in range(3)], NO_BATCH, np.random.default_rng(0)
    )
    return torch.from_numpy(draw.normal(size=(2 * size, 3, 64, 64)).astype(np.float32)), target


def gradients(
    config: DistillConfig, dropout: float = 0.0, size: int = SIZE, dtype: torch.dtype = torch.float64
) -> tuple[float, list[np.ndarray]]:
    """The loss and the gradients of a student with frozen batch norm, after one step in each process.

    In double precision: in single a convolution differs by 2e-6 between batches of different sizes.
    """
    with joined() as processes:
        encoder = student("mobilenet-v1?width=0.25&dim=16&size=64", None, 0).build().train()
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        if dropout:
            encoder.network = nn.Sequential(encoder.network, nn.Dropout(dropout))
        encoder = encoder.to(dtype)
        pixels, target = batch_of(size)
        mine = processes.share(size)
        update = Update(encoder, whiten_mtd(), config, processes)
        torch.manual_seed(3)
        own = pixels[2 * mine.start : 2 * mine.stop].to(dtype)
        loss = update.step(own, target if processes.first else None, size, Clock())
        return loss, [p.grad.numpy().copy() for p in encoder.parameters() if p.grad is not None]


def apart(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest difference, relative to the largest gradient."""
    assert len(found) == len(expected)
    largest = max(np.abs(e).max() for e in expected)
    return float(max(np.abs(f - e).max() for f, e in zip(found, expected, strict=True)) / largest)


@pytest.mark.parametrize("count", [2, 4])
def test_gradients_are_those_of_one_process(count: int) -> None:
    loss, expected = gradients(DistillConfig())
    for of_process, found in together(count, gradients, DistillConfig()):
        assert of_process == pytest.approx(loss, rel=1e-9)
        assert apart(found, expected) < 1e-9


def test_in_single_precision_too_to_its_rounding() -> None:
    loss, expected = gradients(DistillConfig(), dtype=torch.float32)
    for of_process, found in together(2, gradients, DistillConfig(), 0.0, SIZE, torch.float32):
        assert of_process == pytest.approx(loss, rel=1e-5)
        assert apart(found, expected) < 1e-5


def test_a_batch_may_be_smaller_than_the_number_of_processes() -> None:
    loss, expected = gradients(DistillConfig(), 0.0, 2)
    for of_process, found in together(4, gradients, DistillConfig(), 0.0, 2):
        assert of_process == pytest.approx(loss, rel=1e-9)
        assert apart(found, expected) < 1e-9


@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_pieces_of_a_batch_give_the_gradients_of_the_whole(chunk: int) -> None:
    loss, expected = gradients(DistillConfig())
    in_pieces, found = gradients(DistillConfig(chunk_images=chunk))
    assert in_pieces == pytest.approx(loss, rel=1e-9)
    assert apart(found, expected) < 1e-9


def test_pieces_drop_the_same_in_both_passes() -> None:
    """Each piece is passed forward twice; were its dropout drawn anew, the gradients would not be those of the loss."""
    _, plain = gradients(DistillConfig(chunk_images=20), 0.5)
    for seed in range(3):
        torch.manual_seed(seed)
        assert apart(gradients(DistillConfig(chunk_images=20), 0.5)[1], plain) == 0
    one, two = (gradients(DistillConfig(chunk_images=chunk), 0.5)[1] for chunk in (10, 20))
    assert apart(one, two) < 1e-9  # the same numbers are drawn, a piece after the other


def test_pieces_count_once_in_running_statistics() -> None:
    """Each piece is passed forward twice and leaves what one pass leaves."""
    once, twice = (student("mobilenet-v1?width=0.25&dim=16&size=64", None, 0).build().train() for _ in range(2))
    pixels, target = batch_of()
    with torch.no_grad():
        for piece in pixels.split(10):
            once(piece)
    config = DistillConfig(chunk_images=10, learning_rate=1e-12)
    Update(twice, whiten_mtd(), config, Processes()).step(pixels, target, SIZE, Clock())
    expected = {name: buffer for name, buffer in once.named_buffers() if "running" in name}
    assert expected
    for name, buffer in twice.named_buffers():
        if name in expected:
            torch.testing.assert_close(buffer, expected[name])


def test_pieces_and_processes_at_once() -> None:
    _, expected = gradients(DistillConfig())
    for _, found in together(2, gradients, DistillConfig(chunk_images=3)):
        assert apart(found, expected) < 1e-9


def test_reduced_precision_is_near_the_full_one() -> None:
    loss, expected = gradients(DistillConfig(), dtype=torch.float32)
    reduced, found = gradients(DistillConfig(precision="bf16"), dtype=torch.float32)
    assert reduced == pytest.approx(loss, rel=0.05)
    assert reduced != loss
    whole, reference = (np.concatenate([g.ravel() for g in gs]) for gs in (found, expected))
    assert whole @ reference > 0.9 * np.linalg.norm(whole) * np.linalg.norm(reference)


class _Rows(nn.Module):
    """A network whose descriptors are its own parameters, so that their gradients can be read."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.from_numpy(rows))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows[: len(x)]


def descriptors_gradient(views: np.ndarray, teachers: list[np.ndarray]) -> tuple[float, np.ndarray]:
    """The loss of all pairs (B, 2, D) and this process's gradient with respect to its own."""
    with joined() as processes:
        mine = views[processes.share(len(views))]
        rows = _Rows(mine.reshape(-1, mine.shape[-1]).copy())  # the step changes them
        update = Update(
            Encoder("rows", rows, InputSpec(size=8, resize="square"), 32), whiten_mtd(), DistillConfig(), processes
        )
        object.__setattr__(processes, "add_gradients", lambda _: None)  # every process has rows of its own
        target = whiten_mtd().target(teachers, NO_BATCH, np.random.default_rng(0)) if processes.first else None
        loss = update.step(torch.zeros(len(rows.rows), 3, 8, 8), target, len(views), Clock())
        assert rows.rows.grad is not None
        return loss, rows.rows.grad.numpy().reshape(mine.shape)


@pytest.mark.shared
def test_two_processes_against_the_released_code(shared: Path) -> None:
    """There every process has twice the loss and gradients, which its averaging of gradients then halves."""
    fixture = np.load(shared / "reference/losses/whiten_mtd_loss.npz")
    views = np.stack([fixture["stu1"], fixture["stu2"]], axis=1)
    teachers = [np.stack([fixture[f"tch1_{k}"], fixture[f"tch2_{k}"]], axis=1) for k in range(3)]
    found = together(2, descriptors_gradient, views, teachers)
    for rank, (loss, gradient) in enumerate(found):
        assert 2 * loss == pytest.approx(float(fixture[f"ddp2_maxmin_rank{rank}_loss"]), abs=1e-9)
        for view in (0, 1):
            expected = fixture[f"ddp2_maxmin_rank{rank}_grad_stu{view + 1}"]
            np.testing.assert_allclose(2 * gradient[:, view], expected, atol=1e-9)


@pytest.mark.shared
@pytest.mark.parametrize("count", [2, 4])
def test_gradients_of_descriptors_are_those_of_one_process(shared: Path, count: int) -> None:
    fixture = np.load(shared / "reference/losses/whiten_mtd_loss.npz")
    views = np.stack([fixture["stu1"], fixture["stu2"]], axis=1)
    teachers = [np.stack([fixture[f"tch1_{k}"], fixture[f"tch2_{k}"]], axis=1) for k in range(3)]
    loss, expected = descriptors_gradient(views, teachers)
    found = together(count, descriptors_gradient, views, teachers)
    assert {one for one, _ in found} == {loss}
    np.testing.assert_allclose(np.concatenate([g for _, g in found]), expected, atol=1e-12)


def test_a_student_of_two_processes_is_that_of_one(stored: Any, tmp_path: Path) -> None:
    settings = ("distill.positives=image", "distill.batch_norm=freeze", "distill.validation=0.4")
    assert together(2, run_distill, stored, tmp_path / "two", settings) == [False, False]
    log = (tmp_path / "two/log.jsonl").read_bytes()
    two = distill(stored.job(tmp_path / "two", *settings))
    assert two.skipped
    one = distill(stored.job(tmp_path / "one", *settings, "distill.weight_decay=1.0000001e-6"))  # another name
    # Gradients agree to rounding, which Adam's first steps amplify, on one processor more than on another.
    assert one.final_loss == pytest.approx(two.final_loss, rel=2e-4)
    assert one.best is not None
    assert two.best is not None
    assert one.best["mAP"] == pytest.approx(two.best["mAP"], abs=0.5)
    assert log.count(b"\n") == stored.recipe.distill.epochs
    assert b"validation" in log


def run_distill(stored: Any, out: Path, settings: tuple[str, ...]) -> bool:
    with joined() as processes:
        return distill(stored.job(out, *settings), processes).skipped


def test_the_number_of_processes_names_a_student_whose_batch_norm_trains(stored: Any, tmp_path: Path) -> None:
    keys = {}
    for norm in ("auto", "freeze"):
        job = stored.job(tmp_path / "s", "distill.space=raw", f"distill.batch_norm={norm}")
        plan, withheld = _plan(job)
        keys[norm] = [_identity(job, plan, withheld, count).key for count in (1, 2, 4)]
    assert len(set(keys["auto"])) == 3
    assert len(set(keys["freeze"])) == 1


def fail_first(first: bool) -> str:
    """What the process sees where the first process, or the second, fails in what the first does ahead."""
    with joined() as processes:
        try:
            with processes.first_goes_ahead():
                if processes.first == first:
                    raise InputError("this cannot be.")
        except CgdError as error:
            return f"{type(error).__name__}: {error}"
        return "went on"


def test_where_the_first_process_fails_the_others_only_end() -> None:
    assert together(2, fail_first, True) == ["InputError: this cannot be.", "ElsewhereError: the first process failed."]
    assert together(2, fail_first, False) == ["went on", "InputError: this cannot be."]


def gradient_of_a_part() -> list[bool]:
    """Which of three parameters have a gradient: of both processes, of one, and of none."""
    with joined() as processes:
        parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]
        parameters[0].grad = torch.ones(2)
        if processes.first:
            parameters[1].grad = torch.ones(2)
        processes.add_gradients(parameters)
        assert parameters[0].grad.tolist() == [2.0, 2.0]
        return [p.grad is not None for p in parameters]


def test_a_parameter_without_a_gradient_anywhere_keeps_none() -> None:
    """Weight decay would move it otherwise."""
    assert together(2, gradient_of_a_part) == [[True, True, False]] * 2


@pytest.mark.parametrize(("size", "count"), [(10, 4), (2, 4), (7, 1), (256, 8)])
def test_shares_cover_a_batch_once(size: int, count: int) -> None:
    rows = [r for rank in range(count) for r in range(size)[Processes(rank, count).share(size)]]
    assert rows == list(range(size))
