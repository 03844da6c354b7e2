"""Scores listed, compared and put into tables: numbers by hand, and no number beside one it does not compare with."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_scores import MILLION, RANDOM, write_embeddings, write_score

from cgd.errors import InputError, MissingError
from cgd.pipeline import scores, scores_text
from cgd.pipeline.steps import Session
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import identify, sha256

GOOD, BAD = [0.9, 0.8, 0.7, float("nan")], [0.5, 0.8, 0.3, float("nan")]
REVISITED = {"easy": GOOD, "medium": BAD, "hard": [0.1, 0.2, 0.3, 0.4]}


@pytest.fixture
def store(session: Session, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    monkeypatch.setattr("os.fsync", lambda _: None)  # power is not cut here
    return session.store(write=True)


def cells(table: dict[str, Any]) -> dict[str, list[float | None]]:
    return {row["model"]: [c and round(c["mAP"], 2) for c in row["cells"]] for row in table["rows"]}


def names(table: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(c["benchmark"], c["distractors"], c["protocol"]) for c in table["columns"]]


# comparing


def test_a_comparison_is_over_the_queries_with_a_positive(session: Session, store: FeatureStore) -> None:
    write_score(store, "gem", {"labels": GOOD})
    write_score(store, "solar", {"labels": BAD}, dim=128)
    found = scores.compare(session, "gem", "solar")
    only = found["protocols"]["labels"]
    assert only["mAP"] == pytest.approx([80, 160 / 3])
    assert only["difference"] == pytest.approx(80 / 3)
    assert (only["wins"], only["losses"], only["ties"], only["queries"]) == (2, 0, 1, 3)
    assert only["low"] == 0
    assert only["high"] == pytest.approx(40)
    assert only["p"] == pytest.approx(0.5, abs=0.02)
    assert found["differs"] == {"members": [["gem"], ["solar"]], "dim": [512, 128]}
    assert json.dumps(found, allow_nan=False)


def test_protocols_are_compared_one_by_one_in_their_order(session: Session, store: FeatureStore) -> None:
    write_score(store, "gem", REVISITED)
    write_score(store, "solar", {"easy": BAD, "medium": GOOD, "hard": [float("nan")] * 4})
    found = scores.compare(session, "gem", "solar")["protocols"]
    assert [*found] == ["easy", "medium", "hard"]
    assert found["easy"]["difference"] == -found["medium"]["difference"] == pytest.approx(80 / 3)
    assert (found["hard"]["p"], found["hard"]["mAP"], found["hard"]["queries"]) == (None, [None, None], 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"query_crop": False}, "query_crop is true and false"),
        ({"relevance": "label"}, "relevance is ground truth and label"),
        ({"ap": "mean-precision"}, "ap is trapezoid and mean-precision"),
        ({"ties": "score"}, "ties is score, then index and score"),
        ({"index": {"kind": "hnsw", "k": 100}}, "index is exact and hnsw, k 100"),
        ({"mode": "asymmetric"}, "mode is symmetric and asymmetric"),
        ({"distractors": [MILLION]}, "distractors is none and r1m (1001001)"),
        ({"truth": "bbbbbbbb"}, "truth is aaaaaaaa and bbbbbbbb"),
        ({"benchmark": "other"}, "benchmark is lm and other"),
        ({"queries": ["q0", "q1", "q2", "another"]}, "queries is 4 ("),
    ],
)
def test_another_protocol_is_refused_by_name_and_value(
    session: Session, store: FeatureStore, changes: dict[str, Any], said: str
) -> None:
    write_score(store, "gem", {"labels": GOOD})
    write_score(store, "solar", {"labels": BAD}, **changes)
    with pytest.raises(InputError, match="were not measured alike") as error:
        scores.compare(session, "gem", "solar")
    assert said in str(error.value)


def test_every_field_that_differs_is_named(session: Session, store: FeatureStore) -> None:
    write_score(store, "gem", {"labels": GOOD})
    write_score(store, "solar", {"labels": BAD}, query_crop=None, ap="mean-precision")
    with pytest.raises(InputError, match="query_crop is true and none; ap is trapezoid and mean-precision"):
        scores.compare(session, "gem", "solar")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scales": [1.0]}, "scales"),
        ({"image_size": 512}, "image_size"),
        ({"whitening": "whitening/lm.gem-0123456789abcdef"}, "whitening"),
        ({"descriptors": "float32"}, "descriptors"),
        ({"precision": "bf16"}, "precision"),
        ({"members": ["a", "b"], "similarity": "mean of the members' cosines"}, "similarity"),
    ],
)
def test_what_describes_the_model_may_differ_and_is_told(
    session: Session, store: FeatureStore, changes: dict[str, Any], field: str
) -> None:
    write_score(store, "gem", {"labels": GOOD})
    write_score(store, "solar", {"labels": BAD}, **changes)
    found = scores.compare(session, "gem", "solar")
    assert field in found["differs"]
    assert f"\n  {field}: " in scores_text.compare_text(found)


def test_settings_of_one_kind_of_index_describe_the_model(session: Session, store: FeatureStore) -> None:
    write_score(store, "gem", {"labels": GOOD}, index={"kind": "ivf-pq", "k": 100, "probes": 8})
    write_score(store, "solar", {"labels": BAD}, index={"kind": "ivf-pq", "k": 100, "probes": 9})
    found = scores.compare(session, "gem", "solar")
    assert found["differs"]["index_settings"] == [{"probes": 8}, {"probes": 9}]
    assert "ivf-pq, k 100 search" in scores_text.compare_text(found)


def test_an_older_card_is_read(session: Session, store: FeatureStore) -> None:
    """Before descriptors were said they were in single precision; before modes, search was symmetric."""
    write_score(store, "gem", {"labels": GOOD}, descriptors=..., distractors=..., index=...)
    write_score(store, "solar", {"labels": BAD})
    found = scores.compare(session, "gem", "solar")
    assert found["differs"]["descriptors"] == ["float32", "float16"]


def test_other_images_under_the_same_numbers_are_refused(session: Session, store: FeatureStore) -> None:
    one, same, other = (write_embeddings(store, *of) for of in (("ids", "w1"), ("ids", "w2"), ("others", "w3")))
    write_score(store, "gem", {"labels": GOOD}, inputs=[one])
    write_score(store, "solar", {"labels": BAD}, inputs=[same])
    write_score(store, "delg", {"labels": BAD}, inputs=[other])
    assert scores.compare(session, "gem", "solar")["images_compared"]
    with pytest.raises(InputError, match="images is "):
        scores.compare(session, "gem", "delg")


def test_weights_are_told_of_models_of_one_name(session: Session, store: FeatureStore) -> None:
    one, two = (write_embeddings(store, "ids", weights) for weights in ("11111111ff", "22222222ff"))
    keys = [str(write_score(store, "gem", {"labels": v}, inputs=[e])) for v, e in ((GOOD, one), (BAD, two))]
    other = str(write_score(store, "solar", {"labels": BAD}, inputs=[two]))
    assert scores.compare(session, *keys)["differs"] == {"weights": [["11111111"], ["22222222"]]}
    assert "weights" not in scores.compare(session, keys[0], other)["differs"]


def test_a_store_of_scores_alone_says_what_it_cannot_know(session: Session, store: FeatureStore) -> None:
    elsewhere = identify("embeddings", ["lm", "net"], 1, {}).key
    write_score(store, "gem", {"labels": GOOD}, inputs=[elsewhere])
    write_score(store, "solar", {"labels": BAD}, inputs=[elsewhere])
    found = scores.compare(session, "gem", "solar")
    assert not found["images_compared"]
    assert "images behind the scores are not in this store" in scores_text.compare_text(found)


def test_a_score_is_found_by_key_mark_part_and_model(session: Session, store: FeatureStore) -> None:
    gem = write_score(store, "gem", {"labels": GOOD})
    solar = write_score(store, "solar v2", {"labels": BAD})
    for text in (str(solar), solar.mark, solar.mark[:6], "lm.solar", "solar v2"):
        assert scores.compare(session, "gem", text)["b"]["key"] == str(solar)
    assert scores.compare(session, str(gem), solar.mark)["a"] == {"key": str(gem), "model": "gem"}


def test_a_models_name_comes_before_parts_of_keys(session: Session, store: FeatureStore) -> None:
    gem = write_score(store, "gem", {"labels": GOOD})
    write_score(store, "gem, whitened", {"labels": BAD})
    assert scores.compare(session, "gem", "gem, whitened")["a"]["key"] == str(gem)


def test_of_several_scores_one_is_to_be_chosen(session: Session, store: FeatureStore) -> None:
    keys = [write_score(store, "gem", {"labels": GOOD}, benchmark=b) for b in ("lm", "other")]
    write_score(store, "solar", {"labels": BAD})
    with pytest.raises(InputError, match=r"'gem' fits 2 scores, which differ in benchmark: choose with") as error:
        scores.compare(session, "gem", "solar")
    assert all(str(key) in str(error.value) for key in keys)
    assert scores.compare(session, "gem", "solar", benchmarks=["lm"])["a"]["key"] == str(keys[0])
    with pytest.raises(MissingError, match="no score has benchmark third; there is: lm; other"):
        scores.compare(session, "gem", "solar", benchmarks=["third"])


def student(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    (folder / "recipe.json").write_text('{"student": "resnet18"}')
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_student_is_found_by_its_folder_and_key(session: Session, store: FeatureStore, tmp_path: Path) -> None:
    label = f"resnet18-{sha256(b'weights')[:8]}"
    ours = write_score(store, label, {"labels": GOOD})
    write_score(store, f"{label}, asymmetric", {"labels": GOOD}, members=[label], mode="asymmetric")
    write_score(store, "gem", {"labels": BAD})
    blobs = {"model.safetensors": b"weights", "recipe.json": b'{"student": "resnet18"}'}
    key = store.write_whole(identify("students", ["lm", "resnet18"], 1, {}), {}, blobs=blobs)
    for text in (str(student(tmp_path / "student", b"weights")), str(key)):
        found = scores.compare(session, text, "gem", where={"mode": ["symmetric"]})
        assert found["a"]["key"] == str(ours)
    with pytest.raises(MissingError, match="has no score: run `cgd evaluate --student"):
        scores.compare(session, str(student(tmp_path / "other", b"others")), "gem")


def test_a_score_against_itself_is_a_slip(session: Session, store: FeatureStore) -> None:
    key = write_score(store, "gem", {"labels": GOOD})
    with pytest.raises(InputError, match="are the same score"):
        scores.compare(session, "gem", key.mark)


# tables


def test_rows_are_models_and_columns_benchmarks_and_protocols(session: Session, store: FeatureStore) -> None:
    write_score(store, "solar", REVISITED, benchmark="roxford5k")
    write_score(store, "gem", REVISITED, benchmark="roxford5k")
    write_score(store, "gem", {"labels": GOOD}, benchmark="photos", relevance="label", query_crop=None)
    table = scores.table(session)
    assert names(table) == [
        ("photos", None, "labels"),
        *(("roxford5k", None, name) for name in ("easy", "medium", "hard")),
    ]
    assert cells(table) == {"gem": [80, 80, 53.33, 25], "solar": [None, 80, 53.33, 25]}
    assert scores_text.table_text(table).splitlines()[:4] == [
        "mAP x 100  photos  roxford5k easy  roxford5k medium  roxford5k hard",
        "-------------------------------------------------------------------",
        "gem         80.00           80.00             53.33           25.00",
        "solar           -           80.00             53.33           25.00",
    ]


def test_distractors_are_columns_of_their_own(session: Session, store: FeatureStore) -> None:
    write_score(store, "gem", {"labels": GOOD})
    write_score(store, "gem", {"labels": BAD}, distractors=[MILLION])
    table = scores.table(session)
    assert names(table) == [("lm", None, "labels"), ("lm", "r1m (1001001)", "labels")]
    assert cells(table) == {"gem": [80, 53.33]}


@pytest.mark.parametrize(
    ("field", "value", "choice"),
    [
        ("query_crop", False, "query_crop=true"),
        ("mode", "asymmetric", "mode=symmetric"),
        ("ap", "mean-precision", "ap=trapezoid"),
        ("ties", "score", "'ties=score, then index'"),
        ("index", {"kind": "hnsw", "k": 9}, "index=exact"),
        ("truth", "bbbbbbbb", "truth=aaaaaaaa"),
        ("relevance", "label", "'relevance=ground truth'"),
    ],
)
def test_scores_not_measured_alike_are_no_table(
    session: Session, store: FeatureStore, field: str, value: Any, choice: str
) -> None:
    for model in ("gem", "solar"):
        write_score(store, model, {"labels": GOOD})
    write_score(store, "delg", {"labels": BAD}, **{field: value})
    with pytest.raises(InputError, match=f"so one table of them would mislead: {field} is ") as error:
        scores.table(session)
    assert f"--where {choice}" in str(error.value)
    assert "--mixed" in str(error.value)
    wanted = dict(text.split("=") for text in shlex.split(choice))
    assert [*cells(scores.table(session, where={n: [v] for n, v in wanted.items()}))] == ["gem", "solar"]


@pytest.mark.parametrize("other", [{"benchmark": "other"}, {"distractors": [MILLION]}])
def test_one_way_of_searching_holds_for_all_columns(
    session: Session, store: FeatureStore, other: dict[str, Any]
) -> None:
    write_score(store, "gem", {"labels": GOOD})
    write_score(store, "gem", {"labels": BAD}, query_crop=False, **other)
    with pytest.raises(InputError, match=r"query_crop is true \(1\) or false \(1\)"):
        scores.table(session)


def test_a_benchmark_is_one_thing_with_and_without_distractors(session: Session, store: FeatureStore) -> None:
    """Its ground truth is; there are more images with them."""
    few, many = write_embeddings(store, "gallery", "w"), write_embeddings(store, "gallery and more", "w")
    write_score(store, "gem", {"labels": GOOD}, inputs=[few])
    write_score(store, "gem", {"labels": BAD}, inputs=[few, many], distractors=[MILLION])
    assert cells(scores.table(session)) == {"gem": [80, 53.33]}
    write_score(store, "gem", {"labels": BAD}, truth="bbbbbbbb", distractors=[RANDOM])
    with pytest.raises(InputError, match="truth is "):
        scores.table(session)


def test_benchmarks_without_boxes_are_not_lost_by_the_choice(session: Session, store: FeatureStore) -> None:
    write_score(store, "gem", {"labels": GOOD}, benchmark="photos", query_crop=None)
    for crop in (True, False):
        write_score(store, "gem", {"labels": GOOD}, query_crop=crop)
    with pytest.raises(InputError, match="--where query_crop=true --where query_crop=none"):
        scores.table(session)
    assert cells(scores.table(session, where={"query_crop": ["true", "none"]})) == {"gem": [80, 80]}


def test_mixed_scores_are_told_apart_in_columns(session: Session, store: FeatureStore) -> None:
    write_score(store, "gem", {"labels": GOOD})
    write_score(store, "gem", {"labels": BAD}, query_crop=False)
    table = scores.table(session, allow_mixed=True)
    assert table["mixed"] == table["fields"] == ["query_crop"]
    assert [(row["fields"]["query_crop"], round(row["cells"][0]["mAP"])) for row in table["rows"]] == [
        (False, 53),
        (True, 80),
    ]
    assert "rows that differ in query_crop were not measured alike" in scores_text.table_text(table)
    assert "queries cropped" not in scores_text.table_text(table)
    assert r"\textbf" not in scores_text.table_latex(table)  # none is the best of what does not compare


def test_mixed_scores_of_different_benchmarks_are_no_row(session: Session, store: FeatureStore) -> None:
    write_score(store, "gem", {"labels": GOOD})
    write_score(store, "gem", {"labels": BAD}, query_crop=False, benchmark="other")
    rows = scores.table(session, allow_mixed=True)["rows"]
    assert [[c and round(c["mAP"]) for c in row["cells"]] for row in rows] == [[None, 53], [80, None]]


def test_fields_in_which_models_differ_stand_beside_them(session: Session, store: FeatureStore) -> None:
    write_score(store, "gem", {"labels": GOOD}, whitening="whitening/photos.gem.fixed-0123456789abcdef")
    write_score(store, "solar", {"labels": BAD}, dim=2048)
    text = scores_text.table_text(scores.table(session))
    assert [line.split() for line in text.splitlines()[:4] if line[0] != "-"] == [
        ["mAP", "x", "100", "dim", "whitening", "lm"],
        ["gem", "512", "photos", "0123", "80.00"],
        ["solar", "2048", "none", "53.33"],
    ]


def test_a_model_scored_again_is_told_apart_in_the_list(session: Session, store: FeatureStore) -> None:
    for precision in ("float16", "float32"):
        write_score(store, "gem", {"labels": GOOD}, descriptors=precision)
    text = scores_text.list_text(scores.list_scores(session))
    assert sorted(re.findall("float..", text)) == ["float16", "float32"]
    assert "float" not in scores_text.list_text(scores.list_scores(session, where={"descriptors": ["float16"]}))


def test_two_models_of_one_name_are_two_rows(session: Session, store: FeatureStore) -> None:
    """Told apart by what is on their cards, else by their weights, else by their scores' marks."""
    write_score(store, "gem", {"labels": GOOD}, dim=128)
    write_score(store, "gem", {"labels": BAD})
    assert scores.table(session)["fields"] == ["dim"]
    for weights in ("11111111ff", "22222222ff"):
        write_score(store, "net", {"labels": BAD}, inputs=[write_embeddings(store, "ids", weights)])
    table = scores.table(session, where={"model": ["net"]})
    assert [row["fields"] for row in table["rows"]] == [{"weights": ["11111111"]}, {"weights": ["22222222"]}]
    keys = [write_score(store, "old", {"labels": BAD}, artifacts=[str(n)]) for n in range(2)]
    table = scores.table(session, where={"model": ["old"]})
    assert [row["fields"]["key"] for row in table["rows"]] == sorted(k.mark for k in keys)


