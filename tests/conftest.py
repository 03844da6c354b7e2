"""A drawn data set from a seed, a small store, small teachers, and the fixtures' folder where there is one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cgd.config import Recipe
from cgd.pipeline.recipe import build_recipe
from cgd.pipeline.steps import Session
from cgd.pipeline.workspace import Workspace

SHARED = Path(os.environ.get("CGD_SHARED", Path(__file__).resolve().parents[2] / "shared"))
_deselected: list[str] = []

TEACHERS = (
    "mobilenet-v1?width=0.25&size=64&weights=random",
    "timm:resnet10t?size=64&weights=random",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what needs the fixtures where they are absent; the last lines of the report say so."""
    if SHARED.is_dir():
        return
    absent = [item for item in items if item.get_closest_marker("shared")]
    _deselected.extend(item.nodeid for item in absent)
    config.hook.pytest_deselected(items=absent)
    items[:] = [item for item in items if item not in absent]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker process tells the one that reports."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["deselected"] = _deselected


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects all tests: one of them is enough."""
    _deselected[:] = getattr(node, "workeroutput", {}).get("deselected", _deselected)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _deselected:
        terminalreporter.write_line(
            f"{len(_deselected)} tests deselected: the published fixtures and photographs are not at {SHARED} "
            "(set CGD_SHARED to their folder)"
        )


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn landmarks: manifest.csv, gnd.json, images."""
    from cgd.data.synthetic import draw_landmarks

    return draw_landmarks(tmp_path_factory.mktemp("drawn") / "landmarks", labels=6, images=4, distractors=6)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """A fresh store and workspace on the CPU."""
    return Session(
        str(tmp_path / "features.zarr"), device="cpu", workers=1, workspace=Workspace(tmp_path / ".cgd/roots.yaml")
    )


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """Seconds on one core: two untrained teachers, two crops, a student of 32 dimensions."""
    return build_recipe(
        {
            "data": {"train": "lm@train", "benchmarks": ["lm"]},
            "extract": {"teachers": list(TEACHERS), "views": 2, "crop_size": 64},
            "whiten": {"dim": 16},
            "distill": {
                "student": "mobilenet-v1?width=0.25&dim=32&size=64",
                "epochs": 2,
                "batch_pairs": 4,
                "image_size": 64,
            },
        },
        "tiny",
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: more threads only cost, and one gives the same bytes everywhere."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _log() -> None:
    """Commands set a log handler and a level; those of an earlier test, or of a module's fixture, end here."""
    logger = logging.getLogger("cgd")
    logger.handlers.clear()
    logger.setLevel(logging.INFO)
