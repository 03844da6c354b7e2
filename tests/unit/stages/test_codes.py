"""Binary codes from stored embeddings to a score: against loops, beside ties, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from made import embeddings, image_list

from cgd.cli import cli
from cgd.config import EvaluateConfig
from cgd.errors import InputError
from cgd.pipeline.text import scores_text
from cgd.stages.codes import encode, read_codes
from cgd.stages.descriptors import Member, RandomDistractors
from cgd.stages.evaluate import evaluate
from cgd.store.feature_store import FeatureStore
from cgd.types import Benchmark, Key

BITS, GALLERY, QUERIES = 12, 60, 9
SIGN = EvaluateConfig(codes="sign")


def labels(count: int, seed: int) -> tuple[str, ...]:
    """Of no class up to three of four."""
    chosen = np.random.default_rng(seed).random((count, 4)) < 0.35
    return tuple("|".join(f"c{c}" for c in np.flatnonzero(row)) for row in chosen)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    store = FeatureStore.open(tmp_path_factory.mktemp("made") / "s.zarr", write=True)
    generator = np.random.default_rng(0)
    gallery = image_list("m", "gallery", GALLERY, labels(GALLERY, 1))
    queries = image_list("m", "query", QUERIES, labels(QUERIES, 2))
    unlabelled = next(row for row, label in enumerate(gallery.labels or ()) if not label)
    vectors = {n: generator.standard_normal((c, BITS)) for n, c in (("gallery", GALLERY), ("queries", QUERIES))}
    vectors["gallery"][3, :2] = 0.0
    valid = np.arange(GALLERY) != unlabelled
    member = Member(
        "net", embeddings(store, gallery, vectors["gallery"], valid), embeddings(store, queries, vectors["queries"])
    )
    return {
        "store": store, "benchmark": Benchmark("m", gallery, queries, None), "member": member, "valid": valid, **vectors
    }  # fmt: skip


def scored(place: dict[str, Any], **changes: Any) -> dict[str, Any]:
    given = {
        "store": place["store"], "benchmark": place["benchmark"], "model": "net", "members": [place["member"]],
        "queries_cropped": None, "config": SIGN,
    }  # fmt: skip
    return evaluate(**(given | changes))


def naive(place: dict[str, Any], top: int, last: Any, leave_one_out: bool = False) -> list[float]:
    """AP of every query by sorting tuples; `last` orders what ties in distance, from relevance and row."""
    benchmark, values = place["benchmark"], []
    for query, vector in enumerate(place["queries"]):
        own = set(filter(None, benchmark.queries.labels[query].split("|")))
        ranking = []
        for row, other in enumerate(place["gallery"]):
            if place["valid"][row] and not (leave_one_out and row == query):
                apart = sum((a > 0) != (b > 0) for a, b in zip(vector, other, strict=True))
                relevant = bool(own & set(benchmark.gallery.labels[row].split("|")))
                ranking.append((apart, last(relevant, row), relevant))
        hits = [relevant for _, _, relevant in sorted(ranking)][:top]
        at = [sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit]
        values.append(sum(at) / len(at) if at else 0.0)
    return values


@pytest.mark.parametrize("top", [0, 7])
def test_scores_are_those_of_a_loop_however_ties_fall(place: dict[str, Any], top: int) -> None:
    found = scored(place, config=EvaluateConfig(codes="sign", top=top))["protocols"]["hamming"]
    orders = {"mAP": lambda _, row: row, "mAP_optimistic": lambda hit, _: not hit,
              "mAP_pessimistic": lambda hit, _: hit}  # fmt: skip
    for name, last in orders.items():
        assert found[name] == pytest.approx(100 * float(np.mean(naive(place, top or GALLERY, last))), abs=1e-9)
    assert found["mAP_pessimistic"] < found["mAP"] < found["mAP_optimistic"]
    assert found["queries"] == QUERIES, "a query without a class counts as 0"
    low, high = found["mAP_interval"]
    assert low < found["mAP"] < high


def test_an_image_is_no_answer_to_itself(place: dict[str, Any]) -> None:
    """Leave-one-out over the gallery: the query's own code, at distance 0, is taken out of its list."""
    store, images = place["store"], place["benchmark"].gallery
    readable = embeddings(store, images, place["gallery"], encoder="whole")
    found = scored(place, benchmark=Benchmark("m", images, images, None), members=[Member("whole", readable, readable)])
    others = {**place, "queries": place["gallery"], "valid": np.ones(GALLERY, bool)}
    others["benchmark"] = Benchmark("m", images, images, None)
    assert found["card"]["relevance"] == "at least one shared class, leave-one-out"
    expected = naive(others, GALLERY, lambda _, row: row, leave_one_out=True)
    assert found["protocols"]["hamming"]["mAP"] == pytest.approx(100 * float(np.mean(expected)), abs=1e-9)