def test_ensembles_tell_their_members_and_fused_galleries_their_teachers(session: Session, store: FeatureStore) -> None:
    write_score(store, "both", {"labels": GOOD}, members=["gem", "solar"], similarity="mean of the members' cosines")
    fused = {"teachers": ["gem", "delg"], "fusion": "mean"}
    write_score(store, "light, asymmetric", {"labels": GOOD}, mode="asymmetric", gallery=fused)
    text = scores_text.table_text(scores.table(session, allow_mixed=True))
    assert "both: mean of the members' cosines: gem, solar" in text
    assert "light, asymmetric: gallery by gem, delg fused by mean" in text
    _, row = csv_rows(scores_text.table_csv(scores.table(session, where={"mode": ["symmetric"]})))
    assert row[:2] == ["both", "gem, solar"]


def test_intervals_are_those_of_the_mean(session: Session, store: FeatureStore) -> None:
    write_score(store, "gem", {"labels": [0.0, 1.0, float("nan")]})
    (cell,) = scores.table(session, intervals=True)["rows"][0]["cells"]
    assert (cell["low"], cell["mAP"], cell["high"], cell["queries"]) == (0, 50, 100, 2)
    assert "low" not in scores.table(session)["rows"][0]["cells"][0]


def test_every_protocol_stands_beside_the_table(session: Session, store: FeatureStore) -> None:
    write_score(store, "gem", {"labels": GOOD}, relevance="label", query_crop=None)
    write_score(store, "gem", REVISITED, benchmark="roxford5k", query_crop=False)
    for form in scores_text.TABLES.values():
        text = form(scores.table(session))
        assert "lm: 4 queries; gallery of 1000 images; symmetric; queries have no box; relevance by label" in text
        assert "roxford5k: 4 queries" in text
        assert "full queries (not the benchmark's protocol)" in text
        assert "trapezoid AP; ties by score, then index; exact search" in text


