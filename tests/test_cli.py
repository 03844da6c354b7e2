"""The command line as a contract: what is imported, what is printed where, and with which exit status."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from click.testing import CliRunner, Result

from cgd.cli import cli
from cgd.cli.options import names_in
from cgd.errors import InputError
from cgd.store.feature_store import FeatureStore

TEACHER = "mobilenet-v1?width=0.25&size=64&weights=random"
LABEL = "mobilenet-v1-width-0.25"
STUDENT = "mobilenet-v1?width=0.25&dim=8&size=64"
CPU = ("--device", "cpu", "--workers", "0")
RECIPE = f"""
data: {{train: lm@train, benchmarks: [lm]}}
extract: {{teachers: ['{TEACHER}'], views: 1, crop_size: 64}}
whiten: {{dim: 8}}
distill: {{student: '{STUDENT}', epochs: 1, batch_pairs: 4, image_size: 64}}
"""


def cgd(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def only_object(text: str) -> dict[str, Any]:
    """The one JSON object `text` consists of; NaN and infinity are no JSON."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    found = json.loads(text, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


@dataclass(frozen=True)
class Flow:
    """The main job done once in `folder`: the result of each command by its name."""

    folder: Path
    results: dict[str, Result]

    def object(self, name: str) -> dict[str, Any]:
        assert self.results[name].exit_code == 0, self.results[name].output
        return only_object(self.results[name].stdout)