def test_precision_and_recall_are_shares_of_the_depth_and_of_the_positives(place: dict[str, Any]) -> None:
    found = scored(place, config=EvaluateConfig(codes="sign", recall_at=(1, GALLERY)))["protocols"]["hamming"]
    assert {f"{what}@{k}" for what in ("precision", "recall") for k in (1, GALLERY)} <= found.keys()
    unlabelled = sum(not label for label in place["benchmark"].queries.labels) / QUERIES
    assert found[f"recall@{GALLERY}"] == pytest.approx(100 * (1 - unlabelled))


def test_the_card_says_bits_depth_and_ties(place: dict[str, Any]) -> None:
    result = scored(place, config=EvaluateConfig(codes="sign", top=7))
    card = result["card"]
    assert (card["bits"], card["top"], card["ties"]) == (BITS, 7, "distance, then index")
    assert card["similarity"] == "Hamming distance"
    text = scores_text([result])
    for said in (
        "12 bits", "mean-precision@7 (over hits) AP", "ties by distance, then index", "at least one shared class",
        "exact binary search", "however ties fall", "precision@10",
    ):  # fmt: skip
        assert said in text


def test_codes_are_kept_and_read_again(place: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    store, member = place["store"], place["member"]
    assert isinstance(member.gallery, Key)
    key = encode(store, member.gallery, None)
    codes = read_codes(store, key)
    assert (key.kind, codes.bits, codes.packed.shape, codes.packed.dtype) == ("codes", BITS, (GALLERY, 2), np.uint8)
    bits = np.unpackbits(codes.packed, axis=1)[place["valid"]]
    np.testing.assert_array_equal(bits[:, :BITS], place["gallery"][place["valid"]] > 0)
    assert not bits[:, BITS:].any()
    assert store.get(key).attributes["zeros"] == 2
    assert not next(iter(store.verify(key)))[1]
    fresh = FeatureStore.open(Path(store.files.url).parent / "fresh.zarr", write=True)
    images = image_list("z", None, 2)
    with caplog.at_level("WARNING", "cgd"):
        encode(fresh, embeddings(fresh, images, np.array([[0.0, 1], [2, 3]])), None)
    assert "1 outputs are exactly 0, which has no sign: they count as below 0" in caplog.text


def test_what_has_no_codes_is_refused(place: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="of one model"):
        scored(place, members=[place["member"]] * 2)
    with pytest.raises(InputError, match="vectors without codes"):
        scored(place, random=RandomDistractors(5))
    with pytest.raises(InputError, match="an index of their own"):
        EvaluateConfig(codes="sign", index="flat")
    with pytest.raises(InputError, match=r"evaluate\.top cuts"):
        EvaluateConfig(top=5)
    store, benchmark = place["store"], place["benchmark"]
    narrow = embeddings(store, benchmark.queries, place["queries"][:, :8], encoder="narrow")
    wide = embeddings(store, benchmark.gallery, place["gallery"], encoder="narrow")
    with pytest.raises(InputError, match="the codes of the queries have 8 bits, others 12"):
        scored(place, members=[Member("net", wide, narrow)])


def test_from_the_command_line(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave-one-out over the training images, which are the drawn folder's sub-folders."""
    monkeypatch.chdir(tmp_path)
    table = (drawn / "manifest.csv").read_text().splitlines()
    chosen = [line for line in table[1:] if ",train" in line]
    (tmp_path / "images").symlink_to(drawn / "images")
    (tmp_path / "manifest.csv").write_text("\n".join([table[0], *chosen]) + "\n")
    arguments = [
        "evaluate",
        "--teachers",
        "colours",
        "--benchmark",
        "manifest:manifest.csv",
        "--json",
        "--device",
        "cpu",
    ]
    done = CliRunner().invoke(cli, [*arguments, "--set", "evaluate.codes=sign"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["card"]["relevance"] == "at least one shared class, leave-one-out"
    assert result["protocols"]["hamming"].keys() >= {"mAP", "mAP_optimistic", "mAP_pessimistic", "precision@10"}
    listed = CliRunner().invoke(cli, ["scores", "ls"])
    assert listed.exit_code == 0, listed.output