def test_synthetic_distractors_are_marked_wherever_they_are_printed(session: Session, store: FeatureStore) -> None:
    for model in ("gem", "solar"):
        write_score(store, model, {"labels": GOOD}, distractors=[RANDOM])
    printed = [
        scores_text.list_text(scores.list_scores(session)),
        scores_text.compare_text(scores.compare(session, "gem", "solar")),
        *(form(scores.table(session)) for form in scores_text.TABLES.values()),
    ]
    assert all("not a published protocol" in text for text in printed)
    assert "lm + random:50 (50)†" in printed[2]
    assert csv_rows(printed[3])[0][1] == "lm + random:50 (50) (not a published protocol) mAP"
    assert r"lm + random:50 (50)\textdagger{}" in printed[4]


def test_a_choice_takes_alternatives_and_stars(session: Session, store: FeatureStore) -> None:
    for model in ("gem", "gem, whitened", "solar", "solar [x]"):
        write_score(store, model, {"labels": GOOD})

    def chosen(*texts: str) -> list[str]:
        return [s["model"] for s in scores.list_scores(session, where={"model": texts})["scores"]]

    assert chosen("gem*") == ["gem", "gem, whitened"]
    assert chosen("gem", "solar") == ["gem", "solar"]
    assert chosen("solar [x]") == ["solar [x]"]
    with pytest.raises(InputError, match="unknown field of a score 'modell': did you mean model"):
        scores.list_scores(session, where={"modell": ["gem"]})