@pytest.fixture(scope="module")
def flow(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    folder = tmp_path_factory.mktemp("flow")
    data = f"manifest:{drawn / 'manifest.csv'}"
    commands = {
        "extract": ("extract-teachers", "--dataset", data, "--name", "lm", "--split", "train", "--views", "1",
                    "--teachers", TEACHER, "--set", "extract.crop_size=64", *CPU),
        "whiten": ("fit-whitening", "--dataset", "lm@train", "--dim", "8"),
        "distill": ("distill", "--dataset", "lm@train", "--student", STUDENT, "--epochs", "1", "--batch-pairs", "4",
                    "--set", "distill.image_size=64", "--out", "student", *CPU),
        "evaluate": ("evaluate", "--student", "student", "--benchmark", "lm", *CPU),
        "both": ("evaluate", "--teachers", TEACHER, "--whitening", "lm@train", "--benchmark", "lm", *CPU,
                 "--queries", "both", "--distractors", "lm@distractors", "--distractors", "random:50"),
        "run": ("run", "r.yaml", "--data", f"lm={data}", "--out", "out", *CPU),
        "again": ("extract-teachers", "--dataset", "lm@train", "--views", "1",
                  "--teachers", TEACHER, "--set", "extract.crop_size=64", *CPU),
        "ls": ("store", "ls"),
        "info": ("store", "info", "embeddings/lm-train.mobilenet-v1-width-0.25.crop-1"),
        "verify": ("store", "verify"),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "r.yaml").write_text(RECIPE)
        return Flow(folder, {name: cgd(*arguments, "--json") for name, arguments in commands.items()})


# what a script may rely on


def test_extraction_reports_images_failures_and_a_key_per_teacher(flow: Flow) -> None:
    report = flow.object("extract")
    assert (report["images"], report["valid"], report["failed"]) == (24, 24, [])
    assert set(report["teachers"]) == {LABEL}
    teacher = report["teachers"][LABEL]
    assert {"key", "shards_written", "shards_skipped", "images_per_second"} <= set(teacher)
    assert teacher["key"].startswith(f"embeddings/lm-train.{LABEL}.fixed-")
    assert (teacher["shards_written"], teacher["shards_skipped"]) == (2, 0)
    assert teacher["images_per_second"] > 0


def test_extraction_a_second_time_skips_everything(flow: Flow) -> None:
    first, again = (flow.object(n)["teachers"][LABEL] for n in ("extract", "again"))
    assert (again["shards_written"], again["shards_skipped"]) == (0, 2)
    assert again["keys"] == first["keys"]


def test_whitening_reports_key_rows_dimensions_energy_and_clamping_per_teacher_and_kind(flow: Flow) -> None:
    report = flow.object("whiten")
    assert {teacher: set(kinds) for teacher, kinds in report.items()} == {LABEL: {"fixed", "crop"}}
    for kind, fitted in report[LABEL].items():
        assert fitted["key"].startswith(f"whitening/lm-train.{LABEL}.{kind}-")
        assert (fitted["rows"], fitted["dim_in"], fitted["dim_out"]) == (24, 256, 8)
        assert 0 < fitted["energy_kept"] <= 1
        assert fitted["clamped"] >= 256 - 24


def parameters_of_the_student() -> int:
    """MobileNetV1 at width 0.25, counted from its table: weights, and scale and shift of each batch norm."""
    blocks = [(8, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), *[(128, 128)] * 5, (128, 256), (256, 256)]
    separable = sum(9 * a + 2 * a + a * b + 2 * b for a, b in blocks)
    return (27 * 8 + 2 * 8) + separable + (256 * 8 + 8)


def test_distillation_reports_student_size_cost_loss_and_seconds(flow: Flow) -> None:
    report = flow.object("distill")
    assert report["key"].startswith("students/lm-train.")
    assert report["parameters"] == parameters_of_the_student()
    assert 0 < report["gmacs"] < 0.1
    assert report["epochs"] == 1
    assert report["final_loss"] > 0
    assert set(report["seconds_per_step"]) == {"data", "targets", "forward", "backward"}
    assert (flow.folder / report["folder"] / "model.safetensors").is_file()


def test_an_evaluation_reports_protocols_in_percent_beside_their_card(flow: Flow) -> None:
    report = flow.object("evaluate")
    assert {"benchmark", "model", "mode", "queries", "gallery", "distractors", "card", "protocols", "seconds",
            "peak_rss_mb"} <= set(report)  # fmt: skip
    assert (report["benchmark"], report["mode"], report["queries"], report["gallery"]) == ("lm", "symmetric", 3, 24)
    assert set(report["protocols"]) == {"easy", "medium", "hard"}
    for protocol in report["protocols"].values():
        assert {"mAP", "mP@1", "mP@5", "mP@10", "queries"} <= set(protocol)
        assert protocol["queries"] == 3
        assert 0 < protocol["mAP"] <= 100
    assert max(p["mAP"] for p in report["protocols"].values()) > 1  # percent, not fractions
    card = report["card"]
    assert (card["query_crop"], card["scales"], card["image_size"], card["dim"]) == (True, [1.0], 64, 8)
    assert (card["ties"], card["index"]) == ("score, then index", "exact")
    assert set(report["seconds"]) == {"embed", "describe", "search", "score"}
    assert report["peak_rss_mb"] > 50


def test_both_query_protocols_are_a_list_of_runs(flow: Flow) -> None:
    report = flow.object("both")
    assert set(report) == {"runs"}
    assert [r["card"]["query_crop"] for r in report["runs"]] == [True, False]
    assert [r["distractors"] for r in report["runs"]] == [56, 56]
    assert all("not a published protocol" in json.dumps(r["card"]) for r in report["runs"])
    assert report["runs"][0]["protocols"] != report["runs"][1]["protocols"]


def test_a_labelled_benchmark_has_one_protocol_with_recalls(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flow.folder)
    lines = [line for line in Path(_manifest(flow)).read_text().splitlines() if ",train" in line or "image_id" in line]
    folder = Path(_manifest(flow)).parent
    (flow.folder / "images").symlink_to(folder / "images")
    (flow.folder / "manifest.csv").write_text("\n".join(lines))
    command = ("evaluate", "--teachers", TEACHER, "--benchmark", "manifest:manifest.csv", "--name", "labelled", *CPU)
    report = only_object(cgd(*command, "--json").stdout)
    assert set(report["protocols"]) == {"labels"}
    assert {"mAP", "recall@1", "recall@5", "recall@10"} <= set(report["protocols"]["labels"])
    assert report["card"]["relevance"] == "label, leave-one-out"
    assert report["card"]["query_crop"] is None


def _manifest(flow: Flow) -> str:
    import yaml

    entries = yaml.safe_load((flow.folder / ".cgd/roots.yaml").read_text())
    return str(next(e["spec"] for e in entries.values() if e["name"] == "lm").partition(":")[2])


def test_a_recipe_does_nothing_twice_and_scores_everything(flow: Flow) -> None:
    report = flow.object("run")
    (student,) = report["students"]
    assert student["key"] == flow.object("distill")["key"]
    assert student["skipped"]
    assert {s["row"] for s in report["scores"]} == {"teacher", "student before", "student"}
    last = report["scores"][-1]
    assert (last["row"], last["benchmark"], last["seed"]) == ("student", "lm", 0)
    assert last["protocols"] == flow.object("evaluate")["protocols"]


def test_a_listing_has_every_artifact_once_and_all_are_sealed(flow: Flow) -> None:
    artifacts = flow.object("ls")["artifacts"]
    keys = [a["key"] for a in artifacts]
    assert len(set(keys)) == len(keys)
    assert {flow.object("extract")["teachers"][LABEL]["key"], flow.object("distill")["key"]} <= set(keys)
    assert {a["sealed"] for a in artifacts} == {True}
    assert {k.partition("/")[0] for k in keys} == {
        "images", "canaries", "embeddings", "whitening", "whitened", "students", "descriptors", "scores",
    }  # fmt: skip


def test_information_tells_arrays_settings_and_who_made_it(flow: Flow) -> None:
    report = flow.object("info")
    assert report["arrays"]["vectors"] == [24, 1, 256]
    assert report["arrays"]["views"] == [24, 5]
    assert report["settings"]["view"] == "crop-1"
    assert report["settings"]["policy"]["size"] == 64
    assert report["bytes"] > 24 * 256 * 4
    assert report["provenance"][0]["shards_written"] == 1


def test_verifying_counts_artifacts_and_problems(flow: Flow) -> None:
    assert flow.object("verify") == {"artifacts": len(flow.object("ls")["artifacts"]), "problems": [], "unfinished": []}


def test_logs_go_to_standard_error_and_say_something(flow: Flow) -> None:
    assert "24 images" in flow.results["extract"].stderr
    assert "epoch 1 of 1" in flow.results["distill"].stderr
    assert not any("Traceback" in r.stderr for r in flow.results.values())


def test_a_damaged_store_fails_verification_and_is_named(
    flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(flow.folder / "features.zarr", tmp_path / "copy.zarr")
    victim = next((tmp_path / "copy.zarr").glob("embeddings/*crop-1*/vectors/c/0/0/0"))
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.write_bytes(data)
    monkeypatch.setenv("CGD_STORE", str(tmp_path / "copy.zarr"))
    result = cgd("store", "verify", "--json")
    assert result.exit_code == 1
    (problem,) = only_object(result.stdout)["problems"]
    assert "crop-1" in problem
    assert "rows 0 to 23" in problem
    assert cgd("store", "verify").stdout.count("differs from its seal") == 1


def test_without_json_a_person_reads_a_table(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flow.folder)
    table = cgd("evaluate", "--student", "student", "--benchmark", "lm", *CPU, "-q")
    assert table.stderr == ""
    assert table.stdout.startswith("mAP x 100")
    assert "queries cropped; square 64" in table.stdout
    listing = cgd("store", "ls").stdout.splitlines()
    assert {f"{a['key']}  sealed" for a in flow.object("ls")["artifacts"]} <= set(listing)


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flow.folder)
    before = [e.key for e in FeatureStore.open("features.zarr").entries()]
    other = TEACHER.replace("size=64", "size=32")
    command = ("extract-teachers", "--dataset", "lm@train", "--teachers", other, "--dry-run", *CPU)
    report = only_object(cgd(*command, "--json").stdout)
    assert report["bytes"] >= 24 * 256 * 4
    assert report["free_bytes"] > 0
    assert report["seconds"] > 0
    assert "to write" in cgd(*command).stdout
    assert [e.key for e in FeatureStore.open("features.zarr").entries()] == before


# help and usage


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def test_the_commands_are_those_of_the_contract() -> None:
    assert {
        ("extract-teachers",), ("fit-whitening",), ("distill",), ("evaluate",), ("run",), ("demo",),
        ("store", "ls"), ("store", "info"), ("store", "verify"), ("store", "repair"), ("store", "copy"),
        ("store", "upgrade"), ("store", "export"), ("store", "import"), ("store", "gc"),
    } <= set(commands())  # fmt: skip


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    for option in ("--help", "-h"):
        result = cgd(*path, option)
        assert result.exit_code == 0
        assert result.stdout.startswith(f"Usage: cli {' '.join(path)}")
    examples = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith("cgd ")]
    assert any(e.startswith(f"cgd {' '.join(path)}") for e in examples)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_takes_the_options_of_all(path: tuple[str, ...]) -> None:
    text = cgd(*path, "--help").stdout
    for option in ("--store", "--json", "--quiet", "--verbose", "--debug"):
        assert option in text


