"""The built-in demonstration: what it does in which order, as the commands that a user would type."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgd.store.files import replace_file

TRAINED = Path(__file__).with_name("demo_teachers")  # weights that come with the package
TEACHERS = "drawn-resnet,drawn-byobnet,drawn-efficientnet"
LABELS, SEARCHED, DISTRACTORS, VIEWS, DIM = 320, 60, 200, 2, 64
NETWORK, START = "timm:test_byobnet?size=96&dim=", "drawn-start.safetensors"  # dim 0: the pooled trunk itself
TRAINING = {"positives": "label", "batch_pairs": 64, "image_size": 96, "learning_rate": 2e-3}
EPOCHS = {"whiten-mtd": 60, "cgd": 10}
CODEBOOK = {"positions": 16, "bits": 5, "align": True, "direct": 10.0}  # few images: few anchors
DATA, STUDENT, FUSED, REPORT = "landmarks", "student", "student-fused", "report.html"
WIDTH = 80  # columns of a terminal that nothing wraps in

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One command: what it does and why, its arguments as typed after `cgd`, and what to tell of its result."""

    why: str
    command: tuple[str, ...]
    told: Callable[[Result], str]

    def shown(self) -> str:
        """The command in lines of a terminal, an option with its value where both fit."""
        parts: list[str] = []
        for argument in map(shlex.quote, ("cgd", *self.command)):
            if parts and parts[-1].startswith("-") and " " not in parts[-1] and not argument.startswith("-"):
                parts[-1] += f" {argument}"
            else:
                parts.append(argument)
        lines = [parts[0]]
        for part in parts[1:]:
            if len(lines[-1]) + len(part) <= WIDTH - 8:
                lines[-1] += f" {part}"
            elif len(part) <= WIDTH - 9:
                lines.append(f"  {part}")
            else:
                lines += [f"  {word}" for word in part.split(" ", 1)]
        return " \\\n".join(lines)


def prepare(folder: Path) -> None:
    """Put the teachers' weights where the commands look for them."""
    for file in sorted(TRAINED.glob("*.safetensors")):
        target = folder / "weights" / file.name
        if not target.is_file() or target.read_bytes() != file.read_bytes():
            replace_file(target, file.read_bytes())


def commands(seed: int = 0) -> list[Step]:
    """The demonstration from drawn images to the report; all of it runs in one folder."""
    images = f"synthetic:{DATA}?labels={LABELS}&searched={SEARCHED}&distractors={DISTRACTORS}"
    images += f"&seed={seed}" if seed else ""
    return [
        Step(
            "Draw buildings; every teacher looks at every training image once.",
            (
                *("extract-teachers", "--dataset", images, "--name", DATA, "--split", "train"),
                *("--teachers", TEACHERS, "--weights", "weights", "--views", str(VIEWS)),
                *_settings(["extract.crop_size=128", "extract.crop_area=[0.5, 1.0]"]),
            ),
            _extracted,
        ),
        Step(
            "Whiten: bring the teachers' similarities to one scale, so that none rules.",
            ("fit-whitening", "--dataset", f"{DATA}@train", "--dim", str(DIM)),
            _whitened,
        ),
        Step(
            "Distil: a small student learns the fused similarities, no teacher loaded.",
            (
                *("distill", "--dataset", f"{DATA}@train", "--student", f"{NETWORK}0", "--out", STUDENT),
                *("--init", START, "--weights", "weights", "--epochs", str(EPOCHS["whiten-mtd"])),
                *_settings(training(seed)),
            ),
            _distilled,
        ),
        Step(
            "Score it on buildings that neither student nor teachers were trained on.",
            ("evaluate", "--student", STUDENT, "--benchmark", DATA),
            _scored,
        ),
        Step(
            f"Again, with {DISTRACTORS} pictures of other buildings in the gallery.",
            ("evaluate", "--student", STUDENT, "--benchmark", DATA, "--distractors", f"{DATA}@distractors"),
            _scored,
        ),
        Step(
            "Distil another into the teachers' own fused space, with the method cgd.",
            (
                *("distill", "--dataset", f"{DATA}@train", "--student", f"{NETWORK}{DIM}", "--out", FUSED),
                *("--method", "cgd", "--fusion", "cgd-pairwise"),
                *("--init", START, "--weights", "weights", "--epochs", str(EPOCHS["cgd"])),
                *_settings([*training(seed), *(f"cgd.{name}={value}" for name, value in CODEBOOK.items())]),
            ),
            _distilled,
        ),
        Step(
            "Asymmetric: its queries in a gallery that the heavy teachers embedded.",
            (
                *("evaluate", "--student", FUSED, "--mode", "asymmetric", "--benchmark", DATA),
                *("--teachers", TEACHERS, "--weights", "weights"),
            ),
            _scored,
        ),
        Step(
            "Compare with the teachers, and make a page of it.",
            (
                *("report", STUDENT, "--benchmark", DATA, "--distractors", f"{DATA}@distractors"),
                *("--baselines", "pixels,colours", "--teachers", TEACHERS, "--weights", "weights", "--out", REPORT),
            ),
            lambda _: REPORT,
        ),
    ]


def training(seed: int) -> list[str]:
    """The settings of the students' training."""
    return [f"distill.{name}={value}" for name, value in {**TRAINING, "seed": seed}.items()]


def _settings(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for text in texts for part in ("--set", text))


def _extracted(r: Result) -> str:
    views = sum(len(t["keys"]) for t in r["teachers"].values())
    return f"{r['images']:,} images, {len(r['teachers'])} teachers, {views} artifacts in the store"


def _whitened(r: Result) -> str:
    dims = ", ".join(f"{kinds['fixed']['dim_in']}" for kinds in r.values())
    return f"{dims} dimensions of the teachers, {DIM} of each kept"


def _distilled(r: Result) -> str:
    return f"{r['parameters']:,} parameters, {r['epochs']} epochs, last loss {r['final_loss']:.3f}"


def _scored(r: Result) -> str:
    scores = ", ".join(f"{name} {values['mAP']:.2f}" for name, values in r["protocols"].items())
    return f"mAP x 100: {scores}"