# names of all kinds

NASTY = (
    "a,b", 'say "hi"', "two\nlines", "100 % & more_of #1 {x} ~ ^ \\ $5", "<b>|</b>", "[1em] first", "* star",
    "a--b", "Zürich 寺院",
)  # fmt: skip
FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =cmd|'/c calc'!A1", "\n=1")


def csv_rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("name", NASTY)
def test_csv_gives_back_every_name_and_the_whole_number(session: Session, store: FeatureStore, name: str) -> None:
    write_score(store, name, {"labels": [0.1, 0.2, 0.4]})
    write_score(store, "gem", {"labels": GOOD[:3]})
    head, *rows = csv_rows(scores_text.table_csv(scores.table(session, intervals=True)))
    assert head == ["model", "lm mAP", "lm low", "lm high", "protocol"]
    found = {row[0]: row[1:] for row in rows}
    assert float(found[name][0]) == 100 * float(np.mean([0.1, 0.2, 0.4]))
    assert all(len(row) == len(head) for row in rows)


@pytest.mark.parametrize("name", FORMULAS)
def test_csv_holds_no_formula(session: Session, store: FeatureStore, name: str) -> None:
    write_score(store, name, {"labels": GOOD}, benchmark=name)
    text = scores_text.table_csv(scores.table(session))
    assert csv_rows(text)[1][0] == f"'{name}"
    for cell in (cell for row in csv_rows(text) for cell in row):
        assert not re.match(r"[\s]*[=+\-@]", cell), cell