def test_groups_have_help_and_the_version_is_told() -> None:
    assert cgd("--help").exit_code == cgd("store", "--help").exit_code == 0
    assert "extract-teachers" in cgd("--help").stdout
    assert "version" in cgd("--version").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("extract",), "No such command 'extract'"),
        (("extract-teachers",), "Missing option '--dataset'"),
        (("extract-teachers", "--dataset", "x", "--view", "1"), "No such option"),
        (("extract-teachers", "--dataset", "x", "--views", "-1"), "Invalid value for '--views'"),
        (("extract-teachers", "--dataset", "x", "--part", "3/2"), "--part 3/2: expected i/n"),
        (("extract-teachers", "--dataset", "x", "--part", "half"), "--part half: expected i/n"),
        (("extract-teachers", "--dataset", "x", "--part", "0/2"), "expected i/n"),
        (("extract-teachers", "--dataset", "x", "--weights", "nowhere"), "'nowhere' does not exist"),
        (("extract-teachers", "--dataset", "x", "--precision", "int8"), "Invalid value for '--precision'"),
        (("fit-whitening", "--dataset", "x", "--dim", "0"), "Invalid value for '--dim'"),
        (("distill", "--dataset", "x"), "Missing option '--out'"),
        (("distill", "--dataset", "x", "--out", "o", "--batch-pairs", "1"), "Invalid value for '--batch-pairs'"),
        (("evaluate", "--benchmark", "x"), "give either --student or --teachers"),
        (("evaluate", "--benchmark", "x", "--student", "s", "--teachers", "t"), "give either --student or --teachers"),
        (("evaluate", "--benchmark", "x", "--student", "s", "--queries", "cut"), "Invalid value for '--queries'"),
        (("run", "nowhere.yaml"), "'nowhere.yaml' does not exist"),
        (("store", "info"), "Missing argument 'KEY'"),
    ],
)
def test_wrong_usage_has_status_2_and_says_what_is_wrong(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cgd(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Usage: ")
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("extra", "message"), [(("--seeds", "a"), "--seeds a"), (("--data", "lm"), "expected NAME=KIND:PATH")]
)
def test_wrong_usage_of_a_recipe(
    extra: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("data: {train: lm}\n")
    result = cgd("run", "r.yaml", *extra)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("gem", ("gem",)),
        ("gem,ap-gem,solar", ("gem", "ap-gem", "solar")),
        ("gem,,solar,", ("gem", "solar")),
        ("mobilenet-v1?mean=0.5,0.5,0.5&width=1,gem", ("mobilenet-v1?mean=0.5,0.5,0.5&width=1", "gem")),
        ("gem?scales=1,1e-1,2,timm:x?std=1,1,1", ("gem?scales=1,1e-1,2", "timm:x?std=1,1,1")),
    ],
)
def test_commas_part_names_but_not_the_numbers_of_an_option(text: str, names: tuple[str, ...]) -> None:
    assert names_in(text) == names


