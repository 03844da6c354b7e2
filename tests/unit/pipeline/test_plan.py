"""A plan: sizes against loops and against what is really written, hours against multiplication by hand."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from math import ceil, prod
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from cgd.cli import cli
from cgd.config import Recipe
from cgd.data.images import read_image
from cgd.data.transforms import full_pixels
from cgd.errors import InputError
from cgd.models.load import student, teacher
from cgd.pipeline import plan_rates, steps
from cgd.pipeline.plan import (
    CANARIES,
    Network,
    Rate,
    Rates,
    Work,
    embeddings_of,
    make_plan,
    spread,
    target_bytes,
    vector_bytes,
)
from cgd.pipeline.recipe import build_recipe
from cgd.stages import canaries, select
from cgd.store import layout
from cgd.types import ImageList, InputSpec

GLDV2 = 1_580_470
SIZES = {"str": 4, "float32": 4, "float16": 2, "bool": 1, "uint8": 1}


def given(value: float) -> Rate:
    return Rate(value, "given")


GEM = Network("gem", 2048, 3, given(50), given(300))
DELG = Network("delg", 512, 3, given(100), given(400))
STUDENT = Network("resnet18", 512, 3, given(900), given(3000))
RATES = Rates(given(2000), given(500), given(1e9), given(4e8), given(2e8), given(250), given(1e11))
WORK = Work(GLDV2, 4, {"ids": 16 * GLDV2, "paths": 32 * GLDV2}, 2e5, gpus=8, dim=512, pairs=81_313)


def stages(work: Work = WORK, rates: Rates = RATES) -> dict[str, Any]:
    return {s.name: s for s in make_plan(work, [GEM, DELG], STUDENT, rates).stages}


@pytest.mark.parametrize(("dim", "views", "expected"), [
    (512, 1, 1_618_401_280), (512, 2, 3_236_802_560), (512, 4, 6_473_605_120), (512, 8, 12_947_210_240),
    (2048, 1, 6_473_605_120), (2048, 2, 12_947_210_240), (2048, 4, 25_894_420_480), (2048, 8, 51_788_840_960),
])  # fmt: skip
def test_whitened_vectors_take_what_the_method_chapter_says(dim: int, views: int, expected: int) -> None:
    """The table of methods.md 6.4; shard files of the same vectors take that, checksums and the last chunk's rest."""
    assert vector_bytes(GLDV2, dim, views) == expected
    rows = layout.shard_rows(GLDV2, 2 * dim)
    (array,) = (a for a in layout.LAYOUT["whitened"] if a.name == "vectors")
    chunks, shards = ceil(GLDV2 / 512), ceil(GLDV2 / rows)
    rest = (chunks * 512 - GLDV2) * 2 * dim
    filed = layout.array_bytes(array, (GLDV2, dim), rows)
    assert views * filed == expected + views * (
        rest + chunks * (4 + 16) + shards * 4 + (shards * rows // 512 - chunks) * 16
    )


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("images", [1, 700, 40_000, GLDV2])
def test_sizes_are_those_of_a_loop_over_shards(images: int, crop: bool) -> None:
    cut = layout.shard_rows(images, 4 * 3 * 2048)
    shapes = {
        "ids": (),
        "vectors": (1 if crop else 3, 2048),
        "valid": (),
        "digests": (32,),
        "reasons": (),
        "views": (5,),
    }
    if not crop:
        del shapes["views"]
    types = {a.name: a.dtype for a in layout.LAYOUT["embeddings"]}
    shards = size = 0
    for start in range(0, images, cut):
        shards += 1
        for name, shape in shapes.items():
            chunks = range(start, min(images, start + cut), 512)
            text = 4 if types[name] == "str" else 0
            size += sum(512 * SIZES[types[name]] * prod(shape) + text + 4 for _ in chunks) + 16 * (cut // 512) + 4
    found = embeddings_of(images, GEM, crop=crop, wanted=cut, ids=16 * images)
    assert (found.shards, found.bytes) == (shards, size + 16 * images)
    assert found.files == shards * (len(shapes) + 1) + len(shapes) + 2 + layout.seal_pages(shards)


def test_what_is_planned_is_what_a_run_leaves(
    session: steps.Session, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every artifact of an extraction and a whitening, its shards, files and bytes."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # most of the time, where others use the disk
    recipe = build_recipe(
        {
            "extract": {"teachers": ["mobilenet-v1?width=0.25&size=32&weights=random"], "views": 1, "crop_size": 32},
            "whiten": {"dim": 8},
        }, "small",
    )  # fmt: skip
    images = session.workspace.images(f"manifest:{drawn}/manifest.csv", "lm", "train")
    session = replace(session, shard_rows=20)
    steps.extract_teachers(session, images, recipe.extract)
    steps.fit_whitening(session, select.teachers_of(session.store(), "lm", "train", ()), recipe.whiten)
    work = plan_rates.work_of(recipe, images, None, shard_rows=20)
    plan = make_plan(work, [Network("mobilenet", 256, 1, given(1), given(1))], STUDENT, RATES)
    root = Path(session.store_url)
    of_artifacts = [p for p in root.rglob("*") if p.is_file() and _artifact(p.relative_to(root))]
    assert plan.left.files == len(of_artifacts)
    assert plan.left.bytes == sum(p.stat().st_size for p in of_artifacts if "c" in p.parts)
    assert plan.left.shards == sum("receipts" in p.parts for p in of_artifacts)
    by_name = {s.name: s.left for s in plan.stages}
    whitened = [p for p in of_artifacts if "whitened" in p.parts]
    assert by_name["apply whitening"].files == len(whitened)
    assert by_name["apply whitening"].bytes == sum(p.stat().st_size for p in whitened if "c" in p.parts)


def _artifact(path: Path) -> bool:
    """Whether a file belongs to an artifact: below `kind/name`, or a receipt, a seal or a page of one."""
    parts = path.parts
    if parts[0] == ".cgd":
        return parts[1] in ("receipts", "seals", "pages") and parts[-1] != "zarr.json"
    return len(parts) > 2


def test_canaries_are_as_many_as_are_embedded() -> None:
    assert {"fixed": len(canaries.SIZES), "crop": canaries.CROPS} == CANARIES


def test_hours_are_products_of_the_rates() -> None:
    found = stages()
    full, crops = found["teachers: full images"], found["teachers: crops"]
    cut = layout.shard_rows(GLDV2, 4 * 3 * 2048)
    shards = ceil(GLDV2 / cut)
    network = GLDV2 * (1 / 50 + 1 / 100) + full.left.bytes / 2e8 + full.left.files / 250
    assert full.seconds == pytest.approx(network)
    assert full.wall == pytest.approx(network / shards * ceil(shards / 8))
    assert crops.seconds == pytest.approx(
        4 * GLDV2 * (1 / 300 + 1 / 400) + crops.left.bytes / 2e8 + crops.left.files / 250
    )
    assert full.rate.value == pytest.approx(2 * GLDV2 / network)
    fit = found["fit whitening"]
    reading = 4 * GLDV2 * (3 * 2048 + 3 * 512 + 4 * (2048 + 512)) / 4e8
    products = 5 * GLDV2 * 2 * (2048**2 + 512**2) / 1e11 + 2 * 20 * (2048**3 + 512**3) / 1e11
    assert fit.seconds == pytest.approx(reading + products)
    drawn = stages(replace(WORK, samples=1000))["fit whitening"]
    fewer = 2 * 1000 * 2 * (2048**2 + 512**2) / 1e11 + 2 * 20 * (2048**3 + 512**3) / 1e11
    assert drawn.seconds == pytest.approx(reading + fewer)
    train = found["train a student"]
    assert train.seconds == pytest.approx(200 * 81_313 * 2 / 2000)
    assert train.wall == pytest.approx(train.seconds / (8 * 0.9))
    assert target_bytes(81_313, 256) == 8 * (317 * 256**2 + 161**2)


def test_images_are_loaded_while_networks_work_and_late_ones_are_waited_for() -> None:
    assert stages()["teachers: waiting"].seconds == 0  # 1/50 + 1/100 + 4 (1/300 + 1/400) s in networks, 1/500 s loading
    slow = stages(rates=replace(RATES, load=given(10)))["teachers: waiting"]
    network = 1 / 50 + 1 / 100 + 4 * (1 / 300 + 1 / 400)
    assert slow.seconds == pytest.approx(GLDV2 * (1 / 10 - network))
    measured = stages(rates=replace(RATES, waiting=Rate(1000, "measured")))["teachers: waiting"]
    assert measured.seconds == pytest.approx(GLDV2 / 1000)
    assert measured.rate.known == "measured"
    disk = stages(rates=replace(RATES, read=given(1e6)))
    extraction = [disk[f"teachers: {name}"].wall for name in ("full images", "crops", "waiting")]
    assert sum(extraction) == pytest.approx(GLDV2 * 2e5 / 1e6)  # one disk for all: more devices do not help


def test_targets_count_where_training_has_to_wait_for_them() -> None:
    fast = stages()
    epoch = fast["targets"].seconds / 200
    assert fast["targets"].wall == pytest.approx(epoch + 199 * max(0, epoch - fast["train a student"].wall / 200))
    slow = stages(rates=replace(RATES, train=given(20)))
    assert slow["targets"].wall == pytest.approx(epoch)  # all but the first are built beside training


def test_more_devices_than_shards_do_not_help() -> None:
    assert spread(100.0, 10, 4) == pytest.approx(30)
    assert spread(100.0, 10, 10) == spread(100.0, 10, 1000) == pytest.approx(10)
    few = replace(WORK, images=3000, text={"ids": 3000, "paths": 3000}, gpus=100)
    assert stages(few)["teachers: full images"].wall == pytest.approx(stages(few)["teachers: full images"].seconds / 6)


def test_the_cost_is_that_of_all_devices_while_a_stage_needs_them() -> None:
    plan = make_plan(replace(WORK, price=2.5, distractors=1_001_001), [GEM, DELG], STUDENT, RATES)
    walls = sum(s.wall for s in plan.stages if s.on == "gpu")
    assert plan.cost == pytest.approx(2.5 * 8 * walls / 3600)
    assert make_plan(WORK, [GEM], STUDENT, RATES).cost is None


def test_distractors_are_embedded_made_to_descriptors_and_searched() -> None:
    count = 1_001_001
    found = stages(replace(WORK, distractors=count))
    made = found["distractors: descriptors"].left
    one = layout.footprint("descriptors", {"ids": (count,), "vectors": (count, 512), "valid": (count,)}, None,
                           {"ids": 16 * count})  # fmt: skip
    assert (made.bytes, made.files) == (3 * one.bytes, 3 * one.files)
    assert found["score"].seconds == pytest.approx(3 * (one.bytes / 4e8 + 2 * count * 512 * 70 / 1e11))


def test_the_list_of_images_takes_the_memory_of_its_strings() -> None:
    ids = tuple(f"{n:016x}" for n in range(5000))
    images = ImageList("made", None, ids, tuple(f"train/a/b/c/{i}.jpg" for i in ids))
    taken = sum(16 * ceil(sys.getsizeof(text) / 16) + 8 for text in (*images.ids, *images.paths))
    assert plan_rates.work_of(Recipe(), images, None).list_bytes == taken


@pytest.mark.parametrize(("spec", "size"), [
    (InputSpec(100, "longest"), (160, 120)), (InputSpec(100, "longest"), (80, 60)),
    (InputSpec(64, "square"), (160, 120)), (InputSpec(64, "shortest", centre_crop=48), (160, 120)),
    (InputSpec(1024, "none"), (150, 90)),
])  # fmt: skip
def test_pixels_are_those_that_a_network_sees(spec: InputSpec, size: tuple[int, int], tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", size).save(tmp_path / "one.png")
    image = read_image(tmp_path, "one.png").image
    assert image is not None
    assert plan_rates.pixels(spec, size) == full_pixels(image, spec)[0][0].size
    assert plan_rates.pixels(replace(spec, scales=(1.0, 0.5)), size) == 1.25 * plan_rates.pixels(spec, size)


def test_networks_that_are_known_without_being_built_are_as_built() -> None:
    with torch.device("meta"):
        built = {n: teacher(f"{n}?weights=random", None).build() for n in plan_rates.KNOWN}
        students = {n: student(n, None).build() for n in plan_rates.KNOWN_STUDENTS}
    for known, found in ((plan_rates.KNOWN, built), (plan_rates.KNOWN_STUDENTS, students)):
        for name, (dim, spec) in known.items():
            seen = found[name].input_spec
            names = ("size", "resize", "scales", "centre_crop", "enlarge")
            assert dim == found[name].embed_dim
            assert all(getattr(spec, field) == getattr(seen, field) for field in names), name


def test_rates_are_named_by_teacher_or_for_all() -> None:
    names = ("gem", "mobilenet-v1?width=0.5", "mobilenet-v1?width=0.25")
    found = plan_rates.rates_by_teacher(["100", "gem=50", "mobilenet-v1?width=0.5=70"], names, "--rate")
    assert found == {"gem": 50, "mobilenet-v1?width=0.5": 70, "mobilenet-v1?width=0.25": 100}
    with pytest.raises(InputError, match="several teachers are called mobilenet-v1"):
        plan_rates.rates_by_teacher(["mobilenet-v1=7"], names, "--rate")


# ---------------------------------------------------------------- the command

PAGE = Path(__file__).resolve().parents[3] / "docs/scale.md"
SHOWN = re.findall(r"^```text\n\$ cgd (plan (?:.*\\\n)*.*)\n((?:.*\n)*?)```", PAGE.read_text(), re.MULTILINE)

GIVEN = ["--rate", "300", "--train-rate", "1500", "--load-rate", "200", "--read-rate", "1e9", "--store-rate", "4e8",
         "--file-rate", "200", "--flop-rate", "1e11"]  # fmt: skip


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plan", *arguments])


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_the_plans_in_the_documents_are_what_the_command_prints(command: str, shown: str) -> None:
    done = run(*shlex.split(command.replace("\\\n", " "))[1:])
    assert done.exit_code == 0, done.stderr
    assert [line.rstrip() for line in done.stdout.splitlines()] == [line.rstrip() for line in shown.splitlines()]


def test_plans_are_shown() -> None:
    assert len(SHOWN) >= 3


def test_where_everything_is_given_nothing_is_measured_and_torch_is_not_loaded() -> None:
    words = ["plan", "--images", "1580470", "--teachers", "gem,delg", "--views", "4", "--gpus", "8", *GIVEN, "--json"]
    code = f"import sys; from cgd.cli import cli; cli.main({words!r}, standalone_mode=False)"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [s["stage"] for s in found["stages"]][:2] == ["teachers: full images", "teachers: crops"]
    assert {s["rate_from"] for s in found["stages"]} == {"given", "derived"}
    assert found["total"]["bytes"] == sum(s["bytes"] for s in found["stages"])
    assert found["total"]["wall_hours"] == pytest.approx(sum(s["wall_hours"] for s in found["stages"]))


def test_what_is_not_given_is_measured_on_the_images_at_hand(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("--dataset", f"manifest:{drawn}/manifest.csv", "--split", "train", "--views", "1", "--seconds", "0.1",
               "--teachers", "mobilenet-v1?width=0.25&size=32&weights=absent.safetensors",
               "--set", "extract.crop_size=32", "--student", "mobilenet-v1?width=0.25&dim=16&size=32",
               "--set", "distill.image_size=32", "--dim", "8",
               "--distractors", "100", "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert {r["known"] for r in found["rates"].values()} == {"measured"}
    assert {t[kind]["known"] for t in found["teachers"] for kind in ("full", "crops")} == {"measured"}
    assert all(rate["value"] > 0 for rate in found["rates"].values())
    assert found["images"] == 24
    assert found["image_bytes"] == pytest.approx(
        sum(p.stat().st_size for p in (drawn / "images").iterdir() if p.name.startswith("train")) / 24, rel=1
    )


def test_without_crops_and_without_images_drawn_ones_are_measured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--train-rate", "9", "--store-rate", "1e8", "--file-rate", "9", "--flop-rate", "1e9"]
    done = run("--images", "50", "--teachers", "mobilenet-v1?width=0.25&size=32", "--size", "80", "60",
               "--seconds", "0.05", "--dim", "8", *given, "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout, parse_constant=pytest.fail)  # neither NaN nor infinity
    assert [s["stage"] for s in found["stages"]][:2] == ["teachers: full images", "teachers: waiting"]
    assert found["rates"]["read"] is None  # of drawn images it would say nothing
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_decoded_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.jpg").write_bytes(b"no picture")
    done = run("--dataset", "folder:photos", "--teachers", "mobilenet-v1?width=0.25&size=32", "--dim", "1",
               "--seconds", "0.1")  # fmt: skip
    assert done.exit_code == 1
    assert "can be decoded" in done.stderr


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--teachers", "gmm"], "unknown teacher 'gmm': did you mean gem"),
    (["--teachers", "gem", "--rate", "delg=3"], "--rate delg=3: unknown teacher 'delg'"),
    (["--teachers", "gem", "--rate", "gem=-3"], "the rate of gem is a number above 0, got -3."),
    (["--teachers", "gem", "--full-rate", "gem=nan"], "the rate of gem is a number above 0, got nan."),
    (["--teachers", "gem", "--rate", "gem=fast"], "--rate gem=fast: expected TEACHER=NUMBER"),
    (["--teachers", "delg", "--dim", "1000", *GIVEN], "delg has 512 dimensions"),
    ([], "no teacher is named"),
    (["--teachers", "gem,gem"], "a teacher is named twice"),
])  # fmt: skip
def test_what_makes_no_plan_is_told_in_a_sentence(arguments: list[str], sentence: str) -> None:
    done = run("--images", "1000", *arguments)
    assert done.exit_code == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [
    ["--images", "-1"], ["--images", "5", "--views", "-1"], ["--images", "5", "--gpus", "0"],
    ["--images", "5", "--store-rate", "0"], ["--images", "5", "--scaling", "1.5"], ["--teachers", "gem"],
])  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