def printed(latex: str) -> str:
    """What LaTeX prints of escaped text; refuses a special character that is not escaped."""
    named = {"backslash": "\\", "asciitilde": "~", "asciicircum": "^", "less": "<", "greater": ">", "bar": "|"}
    token = re.compile(r"\\text(?P<named>\w+)\{\}|\\(?P<escaped>[&%$#_{}])|(?P<empty>\{\})|(?P<plain>[^\\{}&%$#_~^])")
    text, at = "", 0
    while at < len(latex):
        match = token.match(latex, at)
        assert match, f"not escaped: {latex[at:]}"
        text += named[match["named"]] if match["named"] else match["escaped"] or match["plain"] or ""
        at = match.end()
    return text


@pytest.mark.parametrize("name", NASTY)
def test_latex_prints_every_name_as_it_is(name: str) -> None:
    escaped = scores_text.latex(name)
    assert printed(escaped) == name.replace("\n", "\\n")
    assert not escaped.startswith(("[", "*"))  # after \\ and \midrule these would be read as options
    assert "--" not in escaped


def test_latex_is_one_table_of_equal_rows(session: Session, store: FeatureStore) -> None:
    for number, name in enumerate(NASTY):
        write_score(store, name, {p: [0.5 + number / 100, 0.2] for p in ("easy", "medium", "hard")}, dim=number)
        write_score(
            store, name, {"labels": [0.5]}, benchmark="photos_1", relevance="label", query_crop=None, dim=number
        )
    text = scores_text.table_latex(scores.table(session, intervals=True))
    assert re.findall(r"\\(begin|end)\{(\w+)\}", text) == [
        ("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table"),
    ]  # fmt: skip
    depth = 0
    for brace in re.findall(r"(?<!\\)(?:\\\\)*([{}])", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    caption = re.search(r"\\caption\{mAP \$\\times\$ 100\. (.*)\}\n", text)
    assert caption
    assert "photos_1: 1 queries" in printed(caption[1])
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert columns
    assert columns[1] == "ll" + "r" * 4
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    widths = [
        len(re.findall(r"(?<!\\)&", row)) + 1 + sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d)\}", row))
        for row in rows
    ]
    assert r"\cmidrule(lr){3-5} \cmidrule(lr){6-6}" in text
    assert widths == [6] * (2 + len(NASTY))
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1