# trouble


def test_a_problem_is_a_sentence_and_with_debug_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quiet = cgd("extract-teachers", "--dataset", "folder:nowhere", "--teachers", TEACHER)
    assert (quiet.exit_code, quiet.stdout) == (1, "")
    assert quiet.stderr == "error: nowhere does not exist.\n"
    with pytest.raises(InputError, match="nowhere does not exist"):
        cgd("extract-teachers", "--dataset", "folder:nowhere", "--teachers", TEACHER, "--debug")


def test_an_interruption_says_that_the_command_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureStore, "open", interrupt)
    result = cgd("store", "ls")
    assert result.exit_code == 1
    assert "the same command continues" in result.stderr


def test_the_store_may_come_from_the_environment_and_the_option_wins(
    flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CGD_STORE", str(flow.folder / "features.zarr"))
    assert cgd("store", "ls").exit_code == 0
    assert "elsewhere.zarr" in cgd("store", "ls", "--store", "elsewhere.zarr").stderr


# what is imported


def python(code: str, *arguments: str, folder: Path | None = None) -> str:
    """Standard output of `code` in a fresh interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


AFTER = """
    import sys
    from cgd.cli import main
    try:
        main(sys.argv[2:])
    except SystemExit as end:
        assert not end.code, end.code
    heavy = set(sys.argv[1].split()) & {name.partition(".")[0] for name in sys.modules}
    assert not heavy, heavy
"""
HEAVY = "torch torchvision timm zarr numpy pandas PIL faiss h5py scipy safetensors sklearn"
TORCH = "torch torchvision timm"


@pytest.mark.parametrize("arguments", [("--help",), ("store", "ls"), ("store", "ls", "--json"), ("distill", "--help")])
def test_help_and_listing_import_nothing_heavy(flow: Flow, arguments: tuple[str, ...]) -> None:
    assert python(AFTER, HEAVY, *arguments, folder=flow.folder)


@pytest.mark.parametrize(
    "arguments",
    [
        ("fit-whitening", "--dataset", "lm@train", "--dim", "4"),
        ("store", "info", "students"),
        ("store", "verify"),
    ],
)
def test_whitening_and_the_store_import_no_torch(flow: Flow, arguments: tuple[str, ...]) -> None:
    assert python(AFTER, TORCH, *arguments, folder=flow.folder)


def test_targets_are_built_and_rankings_scored_without_torch(tmp_path: Path) -> None:
    """In an interpreter where torch and timm cannot be imported, from a store written there, against naive loops."""
    code = """
        import sys
        for name in ("torch", "torchvision", "timm"):
            sys.modules[name] = None  # importing it raises
        import importlib, pkgutil
        import numpy as np
        for package in ("cgd.retrieval", "cgd.fusion", "cgd.methods"):
            for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
                importlib.import_module(f"{package}.{found.name}")
        from cgd.config import EvaluateConfig, WhitenConfig, WhitenMtdConfig
        from cgd.stages.evaluate import Member, evaluate
        from cgd.stages.fuse import TargetPlan, epoch_targets
        from cgd.stages.whiten import fit_and_apply
        from cgd.store.feature_store import FeatureStore
        from cgd.store.keys import identify, ids_digest
        from cgd.types import Benchmark, ImageList

        store = FeatureStore.open("s.zarr", write=True)
        ids = tuple(f"i{n}" for n in range(30))
        labels = tuple(f"l{n % 5}" for n in range(30))
        images = ImageList("made", None, ids, ids, labels=labels)

        def embeddings(teacher, view, width):
            draw = np.random.default_rng([teacher, len(view)])
            centres = np.random.default_rng(teacher).normal(size=(5, width))
            vectors = centres[np.arange(30) % 5] + 0.1 * draw.normal(size=(30, width))
            settings = {"dataset": "made", "split": None, "ids": ids_digest(images), "view": view,
                        "encoder": {"n": teacher}, "precision": "fp32"}
            arrays = {"ids": np.array(ids, object), "vectors": vectors[:, None].astype(np.float32),
                      "valid": np.ones(30, bool), "digests": np.zeros((30, 32), np.uint8),
                      "reasons": np.array([""] * 30, object)}
            if view != "fixed":
                arrays["views"] = np.zeros((30, 5), np.float32)
            about = {"label": f"t{teacher}", "dim": width, "input": {"combine": "mean", "scales": [1.0], "size": 8,
                     "resize": "none", "filter": "bilinear"}}
            identity = identify("embeddings", ["made", f"t{teacher}", view], 1, settings)
            return store.write_whole(identity, arrays, attributes=about)

        teachers = {f"t{t}": {v: embeddings(t, v, w) for v in ("fixed", "crop-1", "crop-22")}
                    for t, w in ((1, 12), (2, 9))}
        done = fit_and_apply(store=store, teachers=teachers, config=WhitenConfig(dim=6))
        whitened = {label: views for label, (_, views) in done.items()}
        plan = TargetPlan(("s.zarr",), tuple((v["crop-1"], v["crop-22"]) for v in whitened.values()), (1, 22), labels,
                          "whiten-mtd", WhitenMtdConfig(), "max-min", 3, 0)
        batches, targets = epoch_targets(plan, 0)
        assert [len(b) for b in batches] == [3, 2]
        stored = {(t, n): store.get(v[f"crop-{n}"]).read("vectors").astype(np.float64)
                  for t, v in whitened.items() for n in (1, 22)}
        for batch, target in zip(batches, targets):
            for i in range(len(batch)):
                for j in range(len(batch)):
                    cosines = []
                    for t in whitened:
                        x = stored[t, batch.views[i, 0]][batch.rows[i, 0]]
                        y = stored[t, batch.views[j, 1]][batch.rows[j, 1]]
                        cosines.append(x @ y / np.sqrt((x @ x) * (y @ y)))
                    fused = max(cosines) if i == j else min(cosines)
                    assert abs(target["row"][i, j] - fused) < 1e-5
                    assert abs(target["col"][j, i] - fused) < 1e-5

        members = [Member(t, v["fixed"], v["fixed"]) for t, v in teachers.items()]
        result = evaluate(store=store, benchmark=Benchmark("made", images, images, None), model="m",
                          members=members, queries_cropped=None, config=EvaluateConfig(ap="mean-precision"))
        score = 0
        unit = [store.get(v["fixed"]).read("vectors")[:, 0].astype(np.float64) for v in teachers.values()]
        unit = [u / np.linalg.norm(u, axis=1, keepdims=True) for u in unit]
        cosines = sum(u @ u.T for u in unit) / 2
        precisions = []
        for q in range(30):
            others = [g for g in range(30) if g != q]
            ranked = sorted(others, key=lambda g: (-cosines[q, g], g))
            hits = [r for r, g in enumerate(ranked, 1) if g % 5 == q % 5]
            precisions.append(np.mean([(n + 1) / r for n, r in enumerate(hits)]))
        assert 50 < result["protocols"]["labels"]["mAP"] <= 100
        assert abs(result["protocols"]["labels"]["mAP"] - 100 * np.mean(precisions)) < 1e-6
        print("done")
    """
    assert python(code, folder=tmp_path) == "done\n"