def test_latex_puts_the_best_of_each_column_in_bold(session: Session, store: FeatureStore) -> None:
    write_score(store, "gem", {"labels": GOOD})
    write_score(store, "solar", {"labels": [x + 1e-6 for x in GOOD]})  # printed alike
    write_score(store, "delg", {"labels": BAD})
    write_score(store, "delg", {"labels": BAD}, benchmark="other")
    rows = scores_text.table_latex(scores.table(session)).splitlines()
    assert [line.strip() for line in rows if line.strip().startswith(("gem", "solar", "delg"))] == [
        r"delg & 53.33 & \textbf{53.33} \\", r"gem & \textbf{80.00} & -- \\", r"solar & \textbf{80.00} & -- \\",
    ]  # fmt: skip


def test_text_keeps_every_model_on_its_line(session: Session, store: FeatureStore) -> None:
    for name in (*NASTY, "red \x1b[31m", "right \u202e left"):
        write_score(store, name, {"labels": GOOD})
    for text in (
        scores_text.table_text(scores.table(session)), scores_text.list_text(scores.list_scores(session))
    ):  # fmt: skip
        assert len([line for line in text.splitlines() if "80.00" in line]) == len(NASTY) + 2
        assert all(line.isprintable() for line in text.splitlines())
    other = scores_text.compare_text(scores.compare(session, "red \x1b[31m", "two\nlines"))
    assert "A  red \\x1b[31m  (" in other
